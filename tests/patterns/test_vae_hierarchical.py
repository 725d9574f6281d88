"""vae_hierarchical: what the weight of the KL scales, that held-out bounds know nothing of it, and what warm-up does to the upper layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from numpyro.infer import Trace_ELBO
from scipy.stats import bernoulli

import vipatterns as vip
from vipatterns.patterns import vae_hierarchical as pattern


@pytest.fixture(scope="module")
def split():
    """Rows to train on, rows held out, and the log p of these by the frequencies of the pixels in those."""
    x, held_out = np.split(np.random.default_rng(0).permutation(pattern.data()["x"]), [-180])
    return x, held_out, bernoulli.logpmf(held_out, (x.sum(0) + 1) / (len(x) + 2)).sum(1)


def start(rng_key, x):
    """Parameters as they are initialised, the decoder's twice as large, so that codes matter."""
    params = {}
    for key, function in zip(jax.random.split(rng_key), (pattern.model, pattern.guide), strict=True):
        sites = pattern.traced(function, key, {}, x)
        params |= {name: site["value"] for name, site in sites.items() if site["type"] == "param"}
    return params | {"decoder$params": jax.tree.map(lambda leaf: 2 * leaf, params["decoder$params"])}


def test_the_weight_scales_the_codes_and_not_the_pixels(rng_key, split):
    """For the same draw the loss is a line in the weight, that begins at minus what the pixels say and rises by log q - log p(z)."""
    x, keys = split[0][:20], jax.random.split(rng_key)
    params = start(keys[0], x)
    loss = {
        weight: float(Trace_ELBO().loss(keys[1], params, pattern.model, pattern.guide, x, kl_weight=weight)) for weight in (0.25, 0.5, 1)
    }
    slope = (loss[1] - loss[0.5]) / 0.5
    assert loss[0.5] - loss[0.25] == pytest.approx(0.25 * slope, rel=1e-3)
    sites = pattern.handlers.trace(pattern.handlers.seed(pattern.model, keys[1])).get_trace(x, kl_weight=0.25)
    assert (sites["z1"]["scale"], sites["z2"]["scale"], sites["x"]["scale"]) == (0.25, 0.25, None)


def test_the_weight_rises_in_a_line_and_stays():
    steps = jnp.array([0, 249, 499, 999, 5000])
    np.testing.assert_allclose(pattern.warmed(steps, 1000), [0.001, 0.25, 0.5, 1, 1])
    np.testing.assert_array_equal(pattern.warmed(steps, 1), 1)
    assert pattern.training()["schedules"]["kl_weight"](0) > 0, "a scale of 0 is refused by NumPyro"


@pytest.mark.slow
def test_weights_average_to_the_evidence(monkeypatch, rng_key, split, z_bound):
    """A layer of one code above another of one can be integrated on a grid, with nothing of the guide."""
    monkeypatch.setattr(pattern, "TOP", 1)
    monkeypatch.setattr(pattern, "LOWER", 1)
    x, keys = split[0][:4], jax.random.split(rng_key, 3)
    params = start(keys[0], x)
    top, lower = np.linspace(-6, 6, 201), np.linspace(-15, 15, 601)
    z = np.stack(np.meshgrid(top, lower), axis=-1).reshape(-1, 2)
    at = pattern.handlers.substitute(pattern.model, {"z2": z[:, :1], "z1": z[:, 1:]})
    exact = []
    for row in x:
        sites = pattern.traced(at, keys[1], params, np.tile(row, (len(z), 1)))
        log_p = sum(np.asarray(sites[name]["fn"].log_prob(sites[name]["value"]), float) for name in ("z2", "z1", "x"))
        exact.append(np.logaddexp.reduce(log_p) + np.log((top[1] - top[0]) * (lower[1] - lower[0])))
    weights, _ = pattern.log_weights(keys[2], params, x, 4000)
    ratio = np.exp(np.asarray(weights, float) - np.array(exact))
    assert np.all(np.abs(ratio.mean(0) - 1) < z_bound(4) * ratio.std(0) / np.sqrt(4000) + 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_losses_are_the_negative_elbo_with_the_kl_as_it_was_weighed(weight, monkeypatch, rng_key, split, z_bound):
    """Without a step, all minibatches are weighed by the same networks."""
    monkeypatch.setattr(pattern.numpyro.optim, "Adam", lambda rate: pattern.numpyro.optim.SGD(0.0))
    x, keys = split[1], jax.random.split(rng_key, 3)
    params, losses = pattern.learn(keys[0], x, weight, 400, warm_up=1)
    expected = Trace_ELBO(num_particles=200).loss(keys[1], params, pattern.model, pattern.guide, x, kl_weight=weight)
    if weight == 1:
        elbos = pattern.log_weights(keys[2], params, x)[0].sum(1)
        assert abs(expected + elbos.mean()) < z_bound(2) * np.sqrt(2 * elbos.var() / 200)
    spread = np.var(losses) / len(losses) + np.var(losses) / 200
    assert abs(np.mean(losses) - expected) < z_bound(2) * np.sqrt(spread)


@pytest.mark.slow
def test_warm_up_makes_the_upper_layer_tell_more(rng_key, split):
    """From the same starts, on the same minibatches, more nats a row: the mean over three pairs. It is no claim about the number of
    active units: there are pairs in which warm-up leaves as many of them, or fewer, each of which tells more."""
    x, held_out, _ = split
    keys, told = jax.random.split(rng_key, 4), []
    for warm_up in (1, 700):
        fits = jax.jit(jax.vmap(lambda key, warm_up=warm_up: pattern.learn(key, x, 1.0, 1500, warm_up)[0]))(keys[:3])
        told.append(jax.vmap(lambda params: pattern.log_weights(keys[3], params, held_out, 50)[1].mean())(fits))
    assert jnp.mean(told[1] - told[0]) > 0, told


@pytest.mark.slow
def test_held_out_bounds_beat_independent_pixels(rng_key, split, z_bound):
    x, held_out, rival = split
    keys = jax.random.split(rng_key)
    params, _ = pattern.learn(keys[0], x, 1.0, 2000)
    weights, _ = pattern.log_weights(keys[1], params, held_out)
    elbo, log_p = weights.mean(0), logsumexp(weights, axis=0) - np.log(len(weights))
    assert np.all(elbo < log_p)
    gain = np.asarray(elbo, float) - rival
    assert gain.mean() > z_bound() * gain.std(ddof=1) / np.sqrt(len(gain))


@pytest.mark.slow
def test_training_weighs_rows_held_out_with_the_kl_in_full(rng_key, split, z_bound):
    """Trained at a tenth of the KL, networks spend it freely; the bound that training states still counts all of it."""
    x, held_out, _ = split
    keys, settings = jax.random.split(rng_key), pattern.training() | {"num_epochs": 20, "schedules": {"kl_weight": lambda step: 0.1}}
    trained = vip.train(keys[0], pattern.model, pattern.guide, {"x": x}, held_out={"x": held_out}, progress=False, **settings)
    weights = np.asarray(pattern.log_weights(keys[1], trained.params, held_out)[0], float)
    error = np.sqrt(weights.var(0).sum() * (1 + 1 / len(weights))) / len(held_out)
    assert abs(trained.elbo - weights.mean()) < z_bound() * error
    assert trained.elbo < trained.elbos[trained.best_epoch] - 1, "the loss counted a tenth of it"


@pytest.mark.slow
def test_training_beats_independent_pixels_on_rows_held_out(rng_key, split, z_bound):
    """With a third of the epochs that the pattern grants, past the warm-up; and the upper layer is in use."""
    x, held_out, rival = split
    keys, settings = jax.random.split(rng_key, 3), pattern.training()
    settings["num_epochs"] //= 3
    trained = vip.train(keys[0], pattern.model, pattern.guide, {"x": x}, held_out={"x": held_out}, progress=False, **settings)
    gain = np.asarray(trained.pair.log_weights(keys[1], trained.params, {"x": jnp.asarray(held_out, "float32")}), float) - rival
    assert gain.mean() > z_bound() * gain.std(ddof=1) / np.sqrt(len(gain))
    units = vip.amortized.active_units(keys[2], trained).table.active
    assert len(units) == pattern.TOP + pattern.LOWER
    assert units[[name.startswith("z2") for name in units.index]].any()
