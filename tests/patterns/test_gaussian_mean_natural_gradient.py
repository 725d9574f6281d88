"""gaussian_mean_natural_gradient: the Fisher matrix made explicit, the straight line to the posterior, and one step of 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO

from vipatterns.patterns import gaussian_mean
from vipatterns.patterns import gaussian_mean_natural_gradient as pattern


@pytest.fixture(scope="module")
def rows():
    return pattern.data()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def natural(m, var):
    return np.array([m / var, -0.5 / var])


def test_data_and_answers_are_those_of_gaussian_mean(rows):
    np.testing.assert_array_equal(rows["y"], gaussian_mean.data()["y"])
    assert pattern.log_evidence(**rows) == pytest.approx(-136.80742332823354, rel=1e-12)
    mu = pattern.exact_posterior(**rows)["mu"]
    np.testing.assert_allclose([mu.loc, mu.scale], [1.8773796857484217, 0.09950371902099892], rtol=1e-12)


@pytest.mark.parametrize(("m", "var"), [(0.0, 1.0), (3.0, 0.2), (-40.0, 7.0)])
def test_one_step_of_1_is_the_posterior(rows, x64, m, var):
    mu = pattern.exact_posterior(**rows)["mu"]
    np.testing.assert_allclose(pattern.natural_step(m, var, rows["y"], 1.0), (mu.loc, mu.scale**2), rtol=1e-10)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_step_is_the_inverse_fisher_matrix_times_the_gradient(rows, x64, rate):
    """Both by automatic differentiation in the natural parameters: the Fisher matrix is the Hessian of the log normaliser."""
    start = jnp.asarray(natural(0.7, 0.3))

    def log_normaliser(u):
        return -(u[0] ** 2) / (4 * u[1]) - 0.5 * jnp.log(-2 * u[1])

    gradient = jax.grad(lambda u: pattern.elbo(-0.5 * u[0] / u[1], -0.5 / u[1], rows["y"]))(start)
    expected = start + rate * jnp.linalg.solve(jax.hessian(log_normaliser)(start), gradient)
    np.testing.assert_allclose(natural(*pattern.natural_step(0.7, 0.3, rows["y"], rate)), expected, rtol=1e-10)


def test_the_way_is_straight_and_shrinks_by_one_less_the_rate(rows, x64):
    mu, q = pattern.exact_posterior(**rows)["mu"], (0.3, 2.0)
    rest, start = natural(mu.loc, mu.scale**2), natural(*q)
    for steps in range(1, 9):
        q = pattern.natural_step(*q, rows["y"], 0.3)
        np.testing.assert_allclose(natural(*q) - rest, 0.7**steps * (start - rest), rtol=1e-9)


def test_elbo_is_numpyro_s_by_draws(rows, rng_key, z_bound):
    params, keys = {"m": 1.5, "s": 0.3}, jax.random.split(rng_key, 20_000)
    draws = -jax.vmap(lambda key: Trace_ELBO().loss(key, params, pattern.model, pattern.guide, **rows))(keys)
    draws = np.asarray(draws, float)
    assert abs(draws.mean() - float(pattern.elbo(1.5, 0.09, rows["y"]))) < z_bound() * draws.std() / np.sqrt(len(draws))


def test_plain_gradients_go_another_way(rows, x64):
    """From the prior, in (m, log s^2): after the eight steps that main() prints they are far behind, whatever their length."""
    best = []
    for length in (0.003, 0.01, 0.015, 0.03):
        u = jnp.zeros(2)
        for _ in range(8):
            u += length * jax.grad(lambda u: pattern.elbo(u[0], jnp.exp(u[1]), rows["y"]))(u)
        best.append(float(pattern.elbo(u[0], jnp.exp(u[1]), rows["y"])))
    q = (0.0, 1.0)
    for _ in range(8):
        q = pattern.natural_step(*q, rows["y"], pattern.RATE)
    assert np.nanmax(best) < pattern.log_evidence(**rows) - 1
    assert float(pattern.elbo(*q, rows["y"])) > pattern.log_evidence(**rows) - 1e-4


def test_fit_is_the_posterior_under_every_key(rows, assert_fits):
    mu = pattern.exact_posterior(**rows)["mu"]
    assert_fits(pattern, rows, {"mu": (mu.loc, mu.scale)}, worst=1e-3, floor=1e-3)


def test_losses_fall_to_the_log_evidence(rows, rng_key, x64):
    _, losses = pattern.fit(rng_key, **rows)
    assert np.all(np.diff(losses) < 1e-10)
    assert float(-losses[-1]) == pytest.approx(pattern.log_evidence(**rows), abs=1e-9)
