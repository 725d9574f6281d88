"""DADVI on many data sets of one shape: modes and optima of all of them, by two compiled programs.

Data sets are lanes of Newton's method. It takes about ten steps, and a lane that is done leaves the batch: none waits for the slowest.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vipatterns import linear_response, mode, newton
from vipatterns.density import Clock, Density
from vipatterns.linear_response import Blocks, Optimum

MAX_LANES = 32
"""Data sets that go through a compiled program at once: few enough that their Hessians stay in a processor's cache."""
NUM_STARTS = 4


def optima(
    rng: np.random.Generator, targets: Sequence[Density], like: mode.Start, base: np.ndarray, clock: Clock
) -> list[tuple[mode.Start, Optimum] | None]:
    """The best mode of each data set, and the ELBO's optimum from there.

    Args:
        rng: disperses the starts of the search for modes.
        targets: one model on data sets of one shape.
        like: the start that `mode.find` gives for one of them.
        base: (K, D) fixed draws of the ELBO.
        clock: counts compile time.

    Returns:
        One for each data set; None where no start met a mode, or where draws around it leave the support of log p.
    """
    modes = {i: start for i, start in enumerate(_modes(rng, targets, like, clock)) if start is not None}
    climbed = _climb([targets[i] for i in modes], list(modes.values()), base, clock)
    found = {i: (modes[i], optimum) for i, optimum in zip(modes, climbed, strict=True) if optimum is not None}
    return [found.get(i) for i in range(len(targets))]


def _modes(rng: np.random.Generator, targets: Sequence[Density], like: mode.Start, clock: Clock) -> list[mode.Start | None]:
    target, dim = targets[0], targets[0].dim

    def derivatives(z, arrays):
        def negative(z):
            return -target.log_p(z, arrays)

        return negative(z), jax.grad(negative)(z), jax.hessian(negative)(z)

    run = _lanes("many derivatives", derivatives, targets, clock, points_a_lane=1)
    random = rng.uniform(-2, 2, (len(targets), NUM_STARTS - 2, dim))
    same = np.broadcast_to(np.stack([like.loc, np.zeros(dim)]), (len(targets), 2, dim))
    starts = np.concatenate([same, random], axis=1).reshape(-1, dim)
    found = newton.minimise(lambda points, lanes: run(lanes // NUM_STARTS, points), starts)
    return [_best_of(target, found, np.arange(i * NUM_STARTS, (i + 1) * NUM_STARTS), clock) for i, target in enumerate(targets)]


def _best_of(target: Density, found: newton.Minima, lanes: np.ndarray, clock: Clock) -> mode.Start | None:
    """The mode with most mass, by Laplace's approximation, and the others that compare with it."""
    modes: list[int] = []
    for i in sorted((i for i in lanes if found.converged[i]), key=lambda i: found.value[i]):
        near = 0.1 / np.sqrt(np.abs(np.diagonal(found.hessian[i])) + 1e-300)
        if all((np.abs(found.x[i] - found.x[j]) > near).any() for j in modes) and newton.positive_definite(found.hessian[i]):
            modes.append(i)
    if not modes:
        return None
    derivatives = mode.derivatives(target, clock)
    starts = [mode.at_point(found.x[i], found.hessian[i], True, derivatives) for i in modes]
    mass = np.array([np.log(np.diagonal(s.factor)).sum() - found.value[i] for s, i in zip(starts, modes, strict=True)])
    best = starts[int(np.argmax(mass))]
    return mode.with_others(best, [s for s, m in zip(starts, mass, strict=True) if m > mass.max() - mode.NEARBY])


def _climb(targets: Sequence[Density], starts: Sequence[mode.Start], base: np.ndarray, clock: Clock) -> list[Optimum | None]:
    if not targets:
        return []
    target, dim, num_draws = targets[0], targets[0].dim, len(base)

    def elbo(eta, origin, unit, base, arrays):
        """Negative ELBO, gradient and Hessian, with what linear response needs of the draws."""

        def negative(u):
            return -target.log_p(origin + unit * u, arrays)

        spread = jnp.exp(eta[dim:]) * base
        value, gradient, hessian = jax.vmap(lambda u: (negative(u), jax.grad(negative)(u), jax.hessian(negative)(u)))(eta[:dim] + spread)
        by_draw = jnp.concatenate([gradient, gradient * spread - 1], axis=1)
        a, b = hessian.mean(0), jnp.einsum("kij,kj->ij", hessian, spread) / num_draws
        c = jnp.einsum("ki,kij,kj->ij", spread, hessian, spread) / num_draws + jnp.diag((gradient * spread).mean(0))
        return value.mean() - eta[dim:].sum(), by_draw.mean(0), jnp.block([[a, b], [b.T, c]]), by_draw

    run = _lanes("many elbos", elbo, targets, clock, points_a_lane=num_draws, fixed=base)
    origins = np.array([s.loc for s in starts])
    units = np.array([1 / np.sqrt(s.precision_diagonal) for s in starts])
    found = newton.minimise(lambda eta, lanes: run(lanes, eta, origins[lanes], units[lanes])[:3], np.zeros((len(targets), 2 * dim)))
    lanes = np.flatnonzero(found.usable)
    optima: list[Optimum | None] = [None] * len(targets)
    if lanes.size:
        value, _, hessian, by_draw = run(lanes, found.x[lanes], origins[lanes], units[lanes])
        for j, i in enumerate(lanes.tolist()):
            blocks = Blocks(hessian[j, :dim, :dim], hessian[j, :dim, dim:], hessian[j, dim:, dim:], by_draw[j])
            losses = np.array([step[2][i] for step in found.path[:-1]] + [value[j]])
            optima[i] = linear_response.respond(starts[i], found.x[i], blocks, bool(found.converged[i]), losses)
    return optima


def _lanes(
    name: str, function: Callable, targets: Sequence[Density], clock: Clock, *, points_a_lane: int, fixed: np.ndarray | None = None
) -> Callable:
    """(data sets (M,), points...) -> what `function` gives for each, in blocks of a fixed number of lanes."""
    target = targets[0]
    size = int(np.clip(target.batch_size(10**9) // (points_a_lane * target.dim), 1, MAX_LANES))
    data = [np.stack([np.asarray(leaf) for leaf in leaves]) for leaves in zip(*(t.arrays for t in targets), strict=True)]
    constant = () if fixed is None else (jnp.asarray(fixed),)

    def block(points, constant, arrays):
        return jax.vmap(lambda points, arrays: function(*points, *constant, arrays))(points, arrays)

    def run(lanes: np.ndarray, *points: np.ndarray):
        parts = []
        for start in range(0, len(lanes), size):
            taken = np.arange(start, start + size).clip(max=len(lanes) - 1)
            args = tuple(jnp.asarray(p[taken]) for p in points), constant, tuple(jnp.asarray(leaf[lanes[taken]]) for leaf in data)
            out = target.compiled(clock, name, block, *args)(*args)
            parts.append([np.asarray(o)[: len(lanes) - start] for o in out])
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    return run
