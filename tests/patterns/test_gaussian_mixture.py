"""gaussian_mixture: enumeration against published digits, one mode of it against the fixed point, the fit against that."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp, roots_hermitenorm, softmax
from scipy.stats import multivariate_normal

from vipatterns.patterns import gaussian_mixture as pattern

CAVI = {"mean": [-4.96707, 0.04951, 5.03284], "variance": [0.32895, 0.24753, 0.32895], "elbo": -28.155474993858}
"""Best mean-field of means *and* labels, by coordinate ascent, computed elsewhere."""


@pytest.fixture(scope="module")
def rows():
    return pattern.data()


def elbo(y, m, s, nodes=12):
    """The ELBO with labels summed out, by tensor Gauss-Hermite over the three means."""
    node, weight = roots_hermitenorm(nodes)
    u = np.array(list(itertools.product(node, repeat=len(m))))
    w = np.prod(np.array(list(itertools.product(weight / weight.sum(), repeat=len(m)))), axis=1)
    mu = m + s * u
    log_p = logsumexp(-0.5 * (y[:, None, None] - mu) ** 2, axis=2) - 0.5 * np.log(2 * np.pi) - np.log(len(m))
    kl = np.sum((m**2 + s**2) / 50 - 0.5 - np.log(s / 5))
    return w @ log_p.sum(0) - kl


def test_enumeration_has_the_published_digits(rows):
    assert pattern.log_evidence(**rows) == pytest.approx(-26.362466087635834, abs=1e-9)
    log_p, m, _ = pattern.assignments(rows["y"], 3)
    assert len(log_p) == 59_049
    np.testing.assert_allclose(softmax(log_p) @ m, 0.038396267, atol=1e-9)


def test_evidence_of_two_rows_by_bivariate_gaussians():
    """Rows share a mean with probability 1 / K, and are then correlated: an answer that enumerates nothing."""
    y = np.array([1.3, -0.4])
    apart, together = (multivariate_normal.logpdf(y, cov=26 * np.eye(2) + c * (1 - np.eye(2))) for c in (0, 25))
    expected = logsumexp([apart + np.log(2 / 3), together + np.log(1 / 3)])
    assert pattern.log_evidence(y, 3) == pytest.approx(expected, abs=1e-12)


def test_draws_have_the_moments_of_the_enumeration(rows, z_bound):
    """100,000 draws whose assignments are spread evenly: at most the error of independent ones."""
    log_p, m, var = pattern.assignments(rows["y"], 3)
    weight, mu = softmax(log_p), pattern.exact_posterior(**rows)["mu"]
    second = weight @ (var + m**2)
    assert np.all(np.abs(mu.mean(0) - weight @ m) < z_bound(6) * mu.std(0) / np.sqrt(len(mu)))
    assert np.all(np.abs((mu**2).mean(0) - second) < z_bound(6) * (mu**2).std(0) / np.sqrt(len(mu)))


def test_documented_bias_has_the_published_digits(rows):
    m, s = pattern.documented_bias(**rows)["mu"]
    np.testing.assert_allclose(m, CAVI["mean"], atol=1e-5)
    np.testing.assert_allclose(s**2, CAVI["variance"], atol=1e-5)


def test_best_gaussian_with_labels_summed_out_is_the_fixed_point_but_for_a_thousandth(rows):
    """The fixed point belongs to a looser bound. Here the groups are so far apart that the two share their maximum."""
    m, s = pattern.documented_bias(**rows)["mu"]
    best = minimize(lambda p: -elbo(rows["y"], p[:3], np.exp(p[3:])), np.append(m, np.log(s)), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose((best.x[:3] - m) / s, 0, atol=2e-3)
    np.testing.assert_allclose(best.x[3:], np.log(s), atol=2e-3)
    assert CAVI["elbo"] < -best.fun < pattern.log_evidence(**rows) - math.log(6)


def test_fit_is_the_fixed_point(rows, assert_fits):
    assert_fits(pattern, rows, pattern.documented_bias(**rows), worst=0.05)


def test_elbo_is_short_by_the_labels_and_nothing_else(rows, rng_key, z_bound):
    """log 3!, plus a thousandth of a nat, the guide's Gaussians being all but exact in their mode."""
    _, losses = pattern.fit(rng_key, **rows)
    last = -np.asarray(losses[-200:], float)
    gap = pattern.log_evidence(**rows) - last.mean()
    assert abs(gap - math.log(6)) < z_bound() * last.std() / np.sqrt(200) + 0.002


def test_up_to_relabelling_q_is_the_posterior(rows):
    """The claim of the docstring: sorted, the exact draws are q's Gaussians to 0.02 sd; unsorted they are nothing like them."""
    exact, (m, s) = pattern.exact_posterior(**rows)["mu"], pattern.documented_bias(**rows)["mu"]
    ordered = np.sort(exact, axis=1)
    assert np.all(np.abs(ordered.mean(0) - m) < 0.02 * s)
    assert np.all(np.abs(np.log(ordered.std(0) / s)) < 0.02)
    assert exact.std(0).min() > 4


def test_guide_starts_the_components_apart(rows, rng_key):
    start = np.quantile(rows["y"], [1 / 6, 1 / 2, 5 / 6])
    q, _ = pattern.fit(rng_key, **rows, num_steps=1)
    np.testing.assert_allclose(q["mu"].mean, start, atol=0.11)  # one step of Adam is one learning rate


def test_too_many_rows_to_enumerate_are_refused():
    with pytest.raises(ValueError, match="compare with NUTS"):
        pattern.log_evidence(np.zeros(40), 3)
