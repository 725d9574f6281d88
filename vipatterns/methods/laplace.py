"""Laplace's approximation: the Gaussian with the mode's curvature, in unconstrained coordinates.

Tierney and Kadane 1986, doi 10.1080/01621459.1986.10478240. The mode is found from many starts; where it lies at infinity (funnels,
centred hierarchies) the Gaussian sits at the point of the path with the highest ELBO instead, and the account says so.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import MultivariateNormal, Normal

from vipatterns import keys, mode, modes
from vipatterns.certification import Account, Proposal, certify
from vipatterns.density import Clock, precision, read
from vipatterns.posterior import Fit


@dataclass(frozen=True)
class Laplace:
    """q(z) = N(mode, inverse Hessian of -log p there): no optimisation of an ELBO, so the cheapest; good with much data."""

    num_starts: int = 8
    """Starts of the mode search, at most; fewer where a Hessian is dear."""
    num_samples: int = 1_000
    """Posterior draws a chain, four chains."""
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
        clock = Clock()
        with precision(self.dtype):
            target = read(model, data, args=args, dtype=self.dtype)
            start = mode.find(keys.split(rng_key)[0], target, clock, num_starts=self.num_starts)
            loc, factor = jnp.asarray(start.loc), jnp.asarray(start.factor)
            q = Normal(loc, factor).to_event(1) if factor.ndim == 1 else MultivariateNormal(loc, scale_tril=factor)
            where = "the mode" if start.at_mode else "no mode was found, it may lie at infinity: the best point of the path"
            diagonal = ", with the diagonal of the curvature only" if np.ndim(start.factor) == 1 else ""
            return certify(
                rng_key,
                self,
                target,
                Proposal(lambda key, i: q.sample(key), lambda z, i: q.log_prob(z), np.array([0])),
                Account(f"converged: {where}{diagonal}", modes=modes.examine(target, start, clock)),
                clock,
                num_samples=self.num_samples,
                coords=coords,
                dims=dims,
            )
