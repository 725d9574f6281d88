"""Curvature coordinates, z = loc + factor @ u: the posterior is about a unit Gaussian in u, whatever the units of z.

`mode.Start` has them in NumPy, for the host; here they are in JAX, for a q that is defined in u and weighed in z.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from vipatterns import mode
from vipatterns.certification import Proposal


@dataclass(frozen=True)
class Coordinates:
    """Both ways between u and z; `of` makes them."""

    loc: jax.Array
    """(D,)."""
    factor: jax.Array
    """(D, D) lower triangular, or (D,) sds."""
    inverse: jax.Array
    """Of factor: XLA's batched triangular solve takes longer than a network does, so it is made once."""
    log_det: jax.Array
    """Of factor, nats: log q(z) is log q(u) less this."""

    def z(self, u) -> jax.Array:
        """u (..., D) -> z (..., D)."""
        return self.loc + mode.scaled(self.factor, u)

    def u(self, z) -> jax.Array:
        """z (..., D) -> u (..., D)."""
        return mode.scaled(self.inverse, z - self.loc)

    def proposal(self, draw: Callable, log_q: Callable, components: np.ndarray) -> Proposal:
        """What is drawn and weighed in z of a q in u: (rng_key, component) -> u, (u, component) -> log q(u)."""
        return Proposal(lambda rng_key, i: self.z(draw(rng_key, i)), lambda z, i: log_q(self.u(z), i) - self.log_det, components)


def of(start: mode.Start) -> Coordinates:
    """The coordinates of a start."""
    loc, factor = jnp.asarray(start.loc), jnp.asarray(start.factor)
    if factor.ndim == 1:
        return Coordinates(loc, factor, 1 / factor, jnp.log(factor).sum())
    inverse = solve_triangular(factor, jnp.eye(len(loc), dtype=factor.dtype), lower=True)
    return Coordinates(loc, factor, inverse, jnp.log(jnp.diagonal(factor)).sum())
