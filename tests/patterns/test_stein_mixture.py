"""stein_mixture: fixed points that are known exactly, the loss by its definition, and the split of particles between two modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import foldnorm

from vipatterns.patterns import stein_mixture as pattern


def gaussian(mean, covariance):
    precision = jnp.linalg.inv(jnp.array(covariance))
    return lambda x: -0.5 * (x - jnp.array(mean)) @ precision @ (x - jnp.array(mean))


def standard_normal(x):
    return -0.5 * jnp.sum(x**2)


def test_one_particle_climbs_to_the_mode():
    x, _ = pattern.descend(jnp.zeros((1, 2)), gaussian([1.0, -2.0], [[1.0, 0.5], [0.5, 2.0]]), 1000, pattern.gaussian_kernel(1.0))
    np.testing.assert_allclose(x[0], [1, -2], atol=1e-3)


@pytest.mark.parametrize("h", [None, 0.5, 3.0])
def test_two_particles_rest_where_the_formula_says(h):
    """(1 + 4 / h) exp(-4 a^2 / h) = 1; with the median rule 4 a^2 / h = log 2, so that h = 4."""
    kernel = None if h is None else pattern.gaussian_kernel(h)
    x, _ = pattern.descend(jnp.array([[-0.3], [1.7]]), gaussian([0.0], [[1.0]]), 1000, kernel)
    a = np.sqrt(np.log(2)) if h is None else np.sqrt(h / 4 * np.log(1 + 4 / h))
    np.testing.assert_allclose(np.sort(x[:, 0]), [-a, a], atol=1e-3)


@pytest.mark.parametrize("num", [3, 8])
def test_the_linear_kernel_gives_a_gaussian_its_mean_and_covariance(num, rng_key):
    """Liu and Wang 2018: exactly, for any number of particles above D."""
    mean, covariance = np.array([1.0, -2.0]), np.array([[1.0, 0.6], [0.6, 2.0]])
    start = jax.random.normal(rng_key, (num, 2))
    x, _ = pattern.descend(start, gaussian(mean, covariance), 3000, lambda x, y: x @ y + 1)
    np.testing.assert_allclose(x.mean(0), mean, atol=2e-3)
    np.testing.assert_allclose(np.cov(x.T, bias=True), covariance, atol=5e-3)


def test_the_loss_is_the_squared_stein_discrepancy(rng_key):
    """The double sum of its definition, with the derivatives of the kernel written out, on a Gaussian in two dimensions."""
    x, h = np.asarray(jax.random.normal(rng_key, (5, 2)), float), 1.5
    _, losses = pattern.descend(jnp.array(x), gaussian([0.0, 0.0], np.eye(2)), 1, pattern.gaussian_kernel(h))
    total = 0.0
    for a in x:
        for b in x:
            k, d = np.exp(-np.sum((a - b) ** 2) / h), a - b
            cross = -a @ (2 * d / h) + -b @ (-2 * d / h)
            total += k * (a @ b + cross + 4 / h - 4 * d @ d / h**2)
    assert float(losses[0]) == pytest.approx(total / 25, rel=1e-4)


@pytest.mark.slow
def test_the_cloud_shrinks_as_dimensions_grow(rng_key):
    """Fifty particles, standard normal targets: the docstring's warning."""
    sds = []
    for dimensions in (1, 10, 100):
        start = jax.random.normal(rng_key, (50, dimensions))
        x, _ = pattern.descend(start, standard_normal, 500)
        sds.append(float(jnp.sqrt(jnp.mean(jnp.var(x, axis=0)))))
    assert sds[0] > 0.9
    assert sds[0] > sds[1] > sds[2]
    assert sds[2] < 0.5


@pytest.mark.slow
def test_particles_split_evenly_and_have_the_moments_of_both_modes(assert_fits):
    """To one part in n: a particle that crossed over would move the mean by 2 |a| / n, almost twice that."""
    d = pattern.data()
    exact, part = pattern.exact_posterior(**d)["x"], 1 / pattern.NUM_PARTICLES
    assert_fits(pattern, d, {"x": (float(exact.mean), float(exact.variance) ** 0.5)}, worst=part, floor=part)


@pytest.mark.slow
def test_within_a_mode_the_sd_is_slightly_too_small(rng_key):
    """Of the half of p on one side: a folded Gaussian, of which a mode without its tail beyond the middle is all but the whole."""
    d = pattern.data()
    x = np.asarray(pattern.fit(rng_key, **d)[0]["x"], float)
    assert np.sum(x > 0) == np.sum(x < 0)
    np.testing.assert_allclose(np.sort(x), np.sort(-x), atol=1e-4)
    assert 0.95 < x[x > 0].std() / foldnorm.std(d["modes"][1]) < 1


def test_each_mode_keeps_the_particles_that_started_near_it(rng_key):
    """Equal modes, unequal starts: three in four particles start at the second one, and stay."""
    start = jnp.concatenate([-4 + 0.1 * jax.random.normal(rng_key, (10, 1)), 4 + 0.1 * jax.random.normal(rng_key, (30, 1))])
    x, _ = pattern.descend(start, lambda x: jnp.logaddexp(-0.5 * (x[0] - 4) ** 2, -0.5 * (x[0] + 4) ** 2), 500)
    assert int(jnp.sum(x > 0)) == 30
