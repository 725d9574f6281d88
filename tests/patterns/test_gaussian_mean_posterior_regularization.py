"""gaussian_mean_posterior_regularization: the tilted Gaussian against constrained optimisation; no bound against plain VI."""

import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.stats import norm

from vipatterns.patterns import gaussian_mean as plain
from vipatterns.patterns import gaussian_mean_posterior_regularization as pattern

ACTIVE, INACTIVE = 1.75, 2.0


def with_bound(bound):
    return pattern.data() | {"bound": np.asarray(bound)}


def kl(d, bound):
    """Of the regularised posterior from the posterior, both Gaussians of one variance."""
    m, s = pattern.documented_bias(**with_bound(bound))["mu"]
    return (m - d.loc) ** 2 / (2 * s**2)


@pytest.mark.parametrize("bound", [ACTIVE, INACTIVE])
def test_formula_is_the_constrained_minimum_over_all_densities(bound):
    """q on a grid of 41 cells, free but for its sum and its mean, by sequential quadratic programming from the prior."""
    posterior = pattern.exact_posterior(**pattern.data())["mu"]
    mu = posterior.loc + posterior.scale * np.linspace(-6, 5, 41)
    log_p = norm.logpdf(mu, posterior.loc, posterior.scale) + np.log(mu[1] - mu[0])

    def parts(logits):
        q = np.exp(logits - np.logaddexp.reduce(logits))
        terms = np.log(q) - log_p
        return q, q @ terms, q * (terms - q @ terms)

    best = minimize(
        lambda logits: parts(logits)[1:],
        norm.logpdf(mu, mu.mean(), 2 * posterior.scale),
        jac=True,
        method="SLSQP",
        constraints={
            "type": "ineq",
            "fun": lambda logits: (bound - parts(logits)[0] @ mu) / posterior.scale,
            "jac": lambda logits: parts(logits)[0] * (parts(logits)[0] @ mu - mu) / posterior.scale,
        },
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert best.success, best.message
    q = parts(best.x)[0]
    m, s = pattern.documented_bias(**with_bound(bound))["mu"]
    assert q @ mu == pytest.approx(m, abs=1e-3 * s)
    assert np.sqrt(q @ (mu - q @ mu) ** 2) == pytest.approx(s, rel=1e-3)
    assert best.fun == pytest.approx(kl(posterior, bound), abs=1e-4)


def test_the_multiplier_that_tilts_the_posterior_to_the_bound_by_quadrature():
    """The root of E[mu] - b over tilts of the unnormalised joint: lambda = (M - b) / V, and the tilted density is a Gaussian at b."""
    d, posterior = pattern.data(), pattern.exact_posterior(**pattern.data())["mu"]
    mu = np.linspace(0.7, 3.0, 2001)  # so smooth a density needs no finer a grid for all digits of float64
    log_joint = norm.logpdf(mu) + norm.logpdf(d["y"][:, None], mu).sum(0) - pattern.log_evidence(**d)

    def moment(multiplier, power):
        """Of mu - b, under the joint tilted by it."""
        return np.sum((mu - ACTIVE) ** power * np.exp(log_joint - multiplier * (mu - ACTIVE))) * (mu[1] - mu[0])

    multiplier = brentq(lambda value: moment(value, 1), 0, 50, xtol=1e-10)
    assert multiplier == pytest.approx((posterior.loc - ACTIVE) / posterior.scale**2, rel=1e-8)
    m, s = pattern.documented_bias(**d)["mu"]
    assert moment(multiplier, 2) / moment(multiplier, 0) == pytest.approx(s**2, rel=1e-8)
    assert m == ACTIVE
    assert -np.log(moment(multiplier, 0)) == pytest.approx(kl(posterior, ACTIVE), rel=1e-8), "no duality gap"


@pytest.mark.parametrize("bound", [ACTIVE, INACTIVE, np.inf])
def test_fit_is_the_formula(bound, assert_fits):
    d = with_bound(bound)
    assert_fits(pattern, d, pattern.documented_bias(**d), worst=0.05)


def test_loss_is_the_kl_that_the_bound_costs(rng_key):
    d = pattern.data()
    _, losses = pattern.fit(rng_key, **d)
    expected = kl(pattern.exact_posterior(**d)["mu"], ACTIVE)
    assert float(losses[-200:].mean()) + pattern.log_evidence(**d) == pytest.approx(expected, abs=2e-3)


def test_without_a_bound_it_is_plain_vi_step_by_step(rng_key):
    """Same key, same draws: to the rounding of float32 the same losses and the same q; an inactive bound ends in the same place."""
    d = plain.data()
    q, losses = plain.fit(rng_key, **d)
    free, free_losses = pattern.fit(rng_key, **d)
    np.testing.assert_allclose(free_losses, losses, rtol=1e-5)
    np.testing.assert_allclose([free["mu"].loc, free["mu"].scale], [q["mu"].loc, q["mu"].scale], rtol=1e-5)
    posterior = plain.exact_posterior(**d)["mu"]
    loose, _ = pattern.fit(rng_key, **with_bound(INACTIVE))
    assert float(loose["mu"].mean) == pytest.approx(posterior.loc, abs=0.02 * posterior.scale)


def test_data_are_those_of_gaussian_mean_and_a_table_has_no_bound():
    d = pattern.data()
    np.testing.assert_array_equal(d["y"], plain.data()["y"])
    assert pattern.data({"y": d["y"]})["bound"] == np.inf
    assert pattern.log_evidence(**d) == plain.log_evidence(**plain.data())
