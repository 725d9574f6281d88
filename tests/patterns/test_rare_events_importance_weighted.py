"""rare_events_importance_weighted: the bound by quadrature against draws and known digits, its gradient, its guide, its resampled draws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import RenyiELBO
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import digamma, logsumexp, polygamma
from scipy.stats import gamma, norm, poisson

from vipatterns.objectives import DoublyReparameterized
from vipatterns.patterns import rare_events_importance_weighted as pattern

Y = pattern.data()["y"]
A, B = 1.5, 4.5
EXACT = digamma(A) - math.log(B), polygamma(1, A) ** 0.5
ELBO_GUIDE = math.log(A / B) - 1 / (2 * A), A**-0.5
OFF = -1.2, 0.8
"""A guide that is not the best, m and s, where the gradient of the bound is not zero."""
SIZES = [1, 2, 3, 8, 64, 1024]


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def bound(m, s, k):
    return pattern.bound(pattern.log_w(m, s, Y), k)


def log_weights(m, s, noise):
    """Of the draws that `noise`, (num, k), makes, by the model and the guide."""
    params = {"m": jnp.asarray(m), "log_s": jnp.log(s)}
    return jax.jit(jax.vmap(jax.vmap(lambda each: pattern.log_weight(params, each, Y))))(noise)


def slope(m, log_s, k, h=1e-4):
    """Of L_k in m and log s, by differences."""
    up = bound(m + h, math.exp(log_s), k) - bound(m - h, math.exp(log_s), k)
    return {"m": up / (2 * h), "log_s": (bound(m, math.exp(log_s + h), k) - bound(m, math.exp(log_s - h), k)) / (2 * h)}


def test_the_evidence_and_the_posterior_by_quadrature():
    def joint(z, power):
        return z**power * np.exp(gamma.logpdf(np.exp(z), 0.5, scale=2) + z + poisson.logpmf(Y, np.exp(z)).sum())

    moment = [quad(joint, -60, 5, (power,), epsabs=0, epsrel=1e-9, limit=500)[0] for power in range(3)]
    assert pattern.log_evidence(Y) == pytest.approx(math.log(moment[0]), abs=1e-8)
    mean = moment[1] / moment[0]
    np.testing.assert_allclose((mean, math.sqrt(moment[2] / moment[0] - mean**2)), EXACT, rtol=1e-6)
    drawn = pattern.exact_posterior(Y)["log_rate"]
    assert drawn.mean() == pytest.approx(EXACT[0], abs=1e-4)
    assert drawn.std() == pytest.approx(EXACT[1], abs=1e-3)


def test_the_weights_at_the_nodes_are_those_of_the_model():
    m, s = OFF
    params = {"m": jnp.asarray(m), "log_s": jnp.log(s)}
    of_model = jax.vmap(lambda noise: pattern.log_weight(params, noise, Y))(pattern.NOISE)
    np.testing.assert_allclose(pattern.log_w(m, s, Y), of_model, rtol=1e-10)


def test_known_digits_of_another_model():
    """z ~ N(0, 1), x | z ~ N(z, 1), x = 2, the prior as proposal: from L_1 = -3.4189385332 up to log p = -2.2655121235."""
    log_w = norm.logpdf(2.0, pattern.NOISE, 1.0)
    levels = [pattern.bound(log_w, k) for k in (1, 2, 4, 16, 256, 4096)]
    assert levels[0] == pytest.approx(-3.4189385332, abs=1e-9)
    assert np.all(np.diff(levels) > 0)
    assert levels[-1] == pytest.approx(-2.2655121235, abs=1e-3)
    assert levels[-1] < -2.2655121235 < levels[0] + 1.2
    # For large K what is missing is Var(w) / (2 K E[w]^2), by the delta method.
    relative = np.exp(logsumexp(2 * log_w, b=pattern.WEIGHT) - 2 * logsumexp(log_w, b=pattern.WEIGHT)) - 1
    assert -2.2655121235 - levels[-1] == pytest.approx(relative / (2 * 4096), rel=1e-2)


def test_the_bound_of_two_by_quadrature_over_both_draws():
    log_w = pattern.log_w(*OFF, Y)
    pairs = np.logaddexp(log_w[:, None], log_w) - math.log(2)
    assert bound(*OFF, 2) == pytest.approx(pattern.WEIGHT @ pairs @ pattern.WEIGHT, abs=1e-8)


def test_the_bound_does_not_depend_on_its_grids(monkeypatch):
    before = bound(*OFF, 8), bound(*ELBO_GUIDE, 64)
    noise = np.linspace(-10, 10, 501)
    monkeypatch.setattr(pattern, "NOISE", noise)
    monkeypatch.setattr(pattern, "WEIGHT", norm.pdf(noise) / norm.pdf(noise).sum())
    monkeypatch.setattr(pattern, "LOG_T", np.arange(-60.0, 300.0, 0.25) + 0.1)
    np.testing.assert_allclose((bound(*OFF, 8), bound(*ELBO_GUIDE, 64)), before, atol=1e-7)


@pytest.mark.parametrize("k", [2, 8, 64])
def test_draws_have_the_bound_of_the_quadrature(k, rng_key, z_bound):
    m, s = OFF
    noise = jax.random.normal(rng_key, (20_000, k))
    each = jax.nn.logsumexp(log_weights(m, s, noise), axis=1) - math.log(k)
    assert abs(each.mean() - bound(m, s, k)) < z_bound() * each.std() / math.sqrt(len(noise))


@pytest.mark.parametrize("guide", [(0.0, 1.0), ELBO_GUIDE, OFF], ids=["start", "elbo", "off"])
def test_the_bound_rises_to_the_evidence(guide):
    gaps = pattern.log_evidence(Y) - np.array([bound(*guide, k) for k in SIZES])
    assert np.all(np.diff(gaps) < 0)
    assert 0 < gaps[-1] < 0.05 * gaps[0]


def test_the_best_elbo_guide_has_the_stated_numbers():
    best = minimize(lambda p: -bound(p[0], math.exp(p[1]), 1), [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12})
    np.testing.assert_allclose((best.x[0], math.exp(best.x[1])), ELBO_GUIDE, atol=1e-5)


def test_the_documented_guide_is_the_maximum_and_wider():
    """Wider than the best ELBO guide, and than the posterior; and the more so the more draws."""
    m, s = pattern.documented_bias(Y)["log_rate"]
    assert max(map(abs, slope(m, math.log(s), pattern.PARTICLES).values())) < 1e-5
    for dm, ds in ((0.1, 0.0), (-0.1, 0.0), (0.0, 0.1), (0.0, -0.1)):
        assert bound(m + dm, s * math.exp(ds), pattern.PARTICLES) < bound(m, s, pattern.PARTICLES)
    assert s > EXACT[1] > ELBO_GUIDE[1]
    widths = [pattern.best(Y, k)[1] for k in (1, 2, 4, 8, 16)]
    assert widths[0] == pytest.approx(ELBO_GUIDE[1], rel=1e-6)
    assert np.all(np.diff(widths) > 0)


@pytest.mark.parametrize("k", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(8, marks=pytest.mark.slow)])
def test_the_gradient_is_unbiased(k, rng_key, z_bound):
    """Against differences of the quadrature; the library's estimator and NumPyro's plain one have the same mean."""
    m, log_s = OFF[0], math.log(OFF[1])
    params, num = {"m": jnp.asarray(m), "log_s": jnp.asarray(log_s)}, 20_000

    def ours(key):
        return jax.grad(pattern.loss)(params, jax.random.normal(key, (1, k)), Y)

    def of(objective):
        return lambda key: jax.grad(lambda p: objective.loss(key, p, pattern.model, pattern.guide, Y))(params)

    exact, spread = slope(m, log_s, k), {}
    for name, gradient in {"ours": ours, "library": of(DoublyReparameterized(k)), "plain": of(RenyiELBO(0.0, k))}.items():
        each = jax.jit(jax.vmap(gradient))(jax.random.split(rng_key, num))
        for p in params:
            g = -np.asarray(each[p])
            assert abs(g.mean() - exact[p]) < z_bound(6) * g.std(ddof=1) / math.sqrt(num), (name, p)
            spread[name, p] = g.std()
    for p in params:
        assert spread["ours", p] == pytest.approx(spread["library", p], rel=0.1), p


@pytest.mark.parametrize("k", [2, 8, 64])
def test_resampled_draws_have_the_law_of_the_quadrature(k, rng_key, z_bound):
    """Sampling importance resampling: k draws, one kept by weight."""
    m, s = OFF
    draw_key, keep_key = jax.random.split(rng_key)
    noise = jax.random.normal(draw_key, (20_000, k))
    log_w = log_weights(m, s, noise)
    kept = jax.random.categorical(keep_key, log_w, axis=1)
    z = m + s * np.take_along_axis(np.asarray(noise), np.asarray(kept)[:, None], 1)[:, 0]
    law, at = pattern.resampled(pattern.log_w(m, s, Y), k), m + s * pattern.NOISE
    assert law.sum() == pytest.approx(1, abs=1e-6)
    for power in (1, 2):
        assert abs((z**power).mean() - law @ at**power) < z_bound(2) * (z**power).std() / math.sqrt(len(z)), power


def test_resampled_draws_approach_the_posterior():
    """From the guide itself at k = 1; in total variation fast, in mean and sd slowly, since k draws seldom reach the tail."""
    m, s = pattern.documented_bias(Y)["log_rate"]
    log_w, at = pattern.log_w(m, s, Y), m + s * pattern.NOISE
    posterior = gamma.pdf(np.exp(at), A, scale=1 / B) * np.exp(at)
    posterior /= posterior.sum()
    errors = []
    for k in SIZES:
        law = pattern.resampled(log_w, k)
        mean = law @ at
        sd = math.sqrt(law @ (at - mean) ** 2)
        errors.append((abs(mean - EXACT[0]), abs(sd - EXACT[1]), 0.5 * np.abs(law - posterior).sum()))
    np.testing.assert_allclose(pattern.resampled(log_w, 1), pattern.WEIGHT, atol=1e-6)
    assert np.all(np.diff(np.array(errors)[:, 2]) < 0)
    assert np.all(np.array(errors[-1]) < np.array([0.2, 0.2, 0.01]) * errors[0])


def test_fit_is_the_documented_guide(assert_fits):
    with jax.enable_x64(False):
        assert_fits(pattern, pattern.data(), pattern.documented_bias(Y), worst=0.05)
