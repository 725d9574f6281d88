"""Model files as a listing and as modules: the patterns of this package, read without being run, and users' own files, by path."""

import ast
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from vipatterns.errors import InputError

FOLDER = Path(__file__).parent / "patterns"


@dataclass(frozen=True)
class Pattern:
    """What the listing shows of one file."""

    name: str
    title: str
    """The first line of the docstring, after its name."""
    family: str
    """The pattern of which this one is a variant, or itself."""
    technique: str
    """How it is fitted, as its docstring says."""
    checked_against: str
    """What its fit is held to by the tests."""


CHECKS = {"documented_bias": "documented bias", "exact_posterior": "exact posterior", "log_evidence": "exact evidence"}
"""Function of a pattern -> what it checks; the first that a pattern has decides."""


def patterns() -> list[Pattern]:
    """The catalogue: every file of the folder, parsed and not imported."""
    paths = {path.stem: path for path in sorted(FOLDER.glob("[!_]*.py"))}
    return [_describe(name, path, list(paths)) for name, path in paths.items()]


def _describe(name: str, path: Path, names: list[str]) -> Pattern:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    family = min((n for n in names if name == n or name.startswith(f"{n}_")), key=len)
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    docstring = ast.get_docstring(tree) or name
    title = docstring.splitlines()[0]
    technique = re.search(r"(?m)^\*\*Technique\*\* (.+?)\.?$", docstring)
    return Pattern(
        name=name,
        title=title.partition(": ")[2] or title,
        family=family,
        technique=technique[1] if technique else "",
        checked_against=next((what for function, what in CHECKS.items() if function in functions), "NUTS"),
    )


def find(name: str) -> Path:
    """The file of a pattern."""
    names = [path.stem for path in FOLDER.glob("[!_]*.py")]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "`vipatterns list` shows those there are."
        raise InputError(f"There is no pattern {name}: {hint}")
    return FOLDER / f"{name}.py"


def load(what: str) -> tuple[Path, ModuleType, Callable]:
    """The file, the module and the model that `what` names: a pattern, or path/to/file.py with an optional :MODEL.

    A user's file is run with its folder on sys.path, as `python file.py` would; `if __name__ == "__main__"` does not run.
    """
    file, _, name = what.rpartition(":") if ".py:" in what else (what, "", "model")
    path = find(file) if "/" not in file and "\\" not in file and not file.endswith(".py") else Path(file)
    if path.is_dir() or not path.exists():
        raise InputError(f"There is no model file {path}: name a pattern (`vipatterns list`) or a Python file.")
    spec = importlib.util.spec_from_file_location(f"model_file.{path.stem}", path)  # no file shadows a library by this name
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file: its name should end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up there
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = line_of(error, path)
        raise InputError(f"{path} cannot be loaded{f', line {line}' if line else ''}: {said(error)}.") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    model = getattr(module, name, None)
    if not callable(model):
        own = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
        there = f"it has {', '.join(own)}; name one as {path}:NAME" if own else "it has no functions"
        raise InputError(f"{path} has no function {name}: {there}.")
    return path, module, model


def line_of(error: BaseException, path: Path) -> int | None:
    """The line of `path` that raised, or whose import or call did; None where the file had no part in it."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == path.resolve():
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path.resolve()]
    return lines[-1] if lines else None


def said(error: BaseException) -> str:
    """NameError: name 'z' is not defined."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ").rstrip(".")
