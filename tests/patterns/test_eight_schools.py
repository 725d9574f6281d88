"""eight_schools: quadrature against the published digits, draws against quadrature, the fit against the best guide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from vipatterns.patterns import eight_schools as pattern

EXACT = {
    "mu": (4.396821, 3.317704),
    "tau": (3.597705, 3.219958),
    "theta": (
        [6.211884, 4.940178, 3.927004, 4.757098, 3.615477, 4.042613, 6.296724, 4.854253],
        [5.593126, 4.674268, 5.262615, 4.780297, 4.657453, 4.826866, 5.077849, 5.290801],
    ),
}
"""Mean and sd by quadrature over tau, computed elsewhere, to the digits shown."""


def test_log_evidence():
    assert pattern.log_evidence(**pattern.data()) == pytest.approx(-31.311347, abs=1e-6)


def test_quadrature_has_the_published_moments():
    d = pattern.data()
    tau, log_p, m, var = pattern.grid(**d)
    weight = softmax(log_p)
    shrink = tau[:, None] ** 2 / (d["sigma"] ** 2 + tau[:, None] ** 2)
    conditional = {
        "mu": (m, var),
        "tau": (tau, 0 * tau),
        "theta": (m[:, None] + shrink * (d["y"] - m[:, None]), shrink * d["sigma"] ** 2 + (1 - shrink) ** 2 * var[:, None]),
    }
    for site, (centre, spread) in conditional.items():
        mean = weight @ centre
        sd = np.sqrt(weight @ (spread + (centre - mean) ** 2))
        np.testing.assert_allclose(mean, EXACT[site][0], atol=1e-6, err_msg=site)
        np.testing.assert_allclose(sd, EXACT[site][1], atol=1e-6, err_msg=site)


def test_exact_draws_have_the_published_moments(z_bound):
    """100,000 independent draws: the standard error of a mean is sd / 316, that of an sd follows from the fourth moment."""
    draws = pattern.exact_posterior(**pattern.data())
    bound = z_bound(2 * (1 + 1 + 8))
    for site, (mean, sd) in EXACT.items():
        x = draws[site]
        squares = (x - x.mean(0)) ** 2
        assert np.all(np.abs(x.mean(0) - mean) < bound * x.std(0) / np.sqrt(len(x))), site
        assert np.all(np.abs(x.var(0) - np.square(sd)) < bound * squares.std(0) / np.sqrt(len(x))), site
    np.testing.assert_allclose(draws["theta"], draws["mu"][:, None] + draws["tau"][:, None] * draws["z"], rtol=1e-12)


def test_fit_is_the_best_mean_field_guide(assert_fits):
    d = pattern.data()
    best = pattern.documented_bias(**d)
    assert_fits(pattern, d, {site: best[site] for site in ("mu", "tau", "z")}, worst=0.05)


def test_best_guide_of_scattered_schools_by_sampling(rng_key, z_bound):
    """theta = mu + tau z under independent factors, where z is far from 0: mean and variance as documented, in a million draws."""
    best = pattern.documented_bias(np.full(3, 5.0), np.array([30.0, -30.0, 10.0]))
    b2 = np.log1p((best["tau"][1] / best["tau"][0]) ** 2)
    normal = np.asarray(jax.random.normal(rng_key, (1_000_000, 5)), float)
    tau = best["tau"][0] * np.exp(np.sqrt(b2) * normal[:, :1] - b2 / 2)
    theta = best["mu"][0] + best["mu"][1] * normal[:, 1:2] + tau * (best["z"][0] + best["z"][1] * normal[:, 2:])
    squares = (theta - theta.mean(0)) ** 2
    assert np.all(np.abs(theta.mean(0) - best["theta"][0]) < z_bound(6) * theta.std(0) / 1000)
    assert np.all(np.abs(theta.var(0) - best["theta"][1] ** 2) < z_bound(6) * squares.std(0) / 1000)


def test_elbo_stays_below_the_log_evidence_by_a_third_of_a_nat(rng_key):
    d = pattern.data()
    q, losses = pattern.fit(rng_key, **d)
    gap = pattern.log_evidence(**d) + float(jnp.mean(losses[-500:]))
    assert gap == pytest.approx(0.29, abs=0.03)
    assert q["theta"].shape == (20_000, 8)


def test_tau_is_cut_short_and_says_so():
    """The docstring's claims about the bias."""
    best = pattern.documented_bias(**pattern.data())
    assert best["tau"][1] / EXACT["tau"][1] == pytest.approx(0.75, abs=0.03)
    assert np.ptp(best["theta"][0]) / np.ptp(EXACT["theta"][0]) == pytest.approx(0.56, abs=0.01)


def test_fit_on_a_table_of_three_schools(rng_key):
    d = pattern.data({"sigma": [1.0, 2.0, 3.0], "school": ["a", "b", "c"], "y": [5.0, 6.0, 7.0]})
    assert d.keys() == {"sigma", "y"}
    q, _ = jax.eval_shape(lambda key: pattern.fit(key, **d), rng_key)
    assert q["theta"].shape == (20_000, 3)
