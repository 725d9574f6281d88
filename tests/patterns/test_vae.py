"""vae: with one latent, the ELBO and the weights against quadrature; with all, held-out digits against honest rivals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from numpyro import handlers

import vipatterns as vip
from vipatterns.patterns import vae as pattern

DATA = {"bernoulli": pattern.data, "gaussian": pattern.dequantised}


@pytest.fixture
def small(monkeypatch):
    """One latent and a few units: little to compile, and z can be summed over."""
    monkeypatch.setattr(pattern, "LATENTS", 1)
    monkeypatch.setattr(pattern, "HIDDEN", 16)


def at(function, params, x, **values):
    """The sites of the model or the guide at given weights and latents."""
    x, settings = x
    return handlers.trace(handlers.seed(handlers.substitute(function, {**params, **values}), 0)).get_trace(x, **settings)


def quadrature(params, x):
    """log p(x), (N,), and KL(q || posterior), (N,), by the trapezoid rule over the one latent."""
    grid = jnp.linspace(-8, 8, 4001)

    def joint(z):
        sites = at(pattern.model, params, x, z=jnp.full((len(x[0]), 1), z))
        return sites["z"]["fn"].log_prob(sites["z"]["value"]) + sites["x"]["fn"].log_prob(x[0])

    log_p, width = np.asarray(jax.lax.map(joint, grid), float), float(grid[1] - grid[0])
    total = np.logaddexp.reduce(log_p, axis=0) + np.log(width)
    q = at(pattern.guide, params, x)["z"]["fn"].base_dist
    log_q = np.asarray(q.log_prob(grid[:, None, None])[..., 0], float)
    return total, (np.exp(log_q) * (log_q - (log_p - total))).sum(0) * width


@pytest.mark.parametrize("likelihood", DATA)
def test_the_elbo_is_log_p_less_the_divergence_and_the_weights_find_log_p(small, likelihood, rng_key, z_bound):
    d = DATA[likelihood]()
    x = jnp.asarray(d.pop("x"), jnp.float32)[:200]
    key_fit, key_weights = jax.random.split(rng_key)
    params, losses = pattern.learn(key_fit, x, num_steps=300, **d)
    log_p, kl = quadrature(params, (x, d))
    log_w = np.asarray(pattern.log_weights(key_weights, params, x, 2000, **d), float)
    assert (kl > -1e-3).all()
    assert kl.max() > 0.01, "a guide that is right everywhere tests nothing"
    error = log_w.std(0, ddof=1) / np.sqrt(len(log_w))
    assert (np.abs(log_w.mean(0) - (log_p - kl)) < z_bound(len(x)) * error + 1e-3).all()
    w = np.exp(log_w - log_p)
    mean = w.mean()  # over rows too: the weights of a single row may have a heavy tail
    assert abs(mean - 1) < z_bound() * w.mean(1).std(ddof=1) / np.sqrt(len(w)) + 1e-3
    assert losses[-20:].mean() < losses[:20].mean()


@pytest.mark.parametrize("likelihood", DATA)
def test_the_fit_encodes_the_rows(small, likelihood, rng_key):
    """Codes of the rows that were asked for, each by its own pixels."""
    d = DATA[likelihood]()
    d["x"] = d["x"][:150]
    q, losses = pattern.fit(rng_key, **d, num_steps=30)
    assert q["z"].mean.shape == (150, 1)
    assert np.isfinite(losses).all()
    assert np.unique(np.asarray(q["z"].mean)).size > 100


def test_grey_levels_come_back_from_the_dequantised():
    d = pattern.dequantised()
    levels = pattern.load_digits().data
    kept = levels[:, levels.std(0) > 0]
    assert d["likelihood"] == "gaussian"
    assert d["num_pixels"] == kept.shape[1] < levels.shape[1]
    np.testing.assert_array_equal(np.floor(16 * d["x"]), kept)


def test_the_rival_is_the_maximum_of_the_likelihood():
    """On the rows that it was fitted to no other shares, means or sds do better, but for what keeps them off 0."""
    x = np.asarray(pattern.dequantised()["x"])
    best = -0.5 * (np.log(2 * np.pi * x.var(0)) + 1).sum()
    loss = best - np.mean(pattern.independent(x, x, "gaussian"))
    assert 0 < loss < 5
    x = pattern.data()["x"]
    share = np.clip(x.mean(0), 1e-12, 1 - 1e-12)
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share)).sum()
    assert np.mean(pattern.independent(x, x)) == pytest.approx(-entropy, abs=0.05)
    assert np.mean(pattern.independent(x, x)) < -entropy


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", DATA)
def test_held_out_digits_against_independent_pixels(likelihood, rng_key, z_bound):
    """log p, ELBO and reconstruction of the same held-out rows; every difference by more than the error of its mean over rows."""
    key_fit, key_weights, key_split = jax.random.split(rng_key, 3)
    d = DATA[likelihood]()
    x = jax.random.permutation(key_split, jnp.asarray(d.pop("x"), jnp.float32))
    new, x = x[:180], x[180:]
    params, _ = pattern.learn(key_fit, x, num_steps=2000, **d)
    log_w = pattern.log_weights(key_weights, params, new, 200, **d)
    elbo, log_p = log_w.mean(0), logsumexp(log_w, axis=0) - jnp.log(len(log_w))
    assert (log_p >= elbo - 1e-4).all()  # Jensen, for the same draws

    def better(gain):
        return float(gain.mean()) > z_bound(3) * float(gain.std(ddof=1)) / np.sqrt(len(gain))

    rival = pattern.independent(x, new, likelihood)
    assert better(log_p - rival)
    assert better(elbo - rival)
    code = at(pattern.guide, params, (new, d))["z"]["fn"].mean
    shown = at(pattern.model, params, (new, d), z=code)["x"]["fn"].mean
    assert better(((new - x.mean(0)) ** 2).sum(1) - ((new - shown) ** 2).sum(1))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("likelihood", DATA)
def test_trained_by_its_own_settings_it_beats_the_rival(likelihood, rng_key, z_bound):
    """vip.train, and the weights of vip.amortized against the pattern's own."""
    d = DATA[likelihood]()
    key_train, key_ours, key_theirs = jax.random.split(rng_key, 3)
    trained = vip.train(key_train, pattern.model, pattern.guide, d, **pattern.training(), progress=False)
    new = trained.held_out["x"]
    rest = d["x"][~(d["x"][:, None] == new).all(-1).any(1)]
    rival = np.asarray(pattern.independent(rest, new, likelihood))
    assert trained.elbo > rival.mean() + z_bound() * np.hypot(rival.std(ddof=1) / np.sqrt(len(new)), trained.held_out_mcse)
    found = vip.amortized.log_likelihood(key_ours, trained, num_samples=100, progress=False)
    settings = {name: value for name, value in d.items() if name != "x"}
    log_w = np.asarray(pattern.log_weights(key_theirs, trained.params, jnp.asarray(new, jnp.float32), 100, **settings), float)
    error = log_w.std(0, ddof=1) / np.sqrt(100)
    gap = found.bounds[1].mean() - log_w.mean()
    assert abs(gap) < z_bound() * np.sqrt(2 * (error**2).sum()) / len(new)


def test_the_built_in_images_have_labels_and_others_none():
    labels = pattern.labels(**pattern.data())
    # the mean of a digit's images is nearest to itself, by and large: rows and labels belong together
    x = pattern.data()["x"]
    means = np.stack([x[labels == digit].mean(0) for digit in range(10)])
    nearest = np.argmin(((x[:, None] - means) ** 2).sum(-1), axis=1)
    assert (nearest == labels).mean() > 0.85
    assert pattern.labels(x[:100]) is None
