"""gaussian_mean against the closed form's digits and against quadrature."""

import numpy as np
import pytest
from numpyro.distributions import kl_divergence
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


def test_elbo_is_the_log_evidence_less_kl(rng_key, z_bound):
    """Of the q where the fit ended, in closed form; what is left of the noise shrinks with it."""
    d = pattern.data()
    q, losses = pattern.fit(rng_key, **d)
    kl = float(kl_divergence(q["mu"], pattern.exact_posterior(**d)["mu"]))
    last = np.asarray(losses[-200:], float)  # in which q hardly moves any more
    rounding = 1e-4  # of a sum of a hundred terms in float32
    assert abs(pattern.log_evidence(**d) + last.mean() - kl) < z_bound() * last.std(ddof=1) / np.sqrt(len(last)) + rounding
    assert last.std() < 0.01 * float(losses[:50].std())


def test_a_table_with_one_column_is_the_data():
    d = pattern.data({"height": [1, 2, 4]})
    np.testing.assert_array_equal(d["y"], [1.0, 2.0, 4.0])
    assert d["num_observations"] == 3
