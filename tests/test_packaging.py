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


def imported():
    """Third-party packages that the files of vipatterns/ import, the patterns' own headers aside."""
    for path in (ROOT / "vipatterns").rglob("*.py"):
        if path.parent.name == "patterns":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module


def test_dependencies_are_what_is_imported():
    names = {name.split(".")[0] for name in imported()} - set(sys.stdlib_module_names) - {"vipatterns"}
    # arviz is an umbrella over three packages that it installs, and matplotlib its extra
    needed = {"arviz" if name.startswith("arviz_") or name == "matplotlib" else name for name in names}
    assert needed | UNSEEN == {package(r) for r in PYPROJECT["project"]["dependencies"]}


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
