"""MkDocs asks here for the pages that are computed: the tutorials, executed, and a page for each pattern, from its file.

What was computed is kept under .cache/pages by the content of all that it depends on: a build where nothing changed computes nothing.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path

import catalogue_pages
import nbformat
from execution import BuildError, executed
from markdown_text import markdown
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from vipatterns import catalogue

PAGES = Path(__file__).parent
ROOT = PAGES.parent
TUTORIALS = ROOT / "tutorials"
KEPT = ROOT / ".cache" / "pages"
PARALLEL = 2
"""Pages computed at a time."""

log = logging.getLogger("mkdocs.hooks.pages")


def on_config(config):
    """The patterns' pages get their place in the navigation, which no one keeps by hand."""
    pages = [{catalogue_pages.words(p.name): f"patterns/{p.name}.md"} for p in catalogue.patterns()]
    for entry in config.nav:
        if "Patterns" in entry:
            entry["Patterns"] = ["patterns.md", *pages]
    return config


def on_files(files, config):
    """The pages that tutorials and patterns become."""
    patterns = catalogue.patterns()
    pages: dict[str, Callable[[], str]] = {}
    for source in sources():
        pages[f"{source.stem}.md"] = lambda source=source: tutorial(source)
    for pattern in patterns:
        pages[f"patterns/{pattern.name}.md"] = lambda pattern=pattern: pattern_page(pattern, patterns)
    with ThreadPoolExecutor(PARALLEL) as pool:
        made = {name: pool.submit(make) for name, make in pages.items()}
        try:
            for name, future in made.items():
                files.append(File.generated(config, name, content=future.result()))
        except BuildError as error:
            pool.shutdown(cancel_futures=True)
            raise PluginError(str(error)) from error
    return files


def on_page_markdown(markdown, **_):
    """The tables of the catalogue stand where a page asks for them."""
    patterns = catalogue.patterns()
    return markdown.replace("<!-- table -->", catalogue_pages.table(patterns)).replace("<!-- list -->", catalogue_pages.listing(patterns))


def on_page_content(html, **_):
    """The search reads prose: code and what it printed would make its index four times as large, and are no answers."""
    return re.sub(r'<div class="(language-[\w ]+highlight|output)"', r'<div data-search-exclude class="\1"', html)


def sources() -> list[Path]:
    """The tutorials, in their order, and the home page."""
    return [*sorted(TUTORIALS.glob("[0-9][0-9]_*.py")), TUTORIALS / "index.py"]


def tutorial(source: Path) -> str:
    """The page of a tutorial: Markdown."""
    text = source.read_text(encoding="utf-8")
    around = [*_texts(TUTORIALS, "figures.py"), *_texts(PAGES, "execution.py"), *_texts(ROOT / "vipatterns"), *_texts(ROOT / "data")]
    done = _kept(source.stem, [text, *around], lambda: nbformat.writes(executed(text, TUTORIALS, source.name)))
    return markdown(nbformat.reads(done, as_version=4))


def pattern_page(pattern: catalogue.Pattern, patterns: list[catalogue.Pattern]) -> str:
    """The page of a pattern: Markdown."""
    path = catalogue.find(pattern.name)
    printed = _kept(pattern.name, [path.read_text(encoding="utf-8")], lambda: catalogue_pages.printed(path))
    return catalogue_pages.page(pattern, patterns, printed)


def _texts(folder: Path, name: str = "*") -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(folder.rglob(name)) if path.suffix in (".py", ".csv")]


def _kept(name: str, ingredients: list[str], make: Callable[[], str]) -> str:
    """What was made before of the same ingredients with the same packages; else made now."""
    packages = sorted(f"{d.name}=={d.version}" for d in distributions())
    key = hashlib.sha256("\0".join([*ingredients, *packages]).encode()).hexdigest()[:16]
    path = KEPT / f"{name}-{key}"
    if path.exists():
        return path.read_text(encoding="utf-8")
    start = time.perf_counter()
    text = make()
    KEPT.mkdir(parents=True, exist_ok=True)
    for old in KEPT.glob(f"{name}-{'?' * 16}"):
        old.unlink()
    path.write_text(text, encoding="utf-8")
    log.info("%s computed in %.0f s", name, time.perf_counter() - start)
    return text
