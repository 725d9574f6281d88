"""vae_convolutional: weights against quadrature over one latent, losses against weights, held-out bounds against independent pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy.stats import bernoulli, norm

import vipatterns as vip
from vipatterns.patterns import vae_convolutional as pattern

SHAPE = (8, 8)


@pytest.fixture(scope="module")
def split():
    """Rows to train on, rows held out, and the log p of these by the frequencies of the pixels in those."""
    x, held_out = np.split(np.random.default_rng(0).permutation(pattern.data()["x"]), [-180])
    return x, held_out, bernoulli.logpmf(held_out, (x.sum(0) + 1) / (len(x) + 2)).sum(1)


def start(rng_key, x, shape=SHAPE):
    """Parameters as they are initialised, the decoder's three times as large, so that codes matter."""
    sites = {}
    for function in (pattern.model, pattern.guide):
        sites |= pattern.traced(function, rng_key, {}, jnp.asarray(x, float), shape)
    params = {name: site["value"] for name, site in sites.items() if site["type"] == "param"}
    return params | {"decoder$params": jax.tree.map(lambda leaf: 3 * leaf, params["decoder$params"])}


def test_digits_are_black_where_ink_covers_more_than_half():
    d = pattern.data()
    assert d["x"].shape == (1797, 64)
    assert set(np.unique(d["x"])) == {0.0, 1.0}
    assert d["image_shape"] == SHAPE
    assert pattern.data({"x": np.zeros((3, 49))})["image_shape"] == (7, 7)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 8), (5, 7), (12, 3)])
def test_images_of_any_shape(shape, rng_key):
    x = np.ones((4, shape[0] * shape[1]))
    assert pattern.traced(pattern.guide, rng_key, {}, x, shape)["z"]["value"].shape == (4, pattern.LATENTS)
    assert pattern.traced(pattern.model, rng_key, {}, None, shape, 3)["x"]["value"].shape == (3, x.shape[1])


@pytest.mark.slow
def test_only_the_waist_grows_with_the_image(rng_key):
    small, large = (start(rng_key, np.zeros((1, side**2)), (side, side)) for side in (8, 28))
    for network in ("encoder$params", "decoder$params"):
        shapes = [[leaf.shape for leaf in jax.tree.leaves(params[network]) if leaf.ndim == 4] for params in (small, large)]
        assert shapes[0] == shapes[1]
        assert len(shapes[0]) == 2, "two convolutions"


@pytest.mark.parametrize("function", [pattern.model, pattern.guide])
def test_a_shape_of_other_images_is_a_sentence(function, rng_key):
    with pytest.raises(ValueError, match=r"Rows of 64 pixels are no grey images of image_shape \(8, 9\): state"):
        pattern.traced(function, rng_key, {}, np.zeros((2, 64)), (8, 9))


@pytest.mark.slow
def test_weights_average_to_the_evidence(monkeypatch, rng_key, split, z_bound):
    """One latent can be integrated on a grid, with nothing of the pattern but its decoder."""
    monkeypatch.setattr(pattern, "LATENTS", 1)
    x, keys = split[0][:6], jax.random.split(rng_key, 3)
    params = start(keys[0], x)
    z = np.linspace(-8, 8, 801)
    at = pattern.handlers.substitute(pattern.model, {"z": z[:, None]})
    logits = np.asarray(pattern.traced(at, keys[1], params, np.zeros((801, 64)), SHAPE)["x"]["fn"].base_dist.logits, float)
    log_p = x @ logits.T - np.logaddexp(0, logits).sum(1) + norm.logpdf(z)
    exact = np.logaddexp.reduce(log_p, axis=1) + np.log(z[1] - z[0])
    assert np.ptp(logits, axis=0).max() > 1, "codes matter"
    ratio = np.exp(np.asarray(pattern.log_weights(keys[2], params, x, SHAPE, 4000), float) - exact)
    assert np.all(np.abs(ratio.mean(0) - 1) < z_bound(6) * ratio.std(0) / np.sqrt(4000) + 1e-5)


@pytest.mark.slow
def test_losses_are_the_negative_elbo_of_all_rows(monkeypatch, rng_key, split, z_bound):
    """Without a step, all minibatches are weighed by the same networks."""
    monkeypatch.setattr(pattern.numpyro.optim, "Adam", lambda rate: pattern.numpyro.optim.SGD(0.0))
    x, keys = split[1], jax.random.split(rng_key)
    params, losses = pattern.learn(keys[0], x, SHAPE, 400)
    elbos = np.asarray(pattern.log_weights(keys[1], params, x, SHAPE), float).sum(1)
    error = np.sqrt(np.var(losses) / len(losses) + elbos.var() / len(elbos))
    assert abs(np.mean(losses) + elbos.mean()) < z_bound() * error


@pytest.mark.slow
def test_held_out_bounds_beat_independent_pixels(rng_key, split, z_bound):
    x, held_out, rival = split
    keys = jax.random.split(rng_key)
    params, _ = pattern.learn(keys[0], x, SHAPE, 1000)
    weights = pattern.log_weights(keys[1], params, held_out, SHAPE)
    elbo, log_p = weights.mean(0), logsumexp(weights, axis=0) - np.log(len(weights))
    assert np.all(elbo < log_p)
    gain = np.asarray(elbo, float) - rival
    assert gain.mean() > z_bound() * gain.std(ddof=1) / np.sqrt(len(gain))


@pytest.mark.slow
def test_training_beats_independent_pixels_on_rows_held_out(rng_key, split, z_bound):
    """With a fifth of the epochs that the pattern grants."""
    x, held_out, rival = split
    keys, settings = jax.random.split(rng_key), pattern.training()
    settings["num_epochs"] //= 5
    data = {"x": x, "image_shape": SHAPE}
    trained = vip.train(keys[0], pattern.model, pattern.guide, data, held_out={"x": held_out}, progress=False, **settings)
    gain = np.asarray(trained.pair.log_weights(keys[1], trained.params, {"x": jnp.asarray(held_out, "float32")}), float) - rival
    assert gain.mean() > z_bound() * gain.std(ddof=1) / np.sqrt(len(gain))
