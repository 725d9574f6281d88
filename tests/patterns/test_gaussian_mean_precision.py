"""gaussian_mean_precision: closed forms against quadrature and coordinate ascent, the fit against its fixed point."""

import numpy as np
import pytest
from scipy.stats import gamma, norm

from vipatterns.patterns import gaussian_mean_precision as pattern


def test_evidence_and_moments_by_quadrature():
    """A grid in mu and log tau; the trapezoid rule converges faster than any power where the integrand dies out at the ends."""
    y = pattern.data()["y"]
    mu, log_tau = np.linspace(-6, 9, 1001)[:, None], np.linspace(-12, 3, 1001)
    tau = np.exp(log_tau)
    log_p = gamma.logpdf(tau, pattern.A0, scale=1 / pattern.B0) + norm.logpdf(mu, 0, (pattern.LAMBDA0 * tau) ** -0.5)
    joint = np.exp(log_p + log_tau + sum(norm.logpdf(each, mu, tau**-0.5) for each in y)) * 0.015**2
    assert pattern.log_evidence(y) == pytest.approx(np.log(joint.sum()), abs=1e-6)
    exact = pattern.exact_posterior(y)
    for site, value in {"mu": mu, "tau": tau}.items():
        mean = np.sum(joint * value) / joint.sum()
        assert float(exact[site].mean) == pytest.approx(mean, rel=1e-6), site
        assert float(exact[site].variance) == pytest.approx(np.sum(joint * (value - mean) ** 2) / joint.sum(), rel=1e-5), site


def test_coordinate_ascent_comes_to_rest_at_the_documented_bias():
    """Bishop's updates, equations 10.26 to 10.30, from a bad start."""
    y = pattern.data()["y"]
    total, e_tau = pattern.LAMBDA0 + len(y), 20.0
    for _ in range(60):
        m, var = y.sum() / total, 1 / (total * e_tau)
        shape = pattern.A0 + (len(y) + 1) / 2
        rate = pattern.B0 + 0.5 * (np.sum((y - m) ** 2) + len(y) * var + pattern.LAMBDA0 * (m**2 + var))
        e_tau = shape / rate
    bias = pattern.documented_bias(y)
    np.testing.assert_allclose(bias["mu"], (m, var**0.5), rtol=1e-12)
    np.testing.assert_allclose(bias["tau"], (e_tau, shape**0.5 / rate), rtol=1e-12)


def test_variance_ratios():
    """The docstring's formulas; with flat priors a = (N - 1) / 2 they are Bishop's (N - 3) / (N - 1) and (N - 1) / N."""
    y = pattern.data()["y"]
    a = pattern.A0 + len(y) / 2
    exact, bias = pattern.exact_posterior(y), pattern.documented_bias(y)
    assert bias["mu"][1] ** 2 / float(exact["mu"].variance) == pytest.approx((a - 1) / a, rel=1e-5)
    assert bias["tau"][1] ** 2 / float(exact["tau"].variance) == pytest.approx(a / (a + 0.5), rel=1e-5)
    assert bias["tau"][0] == pytest.approx(float(exact["tau"].mean), rel=1e-6)
    assert bias["mu"][0] == pytest.approx(float(exact["mu"].mean), rel=1e-6)


def test_fit_has_the_documented_bias(assert_fits):
    d = pattern.data()
    assert_fits(pattern, d, pattern.documented_bias(**d), worst=0.05)


def test_fit_in_other_units(assert_fits):
    """Minutes, on a clock that starts elsewhere: the prior hardly matters, the optimiser must not either."""
    d = pattern.data({"y": pattern.data()["y"] * 60 + 500})
    assert_fits(pattern, d, pattern.documented_bias(**d), worst=0.05)
