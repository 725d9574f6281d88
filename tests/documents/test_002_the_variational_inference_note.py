"""The note on variational inference, first part: posterior, divergence and bound. One test is one claim, which holds or is corrected.

The note is the third of the documents that this project starts from. It is told here in other words; gradients, reparameterisation,
amortisation and autoencoders have files of their own beside this one. The running example is its own: a Gaussian mean.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import kstest, norm

from vipatterns.patterns import gaussian_mean

X = gaussian_mean.data()["y"]
POSTERIOR_MEAN, POSTERIOR_SD = X.sum() / (len(X) + 1), (len(X) + 1) ** -0.5
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
GRID = np.linspace(-30.0, 30.0, 6_001)
STEP = GRID[1] - GRID[0]
MEMBERS = [(0.0, 1.0), (1.5, 0.3), (-2.0, 0.05), (POSTERIOR_MEAN, POSTERIOR_SD)]
"""Means and sds of four members of the Gaussian family; the last is the posterior."""


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def generator(rng_key):
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))


def log_joint(z, x=X, prior_mean=0.0):
    """log p(x, z) of z ~ N(prior_mean, 1) and x_i | z ~ N(z, 1), at each z."""
    return norm.logpdf(z, prior_mean) + norm.logpdf(x[:, None], z).sum(0)


def expected(f, m, s):
    """E[f(z)] under N(m, s^2), by Gauss-Hermite quadrature: exact for a polynomial."""
    return WEIGHTS @ f(m + s * NODES) / WEIGHTS.sum()


def bound(m, s, log_joint=log_joint):
    """L(q, p), the integral of q log p(x, z) / q, for q = N(m, s^2)."""
    return expected(lambda z: log_joint(z) - norm.logpdf(z, m, s), m, s)


def gaussian_kl(m, s, m2, s2):
    """KL(N(m, s^2) || N(m2, s2^2)), the closed form."""
    return np.log(s2 / s) + (s**2 + (m - m2) ** 2) / (2 * s2**2) - 0.5


def divergence(p, q):
    """KL of two densities given on GRID: the integral of p log p / q, as the note defines it."""
    inside = p > 1e-290
    return STEP * np.sum(p[inside] * np.log(p[inside] / np.maximum(q[inside], 1e-300)))


def two_modes(z):
    return 0.5 * norm.pdf(z, -3.0) + 0.5 * norm.pdf(z, 3.0)


def test_holds_a_process_makes_the_data_from_latent_variables(rng_key, false_alarm):
    """Draw z, then x from p(x|z): such x are distributed as p(x), the integral of the joint over z. They are, here N(0, 2)."""
    rng = generator(rng_key)
    z = rng.normal(size=50_000)
    x = rng.normal(z)
    assert kstest(x, norm(0, math.sqrt(2)).cdf).pvalue > false_alarm


def test_corrected_the_posterior_is_of_latents_given_the_process_not_the_process():
    """The note equates estimating the process with the posterior. One process p(x|z) has as many posteriors as there are priors."""
    posteriors = []
    for prior_mean in (0.0, 50.0):
        log_p = log_joint(GRID, prior_mean=prior_mean)
        p = np.exp(log_p - log_p.max())
        posteriors.append((p / p.sum()) @ GRID)
    np.testing.assert_allclose(posteriors, [X.sum() / 101, (X.sum() + 50) / 101], rtol=1e-10)


def test_holds_bayes_rule():
    """The posterior is joint over evidence, the evidence the integral of the joint over z: against the conjugate closed form."""
    evidence = quad(lambda z: np.exp(log_joint(np.array([z]))[0] + 130), 0, 4, points=[POSTERIOR_MEAN], epsabs=0, epsrel=1e-12)[0]
    log_evidence = np.log(evidence) - 130
    np.testing.assert_allclose(log_evidence, gaussian_mean.log_evidence(X), rtol=1e-12)
    z = np.linspace(1.5, 2.3, 9)
    exact = gaussian_mean.exact_posterior(X)["mu"]
    np.testing.assert_allclose(log_joint(z) - log_evidence, exact.log_prob(z), atol=1e-9)


def test_holds_the_evidence_is_hard_to_estimate(rng_key, z_bound):
    """An average of p(x|z) over draws of the prior has a relative variance r^D - 1, exponential in the dimension D of z."""
    x = 2.0
    ratio = norm.pdf(x, 0, math.sqrt(1.5)) / (2 * math.sqrt(math.pi)) / norm.pdf(x, 0, math.sqrt(2)) ** 2
    z = generator(rng_key).normal(size=(400_000, 3))
    weight = norm.pdf(x, z) / norm.pdf(x, 0, math.sqrt(2))
    for dimension in (1, 2, 3):
        square = weight[:, :dimension].prod(1) ** 2
        assert abs(square.mean() - ratio**dimension) < z_bound(3) * square.std() / math.sqrt(square.size)
    assert ratio**50 - 1 > 1e6


def test_holds_inference_becomes_optimisation():
    """Least divergence over the family N(m, s^2), found by an optimiser that sees the joint alone, is the posterior if a member."""
    found = minimize(lambda v: -bound(v[0], np.exp(v[1])), [0.0, 0.0], method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose([found.x[0], np.exp(found.x[1])], [POSTERIOR_MEAN, POSTERIOR_SD], rtol=1e-5)
    assert abs(-found.fun - gaussian_mean.log_evidence(X)) < 1e-8


def test_holds_a_simpler_family_only_approximates():
    """Independent Gaussians for a correlated posterior: the best has sds 1 / sqrt(precision_ii) and the divergence -log(1 - rho^2) / 2."""
    rho = 0.8
    covariance = np.array([[1.0, rho], [rho, 1.0]])
    precision = np.linalg.inv(covariance)

    def kl(log_sd):
        variance = np.diag(np.exp(2 * log_sd))
        return 0.5 * (np.trace(precision @ variance) - 2 + np.linalg.slogdet(covariance)[1] - 2 * log_sd.sum())

    found = minimize(kl, [0.0, 0.0])
    np.testing.assert_allclose(np.exp(found.x), np.diag(precision) ** -0.5, rtol=1e-4)
    np.testing.assert_allclose(found.fun, -0.5 * math.log(1 - rho**2), rtol=1e-8)


@pytest.mark.parametrize("v", MEMBERS)
def test_holds_variational_parameters_select_a_member(v):
    """A guide is a family; substituting v = (m, s) into it makes it one distribution, N(m, s^2)."""
    member = handlers.substitute(gaussian_mean.guide, {"m": v[0], "s": v[1]})
    site = handlers.trace(handlers.seed(member, jax.random.key(0))).get_trace()["mu"]["fn"]
    np.testing.assert_allclose(site.log_prob(0.3), norm.logpdf(0.3, *v), rtol=1e-12)


def test_holds_there_are_other_divergences():
    """Renyi's, of order alpha, tends to the KL divergence as alpha tends to 1, and is another number elsewhere."""
    p, q = norm.pdf(GRID), norm.pdf(GRID, 1.0, 1.5)

    def renyi(alpha):
        return np.log(STEP * np.sum(p**alpha * q ** (1 - alpha))) / (alpha - 1)

    kl = gaussian_kl(0.0, 1.0, 1.0, 1.5)
    np.testing.assert_allclose((renyi(1 - 1e-3) + renyi(1 + 1e-3)) / 2, kl, rtol=1e-6)
    overlap = 2 * 1.5 / (1 + 1.5**2)  # Bhattacharyya's coefficient, which order 1/2 is made of
    np.testing.assert_allclose(renyi(0.5), 0.5 / (1 + 1.5**2) - math.log(overlap), rtol=1e-10)
    assert renyi(0.5) < kl < renyi(2.0)


@pytest.mark.parametrize(("p", "q"), [((0.0, 1.0), (0.0, 2.0)), ((1.0, 0.5), (-1.0, 3.0)), ((2.0, 1.0), (2.0, 1.0))])
def test_holds_the_kl_divergence_is_the_integral_of_p_log_p_over_q(p, q):
    """The definition, integrated numerically, against the closed form for two Gaussians and against NumPyro's."""
    by_definition = divergence(norm.pdf(GRID, *p), norm.pdf(GRID, *q))
    np.testing.assert_allclose(by_definition, gaussian_kl(*p, *q), atol=1e-10)
    np.testing.assert_allclose(dist.kl_divergence(dist.Normal(*p), dist.Normal(*q)), by_definition, atol=1e-10)


def test_holds_the_kl_divergence_is_asymmetric():
    """N(0, 1) from N(0, 4), with variance 4, is not as far as N(0, 4) from N(0, 1)."""
    narrow, wide = norm.pdf(GRID), norm.pdf(GRID, 0, 2)
    np.testing.assert_allclose([divergence(narrow, wide), divergence(wide, narrow)], [0.3181471806, 0.8068528194], atol=1e-10)


def test_holds_one_direction_covers_the_mass_and_the_other_seeks_a_mode():
    """Least KL(p || q) has the mean and variance of p, both modes and the valley; least KL(q || p), the note's, sits on one mode."""
    p = two_modes(GRID)
    covering = minimize(lambda v: divergence(p, norm.pdf(GRID, v[0], np.exp(v[1]))), [1.0, 0.0]).x
    np.testing.assert_allclose([covering[0], np.exp(covering[1])], [0.0, math.sqrt(STEP * p @ GRID**2)], atol=1e-4)
    for side in (-1, 1):
        seeking = minimize(lambda v: divergence(norm.pdf(GRID, v[0], np.exp(v[1])), p), [side * 2.0, 0.0])
        q = norm(seeking.x[0], np.exp(seeking.x[1]))
        assert q.cdf(0) < 0.01 if side > 0 else q.sf(0) < 0.01
        assert seeking.fun <= divergence(norm.pdf(GRID, side * 3), p) < math.log(2)
        assert q.pdf(-3 * side) < 1e-6
    assert norm.pdf(0, covering[0], np.exp(covering[1])) > 10 * two_modes(0)


def test_holds_the_divergence_needs_the_evidence_and_the_bound_does_not():
    """Fed with an unnormalised p(z|x), the divergence is off by its unknown constant, and nothing that is optimised changes."""
    shifted = {c: [bound(*v, lambda z, c=c: log_joint(z) + c) for v in MEMBERS] for c in (0.0, 7.0)}
    np.testing.assert_allclose(np.subtract(shifted[7.0], shifted[0.0]), 7.0, rtol=1e-10)
    off = [-bound(*v) - gaussian_kl(*v, POSTERIOR_MEAN, POSTERIOR_SD) for v in MEMBERS]
    np.testing.assert_allclose(off, -gaussian_mean.log_evidence(X), rtol=1e-10)


def test_corrected_a_complex_p_does_not_force_a_simple_q():
    """The note expects bad approximations, gradients being at hand for simple q only. A mixture fits two modes; one Gaussian cannot."""
    p = jnp.asarray(two_modes(GRID))

    def kl(v):
        logit, m, log_s = v[0], v[1:3], v[3:5]
        parts = jax.scipy.stats.norm.pdf(GRID[:, None], m, jnp.exp(log_s))
        q = parts @ jnp.array([jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)])
        return STEP * jnp.sum(q * (jnp.log(q + 1e-300) - jnp.log(p + 1e-300)))

    fit = minimize(jax.jit(jax.value_and_grad(kl)), [0.5, -1.0, 2.0, 0.3, -0.3], jac=True, method="BFGS", options={"gtol": 1e-9})
    assert fit.fun < 1e-10
    alone = minimize(lambda v: divergence(norm.pdf(GRID, v[0], np.exp(v[1])), np.asarray(p)), [2.0, 0.0])
    assert alone.fun > 0.5


@pytest.mark.parametrize("v", MEMBERS)
def test_holds_log_evidence_is_its_own_average_under_any_q(v):
    """log p(x) is free of z, and q integrates to 1, so that it can be multiplied by that integral and moved inside."""
    log_evidence, q = gaussian_mean.log_evidence(X), norm.pdf(GRID, *v)
    np.testing.assert_allclose(STEP * np.sum(q * log_evidence), log_evidence, rtol=1e-10)


@pytest.mark.parametrize("v", MEMBERS)
def test_holds_log_evidence_is_the_printed_difference_of_integrals(v):
    """The integral of q log p(x, z) / q minus that of q log p(z|x) / q: so printed, and right, for every q."""
    second = expected(lambda z: norm.logpdf(z, POSTERIOR_MEAN, POSTERIOR_SD) - norm.logpdf(z, *v), *v)
    np.testing.assert_allclose(bound(*v) - second, gaussian_mean.log_evidence(X), rtol=1e-10)


@pytest.mark.parametrize("v", MEMBERS)
def test_corrected_log_evidence_is_the_bound_plus_the_divergence(v):
    """The note prints log p = L - KL. The second integral, above, is minus the divergence: log p = L + KL."""
    kl, log_evidence = gaussian_kl(*v, POSTERIOR_MEAN, POSTERIOR_SD), gaussian_mean.log_evidence(X)
    np.testing.assert_allclose(bound(*v) + kl, log_evidence, rtol=1e-10)
    assert kl < 1e-12 or abs(bound(*v) - kl - log_evidence) > 1


def test_holds_the_divergence_is_never_negative(rng_key):
    """For 2,000 pairs of densities on ten points, zero for equal ones alone."""
    p, q = generator(rng_key).dirichlet(np.full(10, 0.7), (2, 2_000))
    assert np.sum(p * np.log(p / q), axis=1).min() > 0
    assert np.abs(np.sum(p * np.log(p / p), axis=1)).max() == 0


def test_corrected_the_bound_is_on_the_log_evidence_not_on_the_approximation():
    """L is called a bound on the approximation. It bounds log p(x): in other units of x those two move, the divergence does not."""

    def measured(unit, m, s):
        """L, with x in units of 1 / `unit`, and the divergence from the posterior of z."""
        lower = bound(m, s, lambda z: norm.logpdf(z) + norm.logpdf(unit * X[:, None], unit * z, unit).sum(0))
        return lower, gaussian_mean.log_evidence(X) - len(X) * math.log(unit) - lower

    assert max(bound(*v) for v in MEMBERS) <= gaussian_mean.log_evidence(X) + 1e-10
    for v in MEMBERS:
        (lower, kl), (rescaled, same) = measured(1.0, *v), measured(0.01, *v)
        np.testing.assert_allclose(rescaled - lower, -len(X) * math.log(0.01), rtol=1e-10)
        np.testing.assert_allclose([kl, same], gaussian_kl(*v, POSTERIOR_MEAN, POSTERIOR_SD), atol=1e-9)


def test_corrected_it_is_the_sum_that_is_constant_so_raising_the_bound_lowers_the_divergence():
    """The note speaks of a constant difference, of which both would rise together. What one gains in a climb, the other loses."""
    path = np.linspace([0.0, 1.0], [POSTERIOR_MEAN, POSTERIOR_SD], 20)
    bounds = np.array([bound(*v) for v in path])
    kls = np.array([gaussian_kl(*v, POSTERIOR_MEAN, POSTERIOR_SD) for v in path])
    assert np.diff(bounds).min() > 0
    np.testing.assert_allclose(np.diff(kls), -np.diff(bounds), atol=1e-9)


def test_corrected_the_evidence_is_constant_only_while_the_model_is():
    """Where the model's own parameter is learned too (here its prior mean), the bound can rise, and the divergence with it."""

    def both(prior_mean, m, s):
        lower = bound(m, s, lambda z: log_joint(z, X[:1], prior_mean))
        return lower, gaussian_kl(m, s, (X[0] + prior_mean) / 2, math.sqrt(0.5))

    before, after = both(0.0, X[0] / 2, 0.7), both(1.0, X[0] / 2, 0.7)
    assert after[0] > before[0]
    assert after[1] > before[1]
    np.testing.assert_allclose([sum(before), sum(after)], norm.logpdf(X[0], [0.0, 1.0], math.sqrt(2)), rtol=1e-10)


def test_holds_the_highest_bound_is_the_best_approximation():
    """Another way to the same q: over a lattice of Gaussians for a posterior that is none, both criteria rank all alike."""
    joint = norm.pdf(GRID) * norm.pdf(1.0, np.tanh(2 * GRID), 0.4)
    posterior = joint / (STEP * joint.sum())
    lattice = [norm.pdf(GRID, m, s) for m in np.linspace(-1, 2, 13) for s in np.linspace(0.2, 1.5, 14)]
    kls, bounds = np.array([(divergence(q, posterior), -divergence(q, joint)) for q in lattice]).T
    assert kls.argmin() == bounds.argmax()
    assert (kls.argsort() == (-bounds).argsort()).all()
    assert kls.min() > 0.01


@pytest.mark.parametrize("v", MEMBERS)
def test_corrected_the_bound_is_entropy_minus_cross_entropy_with_the_joint(v):
    """L = H(q) - H(q, p) holds where p is p(x, z); with the posterior, which the sentence before suggests, it is -KL instead."""
    entropy = 0.5 * math.log(2 * math.pi * math.e * v[1] ** 2)
    cross_entropy = -expected(log_joint, *v)
    np.testing.assert_allclose(entropy - cross_entropy, bound(*v), rtol=1e-10)
    with_posterior = -expected(lambda z: norm.logpdf(z, POSTERIOR_MEAN, POSTERIOR_SD), *v)
    np.testing.assert_allclose(entropy - with_posterior, -gaussian_kl(*v, POSTERIOR_MEAN, POSTERIOR_SD), atol=1e-9)
    np.testing.assert_allclose(bound(*v) - (entropy - with_posterior), gaussian_mean.log_evidence(X), rtol=1e-10)


def test_holds_the_entropy_term_spreads_q_everywhere():
    """Alone it is log s and a constant: it grows without end with the width of q, wherever q is."""
    sds = np.geomspace(0.01, 100, 9)
    entropies = np.array([-expected(lambda z, s=s: norm.logpdf(z, 5.0, s), 5.0, s) for s in sds])
    np.testing.assert_allclose(np.diff(entropies), np.diff(np.log(sds)), atol=1e-9)


def test_holds_the_cross_entropy_term_concentrates_q_where_the_joint_is_high():
    """Alone it would make q a point at the mode: every narrowing raises it, up to the highest log p(x, z) and no further."""
    highest = log_joint(np.array([POSTERIOR_MEAN]))[0]
    at_mode = np.array([expected(log_joint, POSTERIOR_MEAN, s) for s in np.geomspace(1.0, 1e-4, 9)])
    assert np.diff(at_mode).min() > 0
    np.testing.assert_allclose(at_mode[-1], highest, rtol=1e-7)
    assert max(expected(log_joint, POSTERIOR_MEAN + d, s) for d in (-0.1, 0.0, 0.1) for s in (1.0, 0.1, 1e-3)) < highest
