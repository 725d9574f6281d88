"""gaussian_mean_sticking_the_landing: both gradients' mean and variance by quadrature, the libraries' estimators, and the fit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO
from scipy.special import roots_hermitenorm

from vipatterns.objectives import ScoreFunction, StickingTheLanding
from vipatterns.patterns import gaussian_mean
from vipatterns.patterns import gaussian_mean_sticking_the_landing as pattern

Y = pattern.data()["y"]
MEAN, PRECISION = Y.sum() / 101, 101.0
PERFECT = {"m": MEAN, "log_s": -0.5 * math.log(PRECISION)}
PLACES = {
    "prior": {"m": 0.0, "log_s": 0.0},
    "on the way": {"m": 1.7, "log_s": -1.5},
    "half the variance": {"m": MEAN + 0.1, "log_s": -0.5 * math.log(2 * PRECISION)},
    "far too narrow": {"m": MEAN, "log_s": -5.0},
    "posterior": PERFECT,
}
NODES, WEIGHTS = roots_hermitenorm(12)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
"""Twelve nodes are exact up to degree 23; the square of a gradient has degree 4."""


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def by_draw(params, noise, path):
    """Parameter -> the gradient of each draw, by the code of the pattern."""
    params = {k: jnp.asarray(v) for k, v in params.items()}
    slope = jax.jit(jax.vmap(jax.grad(pattern.log_weight), (None, 0, None, None)), static_argnums=3)
    return jax.tree.map(np.asarray, slope(params, jnp.asarray(noise), Y, path))


def library(objective, params, rng_key, num=20_000):
    """Parameter -> `num` gradients of the ELBO by a numpyro.infer.ELBO."""
    params = {k: jnp.asarray(v) for k, v in params.items()}

    def gradient(key):
        return jax.grad(lambda p: -objective.loss(key, p, pattern.model, pattern.guide, Y))(params)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(gradient))(jax.random.split(rng_key, num)))


@pytest.mark.parametrize("path", [True, False], ids=["path", "total"])
@pytest.mark.parametrize("place", PLACES)
def test_mean_and_variance_by_quadrature(place, path):
    """One mean for both, the slope of the ELBO; the variances are the formulas'. No Monte Carlo error."""
    p = PLACES[place]
    each, exact, variance = by_draw(p, NODES, path), pattern.exact_gradient(p, Y), pattern.variance(p, Y, path)
    size = max(1.0, PRECISION * np.exp(2 * p["log_s"]), abs(exact["m"])) / np.exp(p["log_s"])
    for k in p:
        assert WEIGHTS @ each[k] == pytest.approx(exact[k], abs=1e-11 * size), k
        assert WEIGHTS @ (each[k] - exact[k]) ** 2 == pytest.approx(variance[k], rel=1e-9, abs=(1e-11 * size) ** 2), k


def test_the_formula_of_the_gradient_is_the_slope_of_the_elbo():
    """KL(q || posterior) of two Gaussians, differentiated by JAX."""

    def elbo(p):
        r = PRECISION * jnp.exp(2 * p["log_s"])
        return pattern.log_evidence(Y) - 0.5 * (r - 1 - jnp.log(r) + PRECISION * (p["m"] - MEAN) ** 2)

    for p in PLACES.values():
        slope = jax.grad(elbo)({k: jnp.asarray(v) for k, v in p.items()})
        for k, exact in pattern.exact_gradient(p, Y).items():
            assert float(slope[k]) == pytest.approx(exact, rel=1e-9, abs=1e-9), k


def test_what_is_left_out_is_the_score():
    """Draw by draw: total = path - score, and the score has mean zero."""
    p = PLACES["on the way"]
    s = np.exp(p["log_s"])
    for k, score in {"m": NODES / s, "log_s": NODES**2 - 1}.items():
        np.testing.assert_allclose(by_draw(p, NODES, False)[k], by_draw(p, NODES, True)[k] - score, rtol=1e-9, atol=1e-9)
        assert abs(WEIGHTS @ score) < 1e-12


def test_at_the_posterior_the_path_has_no_noise_and_the_total_has_the_precision():
    noise = np.linspace(-4, 4, 33)
    assert max(np.abs(g).max() for g in by_draw(PERFECT, noise, True).values()) < 1e-10
    total = pattern.variance(PERFECT, Y, False)
    assert total["m"] == pytest.approx(101, rel=1e-12)
    assert total["log_s"] == pytest.approx(2, rel=1e-12)


@pytest.mark.parametrize("r", [0.01, 0.4, 0.6, 3.0])
def test_the_path_is_the_noisier_one_in_a_guide_of_less_than_half_the_variance(r):
    at = {"m": MEAN + 0.05, "log_s": 0.5 * math.log(r / PRECISION)}
    path, total = pattern.variance(at, Y, True), pattern.variance(at, Y, False)
    for k in at:
        assert (path[k] > total[k]) == (r < 0.5), k
    half = PLACES["half the variance"]
    assert pattern.variance(half, Y, True) == pytest.approx(pattern.variance(half, Y, False), rel=1e-12)


ESTIMATORS = {"path": (StickingTheLanding(1), True), "total": (Trace_ELBO(), False), "score": (ScoreFunction(2), None)}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_libraries_gradients_have_that_mean_and_variance(name, rng_key, z_bound):
    """The path derivative of ours, NumPyro's total derivative; and the score function, whose mean is the same."""
    objective, path = ESTIMATORS[name]
    p = PLACES["on the way"]
    each, exact = library(objective, p, rng_key), pattern.exact_gradient(p, Y)
    for k in p:
        g = each[k]
        assert abs(g.mean() - exact[k]) < z_bound(4) * g.std(ddof=1) / math.sqrt(g.size), k
        if path is not None:
            square = (g - exact[k]) ** 2
            assert abs(square.mean() - pattern.variance(p, Y, path)[k]) < z_bound(4) * square.std() / math.sqrt(g.size), k


def test_same_data_and_answers_as_gaussian_mean():
    np.testing.assert_array_equal(Y, gaussian_mean.data()["y"])
    assert pattern.log_evidence(Y) == gaussian_mean.log_evidence(Y)


def test_fit_is_the_posterior_ten_times_closer(assert_fits):
    """Than the other patterns on these data are held to: at the end there is no noise to average out."""
    with jax.enable_x64(False):
        assert_fits(pattern, pattern.data(), {"mu": (MEAN, PRECISION**-0.5)}, worst=0.005, floor=0.001)


def test_elbo_reaches_the_log_evidence_without_noise(rng_key):
    with jax.enable_x64(False):
        _, losses = pattern.fit(rng_key, **pattern.data())
    assert float(-losses[-200:].mean()) == pytest.approx(pattern.log_evidence(Y), abs=1e-3)
    assert float(losses[-200:].std()) < 1e-3 * float(losses[:50].std())
