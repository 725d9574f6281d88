"""One side of a comparison: draws or distributions of a model's sites, in whatever form they come, as marginals of scalars."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
import xarray as xr
from arviz_stats.base.array import array_stats

from vipatterns import keys
from vipatterns.errors import InputError
from vipatterns.posterior import Fit

TAIL = 0.05
"""Tails are looked at through the quantiles at this probability and at one minus it."""
REFERENCE_DRAWS = 20_000
"""Draws taken of a distribution for its quantiles and for Wasserstein distances; fewer where a site has very many scalars."""
CONSTANT = 1e-10
"""A scalar whose sd is below this share of its size does not vary: a diagonal of a correlation matrix, say."""


@dataclass(frozen=True, eq=False)
class Marginals:
    """One side of the comparison: K scalars of one site, with their draws and the Monte Carlo error of what is read off them."""

    draws: np.ndarray
    """(S, K)."""
    mean: np.ndarray
    """(K,), like all below."""
    sd: np.ndarray
    mean_mcse: np.ndarray
    sd_mcse: np.ndarray
    ess: np.ndarray
    """Effective draws behind the body of a marginal; of a distribution, the draws that stand for it."""
    tail_ess: np.ndarray

    def take(self, part: slice) -> "Marginals":
        """Some of the scalars."""
        return Marginals(self.draws[:, part], *(getattr(self, f.name)[part] for f in fields(self)[1:]))


def read_draws(draws: Any) -> tuple[xr.Dataset, float | None]:
    """Draws as a Dataset (chain, draw, ...), and the ess of the weights they were resampled by (None for draws that were not)."""
    effective = None
    if isinstance(draws, Fit):
        effective = draws.certificate.ess if "proposal" in draws.idata.children else None
        draws = draws.posterior
    if isinstance(draws, xr.DataTree):
        if "posterior" not in draws.children:
            raise InputError(f"A DataTree of draws needs a group named posterior; this one has {_listed(draws.children)}.")
        draws = draws["posterior"].to_dataset()
    if {"chain", "draw"} <= set(draws.sizes):
        return draws.transpose("chain", "draw", ...), effective
    for dim in ("draw", "sample"):
        if dim in draws.sizes:  # one chain; `az.extract` gives sample, an index of (chain, draw)
            bare = draws.drop_vars([dim, "chain", "draw"], errors="ignore").rename({dim: "draw"})
            return bare.expand_dims("chain").transpose("chain", "draw", ...), effective
    raise InputError(f"Draws need the dims chain and draw; these have {_listed(draws.sizes)}.")


def scalar_draws(source: Any, names: Sequence[str], rng_key: jax.Array, *, like: xr.Dataset) -> dict[str, np.ndarray]:
    """Draws (S,) of the scalars called `names` (those that it has) from anything that `against` takes as a reference.

    `like` is the posterior whose sites, shapes and labels count.
    """
    sites, wanted, found = by_site(source, like), set(names), {}
    for i, site in enumerate(str(name) for name in like.data_vars if name in sites):
        positions = {label: j for j, label in enumerate(scalar_labels(like[site])) if label in wanted}
        if not positions:
            continue
        value, shape = sites[site], like[site].shape[2:]
        if isinstance(value, Draws):
            flat = value.values.reshape(value.values.shape[0] * value.values.shape[1], -1)
        else:
            flat = of_distribution(value, shape, jax.random.fold_in(rng_key, i)).draws
        found |= {label: flat[:, j] for label, j in positions.items()}
    return {name: found[name] for name in names if name in found}


def scalar_labels(values: xr.DataArray) -> list[str]:
    """Labels of a site's scalars, in C order: theta, theta[Choate], L[0, 1]; positions where a dim's labels repeat."""
    axes = []
    for dim in values.dims[2:]:
        names = [str(v) for v in values[dim].values]
        axes.append(names if len(set(names)) == len(names) else [str(i) for i in range(len(names))])
    if not axes:
        return [str(values.name)]
    shape = [len(a) for a in axes]
    return [f"{values.name}[{', '.join(a[i] for a, i in zip(axes, at, strict=True))}]" for at in np.ndindex(*shape)]


def is_distribution(value: Any) -> bool:
    """Whether a reference's entry is a distribution, not draws."""
    return not hasattr(value, "__array__") and any(hasattr(value, name) for name in ("rvs", "sample"))


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of one site."""

    values: np.ndarray
    """(chain, draw, *shape)."""
    effective: float | None
    """The ess of the weights they were resampled by; inf where they count as independent; None where it is to be read off them."""

    def marginals(self, part: slice = slice(None)) -> Marginals:
        """Of the site's scalars, or of some of them in C order."""
        return of_draws(self.values.reshape(*self.values.shape[:2], -1)[..., part], self.effective)


def by_site(reference: Any, posterior: xr.Dataset) -> dict[str, Any]:
    """A reference in any form that `against` takes as site -> Draws in the posterior's shape, or distribution."""
    if isinstance(reference, Mapping) and not isinstance(reference, (xr.Dataset, xr.DataTree)):
        sites: dict[str, Any] = {str(name): value for name, value in reference.items()}
        effective = None
    elif isinstance(reference, (Fit, xr.Dataset, xr.DataTree)):
        draws, effective = read_draws(reference)
        for dim in set(draws.dims) & set(posterior.dims) - {"chain", "draw"}:  # the same labels in another order
            mine, other = list(posterior[dim].values), list(draws[dim].values)
            if mine != other and len(set(mine)) == len(mine) == len(other) and set(mine) == set(other):
                draws = draws.sel({dim: mine})
        sites = {str(name): values.values for name, values in draws.data_vars.items()}
    else:
        raise InputError(f"A reference is draws, or a dict site -> distribution; got {type(reference).__name__}.")
    if not set(sites) & set(posterior.data_vars):
        raise InputError(
            f"The reference has the sites {_listed(sites)}; the posterior has {_listed(posterior)}: name at least one of them."
        )
    for name in set(sites) & set(posterior.data_vars):
        if not is_distribution(sites[name]) and not isinstance(sites[name], Draws):
            sites[name] = _in_shape(str(name), sites[name], posterior[name].shape[2:], effective)
    return sites


def _in_shape(name: str, value: Any, shape: tuple[int, ...], effective: float | None) -> Draws:
    """Draws (draw, *shape), which count as independent, or (chain, draw, *shape)."""
    values = np.asarray(value, float)
    if values.size and values.ndim == len(shape) + 1 and values.shape[1:] == shape:
        values, effective = values[None], math.inf
    if not values.size or values.ndim != len(shape) + 2 or values.shape[2:] != shape:
        came = np.shape(value)
        raise InputError(f"The reference of {name} needs the shape (draw, ...) or (chain, draw, ...) with {shape} in the end; got {came}.")
    if not np.isfinite(values).all():
        raise InputError(f"The reference of {name} holds {np.sum(~np.isfinite(values))} values that are not finite: leave those draws out.")
    return Draws(values, effective)


def of_draws(values: np.ndarray, effective: float | None = None) -> Marginals:
    """Marginals of draws (chain, draw, *shape); `effective` as in `Draws`."""
    values = np.asarray(values, float).reshape(*values.shape[:2], -1)
    flat = values.reshape(-1, values.shape[-1])
    mean, sd = flat.mean(0), flat.std(0, ddof=1) if len(flat) > 1 else np.zeros(flat.shape[1])
    if effective is None:
        with np.errstate(all="ignore"):  # constant and non-finite scalars give nan
            ess, sd_ess, tail = (_ess(values, **how) for how in _ESTIMATES)
    else:
        # Errors of the weighted estimate and of resampling from it add up.
        count = 1 / (1 / effective + 1 / len(flat)) if effective > 0 else 0.0
        ess = tail = sd_ess = np.full(flat.shape[1], count)
    with np.errstate(all="ignore"):
        kurtosis = ((flat - mean) ** 4).mean(0) / np.where(sd > 0, sd, 1.0) ** 4
        mean_mcse = sd / np.sqrt(ess)
        sd_mcse = sd * np.sqrt(np.maximum(kurtosis - 1, 0) / sd_ess) / 2
    constant = still(mean, sd)
    return Marginals(
        flat, mean, np.where(constant, 0.0, sd), np.where(constant, 0.0, mean_mcse), np.where(constant, 0.0, sd_mcse), ess, tail
    )


_ESTIMATES = ({"method": "mean"}, {"method": "sd"}, {"method": "tail", "prob": (TAIL, 1 - TAIL)})


def _ess(values: np.ndarray, **how: Any) -> np.ndarray:
    return np.asarray(array_stats.ess(values, chain_axis=0, draw_axis=1, **how))  # pyright: ignore[reportArgumentType]


def of_distribution(distribution: Any, shape: tuple[int, ...], rng_key: jax.Array) -> Marginals:
    """Marginals of a NumPyro distribution, or of a frozen one of SciPy, whose batch and event shape broadcast to `shape`."""
    size = math.prod(shape)
    num = int(np.clip(2e7 / max(size, 1), 1_000, REFERENCE_DRAWS))
    if hasattr(distribution, "event_shape"):
        with jax.enable_x64(True):
            draws = np.asarray(distribution.sample(rng_key, (num,)), float)
            try:
                mean, sd = np.asarray(distribution.mean, float), np.sqrt(np.asarray(distribution.variance, float))
            except NotImplementedError:
                mean = sd = None
    else:
        draws, mean, sd = _of_scipy(distribution, num, keys.generator(rng_key))
    missing = (1,) * (len(shape) + 1 - draws.ndim)
    try:
        draws = np.broadcast_to(draws.reshape(num, *missing, *draws.shape[1:]), (num, *shape)).reshape(num, size)
    except ValueError as e:
        raise InputError(f"A reference of shape {draws.shape[1:]} does not broadcast to its site's shape {shape}.") from e
    if mean is None or sd is None:
        return of_draws(draws[None], math.inf)
    mean, sd = (np.broadcast_to(v, shape).reshape(size) for v in (mean, sd))
    return Marginals(draws, mean, sd, *np.zeros((2, size)), *np.full((2, size), float(num)))


def _of_scipy(frozen: Any, num: int, rng: np.random.Generator) -> tuple[np.ndarray, Any, Any]:
    def moment(name: str) -> np.ndarray:
        value = getattr(frozen, name)
        return np.asarray(value() if callable(value) else value, float)

    if hasattr(frozen, "cov") or not hasattr(frozen, "mean"):  # multivariate: its draws bring their own last axis
        draws = np.reshape(frozen.rvs(size=num, random_state=rng), (num, -1))
        return (draws, moment("mean"), np.sqrt(np.diag(moment("cov")))) if hasattr(frozen, "cov") else (draws, None, None)
    mean = moment("mean")
    if hasattr(frozen, "rvs"):
        return frozen.rvs(size=(num, *mean.shape), random_state=rng), mean, moment("std")
    return frozen.sample((num,), rng=rng), mean, moment("standard_deviation")


def still(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Which scalars do not vary."""
    return sd <= CONSTANT * np.abs(mean)


def _listed(names: Any) -> str:
    names = [str(n) for n in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"
