"""Full-rank Gaussian VI: one Gaussian with any covariance, in unconstrained coordinates.

Titsias and Lazaro-Gredilla 2014 (ICML); Kucukelbir et al. 2017, arXiv 1603.00788 (full-rank ADVI).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import MultivariateNormal

from vipatterns import gaussian
from vipatterns.posterior import Fit


@dataclass(frozen=True)
class FullRank:
    """q(z) = N(loc, L L'), with D (D + 1) / 2 parameters in L: for up to a few hundred latents; above, `LowRank`.

    Exact on Gaussian posteriors however correlated; it still misses skewness, funnels and further modes.
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
        return gaussian.fit(self, Cholesky(), rng_key, model, data, args=args, coords=coords, dims=dims, progress=progress)


class Cholesky:
    """Covariance L L', L = factor T with T lower triangular, its diagonal exp(log_diagonal); a `gaussian.Family`."""

    def num_noise(self, dim):
        return dim

    def initial(self, rng_key, num_restarts, dim, dtype):
        noise = 0.3 * jax.random.normal(rng_key, (num_restarts, dim), dtype=dtype)
        return {"log_diagonal": noise, "lower": jnp.zeros((num_restarts, dim, dim), dtype)}

    def coordinates(self, around):
        factor = around.factor
        return {"factor": factor, "tril": jnp.diag(factor) if factor.ndim == 1 else factor}

    def triangle(self, shape):
        """T."""
        return jnp.tril(shape["lower"], -1) + jnp.diag(jnp.exp(shape["log_diagonal"]))

    def tril(self, shape, context):
        """L."""
        return context["tril"] @ self.triangle(shape)

    def offset(self, shape, context, noise):
        return noise @ self.tril(shape, context).T

    def entropy(self, shape, context):
        log_det = shape["log_diagonal"].sum() + jnp.log(jnp.diagonal(context["tril"])).sum()
        return log_det + gaussian.unit_entropy(shape["log_diagonal"].shape[-1])

    def expected_quadratic(self, shape, context):
        return (self.triangle(shape) ** 2).sum()  # H is the inverse of factor factor'

    def log_sds(self, shape, context):
        return 0.5 * jnp.log((self.tril(shape, context) ** 2).sum(1))

    def log_q(self, z, loc, shape, context):
        return MultivariateNormal(loc, scale_tril=self.tril(shape, context)).log_prob(z)

    def rebased(self, shape, old, new):
        triangle = solve_triangular(new["tril"], self.tril(shape, old), lower=True)
        return {"log_diagonal": jnp.log(jnp.diagonal(triangle)), "lower": jnp.tril(triangle, -1)}
