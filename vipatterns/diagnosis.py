"""Judging draws: importance weights by Pareto smoothing, MCMC by R-hat and ess, a fit against a reference.

Pareto-smoothed importance sampling: Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv 1507.02646.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from arviz_stats.base.array import array_stats

MCSE_SHARE = 0.05
"""Largest Monte Carlo error of a posterior mean or sd that a certificate allows, in posterior sds."""
MAX_ELEMENTS = 1_000_000
"""Draws times scalars that are looked at together, so that memory stays bounded."""
PERFECT_SD = 1e-3
"""Log weights that vary by less than this are those of a perfect guide: there is no tail to fit a Pareto to."""


@dataclass(frozen=True)
class Weights:
    """Pareto-smoothed importance weights of S draws."""

    log_weights: np.ndarray
    """(S,) smoothed, normalised to sum to one."""
    khat: float
    """-inf for perfect weights, +inf where the tail cannot be fitted or a weight is not a number."""
    ess: float
    log_evidence: float
    log_evidence_mcse: float


def khat_threshold(num_draws: int) -> float:
    """The k-hat below which smoothed weights of `num_draws` draws are reliable (Vehtari et al. 2024)."""
    return min(1 - 1 / math.log10(num_draws), 0.7)


def smooth(log_p: np.ndarray, log_q: np.ndarray) -> Weights:
    """Pareto-smooth the weights of draws from q.

    Args:
        log_p: (S,) unnormalised log target at draws of q, unconstrained coordinates, nats.
        log_q: (S,) log density of q there.
    """
    ratio = np.asarray(log_p, float) - np.asarray(log_q, float)
    num_draws = ratio.size
    bad = np.isnan(ratio) | (ratio == np.inf)
    if bad.any() or not np.isfinite(ratio).any():
        return Weights(np.full(num_draws, -math.log(num_draws)), math.inf, 0.0, math.nan, math.nan)
    # Outside the support the weight is zero; a finite floor keeps the tail fit from meeting -inf - -inf.
    ratio = np.where(np.isfinite(ratio), ratio, ratio[np.isfinite(ratio)].min() - 700.0)
    log_evidence = float(np.logaddexp.reduce(ratio) - math.log(num_draws))
    relative = np.exp(ratio - log_evidence)
    mcse = float(relative.std() / math.sqrt(num_draws))
    if ratio.std() < PERFECT_SD:
        log_weights, khat = ratio, -math.inf
    else:
        log_weights, khat = _pareto_smooth(ratio)
    log_weights = log_weights - np.logaddexp.reduce(log_weights)
    return Weights(log_weights, khat, float(np.exp(-np.logaddexp.reduce(2 * log_weights))), log_evidence, mcse)


def monte_carlo_error(values: np.ndarray, weights: np.ndarray, num_kept: int) -> np.ndarray:
    """Standard errors of weighted means and sds, in posterior sds, after resampling `num_kept` plain draws.

    Args:
        values: (S, K) scalars at the draws.
        weights: (S,) normalised.
        num_kept: number of draws that the weighted sample is resampled to.

    Returns:
        (2, K): errors of the mean and of the sd. Scalars that do not vary get zero.
    """
    return by_columns(lambda part: _monte_carlo_error(part, weights, num_kept), values)


def by_columns(function: Callable, values: np.ndarray) -> np.ndarray:
    """(S, K) -> (2, K): what `function` gives for some of the columns at a time."""
    few = max(1, MAX_ELEMENTS // len(values))
    parts = [function(values[:, i : i + few]) for i in range(0, values.shape[1], few)]
    return np.concatenate(parts, axis=1) if parts else np.zeros((2, 0))


def _monte_carlo_error(values: np.ndarray, weights: np.ndarray, num_kept: int) -> np.ndarray:
    mean = weights @ values
    squares = (values - mean) ** 2
    variance = weights @ squares
    safe = np.where(variance > 0, variance, 1.0)
    of_mean = np.sqrt(weights**2 @ squares / safe + 1 / num_kept)
    spread = (squares / safe - 1) ** 2
    of_sd = 0.5 * np.sqrt(weights**2 @ spread + (weights @ spread) / num_kept)
    return np.where(variance > 0, np.stack([of_mean, of_sd]), 0.0)


def resample(rng: np.random.Generator, log_weights: np.ndarray, num_draws: int) -> np.ndarray:
    """Indices of `num_draws` plain draws: systematic resampling, shuffled, so that equal weights thin evenly."""
    edges = np.cumsum(np.exp(log_weights - np.logaddexp.reduce(log_weights)))
    points = (rng.random() + np.arange(num_draws)) / num_draws
    return rng.permutation(np.minimum(np.searchsorted(edges, points), edges.size - 1))


def scalar_khats(values: np.ndarray, log_weights: np.ndarray, columns: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """k-hat of what is summed for each scalar's sd: weight times squared deviation (Vehtari et al. 2024).

    Args:
        values: (S, K) scalars at the draws.
        log_weights: (S,) normalised.
        columns: of those that are looked at, in this order; by default all.

    Returns:
        One for each of these, +inf where the tail cannot be fitted.
    """
    weights, khats = np.exp(log_weights), []
    for i in range(values.shape[1]) if columns is None else columns:
        column = np.ascontiguousarray(values[:, i])
        centre = weights @ column
        with np.errstate(divide="ignore"):
            terms = log_weights + np.log((column - centre) ** 2)
        khats.append(_pareto_smooth(np.maximum(terms, terms.max() - 700.0))[1])
    return np.array(khats)


def _pareto_smooth(log_ratio: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed log weights and k-hat: -inf where the largest weights are all equal, +inf where no tail can be fitted."""
    num_tail = math.ceil(min(0.2 * log_ratio.size, 3 * math.sqrt(log_ratio.size)))
    if np.ptp(np.partition(log_ratio, -num_tail)[-num_tail:]) < PERFECT_SD:
        return log_ratio, -math.inf
    try:
        log_weights, khat = array_stats.psislw(-log_ratio)  # it takes the negated log ratio
    except ValueError:  # "All tail values are the same"
        return log_ratio, math.inf
    return log_weights, float(khat) if math.isfinite(khat) else math.inf
