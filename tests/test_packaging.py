"""pyproject.toml says what the code needs, once for uv and once for pip, and nothing that the code does not need."""

import ast
import pathlib
import re
import sys
import tomllib

import pytest

import vipatterns

ROOT = pathlib.Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
UNSEEN = {"netcdf4", "pyarrow"}
"""Named for what they let others do: xarray writes netCDF, pandas reads Parquet."""


def package(requirement):
    return re.split(r"[^\w-]", requirement)[0].lower()


OPTIONAL = {
    name: {package(r) for r in PYPROJECT["project"]["optional-dependencies"][name]} for name in ("enumerate", "flow", "pathfinder", "vae")
}
"""Extras of those who use vipatterns; the others serve its developers."""


def imported():
    """Third-party packages that the files of vipatterns/ import, the patterns' own headers aside."""
    for path in (ROOT / "vipatterns").rglob("*.py"):
        if path.parent.name != "patterns":
            yield from packages(ast.parse(path.read_text()))


def packages(tree):
    """Third-party packages that are imported anywhere in a tree."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        yield from {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"vipatterns"}


def test_dependencies_are_what_is_imported():
    # arviz is an umbrella over three packages that it installs, and matplotlib its extra, which brings Pillow
    needed = {"arviz" if name.startswith("arviz_") or name in ("matplotlib", "PIL") else name for name in imported()}
    optional = set().union(*OPTIONAL.values())
    assert needed - optional | UNSEEN == {package(r) for r in PYPROJECT["project"]["dependencies"]}


@pytest.mark.parametrize(("room", "extra"), [("methods/flow.py", "flow"), ("methods/pathfinder.py", "pathfinder")])
def test_an_optional_package_is_imported_late_and_its_extra_named(room, extra):
    text = (ROOT / "vipatterns" / room).read_text()
    top = ast.parse(text)
    assert set(packages(top)) >= OPTIONAL[extra]
    top.body = [node for node in top.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not OPTIONAL[extra] & set(packages(top))
    assert f"pip install 'vipatterns[{extra}]'" in text


def test_an_optional_package_is_imported_by_its_own_method_alone():
    for path in (ROOT / "vipatterns").rglob("*.py"):
        taken = set(packages(ast.parse(path.read_text()))) & (OPTIONAL["flow"] | OPTIONAL["pathfinder"])
        assert not taken or path.parent.name == "patterns" or taken <= OPTIONAL[path.stem]


def test_pip_and_uv_are_told_the_same():
    assert PYPROJECT["project"]["optional-dependencies"] == PYPROJECT["dependency-groups"]


@pytest.mark.parametrize("requirement", [*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["dev"]], ids=package)
def test_every_dependency_has_a_known_good_version(requirement):
    pins = {package(pin): pin for pin in PYPROJECT["tool"]["uv"]["constraint-dependencies"]}
    assert re.fullmatch(r"[\w-]+==[\w.]+", pins[package(requirement)])


def test_the_version_stands_in_one_place():
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "vipatterns/__init__.py"
    assert vipatterns.__version__ not in (ROOT / "CITATION.cff").read_text()
