"""two_modes_kl_direction: both divergences by quadrature, the fit of each direction against the best Gaussian of that direction."""

import math

import numpy as np
import pytest
from numpyro import distributions as dist
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import norm

from vipatterns.patterns import two_modes_kl_direction as pattern

UNEQUAL = {"modes": np.array([-2.0, 5.0]), "shares": np.array([1.0, 3.0])}
ONE_MODE = {"modes": np.zeros(2), "shares": np.ones(2)}


class Forward:
    """The forward fit in the shape that `assert_fits` takes."""

    fit = staticmethod(pattern.fit_forward)


def forward_kl(m, s, modes, shares):
    """KL(p || N(m, s)) in nats, by adaptive quadrature."""

    def integrand(x):
        log_p = pattern.log_density(x, modes, shares)
        return np.exp(log_p) * (log_p - norm.logpdf(x, m, s))

    return quad(integrand, min(modes) - 12, max(modes) + 12, points=list(modes), limit=200, epsabs=1e-12)[0]


def test_kl_is_not_symmetric():
    """Of N(0, 1) and a Gaussian of variance 4, both ways: .3181471806 and .8068528194. The two modes coincide here."""
    assert -pattern.elbo(0.0, 2.0, **ONE_MODE) == pytest.approx(1.5 - math.log(2), abs=1e-10)
    assert forward_kl(0.0, 2.0, **ONE_MODE) == pytest.approx(math.log(2) - 0.375, abs=1e-10)
    narrow, wide = dist.Normal(0.0, 1.0), dist.Normal(0.0, 2.0)
    assert float(dist.kl_divergence(narrow, wide)) == pytest.approx(0.3181471806, abs=1e-6)
    assert float(dist.kl_divergence(wide, narrow)) == pytest.approx(0.8068528194, abs=1e-6)


@pytest.mark.parametrize("d", [pattern.data(), UNEQUAL], ids=["equal", "unequal"])
def test_moment_matching_is_the_forward_minimum(d):
    best = minimize(lambda p: forward_kl(p[0], math.exp(p[1]), **d), [0.0, 0.0], method="BFGS")
    m, s = pattern.best_forward(**d)["x"]
    np.testing.assert_allclose([best.x[0], math.exp(best.x[1])], [m, s], rtol=1e-4, atol=1e-4)
    exact = pattern.exact_posterior(**d)["x"]
    assert float(exact.mean) == pytest.approx(m, abs=1e-6)
    assert float(exact.variance) == pytest.approx(s**2, rel=1e-6)


@pytest.mark.parametrize("d", [pattern.data(), UNEQUAL], ids=["equal", "unequal"])
def test_the_reverse_optimum_is_where_its_gradient_vanishes(d):
    """Stein's lemma: at the best Gaussian E_q[score] = 0 and E_q[score'] = -1 / s^2, here by adaptive quadrature."""
    m, s = pattern.documented_bias(**d)["x"]
    modes, share = d["modes"], d["shares"] / d["shares"].sum()

    def moments(x):
        r = share * norm.pdf(x, modes, 1)
        r = r / r.sum()
        return r @ (modes - x), -1 + r @ modes**2 - (r @ modes) ** 2

    slope, curvature = (quad(lambda x, i=i: norm.pdf(x, m, s) * moments(x)[i], m - 9 * s, m + 9 * s, limit=200)[0] for i in (0, 1))
    assert slope == pytest.approx(0, abs=1e-5)
    assert curvature == pytest.approx(-1 / s**2, rel=1e-4)


def test_well_separated_the_reverse_fit_loses_the_log_of_the_share():
    """log 2 where shares are equal; what is missing shrinks with the distance."""
    missing = []
    for a in (4.0, 5.0, 6.0):
        d = {"modes": np.array([-a, a]), "shares": np.ones(2)}
        (m, s) = pattern.documented_bias(**d)["x"]
        missing.append(abs(pattern.elbo(m, s, **d) + math.log(2)))
    assert missing[0] > missing[1] > missing[2]
    assert missing[2] < 1e-7
    assert (m, s) == pytest.approx((6.0, 1.0), abs=1e-4)
    d = {"modes": np.array([-6.0, 6.0]), "shares": np.array([3.0, 1.0])}
    assert pattern.elbo(*pattern.documented_bias(**d)["x"], **d) == pytest.approx(math.log(0.25), abs=1e-6)


def test_from_the_middle_there_is_a_third_optimum_and_it_is_worse():
    d = pattern.data()
    across = minimize(lambda p: -pattern.elbo(p[0], math.exp(p[1]), **d), [0.0, 0.0], method="BFGS")
    assert across.x[0] == pytest.approx(0, abs=1e-6)
    assert math.exp(across.x[1]) > 3
    around = [-pattern.elbo(across.x[0] + a, math.exp(across.x[1] + b), **d) for a in (-0.1, 0.1) for b in (-0.1, 0.1)]
    assert min(around) > across.fun
    assert -across.fun < pattern.elbo(*pattern.documented_bias(**d)["x"], **d)


@pytest.mark.parametrize("d", [pattern.data(), UNEQUAL], ids=["equal", "unequal"])
def test_each_direction_prefers_its_own_fit(d):
    reverse, forward = pattern.documented_bias(**d)["x"], pattern.best_forward(**d)["x"]
    assert pattern.elbo(*reverse, **d) > pattern.elbo(*forward, **d)
    assert forward_kl(*forward, **d) < forward_kl(*reverse, **d)


@pytest.mark.parametrize("d", [pattern.data(), UNEQUAL], ids=["equal", "unequal"])
def test_the_reverse_fit_is_the_mode_that_it_started_near(d, assert_fits):
    assert_fits(pattern, d, pattern.documented_bias(**d), worst=0.05)


@pytest.mark.parametrize("d", [pattern.data(), UNEQUAL], ids=["equal", "unequal"])
def test_the_forward_fit_matches_moments(d, assert_fits):
    assert_fits(Forward, d, pattern.best_forward(**d), worst=0.05)


def test_the_losses_are_what_they_are_called(rng_key, z_bound):
    """The negative ELBO of the one fit, -E_p log q of the other: their known values at the end of each."""
    d = pattern.data()
    reverse, forward = pattern.documented_bias(**d)["x"], pattern.best_forward(**d)["x"]
    cross_entropy = 0.5 * (math.log(2 * math.pi) + 1) + math.log(forward[1])
    for fit, value in ((pattern.fit, -pattern.elbo(*reverse, **d)), (pattern.fit_forward, cross_entropy)):
        last = np.asarray(fit(rng_key, **d)[1][-100:], float)
        assert abs(last.mean() - value) < z_bound(2) * last.std(ddof=1) / 10 + 1e-3  # 1e-3: the bias of weights that are normalised
