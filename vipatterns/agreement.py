"""A posterior against a reference, scalar by scalar: how far off its means, sds, tails and whole marginals are.

Every difference is measured in sds of the reference, and stands beside the Monte Carlo error that both sides bring to it.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import wasserstein_distance

from vipatterns.marginals import TAIL, Draws, Marginals, by_site, of_distribution, read_draws, scalar_labels, still
from vipatterns.posterior import Fit

BLOCK = 2_000
"""Scalars that are looked at together, so that memory stays bounded."""
SUMMARY = ("mean_error", "sd_ratio_min", "sd_ratio_max", "wasserstein", "tail_error")


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far a posterior is from a reference."""

    scalars: pd.DataFrame
    """A row a scalar (theta[Choate]): mean, sd, reference_mean, reference_sd; mean_error (signed) and wasserstein in reference sds;
    sd_ratio (ours over the reference's); tail_share of our draws beyond the reference's 5 % or 95 % quantile, whichever is farther from
    the reference_tail_share beyond it, and tail_error (how far). `*_mcse`: the Monte Carlo error of each; for wasserstein, the distance
    that noise alone would show."""
    mean_error: float
    """Largest absolute mean error, in reference sds; nan if one cannot be computed, like all below."""
    sd_ratio_min: float
    sd_ratio_max: float
    wasserstein: float
    """Largest 1-Wasserstein distance of a marginal, in reference sds."""
    tail_error: float
    """Largest excess or lack of draws in a tail, a share of all draws."""
    mean_error_mcse: float
    """Monte Carlo error at the scalar where the largest stands; the same for those below."""
    sd_ratio_min_mcse: float
    sd_ratio_max_mcse: float
    wasserstein_mcse: float
    tail_error_mcse: float
    unmatched: tuple[str, ...] = ()
    """Sites that only one side has: not compared."""

    def worst_first(self) -> pd.DataFrame:
        """The scalars, the most wrong on top: by mean error, or by how far the sd's ratio is from one."""
        t = self.scalars
        wrong = np.fmax(np.abs(t.mean_error), np.abs(t.sd_ratio - 1))
        return t.iloc[np.argsort(-np.where(np.isnan(wrong), np.inf, wrong), kind="stable")]

    def __repr__(self) -> str:
        return (
            f"{len(self.scalars)} scalars: mean error {self.mean_error:.3f} +- {self.mean_error_mcse:.3f} reference sds, "
            f"sd ratio {self.sd_ratio_min:.3f} to {self.sd_ratio_max:.3f}, wasserstein {self.wasserstein:.3f}\n"
            f"worst first:\n{self.worst_first().head(8).to_string(float_format='{:.4g}'.format)}"
        )

    def _repr_html_(self) -> str:
        return self.worst_first().to_html(float_format="{:.4g}".format, max_rows=30, escape=True)


def against(posterior: xr.Dataset | Fit, reference: Any, rng_key: jax.Array) -> Agreement:
    """Compares a posterior with a reference, on the sites that both have.

    Args:
        posterior: a Fit, or draws with dims (chain, draw, ...). Draws of a Fit that were resampled by importance weights count for as
            many as its certificate's ess says, since they do not show it themselves.
        reference: draws (a Fit, a DataTree with a group posterior, a Dataset, or a dict site -> (chain, draw, ...), or (draw, ...), which
            count as independent), or a dict site -> distribution (NumPyro's, or a frozen one of SciPy).
        rng_key: draws the distributions' quantiles; means and sds are taken from them exactly.

    Raises:
        InputError: the reference has none of the posterior's sites, or another shape, or values that are not numbers.
    """
    ours, effective = read_draws(posterior)
    theirs = by_site(reference, ours)
    blocks = []
    for i, name in enumerate(str(name) for name in ours.data_vars if name in theirs):
        value, shape, labels = theirs[name], ours[name].shape[2:], scalar_labels(ours[name])
        mine = Draws(ours[name].values, effective)
        known = None if isinstance(value, Draws) else of_distribution(value, shape, jax.random.fold_in(rng_key, i))
        for part in (slice(start, start + BLOCK) for start in range(0, len(labels), BLOCK)):
            blocks.append(_compare(labels[part], mine.marginals(part), value.marginals(part) if known is None else known.take(part)))
    table = pd.concat(blocks)
    unmatched = sorted(set(map(str, ours.data_vars)).symmetric_difference(theirs))
    return Agreement(table, **_summary(table), unmatched=tuple(unmatched))


def _compare(labels: list[str], mine: Marginals, other: Marginals) -> pd.DataFrame:
    varies = ~(still(mine.mean, mine.sd) & still(other.mean, other.sd))
    with np.errstate(all="ignore"):
        unit = other.sd
        error = (mine.mean - other.mean) / unit
        ratio = mine.sd / unit
        other_share, mine_share = other.sd_mcse / unit, mine.sd_mcse / np.where(mine.sd > 0, mine.sd, 1.0)
        low, high = np.quantile(other.draws, (TAIL, 1 - TAIL), axis=0)
        # against the reference's own shares, which are not 5 % where values are tied
        shares, due = (np.stack([(m.draws < low).mean(0), (m.draws > high).mean(0)]) for m in (mine, other))
        at = np.abs(shares - due).argmax(0), np.arange(len(labels))
        count, tail_count = (1 / (1 / a + 1 / b) for a, b in ((mine.ess, other.ess), (mine.tail_ess, other.tail_ess)))
        columns = {
            "mean": mine.mean,
            "sd": mine.sd,
            "reference_mean": other.mean,
            "reference_sd": other.sd,
            "mean_error": error,
            # an error of the unit scales the error of the mean
            "mean_error_mcse": np.hypot(np.hypot(mine.mean_mcse, other.mean_mcse) / unit, error * other_share),
            "sd_ratio": ratio,
            "sd_ratio_mcse": ratio * np.hypot(mine_share, other_share),
            "wasserstein": _wasserstein(mine.draws, other.draws) / unit,
            "wasserstein_mcse": _wasserstein_noise(other.draws) / unit / np.sqrt(count),
            "tail_share": shares[at],
            "reference_tail_share": due[at],
            "tail_error": np.abs(shares - due)[at],
            "tail_error_mcse": math.sqrt(TAIL * (1 - TAIL)) / np.sqrt(tail_count),
        }
    return pd.DataFrame(columns, index=pd.Index(labels, name="scalar")).loc[varies]


def _wasserstein(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1-Wasserstein distances of K pairs of samples, (S, K) and (R, K)."""
    if len(mine) == len(other):
        return np.abs(np.sort(mine, axis=0) - np.sort(other, axis=0)).mean(0)
    return np.array([wasserstein_distance(a, b) for a, b in zip(mine.T, other.T, strict=True)])


def _wasserstein_noise(draws: np.ndarray) -> np.ndarray:
    """sqrt(n) times the mean 1-Wasserstein distance of n draws from their own distribution.

    It is sqrt(2 / pi) times the integral of sqrt(F (1 - F)): del Barrio, Gine and Matran 1999, doi 10.1214/aop/1022677394.
    """
    x, n = np.sort(draws, axis=0), len(draws)
    level = np.arange(1, n)[:, None] / n
    return math.sqrt(2 / math.pi) * (np.diff(x, axis=0) * np.sqrt(level * (1 - level))).sum(0)


def _summary(table: pd.DataFrame) -> dict[str, float]:
    result = {}
    for name in SUMMARY:
        column = name.removesuffix("_min").removesuffix("_max")
        values = np.abs(table[column].to_numpy())
        sign = -1 if name.endswith("_min") else 1
        # A value that is not a number outranks every other: nothing may be called largest beside it.
        at = int(np.argmax(np.where(np.isnan(values), np.inf, sign * values))) if values.size else -1
        result[name] = float(values[at]) if at >= 0 else math.nan
        result[f"{name}_mcse"] = float(table[f"{column}_mcse"].iloc[at]) if at >= 0 else math.nan
    return result
