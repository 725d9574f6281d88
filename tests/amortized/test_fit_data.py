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
INK = """
import jax.numpy as jnp, numpyro, numpyro.distributions as dist
def model(label, x=None, num_labels=3, num_columns=9, grey=False):
    assert num_columns == x.shape[1], num_columns
    chances = numpyro.param("chances", jnp.full((num_labels, num_columns), 0.5), constraint=dist.constraints.unit_interval)
    with numpyro.plate("row", len(x)):
        numpyro.sample("z", dist.Normal(0, 1))
        p = chances[jnp.asarray(label, int)]
        numpyro.sample("x", (dist.Normal(p, 1) if grey else dist.Bernoulli(p)).to_event(1), obs=x)
def guide(label, x=None, **rest):
    with numpyro.plate("row", len(x)):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1))
def training():
    return {"num_epochs": 1}
"""
"""A Bernoulli model, which indexes by labels: JAX would take one that is too large for the last."""
PIXELS = np.random.default_rng(0).integers(0, 256, (100, 2, 2), np.uint8)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    shutil.copy(FOLDER / "linear.py", tmp_path)
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "needs.py").write_text(NEEDS_LABEL)
    (tmp_path / "ink.py").write_text(INK)
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


def labelled(path, spoilt=None, kind=int):
    """400 rows of ink, labels 0, 1 and 2; one row is spoilt in the label, or its pixel c."""
    frame = pd.DataFrame({name: (rows(400)["x"][:, i] > 0) * 1.0 for i, name in enumerate("abcd")})
    frame["label"] = (np.arange(400) % 3).astype(kind)
    for column, value in (spoilt or {}).items():
        frame.loc[333, column] = value
    frame.to_parquet(path, row_group_size=50) if path.endswith("parquet") else frame.to_csv(path, index=False)


def test_sizes_that_follow_from_the_rows_are_filled_in(monkeypatch):
    """The width of x, and 1 + the largest label, of which the first rows of a streamed file may have none."""
    np.savez("l.npz", x=PIXELS, y=np.where(np.arange(100) == 77, 5, 0))
    labelled("t.csv", {"label": 5})
    labelled("t.parquet", {"label": 5})
    for path, width in (("l.npz", 4), ("t.csv", 4), ("t.parquet", 4)):
        asked = job.read("ink.py", pathlib.Path(path), job.Columns(), [])
        assert (asked.data["num_labels"], asked.data["num_columns"]) == (6, width)
        assert job.read("ink.py", pathlib.Path(path), job.Columns(), ["num_labels=9"]).data["num_labels"] == 9
    monkeypatch.setattr(job, "STREAMED", 1_000)
    monkeypatch.setattr(job, "FIRST_ROWS", 10)
    for set_, number in (([], 6), (["num_labels=9"], 9)):
        asked = job.read("ink.py", pathlib.Path("t.parquet"), job.Columns(), set_)
        assert (asked.data["label"].max(), asked.data["num_labels"]) == (2, number)
    np.testing.assert_array_equal(asked.stream.whole("label"), pd.read_parquet("t.parquet")["label"])
    assert asked.stream.whole("x").shape == (400, 4)


def test_grey_images_become_ink_for_a_model_of_ink_and_this_is_said(capsys):
    told = "pixels above half of full ink are made 1 and all others 0"
    x = job.read("ink.py", pathlib.Path("images.npz"), job.Columns(), []).data["x"]
    np.testing.assert_array_equal(x, PIXELS.reshape(100, 4) > 127.5)
    assert (x.dtype, told in capsys.readouterr().err) == (np.float32, True)
    for asked in (("ink.py", ["grey=True"]), ("my_model.py", [])):  # which have a density for grey
        x = job.read(asked[0], pathlib.Path("images.npz"), job.Columns(), asked[1]).data["x"]
        np.testing.assert_array_equal(x, PIXELS.reshape(100, 4).astype(np.float32) / 255)
    np.savez("ink.npz", x=(PIXELS > 127).astype(np.uint8), y=np.arange(100) % 3)
    job.read("ink.py", pathlib.Path("ink.npz"), job.Columns(), [])
    assert told not in capsys.readouterr().err
    done = run("fit", "ink.py", "--data", "images")
    assert (done.exit_code, told in done.stderr) == (0, True), done.output


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
        (["ink.py", "--data", "minus.npz"], r"Row 77 of the data \(counted from 0\) has the label -1, and by num_labels = 3 it is a whole"),
        (["ink.py", "--data", "five.npz", "--set", "num_labels=3"], r"Row 77 of the data \(counted from 0\) has the label 5, and by num"),
        (["ink.py", "--data", "years.npz"], r"Labels should be the codes 0, 1, 2 and so on, and the largest of 100 is 2,026: code them"),
        (["ink.py", "--data", "half.csv"], r"Row 333 of the data \(counted from 0\) has the label 0\.5, and by num_labels = 3"),
        (["ink.py", "--data", "half.parquet"], r"half\.parquet, row 333 \(counted from 0\), has the label 0\.5, and by num_labels = 3"),
        (["ink.py", "--data", "two.csv"], r"Row 333 of the data \(counted from 0\) has values from \d to 2 that are outside the support"),
        (["ink.py", "--data", "two.parquet"], r"two\.parquet, row 333 \(counted from 0\), has values from \d to 2 that are outside"),
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
    for name, value in (("minus", -1), ("five", 5), ("years", 2_026)):
        np.savez(f"{name}.npz", x=PIXELS, y=np.where(np.arange(100) == 77, value, np.arange(100) % 3))
    for kind in ("csv", "parquet"):
        labelled(f"half.{kind}", {"label": 0.5}, kind=float)
        labelled(f"two.{kind}", {"c": 2.0})
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
