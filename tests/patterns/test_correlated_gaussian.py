"""correlated_gaussian: the fit against the formula, k-hat of the best guide against its population value and the published estimates."""

import math

import jax
import numpy as np
import pytest
from numpyro.infer.importance import psis_diagnostic
from scipy.integrate import dblquad
from scipy.stats import multivariate_normal, norm

from vipatterns.patterns import correlated_gaussian as pattern


@pytest.mark.slow
@pytest.mark.parametrize("rho", [-0.7, 0.3, 0.9])
def test_fit_has_the_predicted_sds(rho, assert_fits):
    d = {"rho": np.asarray(rho)}
    assert_fits(pattern, d, pattern.documented_bias(**d), worst=0.05)


def test_elbo_is_the_predicted_one(rng_key, z_bound):
    _, losses = pattern.fit(rng_key, 0.9)
    last = np.asarray(losses[-1000:], float)
    assert abs(-last.mean() - 0.5 * math.log(1 - 0.81)) < z_bound() * last.std(ddof=1) / np.sqrt(1000) + 0.001


def test_kl_by_quadrature():
    s = pattern.documented_bias(0.6)["z"][1][0]
    exact = multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]])

    def integrand(a, b):
        log_q = norm.logpdf(a, 0, s) + norm.logpdf(b, 0, s)
        return math.exp(log_q) * (log_q - exact.logpdf([a, b]))

    assert dblquad(integrand, -8 * s, 8 * s, -8 * s, 8 * s, epsabs=1e-6)[0] == pytest.approx(-0.5 * math.log(1 - 0.36), abs=1e-5)


@pytest.mark.parametrize(("rho", "estimate"), [(0.3, 0.28), (0.5, 0.46), (0.7, 0.64), (0.9, 0.82)])
def test_khat_of_the_best_guide(rho, estimate, rng_key, z_bound):
    """At 1e5 draws an estimate scatters by .04 to .05; the average of 32 is known to .01, as is the published one."""
    m, s = pattern.documented_bias(rho)["z"]

    def khat(key):
        return psis_diagnostic(key, {"m": m, "s": s}, pattern.model, pattern.guide, rho, num_particles=100_000)

    found = np.array([khat(key) for key in jax.random.split(rng_key, 32)])
    assert abs(found.mean() - estimate) < z_bound(4) * found.std(ddof=1) / np.sqrt(32) + 0.01


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_population_k_is_rho(rho):
    """The (1 / k)-th moment of the weights under q is where they stop being finite: just below it is, just above it is not.

    E_q w^t is a Gaussian integral, finite while t / p's variance + (1 - t) / q's variance is positive along the diagonal.
    """
    s2 = pattern.documented_bias(rho)["z"][1][0] ** 2
    precision = [t / (1 + rho) + (1 - t) / s2 for t in (0.999 / rho, 1.001 / rho)]
    assert precision[0] > 0 > precision[1]


def test_exact_posterior_has_the_correlation():
    z = pattern.exact_posterior(0.9)["z"]
    np.testing.assert_allclose(z.covariance_matrix, [[1, 0.9], [0.9, 1]], atol=1e-6)
