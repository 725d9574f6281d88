"""The ELBO of fixed draws and its curvature: exact on Gaussian targets, the same by either climb, honest about its own error."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from vipatterns import density, linear_response, mode
from vipatterns.patterns import logistic_regression, robust_regression

UNITS = 10.0 ** np.array([-4, -2, 0, 2, 4])
ROOT = np.tril(np.random.default_rng(0).normal(size=(5, 5))) + 2 * np.eye(5)
COVARIANCE = np.outer(UNITS, UNITS) * (ROOT @ ROOT.T)
MEAN = 3 * UNITS


def gaussian(mean, covariance):
    numpyro.sample("z", dist.MultivariateNormal(mean, covariance))


def optimum(rng_key, model, data, num_draws=32, base_key=None, diagonal=False):
    clock = density.Clock()
    with density.precision("float64"):
        target = density.read(model, data)
        start = mode.find(rng_key, target, clock)
        if diagonal:
            sds = 1 / np.sqrt(start.precision_diagonal)
            start = mode.Start(start.loc, sds, 1 / sds**2, start.at_mode, start.derivatives)
        base = linear_response.base_draws(rng_key if base_key is None else base_key, num_draws, target.dim)
        return linear_response.maximise(target, start, base, np.zeros(2 * target.dim), clock)[0]


@pytest.mark.parametrize("diagonal", [False, True], ids=["dense", "matrix-free"])
def test_on_a_gaussian_target_the_mean_and_the_covariance_are_exact(diagonal, rng_key):
    """Where mean-field's own sds are 1 / sqrt(diag(precision)), by a closed form."""
    found = optimum(rng_key, gaussian, {"mean": MEAN, "covariance": COVARIANCE}, diagonal=diagonal)
    assert found.converged
    np.testing.assert_allclose(found.loc / UNITS, MEAN / UNITS, atol=1e-6)
    np.testing.assert_allclose(found.factor @ found.factor.T / np.outer(UNITS, UNITS), ROOT @ ROOT.T, rtol=1e-6)
    assert found.error < 1e-6
    # The sds of q itself stay those of fixed draws: right up to how far the draws' cross moments are from zero.
    sds = 1 / np.sqrt(np.diagonal(np.linalg.inv(COVARIANCE)))
    np.testing.assert_allclose(found.scale / sds, 1, atol=0.5)
    assert (found.scale < 0.9 * np.sqrt(np.diagonal(COVARIANCE))).any()


@pytest.mark.parametrize("pattern", [logistic_regression, robust_regression], ids=lambda p: p.__name__.rpartition(".")[2])
def test_both_climbs_end_in_one_place(pattern, rng_key):
    """One program is Newton's with whole Hessians, the other SciPy's Newton-CG by products: they share no derivative."""
    dense, free = (optimum(rng_key, pattern.model, pattern.data(), diagonal=diagonal) for diagonal in (False, True))
    sds = np.sqrt((dense.factor**2).sum(1))
    np.testing.assert_allclose(free.loc / sds, dense.loc / sds, atol=1e-3)
    np.testing.assert_allclose(free.scale / dense.scale, 1, atol=1e-3)
    np.testing.assert_allclose(
        free.factor @ free.factor.T / np.outer(sds, sds), dense.factor @ dense.factor.T / np.outer(sds, sds), atol=2e-3
    )
    assert free.error == pytest.approx(dense.error, rel=0.01)


@pytest.mark.parametrize("num_draws", [4, 32])
def test_where_hessians_are_dear_a_gaussian_target_takes_one_evaluation(num_draws, rng_key, monkeypatch):
    """The search begins at the optimum that these very draws have on a Gaussian target, by D numbers and no Hessian of the model."""
    cheap = optimum(rng_key, gaussian, {"mean": MEAN, "covariance": COVARIANCE}, num_draws)
    monkeypatch.setattr(mode, "_affordable", lambda target: 2)
    found = optimum(rng_key, gaussian, {"mean": MEAN, "covariance": COVARIANCE}, num_draws)
    assert found.converged
    assert len(found.losses) == 1 < len(cheap.losses)
    np.testing.assert_allclose(found.scale, cheap.scale, rtol=1e-6)
    np.testing.assert_allclose(found.loc / UNITS, MEAN / UNITS, atol=1e-6)
    np.testing.assert_allclose(found.factor @ found.factor.T / np.outer(UNITS, UNITS), ROOT @ ROOT.T, rtol=1e-6)


@pytest.mark.parametrize("pattern", [logistic_regression, robust_regression], ids=lambda p: p.__name__.rpartition(".")[2])
def test_where_hessians_are_dear_the_optimum_is_the_same(pattern, rng_key, monkeypatch):
    """Fewer steps, the last of them taken without a look: what is left of it is the square of its length."""
    cheap = optimum(rng_key, pattern.model, pattern.data())
    monkeypatch.setattr(mode, "_affordable", lambda target: 2)
    dear = optimum(rng_key, pattern.model, pattern.data())
    assert dear.converged
    assert len(dear.losses) < len(cheap.losses)
    sds = np.sqrt((cheap.factor**2).sum(1))
    np.testing.assert_allclose(dear.loc / sds, cheap.loc / sds, atol=1e-4)
    np.testing.assert_allclose(dear.scale / cheap.scale, 1, atol=1e-4)
    np.testing.assert_allclose(
        dear.factor @ dear.factor.T / np.outer(sds, sds), cheap.factor @ cheap.factor.T / np.outer(sds, sds), atol=2e-3
    )


def test_the_error_of_few_draws_is_what_other_draws_show(rng_key):
    """The estimate takes the draws for independent; Sobol points are more even, so the true spread may be less, and not by much more."""
    found = [optimum(rng_key, logistic_regression.model, logistic_regression.data(), base_key=k) for k in jax.random.split(rng_key, 30)]
    sds = np.sqrt((found[0].factor ** 2).sum(1))
    spread = (np.array([f.loc for f in found]) / sds).std(0, ddof=1).max()
    told = np.mean([f.error for f in found])
    # A sd of 30 draws is known within 1 +- 3.5 / sqrt(2 * 29) at most
    assert 0.1 * told < spread < 1.5 * told
    few, many = (optimum(rng_key, logistic_regression.model, logistic_regression.data(), num_draws=n).error for n in (32, 512))
    assert many < 0.5 * few


def test_base_draws_are_balanced(rng_key):
    base = linear_response.base_draws(rng_key, 64, 7)
    assert base.shape == (64, 7)
    np.testing.assert_allclose(base.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose((base**2).mean(0), 1, rtol=1e-12)
    np.testing.assert_array_equal(base[:32], -base[32:])
    assert not np.array_equal(base, linear_response.base_draws(jax.random.fold_in(rng_key, 1), 64, 7))


def test_draws_outside_the_support_shrink_the_start(rng_key):
    """log p is -inf beyond 1.5 prior sds, where fixed draws of the start would go."""

    def cut(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.factor("inside", jnp.where(jnp.abs(mu) < 1.5, 0.0, -jnp.inf))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    found = optimum(rng_key, cut, {"y": np.array(0.2)})
    assert np.isfinite(found.loc).all()
    assert abs(found.loc[0]) < 1.5
