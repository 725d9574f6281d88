"""Rows of a measurement, each in a process of its own and kept as it ends, so that an interrupted run goes on where it was.

What is kept lies in results/ at the root of the repository, which git ignores. A row is taken up again only while no line of vipatterns, of
the script or of its libraries has changed, and never one that failed; `--fresh` measures all rows anew.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("numpyro", "jax", "blackjax")


class Rows:
    """The rows of one script, which is called again as `script --row WHAT...` for each of them and answers with `tell`."""

    def __init__(self, script: str, *, fresh: bool = False, timeout: float = 600.0):
        self.script, self.timeout = Path(script).resolve(), timeout
        self.path = ROOT / "results" / f"{self.script.stem}.jsonl"
        self.path.parent.mkdir(exist_ok=True)
        self.code = _digest(self.script)
        kept = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() and not fresh else []
        rows = [row for row in map(_parsed, kept) if row.get("code") == self.code and "why" not in row]
        self.kept = {tuple(row["what"]): row for row in rows}
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self.taken: list[dict] = []
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the row that runs is ended too, as by Ctrl-C
        if rows:
            print(
                f"{len(rows)} rows are there from an earlier run of the same code ({self.path.name}); --fresh measures anew.",
                file=sys.stderr,
            )

    def measure(self, *what: str) -> dict:
        """The row; one with `why`, a sentence, and nothing else measured if it failed."""
        row = self.kept.get(what)
        if row is None:
            load = os.getloadavg()[0]
            row = {**self._run(what), "what": what, "load": load, "code": self.code}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        self.taken.append(row)
        return row

    def _run(self, what: tuple[str, ...]) -> dict:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONWARNINGS": "ignore"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        argv = [sys.executable, str(self.script), "--row", *what]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # A session of its own, so that what a row started ends with it.
        child = subprocess.Popen(argv, env=environment, cwd=ROOT, text=True, start_new_session=True, **pipes)
        try:
            out, err = child.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            _end(child)
            return {"why": f"not within {self.timeout:.0f} s"}
        except BaseException:
            _end(child)
            raise
        answer = _parsed((out.splitlines() or [""])[-1])
        if answer:
            return answer
        return {"why": f"ended with {child.returncode}: {(err.strip().splitlines() or ['no message'])[-1][:120]}"}

    def machine(self) -> str:
        """What the rows were measured on, in a sentence."""
        loads = [row["load"] for row in self.taken]
        versions = ", ".join(f"{name} {version(name)}" for name in ("vipatterns", *LIBRARIES))
        return (
            f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}; load average {min(loads):.1f} "
            f"to {max(loads):.1f} when the rows began (well above 1: other work was going on, and wall times say less)."
        )


def options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that every such script has."""
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew, also those of an interrupted run")
    parser.add_argument("--row", nargs="+", help=argparse.SUPPRESS)
    return parser


def tell(function: Callable, what: list[str]) -> None:
    """In the row's process: prints what `function(*what)` measured, or the sentence of why not."""
    try:
        answer = function(*what)
    except Exception as error:
        traceback.print_exc()
        lines = [line for line in str(error).splitlines() if line.strip()]
        answer = {"why": f"{type(error).__name__}: {lines[0][:120] if lines else 'no message'}"}
    print("\n" + json.dumps(answer), flush=True)


def megabytes() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def write(name: str, lines: list[str]) -> None:
    """The result of a whole run."""
    (RESULTS / name).write_text("\n".join([*lines, ""]), encoding="utf-8")


def _end(child: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def _parsed(line: str) -> dict:
    """A row; empty where the line is none, as that of a run that was killed while it wrote."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return row if isinstance(row, dict) else {}


def _digest(script: Path) -> str:
    files = sorted([*(ROOT / "vipatterns").rglob("*.py"), *Path(__file__).parent.glob("pymc_*.py"), Path(__file__).resolve(), script])
    parts = [path.read_bytes() for path in files] + [version(name).encode() for name in LIBRARIES]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
