"""The built site behind a server of its own, and Debian's Chromium to look at it with."""

import functools
import http.server
import shutil
import threading
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "site"
CHROMIUM = shutil.which("chromium")
collect_ignore_glob = [] if CHROMIUM and SITE.is_dir() else ["test_*.py"]


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args):
    return {**browser_type_launch_args, "executable_path": CHROMIUM, "args": ["--no-sandbox"]}


@pytest.fixture(scope="session")
def site_url():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def watched(page, site_url):
    """A page of the browser that may ask nothing of other hosts, and what went wrong on it."""
    wrong = []

    def guard(route):
        if route.request.url.startswith((site_url, "data:", "blob:")):
            route.continue_()
        else:
            wrong.append(f"asked another host for {route.request.url}")
            route.abort()

    page.route("**/*", guard)
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda response: wrong.append(f"{response.status} {response.url}") if response.status >= 400 else None)
    return page, wrong
