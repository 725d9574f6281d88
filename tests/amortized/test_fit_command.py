"""`vipatterns fit` on a model whose parameters learn: it is trained, never climbed; bad input is one sentence."""

import json
import os
import pathlib
import shutil

import pytest
from typer.testing import CliRunner

from vipatterns.cli import app

FOLDER = pathlib.Path(__file__).parent
MODEL = """
from linear import *
def data(frame=None):
    return rows(100)
def training():
    return {"num_epochs": 2, "batch_size": 32}
def labels(x):
    return range(len(x))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(*words) -> the result of `vipatterns WORDS` beside my_model.py."""
    shutil.copy(FOLDER / "linear.py", tmp_path)
    (tmp_path / "my_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, words)


def test_a_model_that_learns_is_trained_with_the_settings_of_its_file(run):
    done = run("fit", "my_model.py", "--out", "out")
    assert done.exit_code == 0, done.output
    assert "epochs     2, the best is 2; 4 steps" in done.stdout  # 90 rows, 32 at a time
    assert "nats a datum on 10 rows held out" in done.stdout
    assert pathlib.Path("out/run.safetensors").exists()
    assert "rows held out" in pathlib.Path("out/report.html").read_text()
    more = run("fit", "my_model.py", "--out", "out", "--force", "--json", "--method", "train(num_epochs=3)")
    record = json.loads(more.stdout)
    assert (record["num_steps"], len(record["held_out_elbos"])) == (6, 3)


def test_a_report_that_is_interrupted_leaves_what_was_trained(run, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vipatterns.amortized.report.log_likelihood", stop)
        done = run("fit", "my_model.py", "--out", "out")
    assert done.exit_code == 130, done.output
    assert "written to out: run.safetensors" in done.stderr
    assert "what was finished is above and in --out." in done.stderr
    assert run("fit", "my_model.py", "--out", "out", "--force").exit_code == 0


@pytest.mark.parametrize("checkpoint_fits", [True, False])
def test_a_full_disk_is_a_sentence_and_what_was_trained_is_told(run, monkeypatch, checkpoint_fits):
    def cut(path, text, encoding):
        path.write_bytes(b"<!doctype")
        raise OSError(28, "No space left on device")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_text", cut)
        if not checkpoint_fits:
            patch.setattr(os, "fsync", full)
        done = run("fit", "my_model.py", "--out", "out")
    assert done.exit_code == 2, done.output
    assert "The report out/report.html cannot be written: No space left on device; make room" in done.stderr
    assert "Traceback" not in done.output
    assert "epochs     2, the best is 2; 4 steps" in done.stdout
    said = "not saved  The checkpoint out/run.safetensors cannot be written: No space left on device"
    assert (said in done.stdout) == (not checkpoint_fits)
    assert [path.name for path in pathlib.Path().glob("out/*")] == ["run.safetensors"] * checkpoint_fits  # and no half of a report
    if checkpoint_fits:
        more = run("fit", "my_model.py", "--out", "out", "--force")
        assert (more.exit_code, pathlib.Path("out/report.html").exists()) == (0, True), more.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fit", "my_model.py", "--method", "train(num_epoch=3)"], "train has no setting num_epoch: it has held_out,"),
        (["fit", "my_model.py", "--method", "DADVI"], "numpyro.param 'loadings'"),
        (["fit", "gaussian_mean", "--method", "train"], "'mu' stands in no plate"),
        (["compare", "my_model.py", "--methods", "train,NUTS"], "train is for fit"),
        (["fit", "my_model.py", "--method", "train(batch_size=0)"], "batch_size"),
        (["fit", "my_model.py", "--method", "train(num_epochs=-1)"], "num_epochs"),
    ],
)
def test_bad_input_is_one_sentence(run, words, says):
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert "Traceback" not in done.output


def test_a_model_that_cannot_be_called_is_said_with_its_line(run):
    pathlib.Path("broken.py").write_text(
        MODEL + "def model(x=None, **rest):\n    numpyro.param('a', 0.0)\n    raise RuntimeError('as it is')\n"
    )
    done = run("fit", "broken.py", "--method", "train")
    assert done.exit_code == 2
    assert "broken.py, line 11: RuntimeError: as it is" in done.stderr
