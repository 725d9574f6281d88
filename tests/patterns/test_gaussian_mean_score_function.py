"""gaussian_mean_score_function: its gradient's mean and variance by quadrature and by draws, the library's estimator, and the fit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO
from scipy.special import roots_hermitenorm

from vipatterns.objectives import ScoreFunction, StickingTheLanding
from vipatterns.patterns import gaussian_mean
from vipatterns.patterns import gaussian_mean_score_function as pattern

Y = pattern.data()["y"]
MEAN, PRECISION = Y.sum() / 101, 101.0
PLACES = {
    "prior": {"m": 0.0, "log_s": 0.0},
    "on the way": {"m": 1.7, "log_s": -1.5},
    "too narrow": {"m": 1.9, "log_s": -3.0},
    "posterior": {"m": MEAN, "log_s": -0.5 * math.log(PRECISION)},
}
NODES, WEIGHTS = roots_hermitenorm(12)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
"""Twelve nodes are exact up to degree 23; the square of an estimate has degree 8."""


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def estimates(params, mu, origin):
    """Parameter -> the estimate of each draw, by the code of the pattern."""
    params = {k: jnp.asarray(v, float) for k, v in params.items()}
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda x: pattern.one_draw(params, x, Y, origin)[1]))(jnp.asarray(mu)))


def elbo(m, log_s):
    """Expected log joint plus entropy, unsimplified."""
    n, variance = len(Y), np.exp(2 * log_s)
    expected = -0.5 * (m**2 + variance) - 0.5 * np.sum((Y - m) ** 2) - 0.5 * n * variance - (n + 1) / 2 * math.log(2 * math.pi)
    return expected + log_s + 0.5 * math.log(2 * math.pi * math.e)


def test_same_data_and_answers_as_gaussian_mean():
    np.testing.assert_array_equal(Y, gaussian_mean.data()["y"])
    assert pattern.log_evidence(Y) == gaussian_mean.log_evidence(Y)
    assert elbo(**PLACES["posterior"]) == pytest.approx(pattern.log_evidence(Y), rel=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_the_formula_of_the_gradient_is_the_slope_of_the_elbo(place):
    p, h = PLACES[place], 1e-5
    slope = {k: (elbo(**p | {k: p[k] + h}) - elbo(**p | {k: p[k] - h})) / (2 * h) for k in p}
    exact = pattern.exact_gradient(p, Y)
    for k in p:
        assert exact[k] == pytest.approx(slope[k], abs=1e-5), k


@pytest.mark.parametrize("origin", [0.0, -137.0, 40.0])
@pytest.mark.parametrize("place", PLACES)
def test_mean_and_variance_by_quadrature(place, origin):
    """Whatever the origin, the mean is the exact gradient; the variance is the formula's. No Monte Carlo error."""
    p = PLACES[place]
    each = estimates(p, p["m"] + np.exp(p["log_s"]) * NODES, origin)
    exact, variance = pattern.exact_gradient(p, Y), pattern.variance(p, Y, origin)
    for k in p:
        size = np.sqrt(WEIGHTS @ each[k] ** 2)
        assert WEIGHTS @ each[k] == pytest.approx(exact[k], abs=1e-10 * size), k
        assert WEIGHTS @ (each[k] - exact[k]) ** 2 == pytest.approx(variance[k], rel=1e-9), k


@pytest.mark.parametrize("place", PLACES)
def test_the_score_has_mean_zero(place):
    """And the variance of a score is the Fisher information, 1 / s^2 and 2."""
    p = {k: jnp.asarray(v) for k, v in PLACES[place].items()}
    s = float(np.exp(p["log_s"]))
    scores = jax.vmap(lambda x: pattern.score(p, x, Y))(p["m"] + s * NODES)
    for k, information in {"m": 1 / s**2, "log_s": 2.0}.items():
        assert abs(WEIGHTS @ scores[k]) < 1e-11 * math.sqrt(information), k
        assert WEIGHTS @ scores[k] ** 2 == pytest.approx(information, rel=1e-10), k


def test_known_variances_of_a_square(monkeypatch):
    """E_N(mu, 1)[z^2] at mu = 2, where the coefficients are mu^2, 2 mu and 1: 87, and 38 with the best origin, mu^2 + 3."""
    monkeypatch.setattr(pattern, "coefficients", lambda params, y: (4.0, 4.0, 1.0))
    at = {"m": 2.0, "log_s": 0.0}
    assert pattern.variance(at, Y, 0.0)["m"] == pytest.approx(87)
    assert pattern.variance(at, Y, 7.0)["m"] == pytest.approx(38)


@pytest.mark.parametrize("place", ["prior", "on the way"])
def test_draws_of_the_guide_give_that_mean_and_variance(place, rng_key, z_bound):
    p = PLACES[place]
    params = {k: jnp.asarray(v) for k, v in p.items()}
    mu = jax.jit(jax.vmap(lambda k: pattern.draw(k, params, Y)))(jax.random.split(rng_key, 100_000))
    origin = float(pattern.weight(params, params["m"], Y))
    assert origin == pytest.approx(pattern.coefficients(p, Y)[0], rel=1e-12)
    each, exact, variance = estimates(p, mu, origin), pattern.exact_gradient(p, Y), pattern.variance(p, Y, origin)
    for k in p:
        square = (each[k] - exact[k]) ** 2
        assert abs(each[k].mean() - exact[k]) < z_bound(4) * math.sqrt(variance[k] / len(mu)), k
        assert abs(square.mean() - variance[k]) < z_bound(4) * square.std() / math.sqrt(len(mu)), k


@pytest.mark.parametrize("place", [pytest.param("prior", marks=pytest.mark.slow), "on the way"])
def test_score_total_and_path_gradients_have_one_mean(place, rng_key, z_bound):
    """The library's score function, NumPyro's total derivative and the path derivative, all with the mean of the formula."""
    p = PLACES[place]
    params, exact = {k: jnp.asarray(v) for k, v in p.items()}, pattern.exact_gradient(p, Y)
    for objective in (ScoreFunction(1, control_variate="none"), Trace_ELBO(), StickingTheLanding(1)):

        def gradient(key, objective=objective):
            return jax.grad(lambda q: objective.loss(key, q, pattern.model, pattern.guide, Y))(params)

        each = jax.jit(jax.vmap(gradient))(jax.random.split(rng_key, 20_000))
        for k in p:
            g = -np.asarray(each[k])
            assert abs(g.mean() - exact[k]) < z_bound(8) * g.std(ddof=1) / math.sqrt(g.size), (objective, k)
            if isinstance(objective, ScoreFunction):
                square = (g - exact[k]) ** 2
                assert abs(square.mean() - pattern.variance(p, Y, 0.0)[k]) < z_bound(8) * square.std() / math.sqrt(g.size), k


def test_at_the_posterior_the_plain_estimator_has_the_evidence_squared_times_the_precision():
    at = PLACES["posterior"]
    assert pattern.variance(at, Y, 0.0)["m"] == pytest.approx(PRECISION * pattern.log_evidence(Y) ** 2, rel=1e-9)
    left = pattern.variance(at, Y, pattern.coefficients(at, Y)[0])
    assert max(left.values()) < 1e-15 * PRECISION


def test_other_units_of_the_data_move_the_origin_and_the_plain_variance():
    """In thousandths of the unit log p falls by N log 1000: a constant in f, which the gradient's mean does not see."""
    at, shift = PLACES["posterior"], len(Y) * math.log(1000)
    assert pattern.variance(at, Y, shift)["m"] == pytest.approx(PRECISION * (pattern.log_evidence(Y) - shift) ** 2, rel=1e-9)


def test_fit_is_the_posterior(assert_fits):
    with jax.enable_x64(False):
        assert_fits(pattern, pattern.data(), {"mu": (MEAN, PRECISION**-0.5)}, worst=0.05)


def test_elbo_reaches_the_log_evidence_without_noise(rng_key):
    with jax.enable_x64(False):
        _, losses = pattern.fit(rng_key, **pattern.data())
    assert float(-losses[-200:].mean()) == pytest.approx(pattern.log_evidence(Y), abs=1e-3)
    assert float(losses[-200:].std()) < 0.01 * float(losses[:50].std())
