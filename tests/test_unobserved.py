"""Latents of rows that were seen: standard normal in unconstrained coordinates, and tied to nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions.transforms import biject_to
from scipy.stats import norm

from vipatterns import density
from vipatterns.unobserved import spared

USED = np.array([True, False, True])
FAMILIES = {
    "real line": lambda: dist.Normal(15_000.0, 4_000.0).expand([3]),
    "positive": lambda: dist.LogNormal(2.0, 0.5).expand([3]),
    "interval": lambda: dist.Beta(2.0, 3.0).expand([3]),
    "vector": lambda: dist.MultivariateNormal(jnp.arange(2.0), jnp.eye(2)).expand([3]),
    "simplex": lambda: dist.Dirichlet(jnp.ones((3, 4))),
    "Cholesky": lambda: dist.LKJCholesky(3, 2.0).expand([3]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_masked_is_standard_normal(family):
    with density.precision("float64"):
        fn = FAMILIES[family]()
        transform = biject_to(fn.support)
        z = 0.5 * np.random.default_rng(0).normal(size=transform.inv(fn.sample(jax.random.key(0))).shape)
        value = transform(jnp.asarray(z))
        # As NumPyro reads it, the change of coordinates included.
        log_p = spared(fn.mask(jnp.asarray(USED))).log_prob(value) + transform.log_abs_det_jacobian(jnp.asarray(z), value)
        standard = norm.logpdf(z).reshape(3, -1).sum(1)
        its_own = fn.log_prob(value) + transform.log_abs_det_jacobian(jnp.asarray(z), value)
        np.testing.assert_allclose(log_p, np.where(USED, its_own, standard), rtol=1e-12)


def test_masks_within_masks_add_up():
    inner = dist.Normal(2.0, 1.0).expand([3]).mask(jnp.array([True, True, False]))
    log_p = spared(inner.expand([3]).mask(jnp.asarray(USED))).log_prob(jnp.full(3, 2.0))
    np.testing.assert_allclose(log_p, norm.logpdf([0, 2, 2]), rtol=1e-6)


def test_discrete_ones_keep_their_own():
    fn = spared(dist.Bernoulli(0.3).expand([3]).mask(jnp.asarray(USED)))
    np.testing.assert_allclose(fn.log_prob(jnp.ones(3)), np.log(0.3), rtol=1e-6)
    assert fn.has_enumerate_support


def test_parameters_feel_only_what_was_not_seen():
    """The gradient of log p in the mean: of seen rows as observations, of the others as latents, and nothing twice."""

    def model(x):
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        with numpyro.plate("row", len(x)):
            numpyro.sample("x", dist.Normal(mean, 2.0), obs=jnp.nan_to_num(x), obs_mask=~jnp.isnan(x))

    x = np.array([1.0, np.nan, 4.0])
    with density.precision("float64"):
        target = density.read(model, {"x": x})
        z = np.array([0.5, 7.0, -3.0, 9.0])  # mean, then a latent a row
        gradient = jax.grad(target.log_p)(jnp.asarray(z), target.arrays)
    seen = -0.5 / 100 + (1 - 0.5 + 4 - 0.5 + -3 - 0.5) / 4
    np.testing.assert_allclose(gradient, [seen, -7.0, -(-3 - 0.5) / 4, -9.0], rtol=1e-12)
