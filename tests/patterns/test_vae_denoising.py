"""vae_denoising: its bound is the mixture's less an information, by enumeration and quadrature; held-out digits against honest rivals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO

import vipatterns as vip
from vipatterns.patterns import vae_denoising as pattern


def split(rng_key):
    x = jax.random.permutation(rng_key, jnp.asarray(pattern.data()["x"], jnp.float32))
    return x[:180], x[180:]


def independent(x, new):
    share = (np.asarray(x, float).sum(0) + 0.5) / (len(x) + 1)
    return (new * np.log(share) + (1 - new) * np.log(1 - share)).sum(1)


def better(gain, z):
    return gain.mean() > z * gain.std(ddof=1) / np.sqrt(len(gain))


def test_the_bound_is_the_mixture_s_less_what_z_tells_of_the_noise(monkeypatch, rng_key, z_bound):
    """Four pixels, so sixteen corruptions; one latent, so the trapezoid rule: nothing is drawn on this side."""
    monkeypatch.setattr(pattern, "LATENTS", 1)
    monkeypatch.setattr(pattern, "HIDDEN", 8)
    x, c = jnp.asarray(pattern.data()["x"][:, [10, 20, 43, 52]], jnp.float32), 0.2
    key_fit, key_weights = jax.random.split(rng_key)
    params, _ = pattern.learn(key_fit, x, num_steps=300, num_pixels=4, corruption=c)
    x = jnp.asarray(list(itertools.product((0.0, 1.0), repeat=4)))  # every image, so every corrupted one
    grid, key = jnp.linspace(-9, 9, 4001), jax.random.key(0)
    width = float(grid[1] - grid[0])

    def joint(z):
        sites = pattern.sites(pattern.model, key, params, x, z=jnp.full((16, 1), z), num_pixels=4)
        return sites["z"]["fn"].log_prob(sites["z"]["value"]) + sites["x"]["fn"].log_prob(x)

    log_p = np.asarray(jax.lax.map(joint, grid), float)  # (grid, image)
    q = pattern.sites(pattern.guide, key, params, x, num_pixels=4, corruption=0.0)["z"]["fn"].base_dist
    log_q = np.asarray(q.log_prob(grid[:, None, None])[..., 0], float)  # (grid, corrupted image)
    flips = np.abs(np.asarray(x)[:, None] - np.asarray(x)).sum(2)
    chance = c**flips * (1 - c) ** (4 - flips)  # (image, corrupted image)
    assert chance.sum(1) == pytest.approx(1)
    mixture = np.exp(log_q) @ chance.T
    of_mixture = (mixture * (log_p - np.log(mixture))).sum(0) * width
    information = ((np.exp(log_q) * log_q) @ chance.T - mixture * np.log(mixture)).sum(0) * width
    evidence = np.logaddexp.reduce(log_p, axis=0) + np.log(width)
    assert (information > 0).all()
    assert information.max() > 0.01, "noise that z does not tell of tests nothing"
    assert (of_mixture < evidence + 1e-5).all()
    log_w = np.asarray(pattern.log_weights(key_weights, params, x, 4000, num_pixels=4, corruption=c), float)
    error = log_w.std(0, ddof=1) / np.sqrt(len(log_w))
    assert (np.abs(log_w.mean(0) - (of_mixture - information)) < z_bound(32) * error + 1e-3).all()
    w = np.exp(log_w - evidence)
    assert (np.abs(w.mean(0) - 1) < z_bound(32) * w.std(0, ddof=1) / np.sqrt(len(w)) + 1e-3).all()
    loss = jax.vmap(lambda key: Trace_ELBO().loss(key, params, pattern.model, pattern.guide, x, 1, 4, c))(jax.random.split(key_fit, 1000))
    loss = np.asarray(loss, float)
    assert abs(-loss.mean() - (of_mixture - information).sum()) < z_bound() * loss.std(ddof=1) / np.sqrt(1000) + 0.02


def test_the_fit_draws_from_the_mixture(monkeypatch, rng_key):
    monkeypatch.setattr(pattern, "LATENTS", 2)
    monkeypatch.setattr(pattern, "HIDDEN", 8)
    q, losses = pattern.fit(rng_key, pattern.data()["x"][:150], num_steps=20)
    assert q["z"].shape == (100, 150, 2)
    assert losses.shape == (20,)
    assert np.isfinite(q["z"]).all()
    assert np.unique(np.asarray(q["z"])).size > 0.9 * q["z"].size


@pytest.mark.slow
def test_held_out_digits_are_restored(rng_key, z_bound):
    """Against leaving them as they are and, where a third of the pixels is flipped, against the plain auto-encoder."""
    key_fit, key_weights, key_spoil, key_split = jax.random.split(rng_key, 4)
    new, x = split(key_split)
    (params, _), (plain, _) = (pattern.learn(key_fit, x, num_steps=1500, corruption=c) for c in (0.1, 0.0))
    log_w = np.asarray(pattern.log_weights(key_weights, params, new, 300, corruption=0.1), float)
    log_p = np.logaddexp.reduce(log_w, axis=0) - np.log(len(log_w))
    assert better(log_p - log_w.mean(0), z_bound(4))
    assert better(log_p - independent(x, new), z_bound(4))
    spoilt = jnp.abs(new - jax.random.bernoulli(key_spoil, 1 / 3, (8, *new.shape)))
    wrong, wrong_plain = (np.mean([np.abs(new - pattern.restored(p, image)).sum(1) for image in spoilt], axis=0) for p in (params, plain))
    assert better(np.asarray(jnp.abs(spoilt - new).sum(2).mean(0)) - wrong, z_bound(4))
    assert better(wrong_plain - wrong, z_bound(4))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trained_by_its_own_settings_it_beats_the_rival(rng_key, z_bound):
    d = pattern.data()
    trained = vip.train(rng_key, pattern.model, pattern.guide, d, **pattern.training(), progress=False)
    new = trained.held_out["x"]
    rival = independent(d["x"][~(d["x"][:, None] == new).all(-1).any(1)], new)
    assert trained.elbo > rival.mean() + z_bound() * np.hypot(rival.std(ddof=1) / np.sqrt(len(new)), trained.held_out_mcse)
