"""Claims of the page "Variational inference" in a lexicon of design patterns, in its order: its introduction and theory.

test_holds_...      what the page says, and it is so.
test_corrected_...  what the page says, and what is true instead.
"""

import jax
import numpy as np
import pytest
from gaussian_example import DATA, LOG_EVIDENCE, MEAN, SD, N, elbo, exact, kl, log_joint, metropolis
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp
from scipy.stats import norm


@pytest.fixture
def rng(rng_key):
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))


# Introduction


def test_holds_simple_distributions_approximate_a_complex_one_with_a_known_error():
    """The page: a simpler distribution stands in for the posterior. It does, at a price: independent Gaussians for correlation .9 have sds
    too small by sqrt(1 - .81)."""
    precision = np.linalg.inv([[1, 0.9], [0.9, 1]])

    def loss(log_s):
        return 0.5 * (np.diag(precision) * np.exp(2 * log_s)).sum() - log_s.sum()

    exact(np.exp(minimize(loss, [0.0, 0.0], tol=1e-10).x), (1 - 0.9**2) ** 0.5, 1e-6)


def test_holds_vi_is_cheaper_than_mcmc_where_its_family_holds_the_posterior(rng):
    """The page: VI spares the cost of MCMC. It does here: counted in values of log p until the mean is right to 0.01 sd, a hundred
    times."""
    counted = []

    def loss(v):
        counted.extend([0, 0])  # two points stand for q: its mean and variance are theirs
        return -log_joint(v[0] + np.exp(v[1]) * np.array([-1.0, 1.0])).mean() - v[1]

    assert abs(minimize(loss, [0.0, 0.0]).x[0] - MEAN) < 0.01 * SD
    # The posterior in its own units, from its own draws: no cost of a warm-up is counted against MCMC.
    chains = metropolis(lambda w: -0.5 * w[:, 0] ** 2, rng, rng.normal(size=(400, 1)), 2.4, 1_000)
    needed = 1_000 * chains.mean(0).var() / 0.01**2
    assert needed / len(counted) > 100


def test_corrected_no_cost_buys_vi_the_error_that_its_family_lacks(rng):
    """The page puts no condition to that. At correlation .95 mean-field sds stay 69% too small at any cost; MCMC is nearer after
    500 steps."""
    short = 1 - (1 - 0.95**2) ** 0.5
    root = np.linalg.cholesky([[1, 0.95], [0.95, 1]])
    precision = np.linalg.inv(root @ root.T)
    chains = metropolis(lambda w: -0.5 * ((w @ precision) * w).sum(-1), rng, rng.normal(size=(400, 2)) @ root.T, 0.7, 500)
    errors = np.abs(chains.std(0) - 1)
    assert short == pytest.approx(0.6878, abs=1e-4)
    assert np.quantile(errors, 0.99) < short


def test_holds_expectations_under_q_approximate_those_under_the_posterior(rng, z_bound):
    """The page: expectations and integrals come cheaply. P(the next x < 2) by draws of a good q, against the closed form."""
    values = norm.cdf(2, rng.normal(MEAN, SD, 100_000))
    assert abs(values.mean() - norm.cdf(2, MEAN, np.sqrt(1 + SD**2))) < z_bound() * values.std() / 100_000**0.5


# Theoretical background


def test_holds_bayes_with_the_evidence_as_an_integral():
    """The page: the posterior is likelihood times prior, over the integral of that product. On a grid of w, against N(S / 101, 1 / 101)."""
    w, h = np.linspace(MEAN - 1, MEAN + 1, 2_001, retstep=True)
    joint = np.exp(log_joint(w) - LOG_EVIDENCE)
    exact(joint / (joint.sum() * h), norm.pdf(w, MEAN, SD))
    exact(joint.sum() * h, 1)
    exact([MEAN, SD, LOG_EVIDENCE], [1.8773796857484217, 0.09950371902099892, -136.80742332823354], 1e-11)


def test_corrected_not_every_posterior_is_intractable_and_the_pages_own_is_a_sum():
    """The page: posteriors are as a rule intractable. That of its own example is a sum: data sets with one sum share one posterior."""
    other = np.full(N, DATA.mean())
    w = np.linspace(1, 3, 41)
    difference = norm.logpdf(DATA[:, None], w).sum(0) - norm.logpdf(other[:, None], w).sum(0)
    exact(difference, difference[0], 1e-9)


def test_holds_the_evidence_is_hard_to_compute_as_it_stands():
    """The page: the evidence is hard to compute directly. The product over 1,000 points is 0 in float64 at every w; a sum of
    logarithms is not."""
    x = np.tile(DATA, 10)
    w, h = np.linspace(1, 3, 4_001, retstep=True)
    assert norm.pdf(x[:, None], w).prod(0).max() == 0
    total = logsumexp(norm.logpdf(w) + norm.logpdf(x[:, None], w).sum(0)) + np.log(h)
    n = len(x)
    exact(total, -0.5 * (n * np.log(2 * np.pi) + np.log(n + 1) + (x**2).sum() - x.sum() ** 2 / (n + 1)), 1e-8)


def test_holds_the_closest_member_of_the_family_is_found_by_its_parameters():
    """The page: of a family indexed by theta take the member closest to the posterior. The family that holds the posterior gives
    it, at KL 0."""
    t, weights = np.polynomial.hermite_e.hermegauss(20)

    def divergence(theta):
        w = theta[0] + np.exp(theta[1]) * t
        return (norm.logpdf(t) - theta[1] - norm.logpdf(w, MEAN, SD)) @ weights / weights.sum()

    best = minimize(divergence, [0.0, 0.0], tol=1e-12)
    exact(best.x, [MEAN, np.log(SD)], 1e-5)
    exact(best.fun, 0)


def test_corrected_closest_depends_on_the_direction_of_the_divergence():
    """The page: the closest. Closest by KL(q || p) or by KL(p || q)? At correlation .9 the variances are 1 - .81 and 1."""
    cov = np.array([[1, 0.9], [0.9, 1]])

    def gaussian_kl(a, b):
        return 0.5 * (np.trace(np.linalg.solve(b, a)) - 2 + np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1])

    reverse = minimize(lambda v: gaussian_kl(np.diag(np.exp(v)), cov), [0.1, -0.1], tol=1e-10).x
    forward = minimize(lambda v: gaussian_kl(cov, np.diag(np.exp(v))), [0.1, -0.1], tol=1e-10).x
    exact(np.exp([reverse, forward]), [[1 - 0.81] * 2, [1, 1]], 1e-5)


def test_holds_the_elbo_is_the_expected_log_joint_less_log_q():
    """The page: the ELBO is the mean, under q, of log joint less log q. By quadrature under q, the closed form; and its value at q
    = N(0, 1)."""
    t, weights = np.polynomial.hermite_e.hermegauss(20)
    for m, s in [(0, 1), (1.5, 0.3), (MEAN, SD)]:
        draws = log_joint(m + s * t) - norm.logpdf(m + s * t, m, s)
        exact(draws @ weights / weights.sum(), elbo(m, s), 1e-9)
    exact([elbo(0, 1), kl(0, 1)], [-362.489865, 225.682441], 1e-6)


def test_holds_the_elbo_comes_from_the_kl():
    """The page: it is derived from the divergence. ELBO + KL is the log evidence, whatever q."""
    for m, s in [(0, 1), (1.8, 0.1), (-3, 0.5), (MEAN, SD), (2, 7)]:
        exact(elbo(m, s) + kl(m, s), LOG_EVIDENCE, 1e-9)
    exact(elbo(MEAN, SD), LOG_EVIDENCE)


def test_holds_maximising_the_elbo_minimises_the_kl_for_a_fixed_model():
    """The page: the highest ELBO is the least KL. So it is: one optimum, and one order of all q, reversed."""
    q = [(m, s) for m in np.linspace(0, 3, 13) for s in (0.05, 0.1, 0.5)]
    np.testing.assert_array_equal(np.argsort([elbo(*v) for v in q]), np.argsort([-kl(*v) for v in q]))
    exact(minimize(lambda v: -elbo(v[0], np.exp(v[1])), [0.0, 0.0], tol=1e-9).x, [MEAN, np.log(SD)], 1e-5)


def test_corrected_but_not_while_the_models_own_parameters_move():
    """The page says so without a condition. With q held and the prior's sd t moved, from the t of least KL to that of highest ELBO
    both rise."""
    x, m, s = 2.0, 0.5, 0.6

    def both(t):
        posterior = x / (1 + t**-2), (1 + t**-2) ** -0.5
        bound = norm.logpdf(x, m, 1) - s**2 / 2 + norm.logpdf(m, 0, t) - s**2 / (2 * t**2) + 0.5 * np.log(2 * np.pi * np.e * s**2)
        exact(bound + kl(m, s, *posterior), norm.logpdf(x, 0, np.sqrt(1 + t**2)))
        return bound, kl(m, s, *posterior)

    highest = minimize_scalar(lambda t: -both(t)[0], bounds=(0.1, 5), method="bounded").x
    closest = minimize_scalar(lambda t: both(t)[1], bounds=(0.1, 5), method="bounded").x
    exact(highest, np.hypot(m, s), 1e-4)
    assert both(highest)[0] > both(closest)[0] + 0.01
    assert both(highest)[1] > both(closest)[1] + 0.01
