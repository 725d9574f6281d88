"""Which room may import which, as CONTRIBUTING.md says; where NumPyro's internals are touched; how long a file is."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "vipatterns"
FILES = [p.relative_to(PACKAGE) for p in sorted(PACKAGE.rglob("*.py"))]
ENTRANCES = {"__init__.py", "__main__.py"}
"""The table of contents and the door of `python -m`: they may name every room."""
CLIMBERS = {"methods/__init__.py", "methods/ladder.py", "objectives/__init__.py"}
GROUND = {"objectives": {"objectives.particles", "objectives.dependence"}}
"""What the variants of a folder stand on; it stands on none of them."""
STEPS_UP = {"comparison.py": "report", "posterior.py": "archive"}
"""A record that shows itself calls the room that draws it, inside a function."""
LEFTOVERS = r"utils?|utilit\w+|base|helpers?|common|core|misc|shared|tools?|lib"
INTERNALS = (
    r"numpyro\.(primitives|util|ops|distributions\.util|infer\.(util|hmc|hmc_util|hmc_gibbs|svi|mcmc|elbo|inspect))(\.|$)"
    r"|.*\._"  # whatever is private by its name
)
INTERNALS_ALLOWED = {
    "density.py": "numpyro.",
    "svi.py": "numpyro.",
    "methods/nuts.py": "numpyro.infer.hmc.",
    "objectives/score_function.py": "numpyro.primitives.mutable.",
    "patterns": "numpyro.infer.util.log_density.",  # documented, though it lives there
}


def table():
    """Room -> the rooms that it may import, from the page that people read."""
    rows = re.findall(r"^\| (\w+) \| ([\w`, ]+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    return {room: set(re.findall(r"\w+", granted)) - {"nothing"} for room, granted in rows if room != "room"}


def names(source, package):
    """Every dotted name that a file imports, wherever in it, or reaches through `numpyro.`; relative imports made absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("numpyro."):
            yield ast.unparse(node)


def room(path):
    return path.parts[0].removesuffix(".py")


def trespasses(path, source):
    """What a file imports of ours without being granted it."""
    rooms = table()
    granted = rooms[room(path)]
    ours = [n.split(".")[1:] for n in names(source, ["vipatterns", *path.parts[:-1]]) if n.split(".")[0] == "vipatterns"]
    if "all" in granted:
        return []
    within = path.as_posix() in CLIMBERS or room(path) not in ("patterns", "objectives", "methods")
    granted = {*granted, STEPS_UP.get(path.as_posix()), "__version__"}
    ours = [n or ["__init__"] for n in ours]
    ground = set() if ".".join(path.with_suffix("").parts) in GROUND.get(room(path), ()) else GROUND.get(room(path), set())
    ours = [n for n in ours if ".".join(n[:2]) not in ground]
    return [".".join(n) for n in ours if n[0] not in granted and not (n[0] == room(path) and within)]


def internals(path, source):
    """NumPyro's internals that a file touches without being granted it."""
    allowed = INTERNALS_ALLOWED.get(path.as_posix(), INTERNALS_ALLOWED.get(path.parent.as_posix()))
    touched = [n for n in names(source, []) if n.startswith("numpyro.") and re.match(INTERNALS, n)]
    return [n for n in touched if not (allowed and f"{n}.".startswith(allowed))]


def each(files):
    return pytest.mark.parametrize("path", files, ids=lambda p: p.as_posix())


@each([p for p in FILES if p.as_posix() not in ENTRANCES])
def test_a_room_imports_what_the_table_grants(path):
    assert room(path) in table(), f"{room(path)} is no room of CONTRIBUTING.md"
    assert trespasses(path, (PACKAGE / path).read_text()) == []


@each(FILES)
def test_numpyro_internals_stay_in_their_rooms(path):
    assert internals(path, (PACKAGE / path).read_text()) == []


@each(FILES)
def test_a_file_is_one_thing(path):
    length = len((PACKAGE / path).read_text().splitlines())
    assert length < 350


@each(FILES)
def test_no_room_for_leftovers(path):
    assert not any(re.fullmatch(f"_*({LEFTOVERS})", part.removesuffix(".py")) for part in path.parts)


def test_the_table_flows_one_way():
    """No two rooms may import each other, directly or around a corner."""
    rooms = table()
    done = {"all"}
    while left := {name: granted for name, granted in rooms.items() if name not in done}:
        free = {name for name, granted in left.items() if granted - {"__init__"} <= done}
        assert free, f"a circle among {sorted(left)}"
        done |= free


@pytest.mark.parametrize(("path", "up"), STEPS_UP.items())
def test_a_step_up_is_taken_when_it_is_needed(path, up):
    top = [node for node in ast.parse((PACKAGE / path).read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [n for node in top for n in names(ast.unparse(node), ["vipatterns"]) if n.startswith(f"vipatterns.{up}")]


@pytest.mark.parametrize(
    ("path", "line", "bad"),
    [
        ("density.py", "from vipatterns import svi", True),
        ("density.py", "def f():\n    from .svi import run", True),
        ("density.py", "from vipatterns.errors import InputError", False),
        ("patterns/a.py", "from ..errors import InputError", True),
        ("patterns/a.py", "from . import b", True),
        ("methods/a.py", "import vipatterns.methods.nuts", True),
        ("methods/a.py", "import importlib\nimportlib.import_module('vipatterns.cli')", True),
        ("methods/ladder.py", "from .nuts import NUTS", False),
        ("objectives/a.py", "from vipatterns.objectives.b import c", True),
        ("objectives/a.py", "from vipatterns.objectives.particles import c", False),
        ("objectives/particles.py", "from vipatterns.objectives.dependence import c", True),
        ("objectives/a.py", "from vipatterns import density", True),
        ("amortized/a.py", "from .b import c", False),
        ("cli.py", "from vipatterns import svi", False),
        ("density.py", "import vipatterns as vip", True),
        ("job.py", "import vipatterns as vip", False),
        ("density.py", "from vipatterns import __version__", False),
        ("density.py", "from vipatterns import fit", True),
        ("comparison.py", "def f():\n    from vipatterns import report", False),
        ("comparison.py", "def f():\n    from vipatterns import cli", True),
    ],
)
def test_trespasses_are_seen(path, line, bad):
    assert bool(trespasses(pathlib.Path(path), line)) == bad


@pytest.mark.parametrize(
    ("path", "line", "bad"),
    [
        ("mode.py", "from numpyro.infer import util", True),
        ("mode.py", "from numpyro.infer.util import log_density", True),
        ("mode.py", "import numpyro\nnumpyro.primitives.plate", True),
        ("mode.py", "from numpyro.distributions import constraints", False),
        ("mode.py", "from numpyro.infer import SVI, Trace_ELBO", False),
        ("mode.py", "import jax._src.core", False),
        ("svi.py", "from numpyro.infer.util import log_density", False),
        ("methods/nuts.py", "from numpyro.infer.hmc import hmc", False),
        ("methods/nuts.py", "from numpyro.infer.util import log_density", True),
    ],
)
def test_internals_are_seen(path, line, bad):
    assert bool(internals(pathlib.Path(path), line)) == bad
