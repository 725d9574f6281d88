"""gaussian_mixture_amortized: the gap is what the network loses, per-row parameters bound all networks, enumeration checks the rest."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax
from scipy.stats import norm

from vipatterns.patterns import gaussian_mixture_amortized as pattern

FEW = np.array([-3.1, -1.9, -0.6, 0.4, 0.8, 1.1, 1.3, 2.6])


def elbo(y, m, s, logits):
    """Of q(mu) q(z), term by term, in float64."""
    p = np.stack([expit(-logits), expit(logits)], axis=1)
    log_q = -np.stack([np.logaddexp(0, logits), np.logaddexp(0, -logits)], axis=1)
    log_y = norm.logpdf(y[:, None], m, pattern.SDS) - s**2 / (2 * pattern.SDS**2)
    log_mu = norm.logpdf(m, 0, pattern.PRIOR_SD) - s**2 / (2 * pattern.PRIOR_SD**2)
    return np.sum(log_mu + np.log(s) + 0.5 * np.log(2 * np.pi) + 0.5) + np.sum(p * (log_y + np.log(0.5) - log_q))


def best_elbo(y):
    m, s = pattern.documented_bias(y)["mu"]
    return elbo(y, m, s, pattern.best_labels(y, m, s))


@pytest.fixture(scope="module")
def fitted(rng_key):
    """m, s and logits of one fit, in float64, and its losses."""
    q, losses = pattern.fit(rng_key, **pattern.data())
    return [np.asarray(value, float) for value in (q["mu"].loc, q["mu"].scale, q["z"].logits, losses)]


def test_gap_is_what_any_labels_lose():
    """ELBO with the best labels less ELBO with others = the sum of the gaps, none of them negative; and zero at the best."""
    y, rng = pattern.data()["y"], np.random.default_rng(0)
    m, s = rng.normal(size=2), rng.uniform(0.05, 0.5, 2)
    best = pattern.best_labels(y, m, s)
    for logits in (best + rng.normal(size=len(y)), rng.normal(0, 5, len(y)), np.zeros(len(y))):
        gap = pattern.amortization_gap(y, m, s, logits)
        assert np.all(gap >= 0)
        assert elbo(y, m, s, best) - elbo(y, m, s, logits) == pytest.approx(gap.sum(), abs=1e-9)
    np.testing.assert_allclose(pattern.amortization_gap(y, m, s, best), 0, atol=1e-12)


def test_documented_bias_is_the_maximum_over_all_q():
    """Over means, sds and a parameter for every row at once, by a general-purpose optimiser; few rows, so that it can."""
    m, s = pattern.documented_bias(FEW)["mu"]
    start = np.concatenate([m + 0.2, np.log(s) - 0.2, pattern.best_labels(FEW, m, s) / 2])
    best = minimize(lambda p: -elbo(FEW, p[:2], np.exp(p[2:4]), p[4:]), start, method="BFGS", options={"gtol": 1e-5})
    np.testing.assert_allclose((best.x[:2] - m) / s, 0, atol=1e-3)
    np.testing.assert_allclose(best.x[2:4], np.log(s), atol=1e-3)
    assert best_elbo(FEW) - 1e-4 < -best.fun < best_elbo(FEW) + 1e-9


def test_evidence_and_posterior_by_enumeration(z_bound):
    """All 2^8 assignments of eight rows, each with a Gaussian posterior in closed form."""
    log_p, first, second = [], [], []
    for z in itertools.product((0, 1), repeat=len(FEW)):
        member = np.array(z)[:, None] == np.arange(2)
        var = 1 / (member.sum(0) / pattern.SDS**2 + pattern.PRIOR_SD**-2)
        m = var * (FEW @ member) / pattern.SDS**2
        of_rows = norm.logpdf(FEW, 0, pattern.SDS[np.array(z)]).sum() + len(FEW) * np.log(0.5)
        log_p.append(of_rows + 0.5 * np.sum(np.log(var / pattern.PRIOR_SD**2) + m**2 / var))
        first.append(m)
        second.append(var + m**2)
    assert pattern.log_evidence(FEW) == pytest.approx(logsumexp(log_p), abs=1e-8)
    weight, draws = softmax(log_p), pattern.exact_posterior(FEW)["mu"]
    for power, expected in ((1, weight @ first), (2, weight @ second)):
        assert np.all(np.abs(np.mean(draws**power, 0) - expected) < z_bound(4) * np.std(draws**power, 0) / np.sqrt(len(draws)))


def test_a_network_is_below_parameters_per_row_and_they_below_the_evidence(fitted):
    """The claim that the documents turn round: parameters of their own for every row give the tighter bound, by at least the gap."""
    m, s, logits, _ = fitted
    y = pattern.data()["y"]
    gap, best = pattern.amortization_gap(y, m, s, logits), best_elbo(y)
    assert np.all(gap > -1e-12)
    assert 0 < gap.sum() <= best - elbo(y, m, s, logits) < best_elbo(y) - elbo(y, m, s, np.zeros(len(y)))
    assert best < pattern.log_evidence(y)


def test_the_gap_is_a_fraction_of_a_straight_line_s(fitted):
    """The best log odds linear in y, and the best of this encoder found from its start, both by BFGS for the means of the fit."""
    m, s, logits, _ = fitted
    y = pattern.data()["y"]

    def kl(u, odds):
        f = odds(u)
        p, log_p, log_r = jax.nn.sigmoid(f), jax.nn.log_sigmoid(jnp.stack([f, -f])), jax.nn.log_sigmoid(jnp.stack([target, -target]))
        return jnp.sum(p * (log_p - log_r)[0] + (1 - p) * (log_p - log_r)[1])

    def network(u):
        slope, at, weights = u[:24].reshape(3, 8)
        return u[24] + jax.nn.softplus(slope * (x[:, None] - at)) @ weights

    def best(odds, start):
        loss = jax.jit(jax.value_and_grad(lambda u: kl(u, odds)))
        return minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-6, "maxiter": 2000}).fun

    with jax.enable_x64(True):
        x, target = (jnp.asarray(np.asarray(values, float)) for values in ((y - y.mean()) / y.std(), pattern.best_labels(y, m, s)))
        line = best(lambda u: u[0] + u[1] * x, np.zeros(2))
        slope, at = np.where(np.arange(8) % 2, 2.0, -2.0), np.linspace(-1, 1, 8)
        least = best(network, np.concatenate([slope, at, np.zeros(9)]))
        assert float(kl(jnp.asarray(logits), lambda f: f)) == pytest.approx(pattern.amortization_gap(y, m, s, logits).sum(), abs=1e-9)
    gap = pattern.amortization_gap(y, m, s, logits).sum()
    assert -1e-10 < least < gap < line / 1000


def test_losses_are_the_negative_elbo(fitted, z_bound):
    m, s, logits, losses = fitted
    last = losses[-1000:]
    assert abs(last.mean() + elbo(pattern.data()["y"], m, s, logits)) < z_bound() * last.std() / np.sqrt(len(last))


@pytest.mark.slow
def test_fit_is_the_best_q_of_all(assert_fits):
    d = pattern.data()
    assert_fits(pattern, d, pattern.documented_bias(**d), worst=0.1, floor=0.01)


def test_labels_in_doubt_widen_the_posterior_of_the_means():
    """Mean-field's bias, which no encoder mends."""
    d = pattern.data()
    assert np.all(pattern.documented_bias(**d)["mu"][1] < 0.95 * pattern.exact_posterior(**d)["mu"].std(0))
