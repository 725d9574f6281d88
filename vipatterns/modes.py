"""What the search for a mode says of further modes: copies of one mode with its labels permuted, or modes of their own."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from vipatterns.density import Clock, Density
from vipatterns.mode import Start

MAX_LABELS = 20
"""Axes longer than this are rows of data, not labels."""
SAME = 1e-6
"""Log densities that differ by less than this, relative to their size, are equal."""


@dataclass(frozen=True)
class Modes:
    """What was found besides the mode that was fitted."""

    log_copies: float = 0.0
    """Log of the number of distinct relabelled copies, nats: what the log evidence of one labelling lacks."""
    labels: dict[str, int] = field(default_factory=dict)
    """Latent site -> the axis along which its labels can be permuted; empty where they cannot."""
    others: np.ndarray | None = None
    """(M, D) modes that are no copies; None where nothing was looked at."""


def examine(target: Density, start: Start, clock: Clock) -> Modes:
    """Sorts the modes that the search met into relabelled copies and others."""
    if start.others is None or len(start.others) == 0:
        return Modes(others=start.others)
    groups: dict[int, dict[str, int]] = {}  # number of labels -> site -> the axis that they run along
    for name, site in target.latents.items():
        for axis, size in enumerate(site.shape):
            if 2 <= size <= MAX_LABELS:
                groups.setdefault(size, {}).setdefault(name, axis)
    for size, axes in groups.items():
        permuted = _swapped(target, axes, size)
        zeros = jnp.zeros((4, target.dim), target.dtype)
        program = target.compiled(clock, f"permuted {size} labels", jax.vmap(permuted, (0, None)), zeros, target.arrays)
        # Points off the mode, so that a symmetry of the mode alone does not count.
        noise = np.random.default_rng(0).standard_normal((4, target.dim))
        values, swapped = (np.asarray(v) for v in program(jnp.asarray(start.loc + 0.5 * start.sds * noise, target.dtype), target.arrays))
        if np.allclose(swapped, values[:, None], rtol=SAME, atol=SAME):
            return Modes(_log_copies(target, start, axes, size), axes, _no_copies(target, start, axes))
    return Modes(others=start.others)


def _swapped(target: Density, axes: dict[str, int], size: int):
    """(z, arrays) -> constrained log density, and the same with labels i and i + 1 exchanged, for each i."""

    def density(values, arrays):
        z, log_jacobian = target.unconstrain(values, arrays)
        return target.log_p(z, arrays) - log_jacobian

    def both(z, arrays):
        values = target.constrain(z, arrays, deterministic=False)
        out = []
        for i in range(size - 1):
            order = np.arange(size)
            order[[i, i + 1]] = i + 1, i
            out.append(density({k: jnp.take(v, order, axis=axes[k]) if k in axes else v for k, v in values.items()}, arrays))
        return density(values, arrays), jnp.stack(out)

    return both


def _log_copies(target: Density, start: Start, axes: dict[str, int], size: int) -> float:
    """Log of K! over the labels that cannot be told apart at the mode, whose exchange gives no new copy."""
    values = {k: np.moveaxis(np.asarray(v), axes[k], 0) for k, v in _at(target, start.loc).items() if k in axes}
    spread = {k: np.moveaxis(np.asarray(v), axes[k], 0) for k, v in _at(target, start.loc + start.sds).items() if k in axes}
    groups: list[int] = []
    for i in range(size):
        for leader in set(groups):
            if all((np.abs(v[i] - v[leader]) < 3 * np.abs(spread[k][leader] - v[leader])).all() for k, v in values.items()):
                groups.append(leader)
                break
        else:
            groups.append(i)
    sizes = np.unique(groups, return_counts=True)[1]
    return math.lgamma(size + 1) - sum(math.lgamma(n + 1) for n in sizes)


def _no_copies(target: Density, start: Start, axes: dict[str, int]) -> np.ndarray:
    """The other modes whose labelled values are not a rearrangement of the start's."""

    def ordered(z):
        return np.sort(np.concatenate([np.ravel(v) for k, v in _at(target, z).items() if k in axes]))

    assert start.others is not None
    kept = [z for z in start.others if not np.allclose(ordered(z), ordered(start.loc), rtol=1e-3, atol=1e-3)]
    return np.array(kept).reshape(-1, target.dim)


def _at(target: Density, z: np.ndarray) -> dict:
    return target.constrain(jnp.asarray(z), target.arrays, deterministic=False)
