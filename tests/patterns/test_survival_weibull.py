"""survival_weibull: its data against published fits, its draws against a grid, its best Gaussian against sampling, its fit against that."""

import itertools

import jax
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from numpyro.infer.util import log_density
from scipy.optimize import minimize
from scipy.special import softmax
from scipy.stats import lognorm, norm, weibull_min

from vipatterns.patterns import survival_weibull as pattern


@pytest.fixture(scope="module")
def remissions():
    return pattern.data()


@pytest.fixture(scope="module")
def exact(remissions):
    return pattern.exact_posterior(**remissions)


def log_likelihood(d, intercept, slopes, shape):
    """By SciPy's Weibull, a row at a time; intercept at the mean of x."""
    scale = np.exp(intercept + (d["x"] - d["x"].mean(0)) @ np.atleast_1d(slopes))
    seen = d["event"] == 1
    law = weibull_min(shape, scale=scale)
    return np.sum(np.where(seen, law.logpdf(d["y"]), law.logsf(d["y"])))


def log_joint(d, intercept, slope, shape):
    prior = norm.logpdf(intercept, np.log(d["y"]).mean(), 2.5) + norm.logpdf(slope, 0, 2.5 / d["x"].std()) + lognorm.logpdf(shape, 1.0)
    return log_likelihood(d, intercept, slope, shape) + prior


def test_data_has_the_published_fit(remissions):
    """survreg in R's survival package: 6-MP 3.516, placebo -1.267 from there, scale 0.732; 9 of 21 and 21 of 21 relapsed."""
    assert remissions["event"][:21].sum() == 9
    assert remissions["event"][21:].sum() == 21
    best = minimize(lambda p: -log_likelihood(remissions, p[0], p[1], np.exp(-p[2])), [3.0, 1.0, 0.0], method="Nelder-Mead")
    intercept, slope, log_scale = best.x
    np.testing.assert_allclose([intercept + slope / 2, slope, np.exp(log_scale)], [3.516, 1.267, 0.732], atol=1e-3)


@pytest.mark.parametrize("values", [(2.9, 1.3, 1.3), (1.0, -2.0, 0.4)])
def test_model_is_the_density_by_hand(remissions, values):
    sites = {"intercept": values[0], "slopes": np.array([values[1]]), "shape": values[2]}
    assert float(log_density(pattern.model, (), remissions, sites)[0]) == pytest.approx(log_joint(remissions, *values), abs=2e-3)


@pytest.fixture(scope="module")
def nodes(remissions):
    """A grid in coordinates in which the posterior is nearly standard, 61 a side over 9 sds: sites (61^3, 3), log p(y, cell)."""
    m, tril, _ = pattern.best_gaussian(**remissions)
    side = np.linspace(-9, 9, 61)
    b = m + np.array(list(itertools.product(side, repeat=3))) @ tril.T
    z, t = pattern.design(remissions["x"], remissions["y"], remissions["units"])
    u, k = t - b[:, :2] @ z.T, np.exp(b[:, 2:])
    log_p = remissions["event"] * (b[:, 2:] + k * u - np.log(remissions["y"])) - np.exp(np.minimum(k * u, 600))
    log_p = log_p.sum(1) + norm.logpdf(b[:, :2], 0, 2.5).sum(1) + norm.logpdf(b[:, 2])
    mean, sd = remissions["units"]
    sites = np.column_stack([mean[-1] + b[:, 0], b[:, 1] / sd[0], k[:, 0]])
    return sites, log_p + 3 * np.log(side[1] - side[0]) + np.log(np.diag(tril)).sum()


def test_log_evidence_by_quadrature(remissions, nodes):
    """The weighted draws' error, from the scatter of their weights; the grid against half of itself."""
    whole, half = (np.logaddexp.reduce(log_p) for log_p in (nodes[1], nodes[1].reshape(61, 61, 61)[::2, ::2, ::2].ravel() + np.log(8)))
    assert whole == pytest.approx(half, abs=1e-4)
    _, log_w = pattern.weighted(**remissions)
    weight = softmax(log_w)
    mcse = np.sqrt(np.sum(weight**2) - 1 / len(weight))
    assert mcse < 0.002
    assert pattern.log_evidence(**remissions) == pytest.approx(whole, abs=5 * mcse + 1e-4)


def test_exact_draws_by_quadrature(nodes, exact, z_bound):
    """Resampled evenly from 200,000 proposals, of which more than 150,000 count: worth 80,000 independent draws or more."""
    sites, weight = nodes[0], softmax(nodes[1])
    mean = weight @ sites
    sd = np.sqrt(weight @ (sites - mean) ** 2)
    draws = np.column_stack([exact["intercept"], exact["slopes"][:, 0], exact["shape"]])
    assert np.all(np.abs(draws.mean(0) - mean) / sd < z_bound(6) / np.sqrt(80_000))
    assert np.all(np.abs(draws.std(0) / sd - 1) < 1.5 * z_bound(6) / np.sqrt(2 * 80_000))


def test_best_gaussian_is_where_the_sampled_elbo_is_flat(remissions, rng_key, z_bound):
    """The gradient of the model's own ELBO, by sampling, vanishes there in every entry of mean and Cholesky factor."""
    m, tril, _ = pattern.best_gaussian(**remissions)

    def loss(values, key):
        return Trace_ELBO(num_particles=1000).loss(key, values, pattern.model, pattern.guide, **remissions)

    gradients = jax.vmap(jax.grad(loss), (None, 0))({"m": m, "tril": tril}, jax.random.split(rng_key, 100))
    for name, gradient in gradients.items():
        scaled = gradient * np.diag(tril)[:, None] if name == "tril" else gradient * np.diag(tril)  # nats per sd of a parameter
        scaled = np.tril(scaled) if name == "tril" else np.asarray(scaled)
        assert np.all(np.abs(scaled.mean(0)) < z_bound(9) * scaled.std(0, ddof=1) / 10 + 0.01), name


def test_fit_is_the_best_gaussian(remissions, assert_fits):
    assert_fits(pattern, remissions, pattern.documented_bias(**remissions), worst=0.06)


def test_docstring_tells_the_bias(remissions, exact):
    best = pattern.documented_bias(**remissions)
    ratio = [np.ravel(best[site][1] / exact[site].std(0))[0] for site in ("intercept", "slopes", "shape")]
    np.testing.assert_allclose([min(ratio), max(ratio)], [0.92, 0.96], atol=0.01)
    assert max(np.max(np.abs(best[site][0] - exact[site].mean(0)) / exact[site].std(0)) for site in best) < 0.03


def test_time_without_end_is_predicted(remissions, rng_key):
    """Censoring is of the study, not of the patient: predicted times go on, and do not ask for `event`."""
    sites = handlers.trace(handlers.seed(pattern.model, rng_key)).get_trace(remissions["x"], units=remissions["units"])
    assert sites["y"]["value"].shape == (42,)
    with pytest.raises(ValueError, match="pass y too"):
        pattern.model(remissions["x"])


def test_units_do_not_matter(remissions):
    days = pattern.data({"drug": 10 * remissions["x"][:, 0], "event": remissions["event"], "y": 7 * remissions["y"]})
    assert pattern.log_evidence(**days) == pytest.approx(pattern.log_evidence(**remissions) - 30 * np.log(7), abs=1e-3)
    all_seen = pattern.data({"drug": remissions["x"][:, 0], "y": remissions["y"]})
    assert all_seen["event"].sum() == 42
