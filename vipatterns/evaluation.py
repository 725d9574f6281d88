"""log p and the model's sites at many points, by one compiled program for blocks of a fixed number of points."""

import math

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
        log_p, values = zip(*self._blocks(z), strict=True)
        wanted = [k for k in (*self.target.latents, *self.target.deterministics) if k in values[0]]
        return self._joined(log_p, z), {k: self._joined([v[k] for v in values], z) for k in wanted}

    def log_p(self, z: np.ndarray) -> np.ndarray:
        """(..., D) -> (...), nats."""
        return self._joined([log_p for log_p, _ in self._blocks(z)], z)

    def _blocks(self, z: np.ndarray) -> list:
        flat = z.reshape(-1, z.shape[-1])
        padded = np.concatenate([flat, np.repeat(flat[-1:], -len(flat) % self.block, 0)])
        return [self.program(jnp.asarray(b), self.target.arrays) for b in padded.reshape(-1, self.block, z.shape[-1])]

    def _joined(self, parts, z: np.ndarray) -> np.ndarray:
        whole = np.concatenate([np.asarray(part) for part in parts])[: math.prod(z.shape[:-1])]
        return whole.reshape(*z.shape[:-1], *whole.shape[1:])
