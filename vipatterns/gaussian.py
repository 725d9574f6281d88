"""Gaussian VI in unconstrained coordinates, by SVI in curvature coordinates: the part that all Gaussian families share.

A family is a covariance structure. The mean is optimised along the axes of the curvature and the covariance relative to it, so that
the units of a latent do not matter.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vipatterns import minibatch, mode, modes, svi
from vipatterns.certification import Account, Proposal, certify
from vipatterns.density import Clock, precision, read
from vipatterns.posterior import Fit

NUM_CONTEXT_DRAWS = 16


class Family(Protocol):
    """A covariance structure. `shape` are its parameters, zero where q has the curvature's covariance; `context` the coordinates."""

    def num_noise(self, dim: int) -> int:
        """Standard normals that one draw takes."""
        ...

    def initial(self, rng_key, num_restarts: int, dim: int, dtype: str) -> Any:
        """Dispersed parameters, every leaf with a leading axis of restarts."""
        ...

    def coordinates(self, around: mode.Start) -> dict:
        """What the functions below need of the curvature."""
        ...

    def offset(self, shape, context: dict, noise) -> jax.Array:
        """z - loc (M, D) of standard normals (M, num_noise)."""
        ...

    def entropy(self, shape, context: dict) -> jax.Array:
        """Of q, nats."""
        ...

    def expected_quadratic(self, shape, context: dict) -> jax.Array:
        """E of offset' H offset."""
        ...

    def log_sds(self, shape, context: dict) -> jax.Array:
        """(D,) log sds of q's marginals."""
        ...

    def log_q(self, z, loc, shape, context: dict) -> jax.Array:
        """Log density at z (D,), nats."""
        ...

    def rebased(self, shape, old: dict, new: dict) -> Any:
        """Parameters of the same covariance in other coordinates."""
        ...


def unit_entropy(dim: int) -> float:
    """Of a standard Gaussian, nats."""
    return 0.5 * dim * (1 + math.log(2 * math.pi))


def fit(
    method: Any,
    family: Family,
    rng_key,
    model: Callable,
    data: dict | None,
    *,
    args: tuple,
    coords: dict | None,
    dims: dict | None,
    progress: bool | None,
) -> Fit:
    """Fits a Gaussian of `family` to a posterior. The settings of `method` are those of `vip.MeanField`."""
    key_mode, key_start, key_svi, key_context = jax.random.split(rng_key, 4)
    clock = Clock()
    with precision(method.dtype):
        target = read(model, data, args=args, dtype=method.dtype)
        log_p, num_data = minibatch.log_p(target, method.batch_size)
        start = mode.find(key_mode, target, clock)
        num_particles = svi.num_particles(method.num_particles, num_data)

        def locate(params, context):
            return context["loc"] + mode.scaled(context["factor"], params["loc"])

        def noise_of(rng_key, num: int):
            return svi.antithetic(rng_key, num, family.num_noise(target.dim), method.dtype)

        def loss(params, rng_key, context, arrays):
            # Antithetic pairs cancel the noise of a Gaussian target in the gradient of loc, and the quadratic that the curvature
            # predicts cancels it in that of the covariance (Miller et al. 2017, arXiv 1705.07880): what is left is the target's shape.
            key_noise, key_batch = jax.random.split(rng_key)
            offset = family.offset(params["shape"], context, noise_of(key_noise, num_particles))
            z = locate(params, context) + offset
            steady = minibatch.steadied(log_p, context["centre"]) if method.batch_size else log_p
            value = jax.vmap(steady, (0, None, None))(z, key_batch, arrays).mean()
            quadratic = (mode.scaled(context["hessian"], offset) * offset).sum(-1).mean()
            predicted = family.expected_quadratic(params["shape"], context)
            return -value - 0.5 * context["trust"] * (quadratic - predicted) - family.entropy(params["shape"], context)

        def monitor(params, context):
            return jnp.concatenate([params["loc"], family.log_sds(params["shape"], context)])

        def context_of(loc, offsets):
            around = start.around(loc, offsets)
            context = {"loc": loc, "factor": around.factor, "hessian": around.hessian, "trust": around.trust}
            arrays = {k: jnp.asarray(v) for k, v in (context | family.coordinates(around)).items()}
            return around, arrays | ({"centre": minibatch.centre(start.derivatives, loc)} if method.batch_size else {})

        def refresh(params, elbos, context):
            locs, best = np.asarray(jax.vmap(locate, (0, None))(params, context)), int(np.nanargmax(elbos))
            half = noise_of(key_context, NUM_CONTEXT_DRAWS)[: NUM_CONTEXT_DRAWS // 2]
            shape = jax.tree.map(lambda leaf: leaf[best], params["shape"])
            around, fresh = context_of(locs[best], np.asarray(family.offset(shape, context, half)))
            shapes = jax.vmap(family.rebased, (0, None, None))(params["shape"], context, fresh)
            # A restart that is lost starts anew beside the best: far out its ELBO is so noisy that one day it passes for the best, and
            # takes the coordinates away from all others.
            lost = ~(elbos >= elbos[best] - svi.NEGLIGIBLE)
            shapes = jax.tree.map(lambda leaf: jnp.where(lost.reshape(-1, *[1] * (leaf.ndim - 1)), leaf[best], leaf), shapes)
            away = np.where(lost[:, None], 0.3 * dispersed, around.unscaled(locs - locs[best]))
            return {"loc": jnp.asarray(away), "shape": shapes}, fresh

        key_loc, key_shape = jax.random.split(key_start)
        dispersed = jax.random.normal(key_loc, (method.num_restarts, target.dim), dtype=method.dtype)
        half = np.asarray(jax.random.normal(key_context, (NUM_CONTEXT_DRAWS // 2, target.dim), dtype=method.dtype))
        optimum = svi.optimise(
            key_svi,
            loss,
            {
                "loc": dispersed,
                "shape": family.initial(key_shape, method.num_restarts, target.dim, method.dtype),
            },
            context_of(start.loc, half / np.sqrt(start.precision_diagonal))[1],
            target.arrays,
            clock,
            num_steps=method.num_steps,
            learning_rate=method.learning_rate,
            monitor=monitor,
            refresh=refresh,
            optimizer=method.optimizer,
            chunk_size=svi.chunk_size(method.num_restarts * num_particles * num_data),
            progress=progress,
            title=type(method).__name__,
        )
        context, shapes = optimum.context, optimum.params["shape"]
        locs = jax.vmap(locate, (0, None))(optimum.params, context)

        def at(i):
            return jax.tree.map(lambda leaf: leaf[i], shapes)

        def draw(rng_key, i):
            noise = jax.random.normal(rng_key, (1, family.num_noise(target.dim)), dtype=method.dtype)
            return locs[i] + family.offset(at(i), context, noise)[0]

        proposal = Proposal(draw, lambda z, i: family.log_q(z, locs[i], at(i), context), svi.kept_restarts(optimum.elbos))
        found = modes.examine(target, start, clock)
        account = Account(optimum.stopped_because, optimum.num_steps, optimum.losses, optimum.rhat, modes=found)
        return certify(rng_key, method, target, proposal, account, clock, num_samples=method.num_samples, coords=coords, dims=dims)
