"""linkage_em: the published iterates, EM as coordinate ascent on the ELBO, the exact posterior by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from vipatterns.patterns import linkage_em as pattern

ITERATES = [0.608247423, 0.624321050, 0.626488879, 0.626777322, 0.626815632, 0.626820719, 0.626821394, 0.626821484]
"""From .5, Dempster et al. 1977, table 1, with further digits computed elsewhere."""


@pytest.fixture(scope="module")
def n():
    return pattern.counts(pattern.data()["y"])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def iterates(theta, n, rounds):
    for _ in range(rounds):
        theta = pattern.maximise(pattern.expect(theta, n), n)
        yield theta


def elbo(theta, p, n):
    """E_q[log p(y, z, theta) - log q(z)], q(z) binomial with probability p: summed over all z, without closed forms."""
    z = np.arange(n[0] + 1)
    log_q = binom.logpmf(z, n[0], p)
    # Which animals of phenotype 0 are the z is part of the latent: the binomial coefficient counts those ways in p and in q.
    ways = binom.logpmf(z, n[0], 0.5) - n[0] * np.log(0.5)
    log_p = ways + (n[0] - z) * np.log(0.5) + z * np.log(theta / 4)
    return np.exp(log_q) @ (log_p - log_q) + (n[1] + n[2]) * np.log((1 - theta) / 4) + n[3] * np.log(theta / 4)


def test_counts_are_the_published_ones(n):
    np.testing.assert_array_equal(n, [125, 18, 20, 34])


def test_iterates_are_the_published_ones(n):
    np.testing.assert_allclose(list(iterates(0.5, n, 8)), ITERATES, atol=5.1e-10)


def test_limit_and_rate(n):
    """The rate is the derivative of a round at the limit: by differences of late iterates and in closed form."""
    mode, sd = pattern.documented_bias(**pattern.data())["theta"]
    assert sd == 0
    assert mode == pytest.approx((15 + np.sqrt(53809)) / 394, rel=1e-14)
    *_, last = iterates(0.5, n, 60)
    assert last == pytest.approx(mode, rel=1e-13)
    z = pattern.expect(mode, n)
    rate = 2 * n[0] / (2 + mode) ** 2 * (n[1] + n[2]) / (z + n[1] + n[2] + n[3]) ** 2
    errors = np.array(list(iterates(0.5, n, 8))) - mode
    assert rate == pytest.approx(0.132779, abs=5e-7)
    np.testing.assert_allclose(errors[4:] / errors[3:-1], rate, rtol=1e-4)


def test_rate_is_the_share_of_missing_information(n, x64):
    """Of what z would have told of theta, how much the phenotypes leave untold: Dempster et al., theorem 4."""
    mode, _ = pattern.documented_bias(**pattern.data())["theta"]
    z = pattern.expect(mode, n)
    complete = (z + n[3]) / mode**2 + (n[1] + n[2]) / (1 - mode) ** 2
    observed = -float(jax.grad(jax.grad(pattern.log_joint))(mode, n))
    assert 1 - observed / complete == pytest.approx(0.132779, abs=5e-7)


@pytest.mark.parametrize("theta", [0.1, 0.5, 0.9])
def test_both_steps_are_coordinate_ascent_on_the_elbo(n, theta, x64):
    """Each is the maximum in its own coordinate, found by search; after the E-step the ELBO equals log p(y, theta)."""
    best_p = minimize_scalar(lambda p: -elbo(theta, p, n), bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-9}).x
    z = pattern.expect(theta, n)
    assert z / n[0] == pytest.approx(best_p, abs=1e-6)
    assert elbo(theta, z / n[0], n) == pytest.approx(float(pattern.log_joint(theta, n)), rel=1e-12)
    best_theta = minimize_scalar(lambda t: -elbo(t, z / n[0], n), bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-9}).x
    assert pattern.maximise(z, n) == pytest.approx(best_theta, abs=1e-6)


@pytest.mark.parametrize("start", [0.01, 0.5, 0.99])
def test_no_round_lowers_the_log_joint(n, start, x64):
    path = np.array([float(pattern.log_joint(theta, n)) for theta in [start, *iterates(start, n, 15)]])
    assert np.all(np.diff(path) > -1e-12 * np.abs(path[-1]))


def test_log_joint_is_the_model_s(n):
    d = pattern.data()
    theta = jnp.asarray(0.37)
    expected, _ = log_density(pattern.model, (), d, {"theta": theta})
    assert float(pattern.log_joint(theta, n)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("counts", [(125, 18, 20, 34), (3, 0, 1, 2)])
def test_exact_posterior_by_quadrature(counts):
    """The second set is small enough for the posterior to be far from Gaussian."""
    d = pattern.data({"y": np.repeat([0, 1, 2, 3], counts)})
    a, b, c = counts[0], counts[1] + counts[2], counts[3]
    top = a * np.log(2.6) + b * np.log(0.4) + c * np.log(0.6)
    density = lambda t, power: t**power * np.exp(a * np.log(2 + t) + b * np.log1p(-t) + c * np.log(t) - top)  # noqa: E731
    total, first, second = (quad(density, 0, 1, args=(power,), points=[0.5, 0.6, 0.7], epsrel=1e-12)[0] for power in (0, 1, 2))
    exact = pattern.exact_posterior(**d)["theta"]
    assert float(exact.mean) == pytest.approx(first / total, rel=1e-5)  # NumPyro sums the betas in float32
    assert float(exact.variance) == pytest.approx(second / total - (first / total) ** 2, rel=1e-4)


def test_what_a_point_leaves_out():
    """The docstring: no sd; off the mean, the more so the fewer the animals."""
    for counts, least in (((125, 18, 20, 34), 0.05), ((3, 0, 1, 2), 0.2)):
        d = pattern.data({"y": np.repeat([0, 1, 2, 3], counts)})
        (mode, sd), exact = pattern.documented_bias(**d)["theta"], pattern.exact_posterior(**d)["theta"]
        assert sd == 0
        assert abs(mode - float(exact.mean)) > least * float(exact.variance) ** 0.5


def test_fit_is_the_mode(assert_fits):
    """Every key starts elsewhere; all end at the point, to the rounding of float32."""
    d = pattern.data()
    assert_fits(pattern, d, pattern.documented_bias(**d), worst=1e-3, floor=1e-3)


def test_other_codes_are_refused():
    with pytest.raises(ValueError, match="the codes 0, 1, 2 and 3"):
        pattern.data({"y": [0, 1, 4]})
