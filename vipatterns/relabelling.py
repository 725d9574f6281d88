"""Interchangeable labels, such as the components of a mixture: every fit's are arranged like the reference's before they are compared.

Each draw's labels are permuted to lie nearest to a pivot, which is then moved to the mean of the arranged draws, until nothing
changes: Stephens 2000, doi 10.1111/1467-9868.00265, algorithm 1, with independent normals for the classification probabilities.

A fit says which labels are interchangeable in its DataTree's attrs: `exchangeable`, JSON, latent site -> the axis that they run along.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import linear_sum_assignment

from vipatterns.marginals import Draws, by_site
from vipatterns.posterior import Fit

MOST_ROUNDS = 20
ENOUGH = 4_000
"""Draws that the pivot is settled on, evenly taken."""


@dataclass(frozen=True, eq=False)
class Pivot:
    """What every draw's labels are arranged by: K labels, each with P features."""

    mean: np.ndarray
    """(K, P)."""
    sd: np.ndarray
    """(K, P)."""

    def arrange(self, features: np.ndarray) -> np.ndarray:
        """(S, K, P) -> (S, K): which of a draw's labels goes to each of the pivot's, the likeliest arrangement under normals."""
        orders = np.empty(features.shape[:2], int)
        for s, values in enumerate(features):
            distance = ((values[:, None] - self.mean) / self.sd) ** 2
            rows, columns = linear_sum_assignment(distance.sum(-1))
            orders[s, columns] = rows
        return orders


def exchangeable(fit: Fit) -> dict[str, int]:
    """Latent site -> the axis of its interchangeable labels; empty where there are none."""
    return json.loads(fit.idata.attrs.get("exchangeable", "{}"))


def match(fits: Mapping[str, Any], leader: str | None, reference: Any = None) -> tuple[dict[str, Any], Any, tuple[str, ...]]:
    """Arranges the labels of every fit like those of the reference.

    Args:
        fits: label -> Fit, or something else, which is left alone.
        leader: the fit that the others follow where there is no reference; the first where None.
        reference: as `agreement.against` takes it, or None.

    Returns:
        The fits and the reference, rearranged, and the sites concerned; all as they came where no labels are interchangeable.
    """
    found = {label: fit for label, fit in fits.items() if isinstance(fit, Fit)}
    axes = next((labels for fit in found.values() if (labels := exchangeable(fit))), {})
    if not axes:
        return dict(fits), reference, ()
    leader = leader or next(iter(found))
    like = found[leader].posterior
    axes = _with_followers(axes, like)
    sites = None if reference is None else by_site(reference, like)
    if sites is not None:
        theirs = {name: value.values for name, value in sites.items() if name in axes and isinstance(value, Draws)}
        if set(theirs) != set(axes) & set(sites):  # distributions know of no order among a draw's labels
            return dict(fits), reference, ()
        axes = {name: axis for name, axis in axes.items() if name in theirs}
    else:
        theirs = {name: like[name].values for name in axes}
    if not axes:
        return dict(fits), reference, ()
    pivot = _settle(_features(theirs, axes))
    if sites is not None:
        reference = sites | {name: replace(sites[name], values=values) for name, values in _arranged(theirs, axes, pivot).items()}
    return {label: _arrange_fit(fit, axes, pivot) if label in found else fit for label, fit in fits.items()}, reference, tuple(axes)


def _with_followers(axes: dict[str, int], posterior: xr.Dataset) -> dict[str, int]:
    """Adds the sites that share the labels' dim, such as deterministic ones."""
    dims = {posterior[name].dims[2 + axis] for name, axis in axes.items()}
    return {str(name): v.dims.index(dim) - 2 for name, v in posterior.data_vars.items() for dim in v.dims if dim in dims}


def _features(values: dict[str, np.ndarray], axes: dict[str, int]) -> np.ndarray:
    """Site -> (chain, draw, *shape) to (S, K, P): what each label has of each site."""
    columns = []
    for name, axis in axes.items():
        moved = np.moveaxis(values[name], 2 + axis, 2).astype(float)
        columns.append(moved.reshape(moved.shape[0] * moved.shape[1], moved.shape[2], -1))
    return np.concatenate(columns, axis=2)


def _settle(features: np.ndarray) -> Pivot:
    """A pivot that is the mean of the draws arranged by it; it starts from a draw whose labels lie typically far apart."""
    features = features[:: -(-len(features) // ENOUGH)]
    scale = features.std((0, 1))
    scale = np.where(scale > 0, scale, 1.0)
    spread = (features / scale).var(1).sum(-1)
    typical = np.argsort(spread)[int(0.5 * len(spread))]
    pivot, before = Pivot(features[typical], np.broadcast_to(scale, features.shape[1:])), None
    for _ in range(MOST_ROUNDS):
        orders = pivot.arrange(features)
        if before is not None and (orders == before).all():
            break
        arranged, before = np.take_along_axis(features, orders[..., None], axis=1), orders
        pivot = Pivot(arranged.mean(0), np.maximum(arranged.std(0), 1e-3 * scale))
    return pivot


def _arranged(values: dict[str, np.ndarray], axes: dict[str, int], pivot: Pivot) -> dict[str, np.ndarray]:
    orders = pivot.arrange(_features(values, axes))
    result = {}
    for name, axis in axes.items():
        moved = np.moveaxis(values[name], 2 + axis, 2)
        index = orders.reshape(*moved.shape[:3], *(1,) * (moved.ndim - 3))
        result[name] = np.moveaxis(np.take_along_axis(moved, index, axis=2), 2, 2 + axis)
    return result


def _arrange_fit(fit: Fit, axes: dict[str, int], pivot: Pivot) -> Fit:
    draws = fit.posterior
    arranged = _arranged({name: draws[name].values for name in axes}, axes, pivot)
    tree = fit.idata.copy()
    tree["posterior"] = xr.DataTree(draws.assign({name: draws[name].copy(data=values) for name, values in arranged.items()}))
    return replace(fit, idata=tree)
