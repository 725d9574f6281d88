"""Newton's method in a trust region, on the host, for several starts in lockstep.

One compiled program (value, gradient and Hessian at a batch of points) serves every start and every step; SciPy's trust-exact does one
start at a time and would call that program once for each of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MAX_STEPS = 100
TOLERANCE = 1e-9
FEW = 8
"""Lanes among which those with a positive definite Hessian are looked for; with more, all have their eigenvalues taken at once."""
INFINITE = 1e30
"""No search goes further: a density that rises for ever would be followed until squares overflow."""


@dataclass(frozen=True)
class Minima:
    """Where Newton's method ended, a lane a start."""

    x: np.ndarray
    """(S, D)."""
    value: np.ndarray
    """(S,); inf where the start was not usable."""
    hessian: np.ndarray
    """(S, D, D)."""
    converged: np.ndarray
    """(S,) bool: the gradient vanishes there, be it a minimum or a saddle point."""
    usable: np.ndarray
    """(S,) bool: value and derivatives were finite at the start."""
    path: list
    """(x, hessian, value) of all lanes after each step."""


def minimise(at: Callable, starts: np.ndarray, over: Callable[[], bool] = lambda: False, tolerance: float = TOLERANCE) -> Minima:
    """Newton's method in a trust region, all starts in lockstep; those that are done are evaluated no more.

    Args:
        at: points (M, D), and which starts they belong to (M,) -> values (M,), gradients (M, D), Hessians (M, D, D).
        starts: (S, D).
        over: asked before each step but the first evaluation; where it is true the search ends there, not converged.
        tolerance: decrease, predicted for the next step, at which the search ends before that step.
    """
    num_starts, dim = starts.shape
    x = starts.copy()
    value, gradient, hessian = at(x, np.arange(num_starts))
    usable = _usable(value, gradient, hessian)
    value = np.where(usable, value, np.inf)
    curvature = np.abs(np.einsum("sii->si", hessian))
    radius = np.full(num_starts, np.sqrt(dim))
    going, converged = np.flatnonzero(usable), np.zeros(num_starts, bool)
    path = [(x.copy(), hessian.copy(), value.copy())]
    for _ in range(MAX_STEPS):
        # Scales only shrink, as in MINPACK: along a ridge of vanishing curvature steps stay bounded.
        curvature[going] = np.fmax(curvature[going], np.abs(np.einsum("sii->si", hessian[going])))
        scale = 1 / np.sqrt(np.maximum(curvature[going], 1e-300))
        scale = np.where(curvature[going] > 0, scale, 1.0)
        scaled = gradient[going] * scale, hessian[going] * scale[:, :, None] * scale[:, None, :]
        step, decrease, norm = _trust_region_step(*scaled, radius[going])
        done = decrease < tolerance + 1e-13 * np.abs(value[going])
        converged[going[done]] = True
        going, scale, step, decrease, norm = (part[~done] for part in (going, scale, step, decrease, norm))
        if not going.size or over():
            break
        trial = x[going] + scale * step
        value2, gradient2, hessian2 = at(trial, going)
        good = _usable(value2, gradient2, hessian2) & (np.abs(trial) < INFINITE).all(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(good, (value[going] - value2) / decrease, -np.inf)
        accepted = good & (ratio > 1e-4)
        held = radius[going]
        radius[going] = np.where(ratio < 0.25, norm / 4, np.where((ratio > 0.75) & (norm > 0.9 * held), 3 * held, held))
        moved = going[accepted]
        x[moved], value[moved], gradient[moved], hessian[moved] = (part[accepted] for part in (trial, value2, gradient2, hessian2))
        path.append((x.copy(), hessian.copy(), value.copy()))
        going = going[radius[going] > 1e-12]
        if not going.size:
            break
    return Minima(x, value, hessian, converged, usable, path)


def _usable(value, gradient, hessian) -> np.ndarray:
    return np.isfinite(value) & np.isfinite(gradient).all(1) & np.isfinite(hessian).all((1, 2))


def positive_definite(hessian: np.ndarray) -> bool:
    """Of unit diagonal: in raw units rounding may turn the smallest eigenvalue negative."""
    diagonal = np.diagonal(hessian)
    if not (diagonal > 0).all():
        return False
    unit = np.sqrt(diagonal)  # before they are multiplied: curvatures at a mode at infinity may be as large as numbers go
    return bool(np.linalg.eigvalsh(hessian / unit / unit[:, None])[0] > 0)


def _trust_region_step(gradient, hessian, radius) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimiser of the model with |H| for H in a ball, for each lane; the decrease it predicts; its length.

    Negative curvature is followed downhill (saddle-free Newton, Dauphin et al. 2014, arXiv 1406.2572).
    """
    safe = np.nan_to_num(hessian, nan=0.0, posinf=0.0, neginf=0.0)
    safe = (safe + safe.transpose(0, 2, 1)) / 2
    step, decrease, norm = _newton_steps(gradient, safe)
    outside = np.flatnonzero(~(norm <= radius))
    if outside.size:
        step[outside], decrease[outside], norm[outside] = _damped_steps(gradient[outside], safe[outside], radius[outside])
    return step, decrease, norm


@np.errstate(over="ignore")  # a step of infinite length is outside
def _newton_steps(gradient, hessian) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Newton's own steps, far cheaper than eigenvalues; of infinite length where a Hessian is not positive definite."""
    try:
        np.linalg.cholesky(hessian)
        step = -np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        if len(hessian) == 1 or len(hessian) > FEW:
            return np.zeros_like(gradient), np.zeros(len(gradient)), np.full(len(gradient), np.inf)
        halves = [_newton_steps(g, h) for g, h in zip(np.array_split(gradient, 2), np.array_split(hessian, 2), strict=True)]
        return tuple(np.concatenate(parts) for parts in zip(*halves, strict=True))  # pyright: ignore[reportReturnType]
    return step, -0.5 * (gradient * step).sum(1), np.linalg.norm(step, axis=1)


@np.errstate(over="ignore")  # along a direction in which the density rises for ever
def _damped_steps(gradient, hessian, radius) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    w, vectors = np.linalg.eigh(hessian)
    w = np.maximum(np.abs(w), 1e-10)
    g = np.einsum("sij,si->sj", vectors, np.nan_to_num(gradient, posinf=0.0, neginf=0.0))
    low, high = np.zeros(len(g)), np.linalg.norm(g, axis=1) / radius
    full = np.linalg.norm(g / w, axis=1) <= radius
    for _ in range(60):  # bisection on the damping that puts the step on the sphere
        damping = (low + high) / 2
        longer = np.linalg.norm(g / (w + damping[:, None]), axis=1) > radius
        low, high = np.where(longer, damping, low), np.where(longer, high, damping)
    coefficients = -g / (w + np.where(full, 0.0, high)[:, None])
    decrease = -((g * coefficients).sum(1) + 0.5 * (w * coefficients**2).sum(1))
    return np.einsum("sij,sj->si", vectors, coefficients), decrease, np.linalg.norm(coefficients, axis=1)
