"""Mean-field Gaussian VI: q is a product of independent Gaussians in unconstrained coordinates.

Kucukelbir, Tran, Ranganath, Gelman and Blei 2017, arXiv 1603.00788 (ADVI).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm

from vipatterns import gaussian
from vipatterns.posterior import Fit


@dataclass(frozen=True)
class MeanField:
    """q(z) = product of N(loc_i, scale_i^2) over unconstrained scalars.

    The means are optimised along the axes of the curvature at the start and the scales in its units, so the units of a latent
    do not matter; the family stays diagonal. Expect sds that are too small where the posterior is correlated.
    """

    num_steps: int = 20_000
    """Step budget a restart; it stops by itself when converged."""
    num_restarts: int = 4
    """Independent starts, fitted side by side in one program; q is the mixture of those that ended well."""
    num_particles: int | None = None
    """Draws of q a gradient, in antithetic pairs; by default 32, fewer (down to 8) when the data are large."""
    batch_size: int | None = None
    """Rows of the data plate a gradient; None takes all. The search for a mode and the certificate always read all of them."""
    learning_rate: float = 0.1
    """First step size, in posterior sds; it decays by itself."""
    num_samples: int = 1_000
    """Posterior draws a chain, four chains."""
    optimizer: optax.GradientTransformation | None = None
    """Scales gradients before the step size; default optax.scale_by_adam()."""
    dtype: str = "float64"
    """Of all that is computed: float64, or float32."""

    def fit(
        self,
        rng_key,
        model: Callable,
        data: dict | None = None,
        *,
        args: tuple = (),
        coords: dict | None = None,
        dims: dict | None = None,
        progress: bool | None = None,
    ) -> Fit:
        """Fits q to the posterior of `model` given `data`; see `vip.fit` for the arguments."""
        return gaussian.fit(self, Diagonal(), rng_key, model, data, args=args, coords=coords, dims=dims, progress=progress)


class Diagonal:
    """Covariance diag(scale^2); a `gaussian.Family`. Its parameters are log scales relative to 1 / sqrt(diag H)."""

    def num_noise(self, dim):
        return dim

    def initial(self, rng_key, num_restarts, dim, dtype):
        return 0.3 * jax.random.normal(rng_key, (num_restarts, dim), dtype=dtype)

    def coordinates(self, around):
        return {"diagonal": around.precision_diagonal, "log_scale": -0.5 * jnp.log(around.precision_diagonal)}

    def offset(self, shape, context, noise):
        return jnp.exp(self.log_sds(shape, context)) * noise

    def entropy(self, shape, context):
        return self.log_sds(shape, context).sum() + gaussian.unit_entropy(shape.shape[-1])

    def expected_quadratic(self, shape, context):
        return (context["diagonal"] * jnp.exp(2 * self.log_sds(shape, context))).sum()

    def log_sds(self, shape, context):
        return context["log_scale"] + shape

    def log_q(self, z, loc, shape, context):
        return norm.logpdf(z, loc, jnp.exp(self.log_sds(shape, context))).sum(-1)

    def rebased(self, shape, old, new):
        return self.log_sds(shape, old) - new["log_scale"]
