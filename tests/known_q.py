"""Fits whose q is a Gaussian put there by hand: exact where the posterior is Gaussian, and as wrong as a test wants it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import multivariate_normal

import vipatterns as vip
from vipatterns import density
from vipatterns.certification import Account, Proposal, certify


def fit_of(rng_key, model, data=None, *, scale=1.0, num_steps=30, method=None, args=(), coords=None, dims=None, num_samples=1_000):
    """A Fit with q = N(mode, scale^2 times the inverse curvature), found by damped Newton steps from the prior's centre."""
    clock = density.Clock()
    with density.precision("float64"):
        target = density.read(model, data, args=args)

        @jax.jit
        def newton(z, arrays):
            gradient, hessian = jax.grad(target.log_p)(z, arrays), -jax.hessian(target.log_p)(z, arrays)
            step = jnp.linalg.solve(hessian, gradient)
            rates = 0.5 ** jnp.arange(12)
            values = jax.vmap(target.log_p, (0, None))(z + rates[:, None] * step, arrays)
            return z + rates[jnp.nanargmax(values)] * step, hessian

        z = target.prior_centre(target.arrays)
        for _ in range(num_steps):
            z, hessian = newton(z, target.arrays)
        covariance = scale**2 * jnp.linalg.inv(hessian)
        root = jnp.linalg.cholesky(covariance)
        proposal = Proposal(
            lambda key, i: z + root @ jax.random.normal(key, z.shape),
            lambda point, i: multivariate_normal.logpdf(point, z, covariance),
            np.array([0]),
        )
        account = Account("converged: put there by hand")
        return certify(
            rng_key, method or vip.MeanField(), target, proposal, account, clock, num_samples=num_samples, coords=coords, dims=dims
        )
