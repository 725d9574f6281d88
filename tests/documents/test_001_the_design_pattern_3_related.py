"""Claims of the page "Variational inference" in a lexicon of design patterns, in its order: the related patterns and the summary.

test_holds_...      what the page says, and it is so.
test_corrected_...  what the page says, and what is true instead.
"""

import jax
import numpy as np
import pytest
from gaussian_example import LOG_EVIDENCE, MEAN, SD, exact, kl, log_joint, metropolis
from scipy.optimize import minimize, minimize_scalar
from scipy.special import gammaln, logsumexp
from scipy.stats import binom, norm


@pytest.fixture
def rng(rng_key):
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))


# Related patterns: Markov chain Monte Carlo


def test_holds_mcmc_approximates_the_posterior_by_draws(rng, z_bound):
    """The page: MCMC works by samples. 200 random walks, their first half dropped, have the posterior's mean and variance."""
    chains = metropolis(lambda w: log_joint(w[:, 0]), rng, rng.normal(size=(200, 1)), 2.4 * SD, 2_000)[1_000:, :, 0]
    for moment, truth in [(chains.mean(0), MEAN), (((chains - MEAN) ** 2).mean(0), SD**2)]:
        assert abs(moment.mean() - truth) < z_bound(2) * moment.std(ddof=1) / 200**0.5


def test_holds_mcmc_trades_time_for_accuracy(rng, z_bound):
    """The page: cost against accuracy differs by method. MCMC halves its error for four times the steps, without end."""
    chains = metropolis(lambda w: -0.5 * w[:, 0] ** 2, rng, rng.normal(size=(1_000, 1)), 2.4, 1_600)
    ratio = chains[:100].mean(0).std() / chains.mean(0).std()  # 16 times the steps; two sds, each of 1,000 chains
    assert abs(np.log(ratio / 4)) < z_bound() / 1_000**0.5 + 0.05


# Expectation-maximisation, on the linkage of Dempster, Laird and Rubin 1977: counts with cells 1/2 + t/4, (1 - t)/4, (1 - t)/4, t/4.
# The latent is how many of the first cell's count fell in its part t/4.

COUNTS = np.array([125, 18, 20, 34])
SPLIT = np.arange(COUNTS[0] + 1)
BEST = (15 + np.sqrt(53_809)) / 394


def log_likelihood(t):
    cells = np.array([0.5 + t / 4, (1 - t) / 4, (1 - t) / 4, t / 4])
    return gammaln(COUNTS.sum() + 1) - gammaln(COUNTS + 1).sum() + COUNTS @ np.log(cells)


def log_complete(t):
    """log p(counts, split) at every split, (126,)."""
    fixed = gammaln(COUNTS.sum() + 1) - gammaln(COUNTS[1:] + 1).sum() + COUNTS[1:] @ np.log([(1 - t) / 4, (1 - t) / 4, t / 4])
    return fixed - gammaln(SPLIT + 1) - gammaln(COUNTS[0] - SPLIT + 1) + SPLIT * np.log(t / 4) + (COUNTS[0] - SPLIT) * np.log(0.5)


def bound(q, t):
    """The ELBO of a distribution q over the splits."""
    seen = q > 0
    return q[seen] @ (log_complete(t)[seen] - np.log(q[seen]))


def e_step(t):
    return binom.pmf(SPLIT, COUNTS[0], t / (2 + t))


def m_step(q):
    expected = q @ SPLIT
    return (expected + COUNTS[3]) / (expected + COUNTS[1:].sum())


def path(start=0.5, steps=8):
    t = [start]
    for _ in range(steps):
        t.append(m_step(e_step(t[-1])))
    return np.array(t)


def test_holds_em_iterates_to_an_estimate():
    """The page: EM finds parameters step by step. From .5 through these values to a root in closed form, the maximum of the likelihood."""
    exact(path()[1:4], [0.608247423, 0.624321050, 0.626488879], 1e-9)
    exact(path(steps=60)[-1], BEST)
    exact(minimize_scalar(lambda t: -log_likelihood(t), bounds=(0.01, 0.99), method="bounded", options={"xatol": 1e-10}).x, BEST, 1e-6)


def test_holds_em_converges_at_the_rate_of_the_missing_information():
    """The page: it improves by iteration. The error shrinks by one factor a step: the share of the complete data's information
    that is missing."""
    errors = path() - BEST
    share = BEST / (2 + BEST)
    missing = COUNTS[0] * share * (1 - share) / BEST**2
    expected = COUNTS[0] * share
    complete = (expected + COUNTS[3]) / BEST**2 + (COUNTS[1] + COUNTS[2]) / (1 - BEST) ** 2
    exact(errors[8] / errors[7], missing / complete, 1e-4)
    exact(missing / complete, 0.132779, 1e-6)


def test_corrected_em_is_coordinate_ascent_on_the_elbo():
    """The page sets EM apart from VI. The E-step is the best of all q, the M-step the best t, of one ELBO, which only rises."""
    values = []
    for t in path(steps=6):
        q = e_step(t)
        values += [bound(q, t), bound(q, m_step(q))]
        best = minimize_scalar(lambda t, q=q: -bound(q, t), bounds=(0.01, 0.99), method="bounded", options={"xatol": 1e-10}).x
        exact(best, m_step(q), 1e-6)
    assert np.all(np.diff(values) > -1e-10)
    assert values[-1] - values[0] > 1


def test_corrected_after_an_e_step_the_elbo_is_the_log_likelihood(rng):
    """The page sees a likeness only. After an E-step the ELBO *is* the log likelihood, and for no other q."""
    for t in path(steps=4):
        exact(bound(e_step(t), t), log_likelihood(t))
        other = e_step(t) * rng.uniform(0.5, 1.5, len(SPLIT))
        assert bound(other / other.sum(), t) < log_likelihood(t) - 1e-4


# Posterior regularisation: the q closest to the posterior among those that keep a constraint, here E_q[w] <= CAP

CAP = 1.7


def test_holds_a_constraint_moves_the_posterior(rng):
    """The page: constraints steer the posterior. The least KL(q || posterior) under E_q[w] <= CAP is at N(CAP, sd^2), found by the
    primal."""
    best = minimize(
        lambda v: kl(v[0], np.exp(v[1])), [1.0, -2.0], constraints={"type": "ineq", "fun": lambda v: CAP - v[0]}, tol=1e-12, method="SLSQP"
    )
    exact(best.x, [CAP, np.log(SD)], 1e-5)
    for m, s in zip(rng.uniform(1.4, CAP, 50), rng.uniform(0.05, 0.2, 50), strict=True):
        assert kl(m, s) >= best.fun


def test_holds_the_dual_of_the_constraint_tilts_the_posterior():
    """The page: the constraint enters the posterior. As a factor exp(-l w), by a dual in l alone, whose maximum is the primal's KL."""
    w, h = np.linspace(0, 4, 8_001, retstep=True)
    log_p = norm.logpdf(w, MEAN, SD)

    def dual(multiplier):
        return -logsumexp(log_p - multiplier * (w - CAP)) - np.log(h)

    multiplier = minimize_scalar(lambda v: -dual(v), bounds=(0, 100), method="bounded", options={"xatol": 1e-9}).x
    exact(multiplier, (MEAN - CAP) / SD**2, 1e-5)
    exact(dual(multiplier), kl(CAP, SD), 1e-9)
    q = np.exp(log_p - multiplier * (w - CAP) + dual(multiplier))
    exact(q, norm.pdf(w, CAP, SD), 1e-5)


def test_holds_without_a_constraint_that_binds_it_is_plain_vi():
    """The page: it lies between plain inference and constraints. Under a cap above the posterior's mean it is plain VI."""
    best = minimize(
        lambda v: kl(v[0], np.exp(v[1])), [1.0, -2.0], constraints={"type": "ineq", "fun": lambda v: 2.5 - v[0]}, tol=1e-12, method="SLSQP"
    )
    exact(best.x, [MEAN, np.log(SD)], 1e-5)


# Summary: a family, the ELBO, an approximate posterior; on the bioassay of Gelman et al. (BDA3, section 3.7), which is not conjugate

DOSE, DEATHS = np.array([-0.86, -0.30, -0.05, 0.73]), np.array([0, 1, 3, 5])


def bioassay(a, b):
    """log p(a, b, deaths)."""
    logit = a[..., None] + b[..., None] * DOSE
    likelihood = (DEATHS * logit - 5 * np.logaddexp(0, logit)).sum(-1) + np.log([1, 5, 10, 1]).sum()
    return likelihood + norm.logpdf(a, 0, 2) + norm.logpdf(b, 0, 10)


def best_gaussian(correlated):
    """Highest ELBO of Gaussians by Gauss-Hermite quadrature: its value, sds and correlation."""
    t, w = np.polynomial.hermite_e.hermegauss(30)
    t1, t2 = np.meshgrid(t, t)
    w = np.outer(w, w) / w.sum() ** 2

    def loss(v):
        c = v[4] if correlated else 0.0
        a, b = v[0] + np.exp(v[2]) * t1, v[1] + c * t1 + np.exp(v[3]) * t2
        return -(w * bioassay(a, b)).sum() - v[2] - v[3] - np.log(2 * np.pi * np.e)

    best = minimize(loss, [0.5, 8.0, -0.5, 1.0, 0.0][: 5 if correlated else 4])
    c = best.x[4] if correlated else 0.0
    sds = np.array([np.exp(best.x[2]), np.hypot(c, np.exp(best.x[3]))])
    return -best.fun, sds, c / sds[1]


def test_holds_maximising_the_elbo_approximates_a_posterior_that_has_no_closed_form():
    """The page: so VI approximates posteriors out of reach. The ELBO is short of log p(x) by the KL, and a richer family by less."""
    a, b = np.meshgrid(np.linspace(-5, 8, 400), np.linspace(-15, 45, 800))
    log_z = logsumexp(bioassay(a, b)) + np.log((a[0, 1] - a[0, 0]) * (b[1, 0] - b[0, 0]))
    (diagonal, sds, _), (full, full_sds, correlation) = best_gaussian(False), best_gaussian(True)
    exact([diagonal, full, log_z], [-4.695424, -4.556939, -4.455368], 2e-6)
    exact(sds, [0.68654, 2.64904], 1e-4)
    exact([*full_sds, correlation], [0.77728, 2.95672, 0.46967], 1e-4)


def test_holds_the_evidence_is_the_most_that_the_elbo_can_reach():
    """The page: a lower bound of the evidence. In the example the best q reaches it, and every draw of q then gives the same number."""
    w = np.linspace(1.5, 2.3, 9)
    exact(log_joint(w) - norm.logpdf(w, MEAN, SD), LOG_EVIDENCE, 1e-9)
