"""The note on variational inference, fourth part: variational parameters for each observation, or from an encoder. One test is one claim.

The model throughout: z_i ~ N(0, 1), x_i | z_i ~ N(z_i, 1), whose posteriors N(x_i / 2, 1 / 2) are known, and p(x_i) = N(0, 2).
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy.optimize import minimize
from scipy.stats import norm

from vipatterns.objectives import StickingTheLanding

X = np.random.RandomState(7).normal(0.5, 1.4, 6)
NEW = np.random.RandomState(8).normal(0.5, 1.4, 50)
BEST = np.array([0.5, 0.0, 0.5 * math.log(0.5)])
"""Slope, offset and log sd of the encoder whose q are the posteriors."""
OTHER = np.array([0.8, -0.3, 0.2])


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def off(draws, exact):
    """How far the mean of the draws is from the exact value, in standard errors."""
    return np.max(np.abs(draws.mean(0) - exact) / (draws.std(0, ddof=1) / math.sqrt(len(draws))))


def bound(x, m, log_s):
    """L for q = N(m, s^2) and the observation x, in closed form."""
    return -math.log(2 * math.pi) - 0.5 * (m**2 + (x - m) ** 2) - jnp.exp(2 * log_s) + log_s + 0.5 * math.log(2 * math.pi * math.e)


def encoded(phi, x):
    """L for each x where a linear encoder gives its q: mean a x + b, log sd c."""
    return bound(x, phi[0] * x + phi[1], phi[2])


def each_its_own(x):
    """L for each x after a search for its own mean and log sd."""
    fits = [minimize(lambda v, x=x: -float(bound(x, *v)), [0.0, 0.0], options={"gtol": 1e-7}) for x in x]
    return np.array([-fit.fun for fit in fits])


def local_guide(x):
    m = numpyro.param("m", jnp.zeros(len(x)))
    log_s = numpyro.param("log_s", jnp.zeros(len(x)))
    with numpyro.plate("row", len(x)):
        numpyro.sample("z", dist.Normal(m, jnp.exp(log_s)))


def encoder_guide(x, batch=None):
    phi = numpyro.param("phi", jnp.asarray(OTHER))
    with numpyro.plate("row", len(x), subsample_size=batch) as i:
        numpyro.sample("z", dist.Normal(phi[0] * x[i] + phi[1], jnp.exp(phi[2])))


def model(x, batch=None):
    with numpyro.plate("row", len(x), subsample_size=batch) as i:
        numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x[i])


def test_holds_parameters_for_each_observation_do_not_scale():
    """Their number grows with that of the observations; an encoder's stays what it is."""

    def count(guide, num):
        sites = handlers.trace(handlers.seed(guide, jax.random.key(0))).get_trace(np.zeros(num))
        return sum(np.size(site["value"]) for site in sites.values() if site["type"] == "param")

    assert [count(local_guide, n) for n in (10, 1_000)] == [20, 2_000]
    assert [count(encoder_guide, n) for n in (10, 1_000)] == [3, 3]


def test_corrected_parameters_for_each_observation_give_the_tighter_bound(rng_key):
    """The note has them overfit. They reach log p(x), which no q passes; no encoder has more: the amortisation gap is >= 0."""
    own = each_its_own(X)
    np.testing.assert_allclose(own, norm.logpdf(X, 0, math.sqrt(2)), atol=1e-8)
    encoders = BEST + np.asarray(jax.random.normal(rng_key, (500, 3)))
    gaps = own - np.stack([encoded(phi, X) for phi in encoders])
    assert gaps.min() > -1e-8
    assert gaps.mean() > 0.1


def test_corrected_parameters_for_each_observation_do_not_overfit():
    """A q fitted to an observation that was not seen before has the bound log p(x) like the others: nothing was learned from those."""
    np.testing.assert_allclose(each_its_own(NEW[:10]), norm.logpdf(NEW[:10], 0, math.sqrt(2)), atol=1e-8)


def test_corrected_it_is_an_encoder_that_can_overfit():
    """With posteriors N(sin 3x, 1 / 4), a polynomial through the six means that it was trained on has no gap there, and one elsewhere."""
    encoder = np.polynomial.Polynomial.fit(X, np.sin(3 * X), len(X) - 1)

    def gap(x):
        """KL of two Gaussians with variance 1 / 4: what the bound lacks of log p(x)."""
        return np.mean((encoder(x) - np.sin(3 * x)) ** 2) / (2 * 0.25)

    inside = NEW[np.abs(NEW - (X.min() + X.max()) / 2) < np.ptp(X) / 2]
    assert gap(X) < 1e-10
    assert gap(inside) > 0.01


def test_holds_variational_parameters_can_be_a_learned_function_of_the_observation():
    """Training finds slope 1/2, offset 0 and sd .70710678; the bound is then log N(x; 0, 2) for every x, also for those never seen."""
    objective = jax.jit(jax.value_and_grad(lambda phi: -encoded(phi, X).mean()))
    found = minimize(objective, np.zeros(3), jac=True, options={"gtol": 1e-10})
    np.testing.assert_allclose(found.x, BEST, atol=1e-7)
    np.testing.assert_allclose(np.exp(found.x[2]), 0.70710678, atol=1e-7)
    for x in (X, NEW):
        np.testing.assert_allclose(encoded(found.x, x), norm.logpdf(x, 0, math.sqrt(2)), atol=1e-10)


def test_holds_an_encoder_only_constrains_the_parameters():
    """One that ignores x is left with the average posterior mean: its gap is the variance of those means."""
    found = minimize(jax.jit(jax.value_and_grad(lambda v: -bound(X, *v).mean())), np.zeros(2), jac=True, options={"gtol": 1e-10})
    np.testing.assert_allclose(found.x, [X.mean() / 2, BEST[2]], atol=1e-7)
    gap = norm.logpdf(X, 0, math.sqrt(2)).mean() + found.fun
    np.testing.assert_allclose(gap, np.var(X / 2), rtol=1e-8)


def test_corrected_the_gradient_is_of_the_mean_over_observations():
    """The note prints it for one x. That vanishes for every encoder which is right at this x alone; the mean's, at the best one only."""
    one = jax.jit(jax.grad(lambda phi: encoded(phi, X[0])))
    every = jax.jit(jax.grad(lambda phi: encoded(phi, X).mean()))
    right_here = np.array([0.0, X[0] / 2, BEST[2]])
    np.testing.assert_allclose(one(right_here), 0.0, atol=1e-12)
    assert np.abs(every(right_here)).max() > 0.1
    np.testing.assert_allclose(every(BEST), 0.0, atol=1e-12)
    curvature = [np.linalg.eigvalsh(-jax.jacobian(g)(BEST)).min() for g in (one, every)]
    assert abs(curvature[0]) < 1e-12
    assert curvature[1] > 0.1


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_corrected_a_minibatch_counts_n_over_b(batch):
    """All batches of a size, each gradient scaled by N / B: their average is the gradient of the whole; unscaled, it is B / N of it."""
    total = jax.grad(lambda phi: encoded(phi, X).sum())(OTHER)
    of_batch = jax.jit(jax.grad(lambda phi, x: encoded(phi, x).sum()))
    sums = np.mean([of_batch(OTHER, X[list(b)]) for b in itertools.combinations(range(6), batch)], axis=0)
    np.testing.assert_allclose(6 / batch * sums, total, rtol=1e-12)
    assert np.abs(sums / total - 1).min() > 0.1


@pytest.mark.parametrize("batch", [6, 2])
def test_holds_the_gradient_reaches_the_encoder_through_the_draws(batch, rng_key, z_bound):
    """Slope in z times the derivative of t(noise, g(x)): unbiased, whole or by minibatches; at the best encoder without any noise."""

    @jax.jit
    @jax.vmap
    def estimates(phi, key):
        return jax.grad(lambda phi: -StickingTheLanding().loss(key, {"phi": phi}, model, encoder_guide, jnp.asarray(X), batch))(phi)

    keys = jax.random.split(rng_key, 10_000)
    exact = jax.grad(lambda phi: encoded(phi, X).sum())(OTHER)
    assert off(np.asarray(estimates(np.tile(OTHER, (10_000, 1)), keys)), exact) < z_bound(3)
    assert np.abs(estimates(np.tile(BEST, (10_000, 1)), keys)).max() < 1e-10


def test_holds_the_encoder_s_gradient_is_the_chain_rule():
    """For one noise and one x: the slope of log p - log q in z, times (x, 1, s noise), by hand and by differentiation."""
    x, noise = 1.3, 0.7
    m, s = OTHER[0] * x + OTHER[1], math.exp(OTHER[2])
    z = m + s * noise
    by_hand = (-z + (x - z) + (z - m) / s**2) * np.array([x, 1.0, s * noise])

    def log_weight(phi):
        held = jax.lax.stop_gradient(phi)
        z = phi[0] * x + phi[1] + jnp.exp(phi[2]) * noise
        log_p = jax.scipy.stats.norm.logpdf(z) + jax.scipy.stats.norm.logpdf(x, z)
        return log_p - jax.scipy.stats.norm.logpdf(z, held[0] * x + held[1], jnp.exp(held[2]))

    np.testing.assert_allclose(jax.grad(log_weight)(OTHER), by_hand, rtol=1e-12)
