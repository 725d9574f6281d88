"""gaussian_mean against the closed form's digits and against quadrature."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from vipatterns.patterns import gaussian_mean as pattern


def test_exact_numbers():
    d = pattern.data()
    mu = pattern.exact_posterior(**d)["mu"]
    np.testing.assert_allclose([mu.loc, mu.scale], [1.8773796857484217, 0.09950371902099892], rtol=1e-12)
    assert pattern.log_evidence(**d) == pytest.approx(-136.80742332823354, rel=1e-12)


def test_log_evidence_by_quadrature_on_other_data():
    y = np.array([-3.0, 0.5, 4.0])
    evidence, _ = quad(lambda mu: norm.pdf(mu) * np.prod(norm.pdf(y, mu)), -12, 12, epsabs=0, epsrel=1e-10)
    assert pattern.log_evidence(**pattern.data({"y": y})) == pytest.approx(np.log(evidence), abs=1e-8)


def test_fit_is_the_posterior(assert_fits):
    d = pattern.data()
    mu = pattern.exact_posterior(**d)["mu"]
    assert_fits(pattern, d, {"mu": (mu.loc, mu.scale)}, worst=0.05)


def test_fit_moves_with_the_data(rng_key):
    """Shift the data by 1: the posterior mean moves by 100/101. One key for both, so that the optimiser's noise cancels."""
    d = pattern.data()
    before, _ = pattern.fit(rng_key, **d)
    after, _ = pattern.fit(rng_key, **pattern.data({"y": d["y"] + 1}))
    assert float(after["mu"].mean - before["mu"].mean) == pytest.approx(100 / 101, abs=0.002)


def test_elbo_reaches_the_log_evidence_without_noise(rng_key):
    d = pattern.data()
    _, losses = pattern.fit(rng_key, **d)
    assert float(-losses[-200:].mean()) == pytest.approx(pattern.log_evidence(**d), abs=1e-3)  # float32 rounds at 1e-5
    assert float(losses[-200:].std()) < 0.01 * float(losses[:50].std())


def test_a_table_with_one_column_is_the_data():
    d = pattern.data({"height": [1, 2, 4]})
    np.testing.assert_array_equal(d["y"], [1.0, 2.0, 4.0])
    assert d["num_observations"] == 3
