"""The maximum of an ELBO with fixed draws, and the covariance that linear response reads off its curvature.

With fixed standard draws e_k the ELBO of q(z) = N(loc, diag(scale^2)) is a deterministic function,
mean_k log p(loc + scale e_k) + sum log scale, and its derivatives come from the gradients and Hessians of log p at K points
(Giordano, Ingram and Broderick 2024, arXiv 2304.05527). The posterior covariance is the upper left block of the inverse Hessian of
its negative (Giordano, Broderick and Jordan 2018, arXiv 1709.02536): right for Gaussian targets, where q's own is not.

Everything is in units of the curvature at the start: z = start.loc + unit * u.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from vipatterns import keys, mode, newton
from vipatterns.density import Clock, Density
from vipatterns.errors import InputError

MAX_SHRINKS = 10
MAX_STEPS = 200
"""Of the matrix-free search, for many latents."""
TRUSTED = 1e-6
"""Nats: where Hessians are dear, a step that promises less is taken and not looked at; Newton's method leaves the square of its length."""
NUM_DRAWS = 32
"""Fixed draws of the ELBO of a start that is only to be improved."""


@dataclass(frozen=True)
class Blocks:
    """Hessian [[A, B], [B', C]] of the negative ELBO by (loc, log scale), and the gradients of its summands."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    gradients: np.ndarray
    """(K, 2D), a draw each."""


@dataclass(frozen=True)
class Optimum:
    """Where the ELBO of fixed draws is largest, unconstrained coordinates of the model."""

    loc: np.ndarray
    """(D,) mean of q."""
    scale: np.ndarray
    """(D,) sds of q, too small where latents depend on one another."""
    factor: np.ndarray | None
    """(D, D) lower Cholesky factor of the linear-response covariance; None where the curvature is not that of a maximum."""
    error: float
    """Standard error of `loc` that is due to the draws being few, the largest of all latents, in posterior sds."""
    converged: bool
    """False where the steps, or the clock's budget, were used up before."""
    losses: np.ndarray
    """(step,) the negative ELBO of q, nats."""


def base_draws(rng_key, num_draws: int, dim: int) -> np.ndarray:
    """Standard normal points (K, D): scrambled Sobol points in antithetic pairs, first halves first, of unit second moments."""
    rng = keys.generator(rng_key)
    half = stats.norm.ppf(np.clip(stats.qmc.Sobol(dim, rng=rng).random(num_draws // 2), 1e-12, 1 - 1e-12))
    return np.concatenate([half, -half]) / np.sqrt((half**2).mean(0))


def maximise(target: Density, start: mode.Start, base: np.ndarray, eta: np.ndarray, clock: Clock) -> tuple[Optimum, np.ndarray]:
    """Climbs to the optimum from `eta`, (2D,): loc and log scale in units of the start; also returns where it ended.

    Raises:
        InputError: draws leave the support of log p, however small the scales.
    """
    unit = 1 / np.sqrt(start.precision_diagonal)
    climb = _dense if start.hessian.ndim == 2 else _matrix_free
    eta, blocks, converged, losses = climb(target, start, base, unit, eta, clock)
    return respond(start, eta, blocks, converged, losses), eta


@np.errstate(over="ignore", invalid="ignore")  # where the density rises for ever
def respond(start: mode.Start, eta: np.ndarray, blocks: Blocks | None, converged: bool, losses: np.ndarray) -> Optimum:
    """The optimum with its linear response, from where the search ended in units of the start; without it where there are no blocks."""
    unit, dim = 1 / np.sqrt(start.precision_diagonal), len(start.loc)
    factor, error = (None, np.inf) if blocks is None else _respond(blocks)
    constant = np.log(unit).sum() + 0.5 * dim * (1 + math.log(2 * math.pi))
    return Optimum(
        loc=start.loc + unit * eta[:dim],
        scale=unit * np.exp(eta[dim:]),
        factor=None if factor is None else unit[:, None] * factor,
        error=error,
        converged=converged,
        losses=losses - constant,
    )


def improved(rng_key, target: Density, start: mode.Start, clock: Clock) -> mode.Start:
    """The start moved to mean-field's mean, in coordinates of the linear-response covariance; as it was where the ELBO has no maximum."""
    base = base_draws(rng_key, NUM_DRAWS, target.dim)
    try:
        optimum, _ = maximise(target, start, base, np.zeros(2 * target.dim), clock)
    except InputError:
        return start
    return start if optimum.factor is None else moved(start, optimum.loc, optimum.factor)


def moved(start: mode.Start, loc: np.ndarray, factor: np.ndarray) -> mode.Start:
    """The start at another place, in other coordinates."""
    root = np.linalg.inv(factor)
    return replace(start, loc=loc, factor=factor, hessian=root.T @ root)


def _respond(blocks: Blocks) -> tuple[np.ndarray | None, float]:
    """Cholesky factor of the linear-response covariance, and the error of the fixed draws (their sandwich estimate)."""
    dim = len(blocks.a)
    try:
        np.linalg.cholesky(blocks.c)
        inner = np.linalg.inv(blocks.c)
        root = np.linalg.inv(np.linalg.cholesky(blocks.a - blocks.b @ inner @ blocks.b.T))
        covariance = root.T @ root
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # not positive definite
        return None, np.inf
    if not np.isfinite(factor).all():
        return None, np.inf
    half = len(blocks.gradients) // 2
    pairs = (blocks.gradients[:half] + blocks.gradients[half:]) / 2
    moved = covariance @ (pairs[:, :dim] - pairs[:, dim:] @ inner @ blocks.b.T).T
    error = moved.std(1) / np.sqrt(half)
    return factor, float((error / np.sqrt(np.diagonal(covariance))).max())


def _dense(target: Density, start: mode.Start, base: np.ndarray, unit: np.ndarray, eta: np.ndarray, clock: Clock):
    """Newton's method by the program that found the mode, which is compiled already."""
    dim = target.dim
    kept: dict[bytes, tuple] = {}  # point -> what was computed there, which is asked for again at the lowest loss and at the latest point

    def at(etas, lanes=None):
        point = etas.tobytes()
        if point not in kept:
            lowest = sorted(kept, key=lambda p: np.nan_to_num(kept[p][0][0], nan=np.inf))[:1]
            for other in kept.keys() - lowest:
                del kept[other]
            with np.errstate(over="ignore", invalid="ignore"):  # a trial step too far is seen by its value
                kept[point] = blocks_at(etas)
        return kept[point][:3]

    def blocks_at(etas):
        loc, spread = etas[0, :dim], np.exp(etas[0, dim:]) * base
        value, gradient, hessian = start.derivatives(start.loc + unit * (loc + spread))
        gradient, hessian = gradient * unit, hessian * np.outer(unit, unit)
        by_draw = np.concatenate([gradient, gradient * spread - 1], axis=1)
        a = hessian.mean(0)
        b = np.einsum("kij,kj->ij", hessian, spread) / len(base)
        c = np.einsum("ki,kij,kj->ij", spread, hessian, spread, optimize=True) / len(base) + np.diag((gradient * spread).mean(0))
        loss = value.mean() - etas[0, dim:].sum()
        return np.array([loss]), by_draw.mean(0)[None], np.block([[a, b], [b.T, c]])[None], Blocks(a, b, c, by_draw)

    dear = mode.dear(target)
    if dear and not eta.any():
        eta = _gaussian_optimum(start.hessian * np.outer(unit, unit), base)
    begun = _inside(lambda eta: at(eta[None])[0][0], eta)[None]
    found = newton.minimise(at, begun, lambda: clock.over, TRUSTED if dear else newton.TOLERANCE)
    _, gradient, hessian = at(found.x)
    if dear and found.converged[0] and newton.positive_definite(hessian[0]):
        last = -np.linalg.solve(hessian[0], gradient[0])
        eta = found.x[0] + (last if -gradient[0] @ last / 2 < 10 * TRUSTED else 0)
    else:
        eta = found.x[0]
    return eta, kept[found.x.tobytes()][3], bool(found.converged[0]), np.array([value[0] for _, _, value in found.path])


def _gaussian_optimum(hessian: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Where the ELBO of these draws is largest, (2D,), if the posterior is Gaussian with this Hessian, of unit diagonal, at zero.

    The draws' sample covariance differs from the identity, and so the scales from one: in a second-order problem in D numbers, on which no
    Hessian of the model need be spent.
    """
    dim = len(hessian)
    coupled = hessian * (base.T @ base / len(base))

    def at(log_scales, lanes):
        scales = np.exp(log_scales)
        products = scales[:, :, None] * coupled * scales[:, None, :]
        sums = products.sum(2)
        return sums.sum(1) / 2 - log_scales.sum(1), sums - 1, products + np.einsum("si,ij->sij", sums, np.eye(dim))

    found = newton.minimise(at, np.zeros((1, dim)))
    return np.concatenate([np.zeros(dim), found.x[0]]) if found.converged[0] else np.zeros(2 * dim)


def _matrix_free(target: Density, start: mode.Start, base: np.ndarray, unit: np.ndarray, eta: np.ndarray, clock: Clock):
    """SciPy's Newton-CG in a trust region, by Hessian-vector products; of the Hessian only its D x D blocks are made, at the end."""
    dim = target.dim
    frame = jnp.asarray(base), jnp.asarray(start.loc), jnp.asarray(unit), target.arrays

    def negative(u, origin, units, arrays):
        return -target.log_p(origin + units * u, arrays)

    def loss(eta, points, origin, units, arrays):
        at = target.over_points(lambda u, arrays: negative(u, origin, units, arrays), len(base))
        return at(eta[:dim] + jnp.exp(eta[dim:]) * points, arrays).mean() - eta[dim:].sum()

    def product(eta, v, *frame):
        return jax.jvp(lambda eta: jax.grad(loss)(eta, *frame), (eta,), (v,))[1]

    def blocks(eta, points, *frame):
        def add(sums, e):
            spread = jnp.exp(eta[dim:]) * e
            u = eta[:dim] + spread
            gradient = jax.grad(negative)(u, *frame)
            columns = target.batch_size(dim)
            hessian = jax.lax.map(
                lambda v: jax.jvp(lambda u: jax.grad(negative)(u, *frame), (u,), (v,))[1], jnp.eye(dim), batch_size=columns
            )
            parts = hessian, hessian * spread, spread[:, None] * hessian * spread + jnp.diag(gradient * spread)
            by_draw = jnp.concatenate([gradient, gradient * spread - 1])
            return tuple(s + p / len(base) for s, p in zip(sums, parts, strict=True)), by_draw

        return jax.lax.scan(add, (jnp.zeros((dim, dim), target.dtype),) * 3, points)

    value_and_gradient = target.compiled(clock, "fixed-draw elbo", jax.value_and_grad(loss), jnp.asarray(eta), *frame)
    hessian_product = target.compiled(clock, "fixed-draw hessian product", product, jnp.asarray(eta), jnp.asarray(eta), *frame)

    def fun(eta):
        value, gradient = value_and_gradient(jnp.asarray(eta), *frame)
        return (float(value) if np.isfinite(value) else 1e300), np.nan_to_num(np.asarray(gradient))

    losses: list[float] = []

    def seen(intermediate_result):
        losses.append(float(intermediate_result.fun))
        if clock.over:
            raise StopIteration

    eta = _inside(lambda eta: value_and_gradient(jnp.asarray(eta), *frame)[0], eta)
    found = optimize.minimize(
        fun,
        eta,
        jac=True,
        hessp=lambda eta, v: np.asarray(hessian_product(jnp.asarray(eta), jnp.asarray(v), *frame)),
        method="trust-ncg",
        callback=seen,
        options={"maxiter": MAX_STEPS, "gtol": 1e-4, "initial_trust_radius": np.sqrt(dim), "max_trust_radius": 1e3 * np.sqrt(dim)},
    )
    values = np.array([*losses, found.fun])
    if clock.over:  # its Hessian would take longer than the search
        return found.x, None, bool(found.success), values
    program = target.compiled(clock, "fixed-draw hessian", blocks, jnp.asarray(eta), *frame)
    sums, by_draw = program(jnp.asarray(found.x), *frame)
    a, b, c = (np.asarray(s) for s in sums)
    return found.x, Blocks(a, b, c, np.asarray(by_draw)), bool(found.success), values


def _inside(loss: Callable, eta: np.ndarray) -> np.ndarray:
    """The start with scales so small that no draw leaves the support of log p."""
    dim = len(eta) // 2
    for shrink in range(MAX_SHRINKS):
        smaller = np.concatenate([eta[:dim], eta[dim:] - shrink])
        if np.isfinite(loss(smaller)):
            return smaller
    raise InputError("The ELBO is finite at no start: draws leave the support of log p; try vip.MeanField() or vip.NUTS().")
