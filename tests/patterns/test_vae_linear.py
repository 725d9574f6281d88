"""vae_linear: the closed form against scikit-learn and its neighbourhood, the learned ELBO (exact, not drawn) against it."""

import jax
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.decomposition import PCA

import vipatterns as vip
from vipatterns.patterns import vae_linear as pattern

MOST_LOST = 0.01
"""Nats a datum that the learned ELBO may be short of the closed form."""


@pytest.fixture
def few():
    """300 rows of six columns in other units than the digits', two latents of unlike strength."""
    rng = np.random.default_rng(3)
    loadings = np.linalg.qr(rng.normal(size=(6, 2)))[0] * [3.0, 1.5]
    x = 5 + rng.normal(size=(300, 2)) @ loadings.T + 0.7 * rng.normal(size=(300, 6))
    return pattern.data({f"column {j}": x[:, j] for j in range(6)})


def likelihood(params):
    return [np.asarray(params[name], float) for name in ("offset", "loadings", "noise")]


def elbo(params, x):
    """Exact, a row: log p(x) less KL(q(z | x) || p(z | x)) of two Gaussians."""
    offset, w, noise = likelihood(params)
    m = w.T @ w + noise**2 * np.eye(w.shape[1])
    q_mean = (x - offset) @ np.asarray(params["weights"], float)
    off, var = (x - offset) @ w @ np.linalg.inv(m) - q_mean, np.asarray(params["s"], float) ** 2
    precision = m / noise**2
    kl = 0.5 * (np.trace(precision * var) - len(var) - np.linalg.slogdet(precision)[1] - np.log(var).sum())
    return pattern.log_likelihood(x, offset, w, noise) - kl - 0.5 * np.einsum("nk,kl,nl->n", off, precision, off)


def assert_learned(params, losses, d, z_bound):
    x, n, best = d["x"], len(d["x"]), pattern.log_evidence(**d)
    lost = best / n - elbo(params, x).mean()
    assert -1e-9 < lost < MOST_LOST
    assert pattern.log_likelihood(x, *likelihood(params)).sum() <= best
    assert float(params["noise"]) ** 2 == pytest.approx(pattern.maximum_likelihood(x, d["num_latents"])[2] ** 2, rel=0.02)
    # That the formula above is the ELBO which was maximised: the last losses, whose parameters hardly move.
    last = -np.asarray(losses[-len(losses) // 10 :], float) / n
    assert abs(last.mean() - elbo(params, x).mean()) < z_bound() * last.std(ddof=1) / np.sqrt(len(last)) + 0.002


def test_the_closed_form_is_the_likelihood_at_its_parameters_and_its_maximum(few):
    x, best = few["x"], pattern.log_evidence(**few)
    at = pattern.maximum_likelihood(x, 2)
    assert pattern.log_likelihood(x, *at).sum() == pytest.approx(best, rel=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(50):
        moved = [np.asarray(value) + 0.01 * rng.normal(size=np.shape(value)) for value in at]
        assert pattern.log_likelihood(x, *moved).sum() < best


@pytest.mark.parametrize("num_latents", [1, 4])
def test_scikit_learn_says_the_same(num_latents):
    """Its covariance is divided by N - 1, so it stands a little below the maximum, on the very rows."""
    x = pattern.data()["x"]
    best = pattern.log_evidence(x, num_latents=num_latents) / len(x)
    assert best - 1e-4 < PCA(num_latents, svd_solver="full").fit(x).score(x) < best


def test_learned_elbo_and_noise_on_a_table(few, rng_key, z_bound):
    few["x"] = few["x"] / few["x"].std()
    params, losses = pattern.learn(rng_key, num_steps=3000, **few)
    assert_learned(params, losses, few, z_bound)


@pytest.mark.slow
def test_learned_elbo_and_noise_on_the_digits(rng_key, z_bound):
    """Four fits, every one of which is held."""
    d = pattern.data()
    rest = {name: value for name, value in d.items() if name != "x"}
    params, losses = jax.vmap(lambda key: pattern.learn(key, d["x"], num_steps=4000, **rest))(jax.random.split(rng_key, 4))
    for i in range(4):
        assert_learned(jax.tree.map(lambda value, i=i: value[i], params), losses[i], d, z_bound)


def test_the_fit_encodes_as_the_posterior_does(few, rng_key):
    """q's sds are the posterior's, sigma over the root of an eigenvalue; means have the spread of the rows' posterior means."""
    few["x"] = few["x"] / few["x"].std()
    q, losses = pattern.fit(rng_key, **few, num_steps=3000)
    assert losses.shape == (3000,)
    values = np.linalg.eigvalsh(np.cov(few["x"].T, bias=True))[::-1][:2]
    noise = pattern.maximum_likelihood(few["x"], 2)[2]
    order = np.argsort(np.asarray(q["z"].variance)[0])
    np.testing.assert_allclose(np.sqrt(q["z"].variance)[0][order], noise / np.sqrt(values), rtol=0.02)
    np.testing.assert_allclose(np.asarray(q["z"].mean).var(0)[order], 1 - noise**2 / values, rtol=0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trained_by_its_own_settings_it_comes_to_the_closed_form_of_its_rows(rng_key, z_bound):
    d = pattern.data()
    trained = vip.train(rng_key, pattern.model, pattern.guide, d, **pattern.training(), progress=False)
    new = trained.held_out["x"]
    rest = d["x"][~(d["x"][:, None] == new).all(-1).any(1)]
    assert len(rest) + len(new) == len(d["x"])
    found = elbo(trained.params, new)
    exact = pattern.log_likelihood(new, *pattern.maximum_likelihood(rest, d["num_latents"]))
    assert abs(found.mean() - exact.mean()) < 0.1  # early stopping looks at these rows, and its rate does not decay
    assert elbo(trained.params, rest).mean() < pattern.log_evidence(rest, num_latents=d["num_latents"]) / len(rest)
    assert abs(trained.elbo - found.mean()) < z_bound() * trained.held_out_mcse
    # The rival has what the model has, one noise for all columns, and no latents.
    one_noise = norm.logpdf(new, rest.mean(0), np.sqrt(rest.var(0).mean())).sum(1)
    gain = found - one_noise
    assert gain.mean() > z_bound() * gain.std(ddof=1) / np.sqrt(len(gain))
