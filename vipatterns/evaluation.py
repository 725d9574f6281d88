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

        block = jnp.zeros((self.block, target.dim), target.dtype)
        self.program = target.compiled(clock, "points", target.over_points(at, self.block), block, target.arrays)

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
        for start in range(0, len(flat), self.block):
            taken = np.arange(start, start + self.block).clip(max=len(flat) - 1)  # the last block is padded
            out = jax.tree.map(np.asarray, part(self.program(jnp.asarray(flat[taken]), self.target.arrays)))
            if whole is None:
                whole = jax.tree.map(lambda leaf: np.empty((len(flat), *leaf.shape[1:]), leaf.dtype), out)
            for to, leaf in zip(jax.tree.leaves(whole), jax.tree.leaves(out), strict=True):
                to[start : start + self.block] = leaf[: len(to) - start]
        return jax.tree.map(lambda leaf: leaf.reshape(*z.shape[:-1], *leaf.shape[1:]), whole)
