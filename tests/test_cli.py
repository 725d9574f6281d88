"""The command line as a user meets it: what it prints, what it writes, and one sentence for whatever is wrong."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import vipatterns as vip
from vipatterns import catalogue
from vipatterns.cli import app
from vipatterns.patterns import gaussian_mean

ROOT = pathlib.Path(__file__).parents[1]
JAX_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""For processes of their own: the suite's cache, which saves most of their time."""
QUICK = "MeanField(num_steps=400,num_restarts=2,num_samples=200)"
MODEL = """
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(x, y=None):
        intercept = numpyro.sample("intercept", dist.Normal(0, 10))
        with numpyro.plate("feature", x.shape[1]):
            slopes = numpyro.sample("slopes", dist.Normal(0, 10))
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Normal(intercept + x @ slopes, 1.0), obs=y)
"""


def run(*argv):
    return CliRunner().invoke(app, [str(a) for a in argv], catch_exceptions=False)


def sentence(*argv):
    """The one sentence of a command that cannot go on: on stderr, alone, with exit status 2."""
    result = run(*argv)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("error: "), line
    return line.removeprefix("error: ")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a model and a table of 20 rows."""
    monkeypatch.chdir(tmp_path)
    write("mine.py", MODEL)
    a, b, noise = np.random.default_rng(0).normal(size=(3, 20))
    pd.DataFrame({"a": a, "b": b, "score": 1 + 2 * a - b + noise}).to_csv("table.csv", index=False)
    return tmp_path


def write(name, text):
    with open(name, "w", encoding="utf-8") as file:
        file.write(textwrap.dedent(text).lstrip("\n"))


def table(name="bad.csv", **columns):
    pd.read_csv("table.csv").assign(**columns).to_csv(name, index=False)
    return name


# Reading the catalogue


def test_list_names_every_pattern_with_its_title_and_check():
    out = run("list").stdout
    for pattern in catalogue.patterns():
        assert pattern.name in out
        assert pattern.title.split()[0] in out
        assert pattern.technique
    assert {p.name for p in catalogue.patterns()} == {p.stem for p in catalogue.FOLDER.glob("[!_]*.py")}


def test_a_variant_belongs_to_the_family_its_name_begins_with():
    family = {p.name: p.family for p in catalogue.patterns()}
    assert family["gaussian_mean"] == family["gaussian_mean_precision"] == "gaussian_mean"
    assert family["eight_schools"] == "eight_schools"


def test_list_says_what_a_fit_is_held_to():
    check = {p.name: p.checked_against for p in catalogue.patterns()}
    assert (check["gaussian_mean"], check["linear_regression"]) == ("exact posterior", "documented bias")


def test_show_prints_the_file_as_it_is():
    assert run("show", "gaussian_mean").stdout == catalogue.find("gaussian_mean").read_text(encoding="utf-8")


def test_copy_writes_the_file_once(here):
    source = catalogue.find("gaussian_mean").read_text(encoding="utf-8")
    assert "new/gaussian_mean.py" in run("copy", "gaussian_mean", "new").stdout
    path = here / "new" / "gaussian_mean.py"
    assert path.read_text(encoding="utf-8") == source
    path.write_text("mine")
    assert sentence("copy", "gaussian_mean", "new") == "new/gaussian_mean.py exists: --force overwrites it."
    assert path.read_text() == "mine"
    assert run("copy", "gaussian_mean", "new", "--force").exit_code == 0
    assert path.read_text(encoding="utf-8") == source
    assert "is a file: name a folder" in sentence("copy", "gaussian_mean", path)


@pytest.mark.parametrize("command", ["show", "copy", "fit", "compare"])
def test_an_unknown_pattern_gets_the_nearest(command):
    assert sentence(command, "gausian_mean") == "There is no pattern gausian_mean: did you mean gaussian_mean?"
    assert sentence(command, "zzz") == "There is no pattern zzz: `vipatterns list` shows those there are."


def test_help_states_the_rule_of_tables():
    for command in ("fit", "compare"):
        out = run(command, "--help").stdout
        assert "The target column goes to y" in " ".join(out.split())


# Wrong usage


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--method", "MeanFeld"], r"There is no method MeanFeld: choose from .*MeanField"),
        (["--method", "MeanField,NUTS"], r"fit takes one method, got 2: compare"),
        (["--method", "MeanField NUTS"], r"Methods are names separated by commas, such as MeanField,NUTS"),
        (["--method", "MeanField(10)"], r"Methods are names separated by commas, such as MeanField,NUTS"),
        (["--method", ""], r"Methods are names separated by commas"),
        (["--method", "MeanField(steps=10)"], r"MeanField has no setting steps: it has num_steps"),
        (["--method", "MeanField(num_steps=x)"], r"A setting on the command line is a number, a string"),
        (["--target", "score"], r"--target speaks of a table: name it by --data FILE"),
        (["--allow-missing"], r"--allow-missing speaks of a table"),
        (["--set", "noise"], r"--set takes NAME=VALUE, such as --set num_groups=8; got 'noise'"),
    ],
)
def test_options_that_make_no_sense(here, argv, said):
    assert re.match(said, sentence("fit", "gaussian_mean", *argv))


@pytest.mark.parametrize("argv", [["fit"], ["nonsense"], ["fit", "gaussian_mean", "--nonsense"], ["fit", "gaussian_mean", "--seed", "x"]])
def test_usage_errors_exit_2(argv):
    result = run(*argv)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


# A user's file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def model(:\n    pass\n", "mine.py cannot be loaded, line 1: SyntaxError: "),
        (
            "import numpyro\nimport nowhere_to_be_found\n",
            "mine.py cannot be loaded, line 2: ModuleNotFoundError: No module named 'nowhere_to_be_found'.",
        ),
        ("x = 1\ny = x / 0\n", "mine.py cannot be loaded, line 2: ZeroDivisionError: division by zero."),
        ("def f():\n    return 1 / 0\nf()\n", "mine.py cannot be loaded, line 2: ZeroDivisionError: "),
        ("import sys\nsys.exit(3)\n", "mine.py cannot be loaded, line 2: SystemExit: 3."),
        ("def my_model(y=None): ...\n", "mine.py has no function model: it has my_model; name one as mine.py:NAME."),
        ("model = 3\n", "mine.py has no function model: it has no functions."),
        ("import broken\n", "mine.py cannot be loaded, line 1: SyntaxError: "),
    ],
)
def test_a_file_that_cannot_be_used_is_told_where(here, text, said):
    write("broken.py", "def f(:\n")
    write("mine.py", text)
    assert sentence("fit", "mine.py", "--data", "table.csv").startswith(said)


def test_a_file_that_is_not_there(here):
    assert sentence("fit", "other.py") == "There is no model file other.py: name a pattern (`vipatterns list`) or a Python file."
    assert (
        sentence("fit", "mine.py:other", "--data", "table.csv") == "mine.py has no function other: it has model; name one as mine.py:NAME."
    )


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("", "mine.py has no function data(), so there is nothing to fit the model to: give a table by --data FILE."),
        ("def data():\n    return [1]\n", "data() of mine.py should return a dict, argument of the model -> value; it returned list."),
        ("def data():\n    return {'x': 1 / 0}\n", "data() raised an error in mine.py, line 13: ZeroDivisionError: division by zero."),
    ],
)
def test_data_that_the_file_does_not_give(here, function, said):
    write("mine.py", textwrap.dedent(MODEL) + "\n" + function)
    assert sentence("fit", "mine.py") == said


# A table that cannot be used: each sentence is told in full in test_tables.py


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": ["1"] * 19 + ["n.a"]}, "Column a should hold numbers for x, and row 20 holds 'n.a': mend it, or --drop a."),
        ({"a": [np.nan] + [1.0, 2.0] * 9 + [np.nan]}, "Column a has 2 missing (NaN) values, first in row 1: "),
        ({"b": [0.0] * 19 + [np.inf]}, "Column b has 1 infinite value, first in row 20: "),
        ({"score": [np.nan] + [1.0] * 19}, "Column score has 1 missing (NaN) value, first in row 1: "),
        ({"b": 7}, "Column b holds only 7, so its effect cannot be told from the intercept: leave it out by --drop b."),
    ],
)
def test_a_table_with_a_bad_column(here, columns, said):
    assert sentence("compare", "mine.py", "--data", table(**columns), "--target", "score").startswith(said)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--data", "tabel.csv", "--target", "score"], "There is no file tabel.csv: did you mean table.csv?"),
        (
            ["--data", ".", "--target", "score"],
            "The folder . holds no PNG or JPEG files, but empty.csv, mine.py, none.csv and 1 more: name a folder of images, or a file.",
        ),
        (["--data", "table.csv", "--target", "scor"], "There is no column scor (did you mean score?): the table has a, b, score."),
        (["--data", "table.csv"], "No column is the model's y: name it by --target COLUMN, one of a, b, score."),
        (
            ["--data", "table.csv", "--target", "score", "--index", "a"],
            "The model has no argument a: say where it goes by --rename a=ARGUMENT, one of x, y.",
        ),
        (["--data", "table.csv", "--target", "score", "--drop", "c"], "There is no column c: the table has a, b, score."),
        (["--data", "table.csv", "--rename", "score"], "--rename takes NAME=VALUE, such as --rename Dose=dose; got 'score'."),
        (
            ["--data", "empty.csv", "--target", "score"],
            "empty.csv is empty (0 rows, 3 columns): a fit needs at least one row and one column.",
        ),
        (["--data", "none.csv", "--target", "score"], "none.csv is empty: a line of column names and at least one row are needed."),
    ],
)
def test_a_table_that_does_not_fit_the_command(here, argv, said):
    pd.read_csv("table.csv").head(0).to_csv("empty.csv", index=False)
    write("none.csv", "")
    assert sentence("fit", "mine.py", *argv) == said


# A model that cannot be fitted to the table


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            """
            slopes = numpyro.sample("slopes", dist.Normal(0, 10).expand([3]).to_event(1))
            numpyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)
            """,
            r"The model raised TypeError at .*mine\.py, line 7 \(.*\): .*got \(2,\) and \(3,\).* x \(20, 2\), y \(20,\)",
        ),
        (
            """
            slopes = numpyro.sample("slopes", dist.Normal(0, 10))
            numpyro.sample("y", dist.Normal(slopes * x[:5, 0], 1.0), obs=y)
            """,
            r"Observed site 'y' has data of shape \(20,\), but its distribution has shape \(5,\)",
        ),
        ("raise KeyError('nope')", r"The model raised KeyError at .*mine\.py, line 6 .*nope"),
        (
            """
            rate = numpyro.sample("rate", dist.LogNormal(0, 1))
            numpyro.sample("y", dist.Uniform(100 + rate, 200 + rate), obs=y)
            """,
            r"The log density is not finite at .* the sites that are not: y\. ",
        ),
        ("""numpyro.sample("y", dist.Normal(x[:, 0], 1.0), obs=y)""", r"The model has no latent sample sites"),
    ],
    ids=["shapes", "rows", "raises", "impossible", "no latents"],
)
def test_a_model_that_cannot_be_fitted(here, body, said):
    head = textwrap.dedent(MODEL).split("def model")[0] + "def model(x, y=None):\n"
    write("mine.py", head + textwrap.indent(textwrap.dedent(body).strip("\n"), "    "))
    assert re.match(said, sentence("fit", "mine.py", "--data", "table.csv", "--target", "score", "--method", QUICK))


def test_a_loss_that_turns_nan_is_told_with_its_step_and_a_remedy(here):
    write("mine.py", textwrap.dedent(MODEL).replace("intercept + x @ slopes", "jnp.sqrt(intercept - 1)"))
    result = run("fit", "mine.py", "--data", "table.csv", "--target", "score", "--method", "MeanField")
    assert result.exit_code == 0
    assert re.search(r"stopped +diverged: the loss was NaN or infinite at step \d+", result.stdout)
    assert "NOT ok" in result.stdout
    assert "try" in result.stdout or "look for" in result.stdout


# What comes out


def exact_regression():
    """Posterior means and sds of intercept, slopes[a], slopes[b] under MODEL and table.csv."""
    frame = pd.read_csv("table.csv")
    z = np.column_stack([np.ones(len(frame)), frame[["a", "b"]]])
    covariance = np.linalg.inv(z.T @ z + np.eye(3) / 100)
    return dict(
        zip(
            ["intercept", "slopes[a]", "slopes[b]"],
            zip(covariance @ z.T @ frame["score"], np.sqrt(np.diag(covariance)), strict=True),
            strict=True,
        )
    )


FIT = ("fit", "mine.py", "--data", "table.csv", "--target", "score", "--method", QUICK)


def test_fit_sends_each_column_where_it_belongs(here, z_bound):
    found = json.loads(run(*FIT, "--json").stdout)
    for name, (mean, sd) in exact_regression().items():
        # mcse is the largest error of a mean or an sd, in posterior sds
        assert abs(found["posterior"][name]["mean"] - mean) < z_bound(6) * found["mcse"] * sd
        assert abs(found["posterior"][name]["sd"] - sd) < z_bound(6) * found["mcse"] * sd
    assert found["ok"] is True
    assert found["stopped_because"].partition(":")[0] in ("converged", "step budget")


def test_fit_prints_the_verdict_and_the_posterior(here):
    out = run(*FIT).stdout
    assert re.search(r"verdict +ok\. ", out)
    for name in exact_regression():
        assert re.search(rf"^{re.escape(name)}( +-?[\d.]+){{4}}$", out, re.M)


def test_a_seed_repeats_a_fit(here):
    first, again, other = (json.loads(run(*FIT, "--json", "--seed", seed).stdout)["posterior"] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_an_index_labels_its_groups_and_set_gives_a_number(here):
    model = """
        def grouped(county, scale, num_counties, y=None):
            with numpyro.plate("counties", num_counties):
                level = numpyro.sample("level", dist.Normal(0, scale))
            with numpyro.plate("row", len(county)):
                numpyro.sample("y", dist.Normal(level[county], 1.0), obs=y)
    """
    write("mine.py", textwrap.dedent(MODEL) + textwrap.dedent(model))
    table("counties.csv", region=["Pine", "Aitkin"] * 10)
    argv = ["--data", "counties.csv", "--target", "score", "--index", "region", "--rename", "region=county", "--set", "scale=5.0"]
    result = run("fit", "mine.py:grouped", *argv, "--method", QUICK, "--json")
    assert list(json.loads(result.stdout)["posterior"]) == ["level[Aitkin]", "level[Pine]"]
    assert result.stderr == "not used: a (no argument has its name), b (no argument has its name)\n"


def test_missing_values_reach_a_model_that_masks_them(here, z_bound):
    masked = """
        def model(x, y=None):
            level = numpyro.sample("level", dist.Normal(0, 10))
            seen = jnp.isfinite(y)
            numpyro.sample("y", dist.Normal(level, 1.0).mask(seen), obs=jnp.where(seen, y, 0.0))
    """
    write("mine.py", textwrap.dedent(MODEL).split("def model")[0] + textwrap.dedent(masked))
    score = pd.read_csv("table.csv")["score"].where(np.arange(20) % 4 > 0)
    assert "Column score has 5 missing" in sentence("fit", "mine.py", "--data", table(score=score), "--target", "score")
    found = json.loads(
        run("fit", "mine.py", "--data", "bad.csv", "--target", "score", "--method", QUICK, "--allow-missing", "--json").stdout
    )
    level, sd = score.sum() / (15 + 1 / 100), (15 + 1 / 100) ** -0.5
    assert abs(found["posterior"]["level"]["mean"] - level) < z_bound(1) * found["mcse"] * sd


def test_what_a_model_prints_stays_out_of_json(here):
    write("mine.py", textwrap.dedent(MODEL).replace("    intercept =", "    print('noise')\n    intercept =") + "print('loaded')\n")
    result = run(*FIT, "--json")
    assert json.loads(result.stdout)["model"] == "mine.py"
    assert "loaded\nnoise" in result.stderr


def test_the_ladder_tells_each_rung(here):
    result = run("fit", "gaussian_mean")
    assert "DADVI: ok. " in result.stderr
    assert "rung 1" in result.stdout


COMPARE = ("compare", "gaussian_mean", "--methods", f"{QUICK},NUTS(num_warmup=200,num_samples=200,num_chains=2)")


def test_compare_prints_the_exact_values_beside_each_method(here):
    out = run(*COMPARE).stdout
    [exact] = re.findall(r"mu +the exact posterior +(.*)", out)
    assert exact.split() == ["1.87738", "0.09950"]
    for method in ("MeanField", "NUTS"):
        assert re.search(rf"^ +{method} +1\.\d+ +0\.\d+ +-?[\d.]+±[\d.]+ +[\d.]+±[\d.]+ *$", out, re.M), out


def test_compare_writes_a_report_a_table_and_the_draws_once(here):
    found = json.loads(run(*COMPARE, "--json", "--out", "new/folder").stdout)
    files = sorted(p.name for p in (here / "new" / "folder").iterdir())
    assert files == ["MeanField.nc", "NUTS.nc", "report.html", "table.csv"]
    assert [row["method"] for row in found["methods"]] == ["MeanField", "NUTS"] == list(pd.read_csv("new/folder/table.csv")["method"])
    assert found["reference"]["kind"] == "exact"
    assert found["scalars"]["NUTS"]["mu"]["reference_mean"] == pytest.approx(gaussian_mean.data()["y"].sum() / 101)
    assert found["methods"][0]["khat"] == "-inf"
    assert sentence(*COMPARE, "--out", "new/folder") == "new/folder exists: --force writes into it."
    (here / "new" / "folder" / "table.csv").write_text("old")
    (here / "new" / "folder" / "mine.txt").write_text("kept")
    assert run(*COMPARE, "--out", "new/folder", "--force").exit_code == 0
    assert (here / "new" / "folder" / "table.csv").read_text() != "old"
    assert sorted(p.name for p in (here / "new" / "folder").iterdir()) == sorted([*files, "mine.txt"])


def test_fit_writes_its_draws(here):
    assert "written to out: fit.nc" in run(*FIT, "--out", "out").stderr
    with xr.open_datatree("out/fit.nc") as tree:
        assert list(tree["posterior"].feature.values) == ["a", "b"]


def test_out_is_refused_before_the_work_and_taken_back_where_nothing_came_of_it(here, monkeypatch):
    monkeypatch.setattr(vip, "fit", lambda *args, **options: pytest.fail("it ran"))
    (here / "out").mkdir()
    assert sentence(*FIT, "--out", "out") == "out exists: --force writes into it."
    assert sentence(*FIT, "--out", "table.csv", "--force") == "table.csv exists: it is a file, and --out names a folder."
    assert "cannot be made" in sentence(*FIT, "--out", "table.csv/deeper")
    assert "no column scor" in sentence("fit", "mine.py", "--data", "table.csv", "--target", "scor", "--out", "new")
    assert not (here / "new").exists()
    sentence("fit", "mine.py", "--data", "table.csv", "--target", "scor", "--out", "out", "--force")
    assert (here / "out").exists()


def test_guide_is_the_file_s_own(here):
    assert sentence(*FIT, "--method", "Guide") == "Guide trains the function guide() of the model's file, and mine.py has none: write one."
    found = json.loads(run("fit", "gaussian_mean", "--method", "Guide(num_steps=400)", "--json").stdout)
    assert found["method"].startswith("Guide(guide=model_file.gaussian_mean.guide, ")
    assert set(found["posterior"]) == {"mu"}


def test_labels_that_do_not_fit_the_model_s_axes_are_left_off(here):
    """A plate named feature that also counts the intercept is not the table's."""
    write("mine.py", textwrap.dedent(MODEL).replace("x.shape[1]):", "x.shape[1] + 1):").replace("x @ slopes", "x @ slopes[1:] + slopes[0]"))
    assert list(json.loads(run(*FIT, "--json").stdout)["posterior"]) == ["intercept", "slopes[0]", "slopes[1]", "slopes[2]"]


def test_an_exact_posterior_that_fails_on_this_data_is_left_out(here, monkeypatch):
    function = "def exact_posterior(x, y):\n    raise ValueError('not this one')\n\ndef log_evidence(x, y):\n    return -1.5\n"
    write("mine.py", textwrap.dedent(MODEL) + "\n" + function)
    seen = {}
    monkeypatch.setattr(vip, "compare", lambda *args, **options: seen.update(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("compare", "mine.py", "--data", "table.csv", "--target", "score")
    assert (seen["reference"], seen["log_evidence"]) == (None, -1.5)


# Ctrl-C


def test_an_interrupt_before_anything_is_finished(here, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(vip, "fit", interrupted)
    result = run(*FIT, "--out", "out")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "interrupted: Nothing was finished that could be kept.\n"
    assert not (here / "out").exists()


@pytest.fixture
def _heeded_interrupts():
    """A shell starts what runs in its background with SIGINT ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeded_interrupts")
@pytest.mark.parametrize("command", [pytest.param("fit", marks=pytest.mark.slow), "compare"])
def test_an_interrupt_keeps_what_is_finished(here, command):
    """A real process, a real SIGINT, in the middle of a chain that would run for hours."""
    methods = {"fit": "NUTS(num_samples=100_000_000)", "compare": f"{QUICK},NUTS(num_samples=100_000_000)"}[command]
    argv = [sys.executable, "-m", "vipatterns", command, "gaussian_mean", "--methods", methods, "--out", "out"]
    environment = {**os.environ, "CI": "1", "PYTHONPATH": str(ROOT), **JAX_CACHE}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        watchdog = threading.Timer(250, process.kill)
        watchdog.start()
        told = next((line for line in process.stderr if re.match(r"NUTS: step (?!\d+ .*warm-up)", line)), "")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        watchdog.cancel()
    assert told
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "what was finished is above and in --out." in err
    assert "mu" in out
    files = {"fit": ["fit.nc"], "compare": ["MeanField.nc", "NUTS.nc", "report.html", "table.csv"]}[command]
    assert sorted(p.name for p in (here / "out").iterdir()) == files
