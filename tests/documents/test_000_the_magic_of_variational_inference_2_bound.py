"""Every claim and equation of the post "The magic of variational inference", in its order: its second half, and its end.

test_holds_...      what the post says, and it is so.
test_corrected_...  what the post says, and what is true instead.
test_finished_...   the post stops before any optimisation; here it goes on to a trained model.

Where no model is named it is that of one_latent.py, three points x_i and four q_i(z) at once.
"""

import jax
import numpy as np
import pytest
import trained
from enumeration import K, Y
from one_latent import (
    LOC,
    LOG_EVIDENCE,
    LOG_LIK,
    LOG_POSTERIOR,
    LOG_PRIOR,
    LOG_Q,
    SCALE,
    H,
    X,
    Z,
    areas,
    bound,
    exact,
    expect,
    kl,
    log_lik,
    num_modes,
)
from scipy.integrate import quad
from scipy.optimize import minimize, minimize_scalar
from scipy.special import digamma, logsumexp, softmax
from scipy.stats import gamma, kstest, norm


@pytest.fixture
def rng(rng_key):
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))


# Approximate posterior distribution


def test_holds_the_optimisation_needs_no_evidence():
    """The post: the obstacle is the evidence, not the posterior. E_q[log q - log joint] is the KL, short of a constant."""
    unnormalised = expect(LOG_Q - LOG_LIK - LOG_PRIOR)
    np.testing.assert_array_equal(unnormalised.argsort(1), kl().argsort(1))
    exact(kl() - unnormalised, LOG_EVIDENCE)


def test_holds_the_best_parameters_minimise_the_kl_to_the_posterior():
    """The post: find v* in a family. Where the family holds the posterior (a linear decoder), v* is the posterior itself."""
    x, log_joint = 1.4, norm.logpdf(1.4, Z) + LOG_PRIOR

    def loss(v):
        log_q = norm.logpdf(Z, v[0], np.exp(v[1]))
        return expect(log_q - log_joint, log_q)

    exact(minimize(loss, [0, 0], tol=1e-12).x, [x / 2, 0.5 * np.log(0.5)], 1e-5)


def test_holds_outside_the_family_the_best_member_is_not_the_posterior():
    """The post: an approximation from a chosen family. For the tanh decoder the best Gaussian keeps a KL above 0, which no v removes."""
    for i in range(3):

        def loss(v, i=i):
            log_q = norm.logpdf(Z, v[0], np.exp(v[1]))
            return expect(log_q - LOG_POSTERIOR[i, 0], log_q)

        assert 1e-4 < minimize(loss, [0.0, 0.0]).fun <= kl()[i].min()


def test_corrected_the_ratio_of_q_to_q_is_one_only_where_q_is_positive():
    """The post: q / q may always be put in. A q uniform on (-1, 2) loses what the joint holds elsewhere; q must cover the posterior."""
    q = ((Z > -1) & (Z < 2)) / 3
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(q > 0, np.exp(LOG_LIK + LOG_PRIOR) / q, 0)
    inside = np.exp(LOG_POSTERIOR)[..., q > 0].sum(-1) * H
    exact((q * ratio).sum(-1) * H / np.exp(LOG_EVIDENCE), inside)
    assert inside.min() < 0.6


def test_holds_the_evidence_is_the_mean_of_joint_over_q(rng, z_bound):
    """The post: p(x) = E_q[p(x | z) p(z) / q(z)], for any q. A million draws agree within their Monte Carlo error."""
    draws = LOC[3] + SCALE[3] * rng.normal(size=1_000_000)
    weights = np.exp(log_lik(X[:, 0], draws) + norm.logpdf(draws) - norm.logpdf(draws, LOC[3], SCALE[3])) / np.exp(LOG_EVIDENCE)
    assert np.all(np.abs(weights.mean(1) - 1) < z_bound(3) * weights.std(1) / 1_000)


def test_corrected_the_expectation_spares_the_integral_only_if_q_is_near_the_posterior():
    """The post: this avoids the integral. If q is the posterior one draw is enough; at half its variance or less, no number is:
    for N(0, 1) and q = N(0, s^2) the weights have variance s^2 / sqrt(2 s^2 - 1) - 1."""
    exact(np.exp(LOG_LIK + LOG_PRIOR - LOG_POSTERIOR), np.exp(LOG_EVIDENCE)[..., None])

    def variance(s2):
        return quad(lambda z: np.exp(2 * norm.logpdf(z) - norm.logpdf(z, 0, s2**0.5)), -80, 80, epsabs=1e-10, limit=500)[0] - 1

    for s2 in (0.6, 1.0, 2.0):
        exact(variance(s2), s2 / np.sqrt(2 * s2 - 1) - 1, 1e-8)
    assert variance(0.49) > 1e20


# Evidence lower bound


def test_holds_each_point_has_a_lower_bound_and_their_sum_bounds_the_data():
    """The post: a bound for each x_i, with its own q_i. Each holds, and their sum is higher than with one q for all points."""
    gap = LOG_EVIDENCE - bound()
    assert gap.min() > 0
    assert bound().sum(0).max() < bound().max(1).sum() < LOG_EVIDENCE.sum()


CORRELATION = 0.9


def two_latents(r):
    """z ~ N(0, C(r)), x | z ~ N(z, I) in the plane; data of covariance C(0.9) + I: mean log p(x), best mean-field ELBO, and their KL."""
    c, eye, s = np.array([[1, r], [r, 1]]), np.eye(2), np.array([[2, CORRELATION], [CORRELATION, 2]])
    precision = np.linalg.inv(c) + eye
    a, v = np.linalg.inv(precision), 1 / np.diag(precision)  # the best q has mean a x and these variances
    log_p = -np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(c + eye)[1] - 0.5 * np.trace(np.linalg.solve(c + eye, s))
    lik = -np.log(2 * np.pi) - 0.5 * (np.trace((eye - a) @ s @ (eye - a)) + v.sum())
    prior = -np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(c)[1] - 0.5 * np.trace(np.linalg.solve(c, a @ s @ a + np.diag(v)))
    kl = -0.5 * np.log(v).sum() - 0.5 * np.linalg.slogdet(precision)[1]
    return log_p, lik + prior + 0.5 * np.log(2 * np.pi * np.e * v).sum(), kl


def test_holds_raising_the_bound_need_not_raise_the_likelihood():
    """The post: not necessarily, in general. From the maximum likelihood on the mean-field bound still rises, and the likelihood falls."""
    best = minimize_scalar(lambda r: -two_latents(r)[1], bounds=(0, 0.99), method="bounded").x
    (log_p, elbo, kl), (log_p_after, elbo_after, kl_after) = two_latents(CORRELATION), two_latents(best)
    exact(minimize_scalar(lambda r: -two_latents(r)[0], bounds=(0, 0.99), method="bounded").x, CORRELATION, 1e-4)
    assert elbo_after - elbo > 0.01
    assert log_p_after - log_p < -0.01
    exact([log_p - elbo, log_p_after - elbo_after], [kl, kl_after])


def test_holds_raising_a_tight_bound_raises_the_likelihood_at_least_as_much(rng):
    """The post: under some conditions it does, to be told later; it is not. The condition: q is the posterior under the old parameters."""
    means = rng.normal(0, 5, (500, K))

    def log_terms(mu):
        return norm.logpdf(Y[:, None], mu[..., None, :]) - np.log(K)

    old = np.array([-3.0, 1.0, 2.0])
    r = softmax(log_terms(old), axis=-1)
    raised = (r * (log_terms(means) - log_terms(old))).sum((-2, -1))
    gained = (logsumexp(log_terms(means), axis=-1) - logsumexp(log_terms(old), axis=-1)).sum(-1)
    assert np.all(gained >= raised)
    assert (raised > 0).sum() > 5


def test_holds_jensen():
    """The post: log E[y] >= E[log y]. For y gamma of shape a: log a >= digamma(a); equal only if y does not vary (a -> infinity)."""
    for a in (0.5, 2.0, 50.0, 1e8):
        y = gamma.ppf((np.arange(100_000) + 0.5) / 100_000, a)
        assert np.log(y.mean()) >= np.log(y).mean()
        np.testing.assert_allclose(np.log(y).mean(), digamma(a), atol=1e-4)
        assert 0.5 / a < np.log(a) - digamma(a) < 1 / a


def test_holds_the_bound_is_jensens_inequality_on_the_importance_weights():
    """The post: log p(x) = log E_q[w] >= E_q[log w], with w = p(x | z) p(z) / q(z)."""
    log_w = LOG_LIK + LOG_PRIOR - LOG_Q
    exact(np.log(expect(np.exp(log_w))), LOG_EVIDENCE)
    exact(expect(log_w), bound())
    assert np.all(np.log(expect(np.exp(log_w))) > expect(log_w))


def test_holds_the_bound_is_expected_log_joint_less_expected_log_q():
    """The post: E_q[log p(x | z) + log p(z)] - E_q[log q(z)]. Against quadrature with the entropy in closed form."""
    exact(expect(LOG_LIK + LOG_PRIOR) - expect(LOG_Q), bound())


def test_holds_minus_expected_log_q_is_the_entropy():
    """The post: -E_q[log q] is the entropy H(q). Of a Gaussian, log(2 pi e s^2) / 2."""
    exact(-expect(LOG_Q), 0.5 * np.log(2 * np.pi * np.e * SCALE[:, 0] ** 2))


def test_corrected_the_bound_is_the_right_hand_side_and_not_the_inequality():
    """The post: the inequality is called the lower bound. It is a number: for x = 2, q the prior, a linear decoder: -3.419 < -2.266."""
    exact(expect(norm.logpdf(2.0, Z), LOG_PRIOR), -3.4189385332, 1e-10)
    exact(norm.logpdf(2.0, 0, 2**0.5), -2.2655121235, 1e-10)


def test_holds_a_better_q_makes_the_bound_tighter():
    """The post: it is tightened by a good q. On the way from a bad q to the best Gaussian the bound only rises, for this point."""
    loc = np.linspace(-3, -1, 20)[:, None]
    log_q = norm.logpdf(Z, loc, 0.6)
    elbo = expect(LOG_LIK[0] + LOG_PRIOR - log_q, log_q)
    assert np.all(np.diff(elbo) > 0)
    exact(LOG_EVIDENCE[0] - elbo, expect(log_q - LOG_POSTERIOR[0], log_q))
    assert np.all(elbo < LOG_EVIDENCE[0])


def test_holds_the_kl_is_the_expected_log_ratio_under_q():
    """The post: KL = E_q[log q / p(z | x)]. Between Gaussians (a linear decoder, x = 1.4), against the closed form."""
    closed = 0.5 * (np.log(0.5 / SCALE**2) + (SCALE**2 + (LOC - 0.7) ** 2) / 0.5 - 1)[:, 0]
    exact(expect(LOG_Q - norm.logpdf(Z, 0.7, 0.5**0.5)), closed)


def test_corrected_the_kl_is_of_q_of_z_and_not_of_q_of_x():
    """The post: writes D(q_i(x_i) || p(z | x_i)). q_i is a density of z: at x_i it is one number, and gives no KL: below 0."""
    at_x = norm.logpdf(X, LOC, SCALE)
    assert expect(at_x - LOG_POSTERIOR).min() < 0
    assert kl().min() > 0


def test_holds_the_kl_is_positive_and_zero_only_for_equals():
    """The post: it measures how far one distribution diverges from a second. Of N(x/2, 1/2) from what Bayes makes of x = 1.4: 0."""
    log_q, log_posterior = norm.logpdf(Z, 0.7, 0.5**0.5), norm.logpdf(1.4, Z) + LOG_PRIOR - norm.logpdf(1.4, 0, 2**0.5)
    exact(expect(log_q - log_posterior, log_q), 0)
    assert min(kl().min(), expect(LOG_Q - log_posterior).min()) > 0


def test_corrected_the_kl_is_no_distance():
    """The post: a measure of difference, in one direction. The other direction is another number: variances 1 and 4."""
    p, q = norm.logpdf(Z), norm.logpdf(Z, 0, 2)
    exact([expect(p - q, p), expect(q - p, q)], [0.3181471806, 0.8068528194], 1e-9)


# From the KL divergence to the bound, step by step


def test_holds_q_over_the_posterior_is_q_times_evidence_over_the_joint():
    """The post: q / p(z | x) = q p(x) / p(x, z), at every z; the posterior here by normalising on the grid."""
    joint = np.exp(LOG_LIK + LOG_PRIOR)
    posterior = joint / (joint.sum(-1, keepdims=True) * H)
    seen = np.abs(Z) < 6
    left, right = np.exp(LOG_Q) / posterior, np.exp(LOG_Q) * np.exp(areas())[..., None] / joint
    np.testing.assert_allclose(left[..., seen], right[..., seen], rtol=1e-10)


def test_holds_the_kl_with_the_joint_put_in():
    """The post: KL = E_q[log(q p(x) / p(x, z))]."""
    exact(kl(), expect(LOG_Q + areas()[..., None] - (LOG_LIK + LOG_PRIOR)))


def test_holds_the_kl_split_into_four_expectations():
    """The post: KL = -E_q[log p(x | z) + log p(z)] + E_q[log q] + E_q[log p(x)]."""
    exact(kl(), -expect(LOG_LIK + LOG_PRIOR) + expect(LOG_Q) + expect(areas()[..., None]))


def test_holds_the_evidence_leaves_the_expectation():
    """The post: E_q[log p(x)] = log p(x), a constant in z."""
    exact(expect(areas()[..., None]), areas())


def test_holds_the_kl_with_the_entropy_in():
    """The post: KL = -E_q[log p(x | z) + log p(z)] - H(q) + log p(x)."""
    exact(kl(), -expect(LOG_LIK + LOG_PRIOR) - 0.5 * np.log(2 * np.pi * np.e * SCALE[:, 0] ** 2) + areas())


def test_holds_the_kl_is_log_evidence_less_the_bound():
    """The post: KL = -L + log p(x)."""
    exact(kl(), -bound() + areas())


def test_holds_log_evidence_is_kl_plus_the_bound():
    """The post: log p(x) = KL + L. The three by three ways: adaptive quadrature, the grid, Gauss-Hermite."""
    exact(areas(), kl() + bound())


def test_holds_the_bound_is_tight_exactly_when_q_is_the_posterior(rng):
    """The post: with a KL of 0 the bound is the log likelihood. Only then: a bump of size e costs e^2."""
    exact(expect(LOG_LIK + LOG_PRIOR - LOG_POSTERIOR, LOG_POSTERIOR), LOG_EVIDENCE)
    bump = np.sin(2 * Z + rng.uniform(0, 6))
    gap = []
    for e in (0.02, 0.01):
        log_q = LOG_POSTERIOR + e * bump
        log_q -= logsumexp(log_q, axis=-1, keepdims=True) + np.log(H)
        gap.append(LOG_EVIDENCE - expect(LOG_LIK + LOG_PRIOR - log_q, log_q))
    assert np.min(gap) > 0
    np.testing.assert_allclose(gap[0] / gap[1], 4, rtol=0.05)


def test_holds_minimising_the_kl_tightens_the_bound():
    """The post: so that is how to tighten it. In the parameters of q the slope of the bound is minus that of the KL."""
    score_m, score_s = (Z - LOC) / SCALE**2, ((Z - LOC) ** 2 / SCALE**2 - 1) / SCALE
    for score in (score_m, score_s):
        exact(expect(score * (LOG_LIK + LOG_PRIOR - LOG_Q)), -expect(score * (LOG_Q - LOG_POSTERIOR)), 1e-9)


# Where the post stops: from the bound to a trained model


def test_finished_the_slope_of_the_bound_is_estimated_by_draws_of_q(rng, z_bound):
    """The next step: z = m + s eps, and the mean slope over draws of eps is the slope of the ELBO in m, here that of quadrature."""
    score = (Z - LOC) / SCALE**2
    slope = expect(score * (LOG_LIK + LOG_PRIOR - LOG_Q))
    z = LOC + SCALE * rng.normal(size=100_000)
    t = np.tanh(z)
    draws = (X - 2 * t) * 2 * (1 - t**2) - z
    assert np.all(np.abs(draws.mean(-1) - slope) < z_bound(12) * draws.std(-1) / 100_000**0.5)


def test_finished_the_bound_trains_a_linear_decoder_to_the_maximum_likelihood(rng_key, rng, z_bound):
    """Decoder and encoder climb the ELBO together. The encoder's family holds the posterior: the end is the maximum likelihood."""
    x = rng.normal(size=(300, 1)) * [2.0, -1.0, 0.5, 0.0] + rng.normal(size=(300, 4)) + [1.0, 0.0, -1.0, 2.0]
    params, elbo, error = trained.train(rng_key, trained.linear_decoder, trained.linear_encoder, x)
    reached, highest = trained.linear_log_likelihood(params, x), trained.linear_log_likelihood(trained.linear_maximum_likelihood(x), x)
    assert -1e-3 < reached - highest < 1e-6
    assert abs(elbo - reached) < z_bound() * error + 1e-3


def test_finished_a_tanh_decoder_and_its_encoder_learn_data_with_two_modes(rng_key, rng, z_bound, false_alarm):
    """The post doubted a unimodal prior: trained, it makes both modes. But the ELBO settles where Gaussian q can follow: short of
    the maximum likelihood, whose own posteriors Gaussians fit worse."""
    x = 2 * np.tanh(2 * rng.normal(size=500) + 0.3) + 0.4 * rng.normal(size=500)
    params, elbo, error = trained.train(rng_key, trained.tanh_decoder, trained.tanh_encoder, x)
    best = trained.tanh_maximum_likelihood(x, params)
    reached, highest = (trained.tanh_log_density(p, x).mean() for p in (params, best))
    assert elbo - z_bound() * error < trained.tanh_best_gaussian_bound(params, x) < reached < highest
    assert elbo + z_bound() * error > trained.tanh_best_gaussian_bound(best, x)
    assert reached - norm.logpdf(x, x.mean(), x.std()).mean() > 0.1
    assert num_modes(trained.tanh_log_density(params, np.arange(-5, 5, 0.05))) == 2
    assert kstest(x, lambda x: trained.tanh_cdf(params, x)).pvalue > false_alarm
