"""vae_conditional: a label missing is a sentence, weights against quadrature, draws of a label against a classifier of real digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy.stats import bernoulli, norm
from sklearn.linear_model import LogisticRegression

import vipatterns as vip
from vipatterns.patterns import vae_conditional as pattern


@pytest.fixture(scope="module")
def split():
    """label and x of rows to train on, label and x of rows held out."""
    d, order = pattern.data(), np.random.default_rng(0).permutation(1797)
    return tuple(d[name][rows] for rows in (order[:-180], order[-180:]) for name in ("label", "x"))


@pytest.fixture(scope="module")
def params(rng_key, split):
    return pattern.learn(rng_key, *split[:2], 10, 2000)[0]


def test_a_table_without_labels_is_a_sentence():
    table = {"a": np.zeros(3), "b": np.ones(3)}
    with pytest.raises(ValueError, match=r"needs a column label, an integer from 0 for every row; its columns are a, b\."):
        pattern.data(table)
    for labels, count, row in (([0.0, np.nan, np.nan], 2, 1), ([0, 1, -1], 1, 2), ([0.5, 1, 2], 1, 0)):
        with pytest.raises(ValueError, match=rf"and {count} are missing or something else, the first in row {row}: drop"):
            pattern.data(table | {"label": labels})


def test_labels_and_pixels_of_a_table():
    d = pattern.data({"label": [2.0, 0.0, 3.0], "a": [0, 1, 1], "name": ["u", "v", "w"], "b": [1, 1, 0]})
    np.testing.assert_array_equal(d["x"], [[0, 1], [1, 1], [1, 0]])
    np.testing.assert_array_equal(d["label"], [2, 0, 3])
    assert d["label"].dtype.kind == "i"
    assert (d["num_labels"], d["num_pixels"]) == (4, 2)


def test_the_rival_is_a_bernoulli_for_each_label(split):
    label, x, of, held_out = split
    rival = pattern.independent_pixels(label, x, of, held_out)
    for row in range(0, 180, 30):
        same = x[label == of[row]]
        expected = bernoulli.logpmf(held_out[row], (same.sum(0) + 1) / (len(same) + 2)).sum()
        assert rival[row] == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_weights_average_to_the_evidence_of_the_label(monkeypatch, rng_key, split, z_bound):
    """One latent can be integrated on a grid, for a right label and for a wrong one, with nothing of the pattern but its decoder."""
    monkeypatch.setattr(pattern, "LATENTS", 1)
    keys, x = jax.random.split(rng_key, 4), split[1][:6]
    label = np.where(np.arange(6) % 2, split[0][:6], (split[0][:6] + 1) % 10)
    sites = pattern.traced(pattern.model, keys[0], {}, label, x) | pattern.traced(pattern.guide, keys[1], {}, label, x)
    params = {name: jax.tree.map(lambda leaf: 2 * leaf, site["value"]) for name, site in sites.items() if site["type"] == "param"}
    z, exact = np.linspace(-8, 8, 801), []
    for row, kind in zip(x, label, strict=True):
        at = pattern.handlers.substitute(pattern.model, {"z": z[:, None]})
        told = pattern.traced(at, keys[2], params, np.full(801, kind), np.zeros((801, 64)))
        logits = np.asarray(told["x"]["fn"].base_dist.logits, float)
        log_p = logits @ row - np.logaddexp(0, logits).sum(1) + norm.logpdf(z)
        exact.append(np.logaddexp.reduce(log_p) + np.log(z[1] - z[0]))
    weights = np.asarray(pattern.log_weights(keys[3], params, label, x, num_draws=4000), float)
    ratio = np.exp(weights - np.array(exact))
    assert np.all(np.abs(ratio.mean(0) - 1) < z_bound(6) * ratio.std(0) / np.sqrt(4000) + 1e-5)


@pytest.mark.slow
def test_losses_are_the_negative_elbo_of_all_rows(monkeypatch, rng_key, split, z_bound):
    """Without a step, all minibatches are weighed by the same networks."""
    monkeypatch.setattr(pattern.numpyro.optim, "Adam", lambda rate: pattern.numpyro.optim.SGD(0.0))
    label, x, keys = *split[2:], jax.random.split(rng_key)
    params, losses = pattern.learn(keys[0], label, x, 10, 400)
    elbos = np.asarray(pattern.log_weights(keys[1], params, label, x), float).sum(1)
    error = np.sqrt(np.var(losses) / len(losses) + elbos.var() / len(elbos))
    assert abs(np.mean(losses) + elbos.mean()) < z_bound() * error


@pytest.mark.slow
def test_draws_of_a_label_look_like_that_label(params, rng_key, split, z_bound):
    """To a classifier that has seen real digits alone. It is wrong about some draws, so far above chance is all that is asked: half."""
    judge = LogisticRegression(max_iter=1000).fit(split[1], split[0])
    asked = np.repeat(np.arange(10), 40)
    drawn = pattern.traced(pattern.model, rng_key, params, asked)["x"]["value"]
    right = judge.predict(np.asarray(drawn)) == asked
    assert right.mean() - z_bound() * np.sqrt(0.25 / len(asked)) > 0.5
    assert right.reshape(10, 40).mean(1).min() > 0.1, "every label"


@pytest.mark.slow
def test_held_out_bounds_beat_pixels_that_know_the_label(params, rng_key, split, z_bound):
    label, x, of, held_out = split
    weights = pattern.log_weights(rng_key, params, of, held_out)
    elbo, log_p = weights.mean(0), logsumexp(weights, axis=0) - np.log(len(weights))
    assert np.all(elbo < log_p)
    gain = np.asarray(elbo, float) - pattern.independent_pixels(label, x, of, held_out)
    assert gain.mean() > z_bound() * gain.std(ddof=1) / np.sqrt(len(gain))


@pytest.mark.slow
def test_a_wrong_label_costs(params, rng_key, split, z_bound):
    """Both networks read it."""
    _, _, of, held_out = split
    right, wrong = (pattern.log_weights(rng_key, params, label, held_out, num_draws=50).mean(0) for label in (of, (of + 1) % 10))
    loss = np.asarray(right - wrong, float)
    assert loss.mean() > z_bound() * loss.std(ddof=1) / np.sqrt(len(loss))


@pytest.mark.slow
def test_training_beats_pixels_that_know_the_label_on_rows_held_out(rng_key, split, z_bound):
    """With a third of the epochs that the pattern grants."""
    label, x, of, held_out = split
    keys, settings = jax.random.split(rng_key), pattern.training()
    settings["num_epochs"] //= 3
    data, kept = pattern.data() | {"label": label, "x": x}, {"label": of, "x": held_out}
    trained = vip.train(keys[0], pattern.model, pattern.guide, data, held_out=kept, progress=False, **settings)
    batch = {"label": jnp.asarray(of), "x": jnp.asarray(held_out, "float32")}
    gain = np.asarray(trained.pair.log_weights(keys[1], trained.params, batch), float)
    gain -= pattern.independent_pixels(label, x, of, held_out)
    assert gain.mean() > z_bound() * gain.std(ddof=1) / np.sqrt(len(gain))
