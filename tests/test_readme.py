"""What the README promises: its commands and examples run, its numbers are the code's, its links lead somewhere."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted({" ".join(c.split()) for c in re.findall(r"uv run (vipatterns [^`#\n]*)", README)})
MODEL, LIBRARY = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture
def folder(tmp_path):
    """Where a reader of the README stands: data and examples, and their own model beside them."""
    for name in ("data", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "my_model.py").write_text(MODEL)
    return tmp_path


def run(folder, *argv):
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=folder, env=environment(), timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment():
    """This one, with the package importable wherever the reader stands."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def test_two_commands_do_everything():
    assert re.findall(r"(?m)^ {4}pip install uv && uv run ([\w ]+?)(?: +#.*)?$", README) == ["vipatterns compare gaussian_mean", "pytest"]


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 3
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_limits_are_the_code_s():
    from vipatterns import verdict

    told = re.findall(r"below ([\d.]+) posterior sds|below ([\d.]+) %|less than ([\d.]+) percentage points|less than ([\d.]+) nats", README)
    numbers = [float(next(filter(None, groups))) for groups in told]
    assert numbers == pytest.approx([verdict.MEAN_LIMIT, 100 * verdict.SD_LIMIT, 100 * verdict.TAIL_LIMIT, verdict.EVIDENCE_LIMIT])


@pytest.mark.parametrize("command", [c for c in COMMANDS if " compare " not in c and " fit " not in c])
def test_commands_that_read_work(folder, command):
    assert run(folder, "-m", *shlex.split(command))


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if " compare " in c])
def test_commands_that_compute_work(folder, command):
    said = run(folder, "-m", *shlex.split(command))
    assert "MeanField" in said
    assert "NUTS" in said
    if "--out" in command:
        made = folder / command.split("--out ")[1]
        assert {path.name for path in made.iterdir()} == {"report.html", "table.csv", "MeanField.nc", "NUTS.nc"}


@pytest.mark.slow
def test_training_writes_its_report(folder):
    [command] = [c for c in COMMANDS if " fit " in c]
    assert "rows held out" in run(folder, "-m", *shlex.split(command))
    assert {path.name for path in (folder / command.split("--out ")[1]).iterdir()} == {"report.html", "run.safetensors"}


def test_the_likelihoods_are_those_that_were_measured():
    """Each row of the README's table, in the table that benchmarks/vae_digits.py wrote."""
    rows = [
        re.split(r" *\| *", line)[1:-1]
        for line in (ROOT / "benchmarks/results/vae_digits.md").read_text().splitlines()
        if "pixels |" in line
    ]
    told = re.findall(r"(?m)^\| (binary|grey)[^|]*\| ([-\d.]+) \| ([-\d.]+), [^|]*\| ([-+\d.]+) ± ([\d.]+) \| ([^|]+) \|$", README)
    assert len(told) == 2
    for kind, vae, rival, gain, error, each in told:
        found = [row for row in rows if row[0].startswith(kind)]
        assert [row[4] for row in found if row[1] == "all"] == [rival, vae, gain]
        assert found[-1][5] == error
        assert [row[4] for row in found[:-3] if "less" in row[2]] == re.findall(r"[-+][\d.]+", each)


@pytest.mark.slow
def test_the_library_example_works(folder):
    (folder / "example.py").write_text(LIBRARY)
    assert "level" in run(folder, "example.py")
    assert (folder / "comparison.html").read_text().startswith("<!")
