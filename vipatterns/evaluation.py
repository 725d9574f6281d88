"""log p and the model's sites at many points, by one compiled program for blocks of a fixed number of points."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipatterns.density import Clock, Density

MAX_DETERMINISTIC_BYTES = 1e9
"""Deterministic sites are left out of the draws when they would take more than this in a block."""
LARGEST_BLOCK, SMALLEST_BLOCK = 2_048, 256
FAST_ELEMENTS, FAST_POINTS = 4e6, 16
"""Where not all points fit in memory at once, the largest array of a batch has so many elements: fresh memory costs as much as the
arithmetic done in it. But so many points at least, by which the data are read less often."""
LONGEST = 4
"""Blocks in one call where points go through in batches: the batches' memory is fresh in each call."""


def few(target: Density, tangents: int = 1) -> int:
    """How many points go through at once where not all can: a power of two; each takes so many arrays of the model's size."""
    wanted = max(FAST_POINTS, FAST_ELEMENTS // max(target.widest, target.dim))
    return 2 ** int(math.log2(max(min(target.batch_size(10**9), wanted) // tangents, 1)))


def over_first(function: Callable, batch: int) -> Callable:
    """(points, count, arrays) -> value at the first `count` points and zeros beyond, in batches: padding costs nothing.

    `batch` divides the number of points.
    """
    each = jax.vmap(function, (0, None))

    def run(points, count, arrays):
        whole = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(each, points, arrays))

        def some(i, whole):
            values = each(jax.lax.dynamic_slice_in_dim(points, i * batch, batch), arrays)
            return jax.tree.map(lambda to, part: jax.lax.dynamic_update_slice_in_dim(to, part, i * batch, 0), whole, values)

        return jax.lax.fori_loop(0, -(-count // batch), some, whole)

    return run


class Points:
    """z -> log p and sites. The program serves the search for a start, the certificate, and every draw that is made later."""

    def __init__(self, target: Density, clock: Clock):
        size = sum(math.prod(s.shape) for s in target.deterministics.values())
        self.target = target
        self.block = int(np.clip(2e8 / target.num_data, SMALLEST_BLOCK, LARGEST_BLOCK))
        self.left_out = sorted(target.deterministics) if 8 * size * self.block > MAX_DETERMINISTIC_BYTES else []
        self.size = target.dim + (0 if self.left_out else size)

        def at(z, arrays):
            return target.log_p(z, arrays), target.constrain(z, arrays, deterministic=not self.left_out)

        if target.batch_size(self.block) == self.block:
            self.rows = self.block
            example = jnp.zeros((self.rows, target.dim), target.dtype), target.arrays
            program = target.compiled(clock, "points", jax.vmap(at, (0, None)), *example)
            self.program = lambda points, count: program(points, target.arrays)
        else:
            batch = few(target)
            blocks = 1 if 8 * self.size * self.block * LONGEST > MAX_DETERMINISTIC_BYTES else LONGEST
            self.rows = -(-self.block * blocks // batch) * batch
            example = jnp.zeros((self.rows, target.dim), target.dtype), jnp.asarray(0), target.arrays
            longer = target.compiled(clock, "points", over_first(at, batch), *example)
            self.program = lambda points, count: longer(points, jnp.asarray(count), target.arrays)

    def __call__(self, z: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(..., D) -> log p (...), and site -> (..., *shape)."""
        log_p, values = self._filled(z, lambda out: out)
        wanted = [k for k in (*self.target.latents, *self.target.deterministics) if k in values]
        return log_p, {k: values[k] for k in wanted}

    def log_p(self, z: np.ndarray) -> np.ndarray:
        """(..., D) -> (...), nats."""
        return self._filled(z, lambda out: out[0])

    def _filled(self, z: np.ndarray, part: Callable) -> Any:
        """What `part` keeps of each block's results, written where it stays: many draws of many sites are held once."""
        flat = z.reshape(-1, z.shape[-1])
        whole = None
        for start in range(0, len(flat), self.rows):
            taken = np.arange(start, start + self.rows).clip(max=len(flat) - 1)  # the last block is padded
            out = jax.tree.map(np.asarray, part(self.program(jnp.asarray(flat[taken]), min(self.rows, len(flat) - start))))
            if whole is None:
                whole = jax.tree.map(lambda leaf: np.empty((len(flat), *leaf.shape[1:]), leaf.dtype), out)
            for to, leaf in zip(jax.tree.leaves(whole), jax.tree.leaves(out), strict=True):
                to[start : start + self.rows] = leaf[: len(to) - start]
        return jax.tree.map(lambda leaf: leaf.reshape(*z.shape[:-1], *leaf.shape[1:]), whole)
