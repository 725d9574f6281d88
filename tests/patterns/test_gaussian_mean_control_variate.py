"""gaussian_mean_control_variate: each gradient's mean and variance by quadrature, by draws and by the library's estimator; the fits."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import roots_hermitenorm

from vipatterns.objectives import ScoreFunction
from vipatterns.patterns import gaussian_mean
from vipatterns.patterns import gaussian_mean_control_variate as pattern

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
"""Twelve nodes are exact up to degree 23; in each draw the square of an estimate has degree 8."""
QUIET = pattern.KINDS[1:]


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def at_nodes(place):
    """Costs and scores of the pattern at the nodes, and the exact gradient (c_1 / s, 2 c_2)."""
    p = {k: jnp.asarray(v) for k, v in PLACES[place].items()}
    mu = p["m"] + jnp.exp(p["log_s"]) * NODES
    f, score = jax.tree.map(np.asarray, jax.vmap(lambda x: pattern.costs(p, x, Y))(mu))
    _, c_1, c_2 = pattern.coefficients(PLACES[place], Y)
    return f, score, {"m": c_1 / np.exp(PLACES[place]["log_s"]), "log_s": 2 * c_2}


def over(kind, f, score, running, num_particles):
    """The estimate at every tuple of nodes, and the weight of each tuple."""
    tuples = np.array(list(itertools.product(range(len(NODES)), repeat=num_particles)))
    each = jax.vmap(lambda f, score: pattern.gradient(kind, f, score, running))(f[tuples], score[tuples])
    return np.asarray(each), WEIGHTS[tuples].prod(1)


@pytest.mark.parametrize("kind", ["none", "running mean", "leave one out"])
@pytest.mark.parametrize("place", PLACES)
def test_mean_and_variance_by_quadrature(place, kind):
    """Every pair of draws, weighted: no Monte Carlo error."""
    f, scores, exact = at_nodes(place)
    running = float(WEIGHTS @ f)
    variance = pattern.variance(kind, PLACES[place], Y, 2)
    for k, score in scores.items():
        each, weight = over(kind, f, score, running, 2)
        rounding = 1e-10 * np.abs(f).max() * np.sqrt(WEIGHTS @ score**2)
        assert weight @ each == pytest.approx(exact[k], abs=rounding), k
        assert weight @ (each - exact[k]) ** 2 == pytest.approx(variance[k], rel=1e-8, abs=rounding**2), k


@pytest.mark.parametrize("place", PLACES)
def test_leave_one_out_of_three(place):
    f, scores, exact = at_nodes(place)
    variance = pattern.variance("leave one out", PLACES[place], Y, 3)
    for k, score in scores.items():
        each, weight = over("leave one out", f, score, 0.0, 3)
        rounding = 1e-10 * np.abs(f).max() * np.sqrt(WEIGHTS @ score**2)
        assert weight @ (each - exact[k]) ** 2 == pytest.approx(variance[k], rel=1e-8, abs=rounding**2), k


@pytest.mark.parametrize("place", PLACES)
def test_the_optimal_coefficient_is_the_minimum(place):
    """a* = E[f s^2] / E[s^2], known beforehand, has the table's variance; a step to either side has more, by (a - a*)^2 E[s^2]."""
    f, scores, exact = at_nodes(place)
    c_0, _, c_2 = pattern.coefficients(PLACES[place], Y)
    least = pattern.variance("optimal", PLACES[place], Y, 1)
    for k, score in scores.items():
        information = WEIGHTS @ score**2
        best = WEIGHTS @ (f * score**2) / information
        assert best == pytest.approx(c_0 + {"m": 3, "log_s": 5}[k] * c_2, rel=1e-9), k
        for off in (-30.0, 0.0, 30.0):
            v = WEIGHTS @ ((f - best - off) * score - exact[k]) ** 2
            assert v == pytest.approx(least[k] + off**2 * information, rel=1e-9, abs=1e-15 * information * c_0**2), k


def test_known_variances_of_a_square(monkeypatch):
    """E_N(mu, 1)[z^2]: mu^4 + 14 mu^2 + 15 and 8 mu^2 + 6, 87 and 38 at mu = 2."""
    for mu in (0.0, 2.0, -3.0):
        monkeypatch.setattr(pattern, "coefficients", lambda params, y, mu=mu: (mu**2, 2 * mu, 1.0))
        at = {"m": mu, "log_s": 0.0}
        assert pattern.variance("none", at, Y, 1)["m"] == pytest.approx(mu**4 + 14 * mu**2 + 15)
        assert pattern.variance("optimal", at, Y, 1)["m"] == pytest.approx(8 * mu**2 + 6)


@pytest.mark.parametrize("kind", pattern.KINDS)
def test_draws_of_the_guide_have_the_exact_mean_and_the_variance(kind, rng_key, z_bound):
    """128 draws a gradient, so that what estimating a* costs, of order 1 / K, is far below the Monte Carlo error of the variance."""
    p, k_draws, num = PLACES["on the way"], 128, 4_000
    params = {k: jnp.asarray(v) for k, v in p.items()}
    c_0, c_1, c_2 = pattern.coefficients(p, Y)

    def one(key):
        f, scores = pattern.evaluate(key, params, Y, k_draws)
        return {k: pattern.gradient(kind, f, score, c_0 + c_2) for k, score in scores.items()}

    each = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=500))(jax.random.split(rng_key, num))
    variance, exact = pattern.variance(kind, p, Y, k_draws), {"m": c_1 / np.exp(p["log_s"]), "log_s": 2 * c_2}
    for k in p:
        g = np.asarray(each[k])
        square = (g - exact[k]) ** 2
        assert abs(g.mean() - exact[k]) < z_bound(4) * g.std(ddof=1) / math.sqrt(num), k
        assert abs(square.mean() - variance[k]) < z_bound(4) * square.std() / math.sqrt(num), k


LIBRARY = {"none": "none", "leave one out": "leave_one_out", "optimal": "optimal"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIBRARY)
def test_the_library_s_estimator_has_the_same_mean_and_variance(kind, rng_key, z_bound):
    p, num, k_draws = PLACES["prior"], 4_000, 128
    params = {k: jnp.asarray(v) for k, v in p.items()}
    objective = ScoreFunction(k_draws, control_variate=LIBRARY[kind])

    def one(key):
        return jax.grad(lambda q: objective.loss(key, q, pattern.model, pattern.guide, Y))(params)

    each = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=500))(jax.random.split(rng_key, num))
    _, c_1, c_2 = pattern.coefficients(p, Y)
    variance, exact = pattern.variance(kind, p, Y, k_draws), {"m": c_1, "log_s": 2 * c_2}
    for k in p:
        g = -np.asarray(each[k])
        square = (g - exact[k]) ** 2
        assert abs(g.mean() - exact[k]) < z_bound(4) * g.std(ddof=1) / math.sqrt(num), k
        assert abs(square.mean() - variance[k]) < z_bound(4) * square.std() / math.sqrt(num), k


@pytest.mark.parametrize("kind", QUIET)
def test_no_noise_at_the_posterior(kind, rng_key):
    """Every cost is the log evidence, whatever the draw; without a control variate the noise is that times the score."""
    at = PLACES["posterior"]
    params = {k: jnp.asarray(v) for k, v in at.items()}
    f, scores = pattern.evaluate(rng_key, params, Y)
    assert pattern.log_evidence(Y) == gaussian_mean.log_evidence(Y)
    np.testing.assert_allclose(f, pattern.log_evidence(Y), rtol=1e-12)
    running = pattern.log_evidence(Y)
    for k, score in scores.items():
        assert abs(pattern.gradient(kind, f, score, running)) < 1e-10, k
        assert abs(pattern.gradient("none", f, score, running)) > 1, k
        assert abs(pattern.variance(kind, at, Y)[k]) < 1e-25
    plain = pattern.variance("none", at, Y, 1)
    assert plain["m"] == pytest.approx(PRECISION * running**2, rel=1e-9)
    assert plain["log_s"] == pytest.approx(2 * running**2, rel=1e-9)


def test_each_saves_over_the_one_before():
    for place in ("prior", "on the way", "too narrow"):
        none, running, leave, best = (pattern.variance(kind, PLACES[place], Y) for kind in pattern.KINDS)
        for k in ("m", "log_s"):
            assert best[k] < running[k] < leave[k] < none[k], (place, k)


def test_fit_is_the_posterior(assert_fits):
    with jax.enable_x64(False):
        assert_fits(pattern, pattern.data(), {"mu": (MEAN, PRECISION**-0.5)}, worst=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", pattern.KINDS)
def test_the_same_fit_lands_with_each_and_misses_with_none(kind, rng_key):
    with jax.enable_x64(False):
        run = jax.jit(jax.vmap(lambda key: pattern.ascend(key, Y, kind, 3000)[0]["mu"].loc))
        off = (np.asarray(run(jax.random.split(rng_key, 16)), float) - MEAN) * PRECISION**0.5
    if kind == "none":  # more than the average of every gradient of the run would leave, were all of them taken at the posterior
        assert off.std() > abs(pattern.log_evidence(Y)) / math.sqrt(3000 * pattern.PARTICLES)
    else:
        assert np.abs(off).max() < 0.05
