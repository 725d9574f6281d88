"""Low-rank Gaussian VI: a diagonal plus a few directions, for posteriors with many latents.

Ong, Nott and Smith 2018, arXiv 1701.03208 (Gaussian variational approximation with a factor covariance structure).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.distributions import LowRankMultivariateNormal

from vipatterns import gaussian, mode
from vipatterns.errors import InputError
from vipatterns.posterior import Fit


@dataclass(frozen=True)
class LowRank:
    """q(z) = N(loc, diag(scale^2) + W W'), W with `rank` columns: D (rank + 2) parameters instead of FullRank's D (D + 3) / 2."""

    rank: int = 8
    """Directions in which latents may be correlated; at most the number of latents is used."""
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
        if self.rank < 1:
            raise InputError(f"rank must be at least 1, got {self.rank}; MeanField is the family without correlations.")
        return gaussian.fit(self, Factor(self.rank), rng_key, model, data, args=args, coords=coords, dims=dims, progress=progress)


@dataclass(frozen=True)
class Factor:
    """Covariance diag(scale^2) + W W'; a `gaussian.Family`. W is kept in units of the scales that the curvature gives."""

    rank: int

    def num_noise(self, dim):
        return dim + min(self.rank, dim)

    def initial(self, rng_key, num_restarts, dim, dtype):
        noise = jax.random.normal(rng_key, (num_restarts, dim, 1 + min(self.rank, dim)), dtype=dtype)
        return {"log_scale": 0.3 * noise[..., 0], "change": 0.03 * noise[..., 1:]}

    def coordinates(self, around):
        """A diagonal and directions that come near the covariance which the curvature gives: principal factors of its correlations."""
        if around.factor.ndim == 1:
            rank = min(self.rank, len(around.factor))
            return {"log_scale": np.log(around.factor), "directions": np.zeros((len(around.factor), rank))}
        sds = np.sqrt((around.factor**2).sum(1))
        correlation = around.factor @ around.factor.T / np.outer(sds, sds)
        unique, directions = np.full(len(sds), 0.5), np.zeros((len(sds), 0))
        for _ in range(50):  # principal-axis factoring: the diagonal keeps what the directions leave
            values, vectors = np.linalg.eigh(correlation - np.diag(unique))
            kept = slice(len(sds) - min(self.rank, len(sds)), None)
            directions = vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0))
            unique = np.clip(1 - (directions**2).sum(1), 0.005, 1)
        return {"log_scale": np.log(sds) + 0.5 * np.log(unique), "directions": directions * sds[:, None]}

    def parts(self, shape, context):
        """scale (D,), W (D, rank)."""
        scale = jnp.exp(context["log_scale"] + shape["log_scale"])
        return scale, context["directions"] + jnp.exp(context["log_scale"])[:, None] * shape["change"]

    def q(self, loc, shape, context):
        scale, directions = self.parts(shape, context)
        return LowRankMultivariateNormal(loc, directions, scale**2)

    def offset(self, shape, context, noise):
        scale, directions = self.parts(shape, context)
        dim = scale.shape[0]
        return noise[..., :dim] * scale + noise[..., dim:] @ directions.T

    def entropy(self, shape, context):
        return self.q(jnp.zeros_like(shape["log_scale"]), shape, context).entropy()

    def expected_quadratic(self, shape, context):
        scale, directions = self.parts(shape, context)
        hessian = context["hessian"]
        diagonal = hessian if hessian.ndim == 1 else jnp.diagonal(hessian)
        return (diagonal * scale**2).sum() + (directions.T * mode.scaled(hessian, directions.T)).sum()

    def log_sds(self, shape, context):
        scale, directions = self.parts(shape, context)
        return 0.5 * jnp.log(scale**2 + (directions**2).sum(1))

    def log_q(self, z, loc, shape, context):
        return self.q(loc, shape, context).log_prob(z)

    def rebased(self, shape, old, new):
        scale, directions = self.parts(shape, old)
        unit = jnp.exp(new["log_scale"])[:, None]
        return {"log_scale": jnp.log(scale) - new["log_scale"], "change": (directions - new["directions"]) / unit}
