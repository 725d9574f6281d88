"""The best Gaussian q for one datum, found by ascent of its own ELBO from where the encoder put it.

Cremer, Li and Duvenaud 2018, arXiv 1801.03558. Steps are taken in the starting q's own sds, by gradients of the path alone, which have no
noise where q is the posterior (Roeder, Wu and Duvenaud 2017, arXiv 1703.09194).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

LEARNING_RATE = 0.1
"""At the start of a round, in sds; it falls to zero along a cosine."""
SMALL = 0.3
"""Slopes below this, nats an sd, are followed as they are: with Adam's own eps those of a q that is already the best become whole steps."""


class Gaussian(NamedTuple):
    """A Gaussian in d coordinates."""

    loc: jax.Array
    """(d,)"""
    factor: jax.Array
    """(d,): sds; or (d, d): lower Cholesky factor of the covariance."""

    def at(self, noise) -> jax.Array:
        """Standard normal noise (d,) -> a draw (d,)."""
        return self.loc + (self.factor * noise if self.factor.ndim == 1 else self.factor @ noise)

    def log_density_of(self, noise) -> jax.Array:
        """Log density of the draw that `noise` makes, nats."""
        sds = self.factor if self.factor.ndim == 1 else jnp.diag(self.factor)
        return -0.5 * (noise @ noise + noise.size * jnp.log(2 * jnp.pi)) - jnp.log(sds).sum()


class _Change(NamedTuple):
    """What is optimised: the new q in coordinates where the old one is standard normal."""

    shift: jax.Array
    log_sds: jax.Array
    below: jax.Array
    """(d, d), of which the part below the diagonal counts; (0,) for a diagonal q."""

    def gaussian(self) -> Gaussian:
        sds = jnp.exp(self.log_sds)
        return Gaussian(self.shift, sds if self.below.ndim == 1 else jnp.diag(sds) + jnp.tril(self.below, -1))


def improved(rng_key, log_p: Callable, start: Gaussian, num_steps: int, num_particles: int) -> Gaussian:
    """One round of ascent from `start`.

    Args:
        rng_key: a JAX key.
        log_p: (d,) -> log p(x, z), nats, unconstrained.
        start: where it begins, and its units.
        num_steps: of Adam.
        num_particles: draws a step.
    """
    dim, dtype = start.loc.size, start.loc.dtype
    change = _Change(jnp.zeros(dim, dtype), jnp.zeros(dim, dtype), jnp.zeros(0 if start.factor.ndim == 1 else (dim, dim), dtype))
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps), b2=0.99, eps=SMALL)

    def loss(change, noise):
        fixed = jax.lax.stop_gradient(change).gaussian()

        def weight(noise):
            w = change.gaussian().at(noise)
            if start.factor.ndim == 1:
                back = (w - fixed.loc) / fixed.factor
            else:
                back = jax.scipy.linalg.solve_triangular(fixed.factor, w - fixed.loc, lower=True)
            return log_p(start.at(w)) - fixed.log_density_of(back)

        return -jax.vmap(weight)(noise).mean()

    def step(carry, key):
        change, state = carry
        noise = jax.random.normal(key, (num_particles, dim), dtype)
        slope = jax.tree.map(lambda s: jnp.where(jnp.isfinite(s), s, 0.0), jax.grad(loss)(change, noise))
        update, state = optimizer.update(slope, state)
        return (jax.tree.map(jnp.add, change, update), state), None

    (change, _), _ = jax.lax.scan(step, (change, optimizer.init(change)), jax.random.split(rng_key, num_steps))
    new = change.gaussian()
    factor = start.factor * new.factor if start.factor.ndim == 1 else start.factor @ new.factor
    return Gaussian(start.at(new.loc), factor)
