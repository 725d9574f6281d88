"""vip.train: where it ends is known in closed form; a run that is killed goes on to the same bits."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest
from linear import best_loglik, guide, loglik, model, rows

import vipatterns as vip
from vipatterns.amortized import run

FOLDER = pathlib.Path(__file__).parent


def train(rng_key, data=None, **options):
    settings = {"num_epochs": 3, "batch_size": 32, "optimizer": optax.adam(0.01), "progress": False}
    return vip.train(rng_key, model, guide, rows() if data is None else data, **{**settings, **options})


@pytest.mark.slow
def test_it_ends_at_the_maximum_of_the_likelihood(rng_key):
    data = rows()
    decay = optax.adam(optax.exponential_decay(0.03, 1000, 0.1))
    trained = train(rng_key, data, held_out=data, optimizer=decay, num_epochs=300, patience=300)
    best = best_loglik(data["x"])
    reached = loglik(trained.params, data["x"]).mean()
    assert reached <= best + 1e-9
    assert reached > best - 0.002  # what Adam's last, small steps leave
    spread = np.std(loglik(trained.params, data["x"])) / np.sqrt(len(data["x"]))
    assert abs(trained.held_out_mcse / spread - 1) < 0.2
    assert trained.elbo == max(trained.held_out_elbos)
    assert len(trained.elbos) == len(trained.held_out_elbos) == 300


def test_the_held_out_elbo_is_the_bound_at_the_parameters(rng_key, z_bound):
    trained = train(rng_key)
    x, params = trained.held_out["x"], trained.params
    mean, sd = x @ np.asarray(params["weights"], float), float(params["sd"])
    loadings, noise = np.asarray(params["loadings"], float), float(params["noise"])
    # E log p(x | z) + E log p(z) + H(q), all Gaussian
    residual = x - mean[:, None] * loadings
    expected = -0.5 * np.sum(residual**2 + sd**2 * loadings**2, 1) / noise**2 - len(loadings) * np.log(noise * np.sqrt(2 * np.pi))
    expected += -0.5 * (mean**2 + sd**2) + 0.5 + np.log(sd)
    draws = np.random.default_rng(0).normal(size=(2000, len(x))) * sd + mean
    terms = -0.5 * np.sum((x - draws[..., None] * loadings) ** 2, -1) / noise**2 - 0.5 * draws**2 + 0.5 * ((draws - mean) / sd) ** 2
    error = np.sqrt(terms.var(0).sum()) / len(x)  # of one draw a row
    assert abs(trained.elbo - expected.mean()) < z_bound() * error


def test_the_best_epoch_is_kept_and_patience_ends_the_run(rng_key):
    trained = train(rng_key, num_epochs=200, patience=2, optimizer=optax.sgd(0.003), held_out=0.5)
    assert trained.stopped_because.startswith("converged")
    assert len(trained.held_out_elbos) == trained.best_epoch + 3
    assert trained.elbo == trained.held_out_elbos.max()
    assert "nats a datum on 200 rows held out" in repr(trained)


def test_every_row_is_seen_once_an_epoch(rng_key):
    """Gradient of a model that counts: each row adds its own number to the parameter."""

    def count(x=None):
        seen = numpyro.param("seen", jnp.zeros(10))
        with numpyro.plate("row", len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("x", dist.Normal(z, 1), obs=x[:, 0])
        numpyro.factor("count", jnp.sum(seen[x[:, 1].astype(int)]))

    def same(x=None):
        with numpyro.plate("row", len(x)):
            numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1))

    data = {"x": np.column_stack([np.zeros(10), np.arange(10)])}
    trained = vip.train(rng_key, count, same, data, held_out=data, optimizer=optax.sgd(1.0), batch_size=5, num_epochs=1, progress=False)
    np.testing.assert_allclose(trained.params["seen"], np.ones(10), rtol=1e-6)


def test_a_schedule_warms_up_and_the_held_out_rows_are_weighed_in_full(rng_key):
    """With the weight of the KL at zero throughout, q forgets the prior and shrinks; the held-out ELBO counts the KL."""
    free = train(rng_key, num_epochs=30, schedules={"kl_weight": lambda step: 0.0 * step}, patience=30)
    held = train(rng_key, num_epochs=30, schedules={"kl_weight": lambda step: jnp.minimum(step / 50, 1.0)}, patience=30)
    assert free.elbos[-1] > free.held_out_elbos[-1] + 0.5
    assert held.elbo > free.held_out_elbos[-1] + 0.5


def test_progress_tells_nats_a_datum_bits_a_dimension_and_the_rate(rng_key, capsys):
    trained = train(rng_key, num_epochs=1, progress=True)
    found = re.search(r"model: step 11 of at most 11, epoch 1, elbo (.*) nats, (.*) bits/dim, ([\d,]+) rows/s\n", capsys.readouterr().err)
    assert abs(float(found[1]) - trained.elbos[0]) <= 0.005
    assert abs(float(found[2]) + trained.elbos[0] / 4 / np.log(2)) <= 0.0005
    seconds = trained.compile_seconds + trained.run_seconds
    assert float(found[3].replace(",", "")) > 11 * 32 / seconds


def test_float64_is_a_setting(rng_key):
    assert train(rng_key, dtype="float64").params["noise"].dtype == np.float64
    assert train(rng_key).params["noise"].dtype == np.float32


def test_two_runs_of_one_key_are_the_same_and_of_two_keys_are_not(rng_key):
    first, second, other = train(rng_key), train(rng_key), train(jax.random.fold_in(rng_key, 1))
    assert first.elbos.tolist() == second.elbos.tolist()
    assert first.elbos[-1] != other.elbos[-1]


# Kept on disk

KILLED = """
import sys, time
sys.path.insert(0, {folder!r})
import jax, numpy as np, optax
from linear import guide, model, rows
import vipatterns as vip
from vipatterns.amortized import Parquet, run, training
run.SECONDS_BETWEEN, training.STEPS_A_CALL = 0.0, 3
slow = run.Disk.keep
def keep(self, *args, **options):
    slow(self, *args, **options)
    print("kept", flush=True)
    time.sleep({pause})
run.Disk.keep = keep
trained = vip.train(jax.random.key(3), model, guide, {data}, num_epochs=4, batch_size=16, optimizer=optax.adam(0.01),
                    checkpoint={path!r}, progress=False)
np.savez({path!r} + ".npz", elbos=trained.elbos, held_out=trained.held_out_elbos, **trained.params)
"""


def killed_after(num_kept, path, data, delay=0.0):
    """Starts the run and kills it after so many checkpoints, in the middle of whatever comes next; None lets it end."""
    code = KILLED.format(folder=str(FOLDER), path=str(path), data=data, pause=0.0 if num_kept is None else 0.01)
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(path.parent / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **compiled})
    for _ in range(num_kept or 10_000):
        if not process.stdout.readline():
            break
    if num_kept is not None:
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=200)
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, kind):
    """Of a stream's six chunks an epoch, each but the last takes two compiled calls, with a checkpoint after each."""
    pd.DataFrame(rows()["x"], columns=list("abcd")).to_parquet(tmp_path / "t.parquet", row_group_size=20)
    data = "rows()" if kind == "memory" else f"Parquet({str(tmp_path / 't.parquet')!r}, {{'x': list('abcd')}}, window=64)"
    whole, often = tmp_path / "whole.safetensors", tmp_path / "often.safetensors"
    assert killed_after(None, whole, data) == 0
    # within a chunk of the first epoch, after a chunk of it, and in the second: as it rests, computes or writes
    for num_kept, delay in ((1, 0.0), (5, 0.013), (12, 0.016)):
        assert killed_after(num_kept, often, data, delay) == -signal.SIGKILL
    assert killed_after(None, often, data) == 0
    one, two = (np.load(f"{path}.npz") for path in (whole, often))
    assert sorted(one) == sorted(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert whole.read_bytes() == often.read_bytes()


def test_a_finished_run_returns_at_once_and_a_larger_budget_goes_on(rng_key, tmp_path):
    path = tmp_path / "run.safetensors"
    first = train(rng_key, checkpoint=path)
    again = train(rng_key, checkpoint=path)
    assert again.num_steps == first.num_steps
    assert again.elbos.tolist() == first.elbos.tolist()
    longer, whole = train(rng_key, checkpoint=path, num_epochs=5), train(rng_key, num_epochs=5)
    assert longer.held_out_elbos.tolist() == whole.held_out_elbos.tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 16}, "its batch_size is 32, here 16"),
        ({"dtype": "float64"}, "its dtype is float32, here float64"),
        ({"data": rows(seed=1)}, "its data, by the hash of its first rows,"),
        ({"optimizer": optax.sgd(0.1)}, "is of another model or optimizer"),
    ],
)
def test_another_run_does_not_go_on_from_a_checkpoint(rng_key, tmp_path, change, says):
    path = tmp_path / "run.safetensors"
    train(rng_key, checkpoint=path, num_epochs=1)
    with pytest.raises(vip.InputError, match=re.escape(says)):
        train(rng_key, checkpoint=path, **change)
    with pytest.raises(vip.InputError, match="its key is"):
        train(jax.random.fold_in(rng_key, 1), checkpoint=path)


@pytest.mark.parametrize("spoil", ["cut", "text", "empty", "foreign", "later", "folder"])
def test_a_file_that_is_no_checkpoint_is_a_sentence(rng_key, tmp_path, spoil):
    from safetensors.numpy import save_file

    path = tmp_path / "run.safetensors"
    train(rng_key, checkpoint=path, num_epochs=1)
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif spoil in ("text", "empty"):
        path.write_text("once upon a time" if spoil == "text" else "")
    elif spoil == "folder":
        path.unlink()
        path.mkdir()
    else:
        metadata = {"later": {"vipatterns": '{"format": 99}'}, "foreign": None}[spoil]
        save_file({"a": np.zeros(3)}, path, metadata=metadata)
    with pytest.raises(vip.InputError, match=r"run\.safetensors.*(delete it|cannot be read|is a folder)") as error:
        train(rng_key, checkpoint=path)
    assert "\n" not in str(error.value)


def test_a_full_disk_ends_no_run(rng_key, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    path = tmp_path / "run.safetensors"
    train(rng_key, checkpoint=path, num_epochs=1)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(run, "SECONDS_BETWEEN", 0.0)
    trained = train(rng_key, checkpoint=path, progress=True)
    assert ": step 22 of at most 33, checkpoint not written, epoch 2, elbo" in capsys.readouterr().err
    assert "No space left on device" in trained.not_saved
    assert trained.not_saved in repr(trained)
    assert len(trained.elbos) == 3
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# What cannot be trained


def shared(x=None):
    b = numpyro.sample("b", dist.Normal(0, 1))
    with numpyro.plate("row", len(x)):
        z = numpyro.sample("z", dist.Normal(b, 1))
        numpyro.sample("x", dist.Normal(z, 1), obs=x[:, 0])


def shared_guide(x=None):
    numpyro.sample("b", dist.Normal(numpyro.param("m", 0.0), 1))
    guide_of_z(x)


def guide_of_z(x=None, **rest):
    with numpyro.plate("row", len(x)):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1))


def wrong_name(x=None, **rest):
    with numpyro.plate("row", len(x)):
        numpyro.sample("zz", dist.Normal(numpyro.param("m", 0.0), 1))


@pytest.mark.parametrize(
    ("pair", "options", "says"),
    [
        ((shared, shared_guide), {}, "'b' stands in no plate"),
        ((model, wrong_name), {}, r"draws \['zz'\], and the model's latents are \['z'\]"),
        ((model, guide), {"data": {"x": 3}}, "one row a datum"),
        ((model, guide), {"held_out": 0.0}, "leaves none"),
        ((model, guide), {"held_out": 1.0}, "leaves none"),
        ((model, guide), {"num_epochs": 0}, "num_epochs must be a whole number"),
        ((model, guide), {"checkpoint": "nowhere/run.safetensors"}, "no folder nowhere"),
        ((model, guide), {"data": {"x": np.where(np.arange(400)[:, None] == 7, np.nan, rows()["x"])}}, "NaN"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(rng_key, pair, options, says):
    data = options.pop("data", rows())
    with pytest.raises(vip.InputError, match=says):
        vip.train(rng_key, *pair, data, progress=False, **{"num_epochs": 1, **options})


def coins(x=None, label=None, num_labels=3):
    with numpyro.plate("row", len(x)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Bernoulli(logits=z[:, None] * jnp.ones(2)).to_event(1), obs=x)


@pytest.mark.parametrize("held_out", [0.2, 0.8, {"x": np.zeros((5, 2)), "label": np.zeros(5, int)}])
@pytest.mark.parametrize("row", [3, 1_205])
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("x", 255, r"has values from 0 to 255 that are outside the support of the site 'x': rescale"),
        ("x", np.nan, r"holds NaN or infinity for x: drop or fill"),
        ("label", 3, r"has the label 3, and by num_labels = 3 it is a whole number from 0 to 2: mend it, or state another num_labels"),
        ("label", -1, r"has the label -1, and by num_labels = 3"),
        ("label", 0.5, r"has the label 0\.5, and by num_labels = 3"),
    ],
)
def test_a_value_that_cannot_be_trained_on_is_named_with_its_row_in_the_data(rng_key, name, value, says, row, held_out):
    """Whichever part of the split it comes into."""
    data = {"x": np.zeros((1_210, 2)), "label": np.arange(1_210) % 3 * (1.0 if isinstance(value, float) else 1)}
    data[name][(row, 1)[: data[name].ndim]] = value
    with pytest.raises(vip.InputError, match=rf"^Row {row} of the data \(counted from 0\) {says}"):
        vip.train(rng_key, coins, guide_of_z, data, held_out=held_out, progress=False)


def test_the_model_may_be_told_of_more_codes(rng_key):
    data = {"x": np.zeros((10, 2)), "label": np.arange(10)}
    assert vip.train(rng_key, coins, guide_of_z, {**data, "num_labels": 10}, num_epochs=1, progress=False).num_steps == 1


@pytest.mark.parametrize(
    ("held_out", "says"),
    [
        ({"x": np.full((4, 2), np.nan)}, r"Row 0 of held_out \(counted from 0\) holds NaN or infinity for x, the first of 8 such values"),
        ({"x": np.zeros((4, 3))}, r"Rows to hold out should be as those to train on, x \(M, 2\), M at least 1; got \{'x': \(4, 3\)\}"),
        ({"x": np.zeros((0, 2))}, r"M at least 1; got"),
        ({}, r"M at least 1; got none"),
        ({"x": np.zeros((4, 2)), "label": np.zeros(4)}, r"x \(M, 2\), M at least 1; got"),
    ],
)
def test_rows_to_hold_out_are_as_those_to_train_on(rng_key, held_out, says):
    with pytest.raises(vip.InputError, match=says):
        vip.train(rng_key, coins, guide_of_z, {"x": np.zeros((10, 2))}, held_out=held_out, progress=False)


def test_a_loss_that_becomes_nan_keeps_the_best_epoch(rng_key):
    trained = train(rng_key, num_epochs=50, optimizer=optax.sgd(optax.piecewise_constant_schedule(1e-3, {24: 1e9})), patience=50)
    assert trained.stopped_because.startswith("diverged")
    assert np.isfinite(trained.elbo)
    assert all(np.isfinite(value).all() for value in trained.params.values())
