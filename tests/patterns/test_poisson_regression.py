"""poisson_regression: its weighted draws against tensor quadrature, the closed-form ELBO against sampling, the fit against its maximum."""

import itertools

import jax
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO
from scipy.special import logsumexp, roots_hermitenorm, softmax
from scipy.stats import norm, poisson

from vipatterns.patterns import poisson_regression as pattern


@pytest.fixture(scope="module")
def doctors():
    return pattern.data()


@pytest.fixture(scope="module")
def quadrature(doctors):
    """Nodes (intercept, slopes), log weights whose sum is log p(y): Gauss-Hermite where the posterior is nearly standard."""
    draws = pattern.exact_posterior(**doctors)
    b = np.column_stack([draws["intercept"], draws["slopes"]])
    root = 1.05 * np.linalg.cholesky(np.cov(b.T))
    node, weight = roots_hermitenorm(18)
    u = np.array(list(itertools.product(node, repeat=4)))
    log_w = sum(np.meshgrid(*[np.log(weight) + node**2 / 2] * 4, indexing="ij")).ravel()
    nodes = b.mean(0) + u @ root.T
    mean, sd = doctors["units"]
    rate = doctors["exposure"] * np.exp(nodes[:, :1] + nodes[:, 1:] @ (doctors["x"] - mean).T)
    log_p = poisson.logpmf(doctors["y"], rate).sum(1) + norm.logpdf(nodes[:, 0], 0, 10) + norm.logpdf(nodes[:, 1:], 0, 2.5 / sd).sum(1)
    return nodes, log_p + log_w + np.linalg.slogdet(root)[1]


def test_log_evidence_by_quadrature(doctors, quadrature):
    _, log_w = pattern.weighted(**doctors)
    mcse = np.std(np.exp(log_w - log_w.max())) / np.mean(np.exp(log_w - log_w.max())) / np.sqrt(len(log_w))
    assert mcse < 0.001
    assert pattern.log_evidence(**doctors) == pytest.approx(logsumexp(quadrature[1]), abs=5 * mcse + 1e-4)


def test_exact_draws_by_quadrature(doctors, quadrature, z_bound):
    """Resampling spreads evenly over 200,000 proposals whose effective number is over 180,000: worth 90,000 independent draws or more."""
    nodes, log_w = quadrature
    weight = softmax(log_w)
    mean = weight @ nodes
    sd = np.sqrt(weight @ (nodes - mean) ** 2)
    draws = pattern.exact_posterior(**doctors)
    b = np.column_stack([draws["intercept"], draws["slopes"]])
    assert np.all(np.abs(b.mean(0) - mean) / sd < z_bound(8) / np.sqrt(90_000))
    assert np.all(np.abs(b.std(0) / sd - 1) < z_bound(8) / np.sqrt(2 * 90_000))


def test_best_guide_is_stationary_and_its_elbo_is_what_sampling_finds(doctors, rng_key, z_bound):
    best = pattern.documented_bias(**doctors)
    m, s = (np.append(best["intercept"][i], best["slopes"][i]) for i in (0, 1))
    mean, sd = doctors["units"]
    z, prior = np.column_stack([np.ones(10), doctors["x"] - mean]), np.append(10, 2.5 / sd)
    rate = doctors["exposure"] * np.exp(z @ m + z**2 @ s**2 / 2)
    np.testing.assert_allclose((z.T @ (doctors["y"] - rate)) * s, m * s / prior**2, atol=1e-5)
    np.testing.assert_allclose(s**-2.0, prior**-2.0 + z.T**2 @ rate, rtol=1e-5)

    elbo = poisson.logpmf(doctors["y"], rate).sum() - doctors["y"] @ (z**2 @ s**2) / 2 + norm.logpdf(m, 0, prior).sum()
    elbo += np.sum(0.5 * np.log(2 * np.pi * np.e * s**2) - s**2 / prior**2 / 2)
    assert elbo < pattern.log_evidence(**doctors)
    shift = np.log(doctors["y"].sum() / doctors["exposure"].sum())
    params = {"intercept_m": m[0] - shift, "intercept_s": s[0], "slopes_m": m[1:] * sd, "slopes_s": s[1:] * sd}
    losses = jax.vmap(lambda key: Trace_ELBO(1000).loss(key, params, pattern.model, pattern.guide, **doctors))(
        jax.random.split(rng_key, 50)
    )
    assert abs(-np.mean(losses) - elbo) < z_bound() * np.std(losses, ddof=1) / np.sqrt(50) + 1e-4


def test_fit_is_the_best_guide(doctors, assert_fits):
    assert_fits(pattern, doctors, pattern.documented_bias(**doctors), worst=0.08)


def test_docstring_tells_the_bias(doctors):
    best, draws = pattern.documented_bias(**doctors), pattern.exact_posterior(**doctors)
    exact = np.column_stack([draws["intercept"], draws["slopes"]])
    ratio = np.append(best["intercept"][1], best["slopes"][1]) / exact.std(0)
    np.testing.assert_allclose([ratio.min(), ratio.max()], [0.62, 0.86], atol=0.01)
    assert np.max(np.abs(np.append(best["intercept"][0], best["slopes"][0]) - exact.mean(0)) / exact.std(0)) < 0.05


def test_exposure_is_one_where_a_table_has_none():
    d = pattern.data({"dose": [1.0, 2.0, 4.0, 3.0], "y": [3, 5, 9, 7]})
    assert d["exposure"] == 1
    assert np.isfinite(pattern.log_evidence(**d))
    with pytest.raises(ValueError, match="pass units"):
        pattern.model(d["x"])
