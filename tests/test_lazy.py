"""Importing costs nothing and changes nothing; the listing and the help answer before JAX would have loaded."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

import vipatterns

ROOT = pathlib.Path(__file__).parents[1]
EXTRAS = ["blackjax", "equinox", "flax", "flowjax", "funsor", "safetensors", "sklearn"]
HEAVY = ["jax", "numpyro", "arviz", "optax", "numpy", "scipy", "pandas", "xarray", "matplotlib", "pyarrow", *EXTRAS]
ROOMS = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in (ROOT / "vipatterns").rglob("*.py")
    if p.name not in ("__init__.py", "__main__.py")
)
ALONE = """
import json, os, sys, warnings
import jax, numpyro, arviz, matplotlib, numpy, pandas, sklearn, xarray

def settings():
    return {
        "jax": {k: repr(v) for k, v in jax.config.values.items()},
        "environment": dict(os.environ),
        "warnings": repr(warnings.filters),
        "matplotlib": repr(dict(matplotlib.rcParams)),
        "numpy": repr((numpy.geterr(), numpy.get_printoptions())),
        "pandas": repr(pandas.get_option("display.max_rows")),
        "xarray": repr(dict(xarray.get_options())),
    }

before = settings()
exec(sys.argv[1])
after = settings()
print(json.dumps([k for k in before if before[k] != after[k]]))
"""


def run(*argv):
    """A fresh interpreter's standard output."""
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(code):
    """Which heavy packages a fresh interpreter has loaded after running `code`."""
    return json.loads(run("-c", f"import json, sys\n{code}\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))").splitlines()[-1])


def command(*argv):
    return f"""
from vipatterns.cli import main
sys.argv = {["vipatterns", *argv]}
try:
    main()
except SystemExit as e:
    assert not e.code, e.code"""


@pytest.mark.parametrize("argv", [["--help"], ["list"], ["show", "gaussian_mean"], ["compare", "--help"], ["fit", "--help"]], ids=" ".join)
def test_reading_loads_nothing_heavy(argv):
    assert loaded_after(command(*argv)) == []


@pytest.mark.parametrize(
    "code", ["import vipatterns; dir(vipatterns); vipatterns.InputError", "import vipatterns.patterns, vipatterns.errors"]
)
def test_importing_loads_nothing_heavy(code):
    assert loaded_after(code) == []


def test_a_method_loads_its_extra_when_it_fits():
    """So that every other method works without."""
    loaded = loaded_after("import vipatterns as vip; vip.Flow(), vip.Pathfinder(), vip.MeanField(), vip.fit, vip.compare")
    assert "jax" in loaded
    assert not set(loaded) & set(EXTRAS)


def test_the_probe_sees_what_is_loaded():
    assert "numpy" in loaded_after("import numpy")


def test_importing_every_room_changes_no_setting():
    assert json.loads(run("-c", ALONE, "import " + ", ".join(["vipatterns", *ROOMS]))) == []


def test_a_changed_setting_is_seen():
    assert json.loads(run("-c", ALONE, "jax.config.update('jax_enable_x64', True); os.environ['A'] = ''")) == ["jax", "environment"]


def test_the_table_of_contents_is_one():
    """What type checkers see, what is exported and where it lives are the same names."""
    tree = ast.parse((ROOT / "vipatterns" / "__init__.py").read_text())
    [typed] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in typed.body for alias in node.names}
    folders = dict.fromkeys(vipatterns._FOLDERS, "vipatterns")
    assert seen == {name: f"vipatterns.{home}" for name, home in vipatterns._ROOMS.items()} | folders
    assert sorted(vipatterns.__all__) == sorted([*vipatterns._ROOMS, *folders])
    assert set(vipatterns.__all__) <= set(dir(vipatterns))


@pytest.mark.parametrize("name", vipatterns.__all__)
def test_every_name_is_there(name):
    assert getattr(vipatterns, name).__name__.split(".")[-1] == name


def test_a_folder_is_there_without_being_imported_first():
    assert run("-c", "import vipatterns as vip; print(vip.objectives.ScoreFunction.__name__)") == "ScoreFunction\n"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"no name 'MeanFeild'; it has .*MeanField"):
        vipatterns.MeanFeild  # noqa: B018
