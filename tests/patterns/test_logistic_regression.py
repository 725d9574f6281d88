"""logistic_regression: quadrature against published digits, the best guide against them too, the fit against the best guide."""

import jax
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO
from scipy.special import softmax

from vipatterns.patterns import logistic_regression as pattern


@pytest.fixture(scope="module")
def bioassay():
    return pattern.data()


def test_quadrature_has_the_published_digits(bioassay):
    assert pattern.log_evidence(**bioassay) == pytest.approx(-4.455368, abs=1e-6)
    a, b, log_p = pattern.grid(**bioassay)
    weight = softmax(log_p)
    mean = np.sum(weight * a), np.sum(weight * b)
    sd = np.sum(weight * (a - mean[0]) ** 2) ** 0.5, np.sum(weight * (b - mean[1]) ** 2) ** 0.5
    correlation = np.sum(weight * (a - mean[0]) * (b - mean[1])) / np.prod(sd)
    np.testing.assert_allclose([*mean, *sd, correlation], [0.774519, 8.404909, 0.818435, 3.672280, 0.517128], atol=1e-6)


def test_exact_draws_have_the_published_moments(bioassay, z_bound):
    draws = pattern.exact_posterior(**bioassay)
    for site, mean, sd in (("intercept", 0.774519, 0.818435), ("slopes", 8.404909, 3.672280)):
        x = draws[site]
        squares = (x - x.mean(0)) ** 2
        assert abs(x.mean() - mean) < z_bound(4) * x.std() / np.sqrt(len(x)), site
        assert abs(x.var() - sd**2) < z_bound(4) * squares.std() / np.sqrt(len(x)), site
    assert np.corrcoef(draws["intercept"], draws["slopes"][:, 0])[0, 1] == pytest.approx(0.517128, abs=0.01)


def test_best_guide_has_the_published_sds(bioassay):
    best = pattern.documented_bias(**bioassay)
    np.testing.assert_allclose([best["intercept"][1], best["slopes"][1][0]], [0.68654, 2.64904], atol=1e-5)


def test_fit_is_the_best_guide(bioassay, assert_fits):
    assert_fits(pattern, bioassay, pattern.documented_bias(**bioassay), worst=0.05)


def test_elbo_of_the_fit_is_the_published_optimum(bioassay, rng_key, z_bound):
    """-4.695424. At the optimum an error of e sds in q costs e^2 / 2 nats, a thousandth for the fit's hundredths."""
    q, _ = pattern.fit(rng_key, **bioassay)
    params = {"intercept_m": q["intercept"].mean, "intercept_s": q["intercept"].variance ** 0.5}
    params |= {"slopes_m": q["slopes"].mean, "slopes_s": q["slopes"].variance ** 0.5}

    def loss(key):
        return Trace_ELBO(num_particles=1000).loss(key, params, pattern.model, pattern.guide, **bioassay)

    losses = np.asarray(jax.vmap(loss)(jax.random.split(rng_key, 100)), float)
    assert abs(-losses.mean() + 4.695424) < z_bound() * losses.std(ddof=1) / 10 + 0.002


def test_units_of_the_features_do_not_matter():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, 2)) * [1.0, 30.0] + [5.0, 400.0]
    y = (rng.uniform(size=60) < 0.5 + 0.4 * np.tanh(x[:, 0] - 5)).astype(int)
    here = pattern.documented_bias(**pattern.data({"a": x[:, 0], "b": x[:, 1], "y": y}))
    there = pattern.documented_bias(**pattern.data({"a": x[:, 0] * 1000 + 7, "b": x[:, 1], "y": y}))
    np.testing.assert_allclose(np.array(there["slopes"]) * [1000, 1], here["slopes"], rtol=1e-4)
    np.testing.assert_allclose(there["intercept"], here["intercept"], rtol=1e-4)


def test_what_cannot_be_is_said(bioassay):
    with pytest.raises(ValueError, match="pass units"):
        pattern.model(bioassay["x"], trials=5)
    with pytest.raises(ValueError, match="x has 2"):
        pattern.exact_posterior(np.zeros((4, 2)), bioassay["y"], 5, np.array([[0.0, 0.0], [1.0, 1.0]]))


def test_docstring_tells_the_bias(bioassay):
    best = pattern.documented_bias(**bioassay)
    assert best["intercept"][1] / 0.818435 == pytest.approx(1 - 0.16, abs=0.01)
    assert best["slopes"][1][0] / 3.672280 == pytest.approx(1 - 0.28, abs=0.01)
    assert (best["intercept"][0] - 0.774519) / 0.818435 == pytest.approx(-0.08, abs=0.03)
    assert (best["slopes"][0][0] - 8.404909) / 3.672280 == pytest.approx(-0.06, abs=0.03)
