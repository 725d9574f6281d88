"""funnel: the fit against the formula, the formula against a numerical maximum."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from vipatterns.patterns import funnel as pattern


def elbo(d, m, s_v, s):
    """As written in the pattern, unsimplified: expected log joint plus entropies."""
    normal = -0.5 * math.log(2 * math.pi)
    log_v = normal - math.log(3) - (m**2 + s_v**2) / 18
    log_x = normal - m / 2 - s**2 * math.exp(-m + s_v**2 / 2) / 2
    return log_v + (d - 1) * (log_x + math.log(s) - normal + 0.5) + math.log(s_v) - normal + 0.5


@pytest.mark.parametrize("d", [2, 5, 10, 100])
def test_formula_is_the_maximum(d):
    best = minimize(lambda p: -elbo(d, p[0], math.exp(p[1]), math.exp(p[2])), [0.3, 0.0, 0.0], method="BFGS")
    bias = pattern.documented_bias(d)
    np.testing.assert_allclose(best.x[0], 0, atol=1e-4)
    np.testing.assert_allclose(np.exp(best.x[1:]), [bias["v"][1], bias["x"][1][0]], rtol=1e-4)
    assert -best.fun == pytest.approx(0.5 * math.log(2 / (2 + 9 * (d - 1))), abs=1e-6)


def test_published_digits():
    s_v, s = {}, {}
    for d in (2, 10):
        bias = pattern.documented_bias(d)
        s_v[d], s[d] = bias["v"][1], bias["x"][1][0]
    assert s_v[10] == pytest.approx(0.465690, abs=1e-6)
    assert elbo(2, 0, s_v[2], s[2]) == pytest.approx(-0.852374, abs=1e-6)
    assert elbo(10, 0, s_v[10], s[10]) == pytest.approx(-1.862847, abs=1e-6)


@pytest.mark.parametrize("d", [2, 10])
def test_fit_has_the_predicted_sds(d, assert_fits):
    assert_fits(pattern, {"num_dimensions": d}, pattern.documented_bias(d), worst=0.05)


def test_elbo_is_the_predicted_one(rng_key, z_bound):
    _, losses = pattern.fit(rng_key, 10)
    last = np.asarray(losses[-1000:], float)
    assert abs(-last.mean() + 1.862847) < z_bound() * last.std(ddof=1) / np.sqrt(1000) + 0.001  # .001: what the optimiser leaves


def test_exact_draws_are_the_funnels(z_bound):
    """log x^2 = v + log z^2, whose mean and variance are known: -gamma - log 2 and 9 + pi^2 / 2."""
    x = pattern.exact_posterior(3)["x"]
    log_square = np.log(x**2)
    variance = 9 + math.pi**2 / 2
    assert np.all(np.abs(log_square.mean(0) + np.euler_gamma + math.log(2)) < z_bound(4) * math.sqrt(variance / len(x)))
    fourth = np.mean((log_square - log_square.mean(0)) ** 4, axis=0)
    assert np.all(np.abs(log_square.var(0) - variance) < z_bound(4) * np.sqrt((fourth - variance**2) / len(x)))
    assert np.corrcoef(log_square.T)[0, 1] == pytest.approx(9 / variance, abs=0.02)
