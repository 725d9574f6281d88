"""The SVI loop: compiled chunks, vmapped restarts, measured convergence.

The step size is held until the restarts' iterates are stationary (R-hat) and their averages precise (Monte Carlo error), then cut; it
has converged when a cut no longer moves the averages (Dhaka et al. 2020, arXiv 2009.00666; Welandawe et al. 2022, arXiv 2203.15945).
The averages are returned, not the last iterates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from arviz_stats.base.array import array_stats
from jax.flatten_util import ravel_pytree

from vipatterns.density import Clock
from vipatterns.progress import reporting

MAX_RHAT = 1.1
RECORDS = 20
"""Iterates kept of each chunk to judge convergence by."""
MAX_TRACKED = 512
"""R-hat is watched on at most this many quantities, spread evenly over all of them."""
MIN_CHUNKS, MAX_CHUNKS, FIRST_CHUNKS = 4, 24, 8
"""Chunks at one step size: the fewest before it is judged, the most before it is cut whatever R-hat says, the most at the first."""
CUT, MAX_CUTS = 0.5, 5
FAR, MAX_MOVES = 0.5, 8
"""Coordinates are taken anew, at the same step size, when the averages have moved further than this from where they were; so often."""
MAX_ROLLBACKS = 5
NEGLIGIBLE = 10
"""Nats below the best restart: those further down hold less than 5e-5 of the posterior's mass, by their own account."""


@dataclass(frozen=True)
class Optimum:
    """Where the optimiser ended."""

    params: Any
    """Pytree with a leading axis of restarts: iterates averaged over the last window."""
    context: Any
    """The context that goes with them."""
    losses: np.ndarray
    """(restart, step)."""
    elbos: np.ndarray
    """(restart,) minus the mean loss over the last window."""
    rhat: float
    """Largest R-hat over restarts of the tracked parameters in that window."""
    stopped_because: str
    num_steps: int


def optimise(
    rng_key,
    loss: Callable,
    params,
    context,
    arrays,
    clock: Clock,
    *,
    num_steps: int,
    learning_rate: float,
    monitor: Callable | None = None,
    refresh: Callable | None = None,
    tolerance: float = 0.02,
    chunk_size: int = 100,
    optimizer: optax.GradientTransformation | None = None,
    progress: bool | None = None,
    title: str = "SVI",
    objective: str = "ELBO",
) -> Optimum:
    """Minimises a noisy loss from several restarts at once.

    Args:
        rng_key: a JAX key.
        loss: (params, rng_key, context, arrays) -> scalar, for one restart.
        params: pytree, every leaf with a leading axis of restarts; zero is the start, and a change of 1 in `monitor` is a posterior sd.
        context: pytree that `loss` needs and `refresh` may replace: coordinates and control variates.
        arrays: the traced data.
        clock: counts compile time.
        num_steps: step budget.
        learning_rate: the first step size, in those units; cut by itself.
        monitor: (params, context) -> (P,) quantities that have to converge, such as q's means and log sds; default the parameters.
        refresh: (averaged params, elbos, context) -> (params, context), called when the step size is cut: better coordinates.
        tolerance: largest Monte Carlo error of the averaged parameters, in those units.
        chunk_size: steps in one compiled call, a multiple of RECORDS.
        optimizer: what scales the gradients, before the step size; default `optax.scale_by_adam`.
        progress: None for automatic, True or False to force.
        title: what the progress bar says.
        objective: what minus the loss is called.
    """
    optimizer = optax.scale_by_adam() if optimizer is None else optimizer
    unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], params))[1]
    monitor = monitor or (lambda params, context: ravel_pytree(params)[0])
    watched = jax.jit(jax.vmap(monitor, (0, None)))
    origin = watched(jax.tree.map(jnp.zeros_like, params), context)
    tracked = np.unique(np.linspace(0, origin.shape[1] - 1, MAX_TRACKED).astype(int))
    carry = (params, jax.vmap(optimizer.init)(params))
    program = clock.compile(_chunk(loss, monitor, optimizer, chunk_size, tracked), carry, rng_key, learning_rate, context, arrays)

    rate, cuts, moves, rollbacks, taken, reason = learning_rate, 0, 0, 0, 0, ""
    losses: list[np.ndarray] = []
    window: list[_Chunk] = []
    previous = np.asarray(origin)[:, tracked]
    with reporting(title, num_steps, progress) as report:
        try:
            while not reason:
                rng_key, key = jax.random.split(rng_key)
                trial, values, kept, mean = program(carry, key, rate, context, arrays)
                values = np.asarray(values)
                if not (np.isfinite(values).all() and np.isfinite(mean).all()):
                    at = taken + int(np.argmax(~np.isfinite(values).all(0)))
                    rollbacks, rate, window = rollbacks + 1, rate * CUT, []
                    if taken == 0:  # the restarts were dispersed too far
                        params = jax.tree.map(lambda leaf: CUT * leaf, params)
                        carry = (params, jax.vmap(optimizer.init)(params))
                    if rollbacks > MAX_ROLLBACKS:
                        reason = (
                            f"diverged: the loss was NaN or infinite at step {at}, and again at each of {MAX_ROLLBACKS} smaller learning "
                            "rates; look for a log or sqrt of zero in the model, bound its scales away from zero, or tighten its priors"
                        )
                    continue
                carry, taken = trial, taken + chunk_size
                losses.append(values)
                window.append(_Chunk(values.mean(1), np.asarray(kept), np.asarray(mean)))
                report(taken, f"{objective.lower()} {-values.mean(1).min():.2f}, rate {rate:.1e}")
                # The first step size only has to find the place; those after it have to be precise.
                verdict = _judge(window, tolerance, MAX_CHUNKS) if cuts else _judge(window, 5 * tolerance, FIRST_CHUNKS)
                moved = float(np.abs(verdict.centre - previous).max())
                stale = refresh is not None and moved > FAR and moves < MAX_MOVES
                if verdict.done and verdict.agreed and cuts and moved < 3 * tolerance:
                    reason = (
                        f"converged: restarts agree within {verdict.apart:.3f} sd (R-hat {verdict.rhat:.2f}, "
                        f"Monte Carlo error {verdict.mcse:.3f} sd)"
                    )
                elif verdict.done and cuts == MAX_CUTS:
                    reason = _on_objective_alone(verdict, window, objective)
                elif taken >= num_steps:
                    reason = (
                        f"step budget: {taken} steps were not enough (R-hat {verdict.rhat:.2f}, needs < {MAX_RHAT}; averages within "
                        f"{verdict.mcse:.3f} sd, needs < {tolerance}); try num_steps={4 * num_steps}"
                    )
                elif verdict.done or (stale and len(window) == FIRST_CHUNKS):
                    # Coordinates that the iterates have left are taken anew before the step size is cut.
                    cuts, moves, rate = (cuts, moves + 1, rate) if stale else (cuts + 1, 0, rate * CUT)
                    params = jax.vmap(unravel)(jnp.asarray(_mean(window)))
                    if refresh is not None:
                        params, context = refresh(params, _elbos(window), context)
                    carry = (params, jax.vmap(optimizer.init)(params))
                    previous, window = np.asarray(watched(params, context))[:, tracked], []
        except KeyboardInterrupt:
            if not losses:
                raise
            reason = f"interrupted: Ctrl-C after {taken} steps; what was reached by then is kept"
    history = np.concatenate(losses, 1) if losses else np.full((len(previous), 1), math.nan)
    if not window:  # stopped right after a cut
        return Optimum(params, context, history, -history[:, -chunk_size:].mean(1), math.nan, reason, taken)
    rhat = _judge(window, tolerance, MAX_CHUNKS).rhat
    return Optimum(jax.vmap(unravel)(jnp.asarray(_mean(window))), context, history, _elbos(window), rhat, reason, taken)


def _chunk(loss: Callable, monitor: Callable, optimizer: optax.GradientTransformation, chunk_size: int, tracked: np.ndarray) -> Callable:
    """The compiled part: `chunk_size` steps of every restart; losses, tracked iterates and mean iterate."""
    thin = chunk_size // RECORDS

    def step(carry, rng_key, rate, context, arrays):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, rng_key, context, arrays)
        update, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, update)), state), value

    def chunk(carry, rng_key, rate, context, arrays):
        num_restarts = jax.tree.leaves(carry[0])[0].shape[0]

        def each(carry, key):
            return jax.vmap(step, (0, 0, None, None, None))(carry, jax.random.split(key, num_restarts), rate, context, arrays)

        def record(carry_and_total, keys):
            carry, total = carry_and_total
            carry, values = jax.lax.scan(each, carry, keys)
            flat = jax.vmap(lambda p: ravel_pytree(p)[0])(carry[0])
            return (carry, total + flat), (values, jax.vmap(monitor, (0, None))(carry[0], context)[:, tracked])

        zero = jax.tree.map(jnp.zeros_like, jax.vmap(lambda p: ravel_pytree(p)[0])(carry[0]))
        (carry, total), (values, kept) = jax.lax.scan(record, (carry, zero), jax.random.split(rng_key, (RECORDS, thin)))
        return carry, values.reshape(chunk_size, num_restarts).T, kept.transpose(1, 0, 2), total / RECORDS

    return chunk


def chunk_size(evaluations: int) -> int:
    """Steps in one compiled call, when a step costs this many evaluations of a data element: it is to take under a second or so."""
    return RECORDS * int(np.clip(2e8 // evaluations // RECORDS, 1, 5))


def num_particles(asked: int | None, num_data: int) -> int:
    """Draws of q a gradient: as many as were asked for, else 32, fewer (down to 8) where a draw takes many data elements."""
    return asked or int(np.clip(1e6 / num_data, 8, 32))


def antithetic(rng_key, num: int, dim: int, dtype: str) -> jax.Array:
    """Standard normals (num, D) in pairs of opposite sign; one more where `num` is odd."""
    noise = jax.random.normal(rng_key, (-(-num // 2), dim), dtype=dtype)
    return jnp.concatenate([noise, -noise])


def kept_restarts(elbos: np.ndarray) -> np.ndarray:
    """Indices of the restarts that are worth keeping."""
    elbos = np.where(np.isfinite(elbos), elbos, -np.inf)
    return np.flatnonzero(elbos >= elbos.max() - NEGLIGIBLE)


@dataclass(frozen=True)
class _Chunk:
    loss: np.ndarray  # (restart,) mean over the chunk
    kept: np.ndarray  # (restart, record, watched quantity)
    mean: np.ndarray  # (restart, parameter) mean over the chunk


@dataclass(frozen=True)
class _Verdict:
    done: bool  # with this step size
    agreed: bool  # the restarts, on their parameters
    rhat: float
    apart: float  # the largest difference between restarts' averages
    mcse: float  # of one restart's averages
    centre: np.ndarray  # (restart, watched quantity), averaged


def _half(window: list[_Chunk]) -> list[_Chunk]:
    return window[len(window) // 2 :]


def _mean(window: list[_Chunk]) -> np.ndarray:
    return np.mean([c.mean for c in _half(window)], axis=0)


def _elbos(window: list[_Chunk]) -> np.ndarray:
    return -np.mean([c.loss for c in _half(window)], axis=0)


def _judge(window: list[_Chunk], tolerance: float, max_chunks: int) -> _Verdict:
    """Are the iterates of the window's second half stationary over restarts, and are their averages precise?"""
    draws = np.concatenate([c.kept for c in _half(window)], axis=1)
    centre = draws.mean(1)
    spread = draws.std(axis=(0, 1))
    moving = np.flatnonzero(spread > tolerance / 4)
    apart = float(np.ptp(centre, axis=0).max())
    if moving.size == 0:  # the noise has vanished, as it does at a perfect guide
        return _Verdict(len(window) >= MIN_CHUNKS, True, 1.0, apart, float(spread.max()), centre)
    series = draws[:, :, moving].transpose(2, 0, 1)
    with np.errstate(divide="ignore"):  # restarts that stand still, apart, have an infinite R-hat
        rhat = float(np.max(array_stats.rhat(series, method="split")))
    ess = np.maximum(array_stats.ess(series, method="mean"), 1.0)
    mcse = float(np.max(series.std(axis=(1, 2)) * np.sqrt(len(centre) / ess)))  # ess is of all restarts together
    # R-hat compares restarts with the noise; where that is tiny, a difference that does not matter must not count.
    agreed = rhat < MAX_RHAT or apart < 2 * tolerance
    precise = len(window) >= MIN_CHUNKS and agreed and min(mcse, apart) < tolerance
    return _Verdict(precise or len(window) >= max_chunks, agreed, rhat, apart, mcse, centre)


def _on_objective_alone(verdict: _Verdict, window: list[_Chunk], objective: str) -> str:
    elbos = -np.array([c.loss for c in _half(window)])  # (chunk, restart)
    rhat, means = float(np.max(array_stats.rhat(elbos.T, method="split"))), elbos.mean(0)
    losses = np.array([c.loss.mean() for c in window])
    early, late = losses[: len(losses) // 2], losses[len(losses) // 2 :]
    noise = 2 * math.sqrt(early.var() / len(early) + late.var() / len(late))
    if early.mean() - late.mean() > max(noise, 0.1):
        return (
            f"step budget: the {objective} still rises, from {-early.mean():.1f} to {-late.mean():.1f}, at the smallest step size; "
            "try a larger learning_rate, or a method that scales its coordinates by itself (FullRank, MeanField)"
        )
    agreement = "they agree" if np.ptp(means) < 1 else f"the restarts end between {means.min():.1f} and {means.max():.1f}"
    return (
        f"converged on the {objective} alone: the restarts' parameters differ (R-hat {verdict.rhat:.2f}), as where variational parameters "
        f"are not identified (networks, mixtures); the {objective}s have settled (R-hat {rhat:.2f}) and {agreement}"
    )
