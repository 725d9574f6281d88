"""Newton's method in a trust region, on the host, for several starts in lockstep.

One compiled program (value, gradient and Hessian at a batch of points) serves every start and every step; SciPy's trust-exact does one
start at a time and would call that program once for each of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MAX_STEPS = 100


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


def minimise(at: Callable, starts: np.ndarray) -> Minima:
    """Newton's method in a trust region, all starts in lockstep.

    Args:
        at: (S, D) points -> values (S,), gradients (S, D), Hessians (S, D, D).
        starts: (S, D).
    """
    num_starts, dim = starts.shape
    x = starts.copy()
    value, gradient, hessian = at(x)
    usable = _usable(value, gradient, hessian)
    value = np.where(usable, value, np.inf)
    curvature = np.abs(np.einsum("sii->si", hessian))
    radius = np.full(num_starts, np.sqrt(dim))
    active, converged = usable.copy(), np.zeros(num_starts, bool)
    path = [(x.copy(), hessian.copy(), value.copy())]
    for _ in range(MAX_STEPS):
        if not active.any():
            break
        # Scales only shrink, as in MINPACK: along a ridge of vanishing curvature steps stay bounded.
        curvature = np.fmax(curvature, np.abs(np.einsum("sii->si", hessian)))
        scale = 1 / np.sqrt(np.maximum(curvature, 1e-300))
        scale = np.where(curvature > 0, scale, 1.0)
        step, decrease, norm = np.zeros_like(x), np.ones(num_starts), np.zeros(num_starts)
        going = np.flatnonzero(active)
        scaled = gradient[going] * scale[going], hessian[going] * scale[going, :, None] * scale[going, None, :]
        step[going], decrease[going], norm[going] = _trust_region_step(*scaled, radius[going])
        done = active & (decrease < 1e-9 + 1e-13 * np.abs(np.where(usable, value, 0)))
        converged |= done
        active &= ~done
        trial = np.where(active[:, None], x + scale * step, x)
        value2, gradient2, hessian2 = at(trial)
        good = _usable(value2, gradient2, hessian2)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(good, (value - value2) / decrease, -np.inf)
        accepted = active & good & (ratio > 1e-4)
        fitting = np.where(ratio < 0.25, norm / 4, np.where((ratio > 0.75) & (norm > 0.9 * radius), 3 * radius, radius))
        radius = np.where(active, fitting, radius)
        x = np.where(accepted[:, None], trial, x)
        value = np.where(accepted, value2, value)
        gradient = np.where(accepted[:, None], gradient2, gradient)
        hessian = np.where(accepted[:, None, None], hessian2, hessian)
        active &= radius > 1e-12
        path.append((x.copy(), hessian.copy(), value.copy()))
    return Minima(x, value, hessian, converged, usable, path)


def _usable(value, gradient, hessian) -> np.ndarray:
    return np.isfinite(value) & np.isfinite(gradient).all(1) & np.isfinite(hessian).all((1, 2))


def positive_definite(hessian: np.ndarray) -> bool:
    """Of unit diagonal: in raw units rounding may turn the smallest eigenvalue negative."""
    diagonal = np.diagonal(hessian)
    return bool((diagonal > 0).all() and np.linalg.eigvalsh(hessian / np.sqrt(np.outer(diagonal, diagonal)))[0] > 0)


def _trust_region_step(gradient, hessian, radius) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimiser of the model with |H| for H in a ball, for each lane; the decrease it predicts; its length.

    Negative curvature is followed downhill (saddle-free Newton, Dauphin et al. 2014, arXiv 1406.2572).
    """
    safe = np.nan_to_num(hessian, nan=0.0, posinf=0.0, neginf=0.0)
    steps = [
        _inner_step(g, h, r) or _outer_step(g, h, r) for g, h, r in zip(gradient, (safe + safe.transpose(0, 2, 1)) / 2, radius, strict=True)
    ]
    return tuple(np.array(part) for part in zip(*steps, strict=True))  # pyright: ignore[reportReturnType]


def _inner_step(gradient, hessian, radius) -> tuple[np.ndarray, float, float] | None:
    """Newton's own step, where the Hessian is positive definite and the step stays in the ball: far cheaper than eigenvalues."""
    try:
        np.linalg.cholesky(hessian)
        step = -np.linalg.solve(hessian, gradient)
    except np.linalg.LinAlgError:
        return None
    length = float(np.linalg.norm(step))
    return (step, float(-0.5 * gradient @ step), length) if length <= radius else None


def _outer_step(gradient, hessian, radius) -> tuple[np.ndarray, float, float]:
    w, vectors = np.linalg.eigh(hessian)
    w = np.maximum(np.abs(w), 1e-10)
    g = vectors.T @ np.nan_to_num(gradient, posinf=0.0, neginf=0.0)
    low, high = 0.0, np.linalg.norm(g) / radius
    full = np.linalg.norm(g / w) <= radius
    for _ in range(60):  # bisection on the damping that puts the step on the sphere
        damping = (low + high) / 2
        low, high = (damping, high) if np.linalg.norm(g / (w + damping)) > radius else (low, damping)
    coefficients = -g / (w + (0.0 if full else high))
    decrease = -(g @ coefficients + 0.5 * w @ coefficients**2)
    return vectors @ coefficients, float(decrease), float(np.linalg.norm(coefficients))
