"""Simulation-based checks of a method on a model: parameters are drawn from the prior, data from the model, and the fits asked for both.

Where posteriors are right, the share of a posterior's draws that lie below the parameter which made its data is uniform over data sets
(Talts, Betancourt, Simpson, Vehtari and Gelman 2018, arXiv 1804.06788). For q itself, VSBC asks whether that share is symmetric, which it
is not where q's mean is biased (Yao, Vehtari, Simpson and Gelman 2018, arXiv 1802.02538). Neither can tell whether one certificate was
right: for that, each fit is held against a reference for its own data.
"""

import inspect
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.base.array import array_stats
from scipy import stats

from vipatterns import keys
from vipatterns.agreement import against
from vipatterns.density import labels
from vipatterns.draws import as_count, as_key, stored
from vipatterns.errors import InputError
from vipatterns.methods import fit as run
from vipatterns.methods.dadvi import DADVI
from vipatterns.posterior import Fit
from vipatterns.prediction import prior_predictive
from vipatterns.progress import reporting
from vipatterns.verdict import MEAN_LIMIT, SD_LIMIT

BEYOND_NOISE = 4
"""A certificate is false where a mean or an sd is off by more than the limits of a verdict and this many Monte Carlo errors."""
LEVELS = (0.5, 0.8, 0.95)
"""Central intervals whose coverage is counted."""


@dataclass(frozen=True)
class Rate:
    """A share that was counted."""

    count: int
    """How many were counted."""
    number: int
    """Of how many."""

    @property
    def share(self) -> float:
        """count / number; nan of none."""
        return self.count / self.number if self.number else math.nan

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The exact central confidence interval (Clopper and Pearson 1934, doi 10.1093/biomet/26.4.404)."""
        if not self.number:
            return 0.0, 1.0
        found = stats.binomtest(self.count, self.number).proportion_ci(level, method="exact")
        return float(found.low), float(found.high)

    def upper(self, level: float = 0.95) -> float:
        """What the share is below, with this confidence."""
        return self.interval(2 * level - 1)[1]

    def __str__(self) -> str:
        return f"{self.count} of {self.number} (below {self.upper():.2%} with 95 % confidence)" if self.number else "0 of 0"


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """How a method fared on data that the model made of parameters from its prior."""

    method: Any
    """The method that was calibrated, with its settings."""
    idata: xr.DataTree
    """Group prior_sbc: for each scalar, the share of the certified posterior's draws below the parameter that made the data, one `draw` for
    each certified data set; group proposal_sbc: the same of q's raw draws, for every data set. `az.plot_ecdf_pit` reads both."""
    datasets: pd.DataFrame
    """A row for each data set: certified, khat, ess, log_evidence, verdict, stopped_because; with a reference also reference_ok, mean_error
    and sd_ratio_min, sd_ratio_max (largest over scalars), worst (the scalar furthest beyond the limits) and wrong."""
    seconds: float
    """Wall time."""

    @property
    def certified(self) -> Rate:
        """Data sets that earned a certificate."""
        return Rate(int(self.datasets.certified.sum()), len(self.datasets))

    @property
    def false_certificates(self) -> Rate:
        """Certified fits that are wrong, among the certified fits whose reference is to be trusted."""
        if "wrong" not in self.datasets:
            raise InputError(
                "False certificates can be told from a reference only: calibrate(..., reference=exact_posterior or vip.NUTS())."
            )
        judged = self.datasets[self.datasets.certified & self.datasets.reference_ok]
        return Rate(int(judged.wrong.sum()), len(judged))

    @property
    def table(self) -> pd.DataFrame:
        """A row a scalar: coverage of central intervals by certified posteriors, p-values of uniformity, and of q's symmetry (VSBC)."""
        shares, raw = shares_by_scalar(self.idata["prior_sbc"].to_dataset()), {}
        if "proposal_sbc" in self.idata.children:
            raw = shares_by_scalar(self.idata["proposal_sbc"].to_dataset())
        rows = []
        for name, pit in shares.items():
            covered = {f"covers_{level:.0%}": float((np.abs(2 * pit - 1) < level).mean()) for level in LEVELS}
            vsbc = _symmetric(raw[name]) if name in raw else math.nan
            uniform = float(array_stats.uniformity_test(pit)[0]) if len(pit) > 1 else math.nan
            rows.append({"scalar": name, **covered, "uniform_p": uniform, "vsbc_p": vsbc})
        return pd.DataFrame(rows).set_index("scalar")

    @property
    def sentence(self) -> str:
        """What was found, in plain words."""
        said = f"{type(self.method).__name__} certified {self.certified.count} of {self.certified.number} data sets"
        if "wrong" in self.datasets:
            said += f"; false certificates: {self.false_certificates}"
        least = self.table.uniform_p.min() if self.certified.count > 1 else math.nan
        if math.isfinite(least):
            # Holm's bound for the smallest of so many p-values.
            adjusted = min(1.0, least * len(self.table))
            fits = "agree with" if adjusted > 0.01 else "contradict"
            said += f"; shares below the true parameters {fits} uniformity (smallest p-value {adjusted:.2g}, all scalars counted)"
        return f"{said}."

    def __repr__(self) -> str:
        return f"{self.sentence}\n{self.table.head(12).to_string(float_format='{:.3g}'.format)}"


def calibrate(
    rng_key: jax.Array,
    model: Callable,
    data: dict | None = None,
    *,
    method: Any = None,
    num_datasets: int = 200,
    reference: Any = None,
    args: tuple = (),
    progress: bool | None = None,
) -> Calibration:
    """Fits `method` to data sets that the model makes of parameters from its own prior.

    Args:
        rng_key: a JAX key.
        model: a NumPyro model with proper priors, its observed sites named as their arguments.
        data: the model's other arguments; values of observed sites are left out, or not looked at.
        method: by default `vip.DADVI()`, which fits all data sets together (`DADVI.fit_many`); others fit them one by one.
        num_datasets: 300 without one false certificate put their rate below 1 % with 95 % confidence.
        reference: for each data set, to tell false certificates: a function of the model's arguments such as a pattern's
            `exact_posterior`, or a method such as `vip.NUTS(num_samples=5_000)`, which is left out where it fails its own diagnostics.
        args: positional arguments, for models that have positional-only ones.
        progress: None for automatic.

    Returns:
        A Calibration; `print` it for a sentence and a table.

    Raises:
        InputError: the model cannot be simulated from, or not from these arguments.
    """
    method, num_datasets = DADVI() if method is None else method, as_count(num_datasets)
    key_prior, key_fits, key_reference, key_against = keys.split(as_key(rng_key), 4)
    truth, datasets = _simulated(key_prior, model, data, num_datasets, args)
    rows, certified, shares, raw = [], [], [], []
    with reporting(f"calibrating {type(method).__name__}", num_datasets, progress) as report:
        began = time.perf_counter()
        for i, fit in enumerate(_fits(key_fits, method, model, datasets, args)):
            row = _row(fit)
            if reference is not None:
                key = keys.fold_in(key_reference, i)
                row |= _held_against(fit, _reference(key, reference, model, datasets[i], args), keys.fold_in(key_against, i))
            rows.append(row)
            true = truth.isel(chain=0, draw=i)
            shares.append(_shares(fit.posterior, true))
            certified.append(fit.certificate.ok)
            if "proposal" in fit.idata.children:
                raw.append(_shares(fit.idata["proposal"].to_dataset(), true))
            report(i + 1, f"{sum(certified)} certified")
        seconds = time.perf_counter() - began
    groups = {"prior_sbc": _joined([s for s, ok in zip(shares, certified, strict=True) if ok] or [s.isnull() * np.nan for s in shares[:1]])}
    if raw:
        groups["proposal_sbc"] = _joined(raw)
    return Calibration(method, xr.DataTree.from_dict(groups), pd.DataFrame(rows), seconds)


def _simulated(rng_key, model: Callable, data: dict | None, number: int, args: tuple) -> tuple[xr.Dataset, list[dict]]:
    """Parameters (chain, draw, ...), and the data that the model makes of each."""
    drawn = prior_predictive(rng_key, model, data, num_samples=number, args=args)
    observed = drawn["prior_predictive"].to_dataset() if "prior_predictive" in drawn.children else xr.Dataset()
    arguments = set(inspect.signature(model).parameters)
    if not observed or not arguments.issuperset(observed.data_vars):
        raise InputError(
            f"calibrate simulates what the model observes, and hands it back by the argument of the same name: "
            f"the model observes {sorted(map(str, observed))}, and its arguments are {sorted(arguments)}."
        )
    rest = {k: v for k, v in (data or {}).items() if stored(k) not in observed}
    made = {str(k): v.transpose("chain", "draw", ...).values[0] for k, v in observed.data_vars.items()}
    return drawn["prior"].to_dataset(), [{**rest, **{k: v[i] for k, v in made.items()}} for i in range(number)]


def _fits(rng_key, method: Any, model: Callable, datasets: list[dict], args: tuple) -> Iterator[Fit]:
    if hasattr(method, "fit_many"):
        yield from method.fit_many(rng_key, model, datasets, args=args)
        return
    for i, data in enumerate(datasets):
        yield run(keys.fold_in(rng_key, i), model, data, method=method, args=args, progress=False)


def _reference(rng_key, reference: Any, model: Callable, data: dict, args: tuple) -> tuple[Any, bool]:
    """What a fit is held against, and whether that is to be trusted."""
    if not hasattr(reference, "fit"):
        return reference(*args, **data), True
    fit = run(rng_key, model, data, method=reference, args=args, progress=False)
    return fit, fit.certificate.ok


def _held_against(fit: Fit, reference: tuple[Any, bool], rng_key) -> dict:
    draws, trusted = reference
    found = against(fit, draws, rng_key)
    scalars = found.scalars
    beyond = np.fmax(
        np.abs(scalars.mean_error) - MEAN_LIMIT - BEYOND_NOISE * scalars.mean_error_mcse,
        np.abs(scalars.sd_ratio - 1) - SD_LIMIT - BEYOND_NOISE * scalars.sd_ratio_mcse,
    )
    return {
        "reference_ok": trusted,
        "mean_error": found.mean_error,
        "sd_ratio_min": found.sd_ratio_min,
        "sd_ratio_max": found.sd_ratio_max,
        "worst": beyond.idxmax(),
        "wrong": not bool((beyond <= 0).all()),
    }


def _row(fit: Fit) -> dict:
    c = fit.certificate
    figures = {"khat": c.khat, "ess": c.ess, "log_evidence": c.log_evidence}
    return {"certified": c.ok, **figures, "verdict": c.verdict, "stopped_because": fit.stopped_because}


def _shares(draws: xr.Dataset, true: xr.Dataset) -> xr.Dataset:
    """Of each scalar, the share of draws below its true value: (rank + 1/2) / (draws + 1), since a share of 0 has no place in a test."""
    names, number = [k for k in draws.data_vars if k in true and draws[k].dtype.kind == "f"], draws.sizes["chain"] * draws.sizes["draw"]
    below = {k: (draws[k] < true[k].drop_vars(["chain", "draw"])).sum(("chain", "draw")) for k in names}
    return xr.Dataset({k: (rank + 0.5) / (number + 1) for k, rank in below.items()})


def _joined(shares: list[xr.Dataset]) -> xr.Dataset:
    return xr.concat(shares, "draw").expand_dims(chain=[0]).transpose("chain", "draw", ...).assign_coords(draw=np.arange(len(shares)))


def _symmetric(shares: np.ndarray) -> float:
    """p-value of a share's symmetry about one half."""
    return float(stats.kstest(shares, 1 - shares).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def shares_by_scalar(group: xr.Dataset) -> dict[str, np.ndarray]:
    """Label -> (data sets,)."""
    out = {}
    for name, values in group.data_vars.items():
        flat = values.values[0].reshape(values.sizes["draw"], -1)
        out |= dict(zip(labels(str(name), values.shape[2:]), flat.T, strict=True))
    return {k: v for k, v in out.items() if np.isfinite(v).all()}
