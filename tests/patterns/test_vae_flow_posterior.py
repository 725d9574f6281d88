"""vae_flow_posterior: the flow's density integrates to 1, draws agree with the grid, and the flow beats a Gaussian for the same decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import bernoulli

import vipatterns as vip
from vipatterns.patterns import vae_flow_posterior as pattern


@pytest.fixture(scope="module")
def split():
    """Rows to train on, rows held out, and the log p of these by the frequencies of the pixels in those."""
    x, held_out = np.split(np.random.default_rng(0).permutation(pattern.data()["x"]), [-180])
    return x, held_out, bernoulli.logpmf(held_out, (x.sum(0) + 1) / (len(x) + 2)).sum(1)


@pytest.fixture(scope="module")
def fitted(rng_key, split):
    """Parameters with the flow, and of a Gaussian encoder for the same decoder; log weights of the rows held out by either."""
    x, held_out, _ = split
    keys = jax.random.split(rng_key, 4)
    flow, _ = pattern.learn(keys[0], x, 2000)
    plain = pattern.without_flow(keys[1], flow["decoder$params"], x, 2000)
    pairs = ((keys[2], flow, pattern.guide), (keys[3], plain, pattern.gaussian))
    return flow, plain, *(np.asarray(pattern.log_weights(key, p, held_out, guide, 300), float) for key, p, guide in pairs)


@pytest.fixture
def start(rng_key, split):
    """Parameters as they are initialised, but with couplings that move, and a decoder twice as large."""
    keys, params = jax.random.split(rng_key, 3), {}
    for key, function in zip(keys, (pattern.model, pattern.guide), strict=False):
        sites = pattern.traced(function, key, {}, split[0][:2])
        params |= {name: site["value"] for name, site in sites.items() if site["type"] == "param"}
    out = params["encoder$params"]["out"]
    params["encoder$params"]["out"] = 0.1 * jax.random.normal(keys[2], out.shape)
    return params | {"decoder$params": jax.tree.map(lambda leaf: 2 * leaf, params["decoder$params"])}


def test_the_flow_begins_as_the_gaussian(rng_key, split):
    x = split[0][:5]
    flow, plain = (pattern.traced(guide, rng_key, {}, x)["z"] for guide in (pattern.guide, pattern.gaussian))
    np.testing.assert_array_equal(flow["value"], plain["value"])


def test_the_density_integrates_to_one(start, rng_key, split):
    """By quadrature in both codes, for couplings that bend: q is far from its Gaussian."""
    q = pattern.traced(pattern.guide, rng_key, start, split[0][:3])["z"]["fn"]
    u = np.linspace(-12, 12, 401)
    z = np.stack(np.meshgrid(u, u), axis=-1).reshape(-1, 1, 2)
    log_q = np.asarray(jax.jit(q.log_prob)(z), float)
    np.testing.assert_allclose(np.exp(log_q).sum(0) * (u[1] - u[0]) ** 2, 1, atol=1e-4)
    apart = np.abs(np.exp(log_q) - np.exp(np.asarray(q.base_dist.log_prob(z), float)))
    assert np.all(apart.sum(0) * (u[1] - u[0]) ** 2 > 0.1)


def test_the_density_of_a_draw_is_that_of_the_map(start, rng_key, split):
    """log q(z) = log N(base) - log |dz / d base|, the determinant by automatic differentiation; and the map undone is the base."""
    q = pattern.traced(pattern.guide, rng_key, start, split[0][:1])["z"]["fn"]

    def push(base):
        for coupling in q.transforms:
            base = coupling(base)
        return base[0]

    base = q.base_dist.sample(rng_key)
    z = push(base)
    jacobian = np.array(jax.jacobian(push)(base))[:, 0]
    expected = float(q.base_dist.log_prob(base)[0]) - np.linalg.slogdet(jacobian)[1]
    assert float(q.log_prob(z[None])[0]) == pytest.approx(expected, abs=1e-4)
    for coupling in q.transforms[::-1]:
        z = coupling._inverse(z)
    np.testing.assert_allclose(np.ravel(z), np.ravel(base), atol=1e-5)


def test_the_grid_is_fine_and_wide_enough(start, rng_key, split, z_bound):
    """Draws of the prior average to it, and a finer and wider one says the same."""
    x = split[0][:5]
    at = pattern.handlers.substitute(pattern.model, {"z": (z := np.random.default_rng(0).normal(size=(20_000, 2)))})
    logits = np.asarray(pattern.traced(at, rng_key, start, np.zeros((len(z), 64)))["x"]["fn"].base_dist.logits, float)
    p = np.exp(x @ logits.T - np.logaddexp(0, logits).sum(1))
    exact = np.exp(np.asarray(pattern.integrated(start, x), float))
    assert np.all(np.abs(p.mean(1) - exact) < z_bound(5) * p.std(1) / np.sqrt(len(z)))
    np.testing.assert_allclose(np.log(exact), pattern.integrated(start, x, reach=8.0, size=501), atol=1e-3)


@pytest.mark.slow
def test_draws_agree_with_the_grid(start, rng_key, split, z_bound):
    """At parameters that were never fitted, where the weights vary much."""
    x = split[1][:6]
    weights = np.asarray(pattern.log_weights(rng_key, start, x, num_draws=4000), float)
    ratio = np.exp(weights - np.asarray(pattern.integrated(start, x), float))
    assert np.all(np.abs(ratio.mean(0) - 1) < z_bound(6) * ratio.std(0) / np.sqrt(4000) + 1e-3)


@pytest.mark.slow
def test_losses_are_the_negative_elbo_of_all_rows(monkeypatch, rng_key, split, z_bound):
    """Without a step, all minibatches are weighed by the same networks."""
    monkeypatch.setattr(pattern.numpyro.optim, "Adam", lambda rate: pattern.numpyro.optim.SGD(0.0))
    x, keys = split[1], jax.random.split(rng_key)
    params, losses = pattern.learn(keys[0], x, 400)
    elbos = np.asarray(pattern.log_weights(keys[1], params, x), float).sum(1)
    error = np.sqrt(np.var(losses) / len(losses) + elbos.var() / len(elbos))
    assert abs(np.mean(losses) + elbos.mean()) < z_bound() * error


@pytest.mark.slow
def test_both_encoders_are_for_one_decoder(fitted):
    flow, plain, *_ = fitted
    for one, other in zip(*(jax.tree.leaves(params["decoder$params"]) for params in (flow, plain)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.any(plain["encoder$params"]["out"]), "the Gaussian's couplings were never moved"


@pytest.mark.slow
def test_the_flow_is_nearer_to_the_posterior_than_a_gaussian(fitted, rng_key, split, z_bound):
    """log p(x) - ELBO = KL(q || posterior) is smaller on the rows trained on, and by its error no larger on the few that were held out."""
    flow, plain, with_flow, with_gaussian = fitted
    exact = np.asarray(pattern.integrated(flow, split[1]), float)
    for weights in (with_flow, with_gaussian):
        gap = exact - weights.mean(0)
        assert np.all(gap > -z_bound(2 * len(gap)) * weights.std(0) / np.sqrt(len(weights)) - 1e-3), "no bound is above log p(x)"
    keys, x = jax.random.split(rng_key), split[0]
    trained_on = [
        pattern.log_weights(k, p, x, q, 20) for k, p, q in zip(keys, (flow, plain), (pattern.guide, pattern.gaussian), strict=True)
    ]
    for (one, other), least in ((trained_on, z_bound(2)), ((with_flow, with_gaussian), -z_bound(2))):
        gain = np.asarray(one - other, float).mean(0)
        assert gain.mean() > least * gain.std(ddof=1) / np.sqrt(len(gain))


@pytest.mark.slow
def test_held_out_bounds_beat_independent_pixels(fitted, split, z_bound):
    gain = fitted[2].mean(0) - split[2]
    assert gain.mean() > z_bound() * gain.std(ddof=1) / np.sqrt(len(gain))


@pytest.mark.slow
def test_training_beats_independent_pixels_on_rows_held_out(rng_key, split, z_bound):
    """With a third of the epochs that the pattern grants."""
    x, held_out, rival = split
    keys, settings = jax.random.split(rng_key), pattern.training()
    settings["num_epochs"] //= 3
    trained = vip.train(keys[0], pattern.model, pattern.guide, {"x": x}, held_out={"x": held_out}, progress=False, **settings)
    gain = np.asarray(trained.pair.log_weights(keys[1], trained.params, {"x": jnp.asarray(held_out, "float32")}), float) - rival
    assert gain.mean() > z_bound() * gain.std(ddof=1) / np.sqrt(len(gain))
