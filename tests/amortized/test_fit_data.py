"""`vipatterns fit FILE --data PATH` for a model that is trained: images, tables of pixels, and Parquet files that are streamed."""

import json
import pathlib
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from linear import rows
from PIL import Image
from typer.testing import CliRunner

from vipatterns import job
from vipatterns.amortized.files import Parquet
from vipatterns.cli import app

FOLDER = pathlib.Path(__file__).parent
MODEL = """
from linear import *
import linear
def training():
    return {"num_epochs": 2, "batch_size": 32}
def model(x=None, num_pixels=1, image_shape=None, label=None):
    assert num_pixels == 4 and (image_shape is None or image_shape == (2, 2)), (num_pixels, image_shape)
    linear.model(x)
def guide(x=None, num_pixels=1, image_shape=None, label=None):
    linear.guide(x)
"""
NEEDS_LABEL = """
from linear import *
import linear
def model(label, x=None):
    linear.model(x)
def guide(label, x=None):
    linear.guide(x)
"""
PIXELS = np.random.default_rng(0).integers(0, 256, (100, 2, 2), np.uint8)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    shutil.copy(FOLDER / "linear.py", tmp_path)
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "needs.py").write_text(NEEDS_LABEL)
    (tmp_path / "no_x.py").write_text("def model(y=None): ...\n")
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(PIXELS):
        folder = tmp_path / "images" / str(i % 3)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    np.savez("images.npz", x=PIXELS, y=np.arange(100) % 3)
    np.save("images.npy", PIXELS)


def run(*words):
    return CliRunner().invoke(app, words)


def table(path, constant=False, **more):
    x = rows(400)["x"]
    x[:, 3] = 0.0 if constant else x[:, 3]
    frame = pd.DataFrame({**{name: x[:, i] for i, name in enumerate("abcd")}, **more})
    frame.to_parquet(path, row_group_size=50) if path.endswith("parquet") else frame.to_csv(path, index=False)
    return x


@pytest.mark.parametrize("path", ["images", "images.npz", "images.npy"])
def test_images_are_read_into_the_arguments_that_the_model_has(path):
    asked = job.read("my_model.py", pathlib.Path(path), job.Columns(), [])
    assert {name: np.shape(value) for name, value in asked.data.items() if name in ("x", "label")} == (
        {"x": (100, 4)} if path.endswith("npy") else {"x": (100, 4), "label": (100,)}
    )
    assert (asked.data["image_shape"], asked.data["num_pixels"], asked.stream) == ((2, 2), 4, None)
    order = sorted(range(100), key=lambda i: (str(i % 3), f"{i}.png")) if path == "images" else range(100)
    np.testing.assert_array_equal(asked.data["x"], PIXELS.reshape(100, 4)[list(order)].astype(np.float32) / 255)
    assert asked.learns()
    if path == "images.npy":
        assert asked.labels() is None
    else:
        np.testing.assert_array_equal(asked.labels(), np.sort(np.arange(100) % 3) if path == "images" else np.arange(100) % 3)
    assert list(job.read("needs.py", pathlib.Path("images"), job.Columns(), []).data) == ["x", "label"]


def test_a_model_is_trained_on_images():
    done = run("fit", "my_model.py", "--data", "images")
    assert done.exit_code == 0, done.output
    assert "100 images of 2 x 2 from images" in done.stderr
    assert "epochs     2, the best is" in done.stdout
    assert "on 10 rows held out" in done.stdout


@pytest.mark.parametrize("path", ["t.csv", "t.parquet"])
def test_a_table_of_pixels_may_have_constant_ones(path):
    x = table(path, constant=True)
    asked = job.read("my_model.py", pathlib.Path(path), job.Columns(), [])
    np.testing.assert_allclose(asked.data["x"], x)
    assert (asked.data["num_pixels"], asked.stream, asked.learns()) == (4, None, True)


def test_a_large_parquet_file_is_streamed_to_a_model_that_learns(monkeypatch):
    monkeypatch.setattr(job, "STREAMED", 1_000)
    monkeypatch.setattr(job, "FIRST_ROWS", 10)
    x = table("t.parquet", labels=np.arange(400) % 5, word=["a"] * 400)
    asked = job.read("my_model.py", pathlib.Path("t.parquet"), job.Columns(rename=["labels=label"]), [])
    assert isinstance(asked.stream, Parquet)
    assert asked.stream.columns == {"x": list("abcd"), "label": ["labels"]}
    assert len(asked.data["x"]) == 10
    [chunk] = asked.stream.chunks(np.random.default_rng(0))
    np.testing.assert_array_equal(chunk["x"][np.argsort(chunk["x"][:, 0])], x[np.argsort(x[:, 0])])
    done = run("fit", "my_model.py", "--data", "t.parquet", "--rename", "labels=label", "--json")
    assert done.exit_code == 0, done.output
    assert "not used: word" in done.stderr
    assert json.loads(done.stdout)["num_steps"] == 2 * (360 // 32)


def test_a_large_parquet_file_is_read_whole_for_any_other_model(monkeypatch):
    monkeypatch.setattr(job, "STREAMED", 1_000)
    table("t.parquet", y=np.arange(400.0))
    pathlib.Path("plain.py").write_text(
        "import numpyro, numpyro.distributions as dist\n"
        "def model(x, y=None):\n    b = numpyro.sample('b', dist.Normal(0, 1))\n    numpyro.sample('y', dist.Normal(b, 1), obs=y)\n"
    )
    asked = job.read("plain.py", pathlib.Path("t.parquet"), job.Columns(), [])
    assert (asked.stream, len(asked.data["x"])) == (None, 400)
    asked = job.read("my_model.py", pathlib.Path("t.parquet"), job.Columns(target="y", rename=["y=label"]), [])
    assert asked.stream.columns == {"x": list("abcd"), "label": ["y"]}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["my_model.py", "--data", "images", "--target", "a"],
            r"--target speaks of a table's columns, and images holds images: leave it out\.",
        ),
        (["no_x.py", "--data", "images"], r"images of images go to an argument x, and the model in no_x\.py has none: it has y\."),
        (["needs.py", "--data", "images.npy"], r"needs a label for each image, and images\.npy has none: put the images into sub-folders"),
        (["my_model.py", "--data", "my_model.py"], r"my_model\.py is of no known kind: images are"),
        (["my_model.py", "--data", "imagse"], r"There is no file imagse: did you mean images\?"),
        (["my_model.py", "--data", "cut.npy"], r"cut\.npy is no whole array file"),
        (["my_model.py", "--data", "cut.parquet"], r"cut\.parquet cannot be read as a table"),
        (["my_model.py", "--data", "holes.parquet"], r"holes\.parquet, row 333 \(counted from 0\), holds NaN or infinity for x"),
        (["my_model.py", "--data", "none.parquet"], r"none\.parquet is empty \(0 rows, 4 columns\)"),
    ],
)
def test_bad_input_is_one_sentence(argv, sentence, monkeypatch):
    monkeypatch.setattr(job, "STREAMED", 1_000)
    monkeypatch.setattr(job, "FIRST_ROWS", 10)
    pathlib.Path("cut.npy").write_bytes(pathlib.Path("images.npy").read_bytes()[:-9])
    table("t.parquet")
    pathlib.Path("cut.parquet").write_bytes(pathlib.Path("t.parquet").read_bytes()[:-9])
    frame = pd.read_parquet("t.parquet")
    frame.head(0).to_parquet("none.parquet")
    frame.loc[333, "b"] = np.inf
    frame.to_parquet("holes.parquet", row_group_size=50)
    done = run("fit", *argv)
    assert done.exit_code == 2, done.output
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.output
