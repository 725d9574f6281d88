"""What every pattern is. A new file in vipatterns/patterns/ is tested by existing; its own numbers are tested in test_NAME.py."""

import ast
import importlib
import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest
from numpyro import handlers

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "vipatterns" / "patterns"
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
HEADINGS = ["Technique", "Use when", "Avoid when", "Cost", "Bias to expect", "Source"]
PACKAGES = {"numpyro": {"numpyro", "numpy", "jax"}, "flax": {"flax"}, "scipy": {"scipy"}, "funsor": {"funsor"}, "scikit-learn": {"sklearn"}}
"""What a header may name, and the modules that come with it."""
MOST_LINES = 155
"""That are not blank: the formatter asks for many that are."""
GENERIC = {"plate", "data", "batch", "obs", "i", "j", "k", "n", "N"}
"""Plate names that do not say what they index."""


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def source(name):
    return (FOLDER / f"{name}.py").read_text()


@pytest.fixture
def pattern(name):
    return importlib.import_module(f"vipatterns.patterns.{name}")


def header(source):
    """The PEP 723 block, read as the packaging specification reads it."""
    [block] = re.findall(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", source)
    return tomllib.loads("".join(line[2:] + "\n" for line in block[0].splitlines()))


def dependencies(source):
    return [re.split(r"[^\w-]", requirement)[0] for requirement in header(source)["dependencies"]]


def imported(source):
    """Top-level names of all imported modules; '' for a relative import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "" if node.level else node.module.split(".")[0]


def sites(trace, kind="sample"):
    return {name: site for name, site in trace.items() if site["type"] == kind}


def run(function, data):
    """The trace of a model or guide; the key is fixed, since only names and shapes are looked at."""
    return handlers.trace(handlers.seed(function, jax.random.key(0))).get_trace(**data)


def without_observed(pattern, data):
    """The arguments that a model needs to predict: those that are observed sites left out."""
    observed = [name for name, site in sites(run(pattern.model, data)).items() if site["is_observed"]]
    return {key: value for key, value in data.items() if key not in observed}, observed


def moments(q):
    """Mean and sd of a site, and the relative error of their estimate: q is a distribution, or draws along the first axis."""
    if isinstance(q, np.ndarray | jax.Array):
        return np.mean(q, 0), np.std(q, 0), len(q) ** -0.5
    return np.asarray(q.mean, float), np.asarray(q.variance, float) ** 0.5, 0.0


def test_the_folder_is_not_empty():
    assert {"gaussian_mean", "linear_regression", "eight_schools"} <= set(NAMES)


def test_the_header_names_what_the_file_needs(source):
    block = header(source)
    named = dependencies(source)
    assert block["requires-python"] == ">=3.12"
    assert "numpyro" in named
    assert set(named) <= set(PACKAGES)
    modules = set(imported(source))
    assert all(modules & PACKAGES[package] for package in named), "the header names a package that the file does not import"
    granted = set(sys.stdlib_module_names).union(*(PACKAGES[package] for package in named))
    assert modules <= granted, f"imported, and neither standard library nor in the header: {modules - granted}"


def test_the_docstring_answers_what_when_and_from_where(source):
    docstring = ast.get_docstring(ast.parse(source))
    assert re.fullmatch(r"[A-Z][^:]+: .+\.", docstring.splitlines()[0]), "the first line is `Title: one line.`"
    assert re.findall(r"(?m)^\*\*(.+?)\*\*", docstring) == HEADINGS
    told = re.split(r"(?m)^\*\*.+?\*\*", docstring)[1:]
    assert all(text.strip() for text in told), "a heading with nothing under it"
    assert re.search(r"arXiv \d{4}\.\d{4,5}|arXiv [a-z-]+/\d{7}|doi 10\.\d{4,9}/\S+", told[-1]), "a source has an arXiv id or a doi"


def test_the_file_is_cells_of_one_screen(source):
    assert sum(bool(line.strip()) for line in source.splitlines()) <= MOST_LINES
    assert "# %%\n" in source
    assert "# %% [markdown]\n# # " in source, "a page begins with a heading"
    cells = re.split(r"(?m)^# %%.*$", source)
    assert all(cell.strip() for cell in cells[1:]), "an empty cell"


def test_it_imports_nothing_of_ours_and_no_guide(source):
    assert not {"vipatterns", ""} & set(imported(source))
    assert "autoguide" not in source, "a guide is written out by hand"


def test_the_functions_have_their_signatures(pattern):
    def arguments(function):
        return list(inspect.signature(function).parameters.items())

    of_model = arguments(pattern.model)
    assert [(name, p.default) for name, p in arguments(pattern.data)] == [("frame", None)]
    assert [(name, p.default) for name, p in arguments(pattern.guide)] == [(name, p.default) for name, p in of_model]
    assert arguments(pattern.main) == []
    names = [name for name, _ in of_model]
    of_fit = arguments(pattern.fit)
    assert [name for name, _ in of_fit] == ["rng_key", *names, "num_steps"]
    assert of_fit[-1][1].kind is inspect.Parameter.KEYWORD_ONLY
    assert isinstance(of_fit[-1][1].default, int)
    for answer in ("exact_posterior", "log_evidence", "documented_bias"):
        if hasattr(pattern, answer):
            assert [name for name, _ in arguments(getattr(pattern, answer))] == names
    assert "Returns:" in pattern.fit.__doc__


def test_data_is_documented_with_shapes_and_units(pattern):
    data = pattern.data()
    assert set(data) <= set(inspect.signature(pattern.model).parameters)
    for key, value in data.items():
        assert f"`{key}`" in pattern.data.__doc__
        assert isinstance(value, np.ndarray | int | tuple | str), f"{key} is an array, or static"
        assert not isinstance(value, np.ndarray) or (value.dtype.kind in "fiu" and np.isfinite(value).all())
    if any(np.ndim(value) for value in data.values()):
        assert re.search(r"\(\w+(, \w+)*,?\)", pattern.data.__doc__), "no shape"
        assert re.search(r"\bunits?\b|\bin \w+", pattern.data.__doc__), "no unit"


def test_a_table_replaces_the_data(pattern):
    """Columns named as arguments go to them and, where there is an x, the other numeric ones are stacked into it, in their order."""
    data = pattern.data()
    rows = {len(value) for key, value in data.items() if isinstance(value, np.ndarray) and key in ("x", "y")}
    if not rows:
        pytest.skip("a pattern without observed data takes no table")
    [n] = rows
    table = {key: value[::-1][: n - 1] for key, value in data.items() if isinstance(value, np.ndarray) and value.shape == (n,)}
    if np.ndim(data.get("x")) == 2:
        table |= {f"column {j}": data["x"][::-1][: n - 1, j] for j in range(data["x"].shape[1])}
    got = pattern.data(table)
    assert set(got) == set(data)
    for key in data:
        if key in table or key == "x":
            np.testing.assert_array_equal(got[key], data[key][::-1][: n - 1])


def test_the_model_names_what_it_observes_and_what_it_indexes(pattern):
    data = pattern.data()
    trace = run(pattern.model, data)
    predict, observed = without_observed(pattern, data)
    defaults = {name: p.default for name, p in inspect.signature(pattern.model).parameters.items()}
    assert set(observed) <= set(data)
    assert all(defaults[name] is None for name in observed), "an observed argument is None by default"
    assert not GENERIC & set(sites(trace, "plate"))
    for name in observed:
        if np.ndim(data[name]):
            assert trace[name]["cond_indep_stack"], f"{name} stands in no plate"
    predicted = run(pattern.model, predict)
    assert all(not predicted[name]["is_observed"] for name in observed)
    # Without its data a model may not know how many rows to predict; the rest of the shape it must know.
    assert all(predicted[name]["value"].shape[1:] == np.shape(data[name])[1:] for name in observed)


def test_the_guide_covers_the_model(pattern):
    data = pattern.data()
    model, guide = (sites(run(function, data)) for function in (pattern.model, pattern.guide))
    latent = {name: site["value"].shape for name, site in model.items() if not site["is_observed"]}
    discrete = {name for name in latent if model[name]["fn"].support.is_discrete}
    covered = {name: site["value"].shape for name, site in guide.items() if not site["infer"].get("is_auxiliary")}
    assert latent
    assert {name: shape for name, shape in latent.items() if name not in discrete or name in covered} == covered
    assert sites(run(pattern.guide, data), "param"), "a guide has parameters to fit"


@pytest.mark.slow
def test_the_fit_returns_q_and_losses(pattern, rng_key):
    data = pattern.data()
    q, losses = pattern.fit(rng_key, **data, num_steps=7)
    assert losses.shape == (7,)
    trace = run(pattern.model, data)
    assert {name for name, site in sites(run(pattern.guide, data)).items() if name in trace} <= set(q) <= set(trace)
    for name in q:
        mean, sd, _ = moments(q[name])
        assert np.broadcast_shapes(mean.shape, sd.shape) == trace[name]["value"].shape


@pytest.mark.slow
def test_the_fit_is_the_exact_posterior_or_has_the_documented_bias(pattern, assert_fits, z_bound):
    data = pattern.data()
    if not (hasattr(pattern, "documented_bias") or hasattr(pattern, "exact_posterior")):
        pytest.skip("no closed form: its own test file compares it with NUTS")
    if hasattr(pattern, "documented_bias"):
        expected, error = pattern.documented_bias(**data), 0.0
    else:
        answers = {site: moments(answer) for site, answer in pattern.exact_posterior(**data).items()}
        expected, error = {site: (mean, sd) for site, (mean, sd, _) in answers.items()}, max(e for _, _, e in answers.values())
    latent = {name for name, site in sites(run(pattern.model, data)).items() if not site["is_observed"]}
    assert set(expected) & latent, "nothing is held"
    assert_fits(pattern, data, expected, worst=0.1, floor=0.01 + z_bound(100) * error)


@pytest.mark.slow
def test_the_elbo_stays_below_the_evidence(pattern, rng_key, z_bound):
    if not hasattr(pattern, "log_evidence"):
        pytest.skip("no closed form of the evidence")
    data = pattern.data()
    _, losses = pattern.fit(rng_key, **data)
    last = -np.asarray(losses[-len(losses) // 10 :], float)
    rounding = 1e-6 * np.abs(last).max()  # losses are summed in float32
    assert last.mean() <= pattern.log_evidence(**data) + z_bound() * last.std() / np.sqrt(len(last)) + rounding


def test_importing_does_no_work(source):
    """At module level stand imports, functions and constants; the only calls there are NumPy's, and none draws."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Expr, ast.If)
    for node in ast.parse(source).body:
        assert isinstance(node, allowed), ast.unparse(node)
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), ast.unparse(node)
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) == "__name__ == '__main__'"
        elif not isinstance(node, ast.FunctionDef | ast.ClassDef):
            calls = [ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)]
            assert all(call.startswith(("np.", "math.")) and not call.startswith("np.random") for call in calls), calls


def test_importing_starts_no_backend():
    """A jax.numpy array at module level would fix the device and the dtype before a caller has chosen them."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module('vipatterns.patterns.' + name)\n"
    code += "from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()"
    done = subprocess.run([sys.executable, "-c", code, *NAMES], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """environment(requirements) -> the Python of a virtual environment with nothing else in it, made once for each header."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if not uv:
        pytest.skip("uv makes the environments")
    pins = tmp_path_factory.mktemp("pins") / "constraints.txt"
    pins.write_text("\n".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]))
    made = {}

    def make(requirements):
        if requirements not in made:
            venv = tmp_path_factory.mktemp("venv")
            for command in (
                ["venv", "--quiet", "--clear", "--python", sys.executable, venv],
                ["pip", "install", "--quiet", "--python", venv, "--constraint", pins, *requirements],
            ):
                subprocess.run([uv, *map(str, command)], check=True, cwd=venv)
            made[requirements] = venv / ("Scripts" if os.name == "nt" else "bin") / "python"
        return made[requirements]

    return make


@pytest.mark.slow
def test_a_copy_runs_alone(name, source, environment, tmp_path):
    """As after `vipatterns copy`: the file, what its header names, and nothing else. Its warnings are errors."""
    (tmp_path / f"{name}.py").write_text(source)
    python = environment(tuple(sorted(header(source)["dependencies"])))
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([python, "-W", "error", f"{name}.py"], capture_output=True, text=True, cwd=tmp_path, env=clean, timeout=240)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d\.\d", done.stdout), "main() prints numbers"
    assert "nan" not in done.stdout.lower().split()
