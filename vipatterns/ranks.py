"""Figure of a Calibration: where the true parameters rank among the draws, against what a right posterior would show."""

from typing import Any

import numpy as np
from arviz_stats.ecdf_utils import ecdf_pit
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vipatterns.calibration import shares_by_scalar
from vipatterns.errors import InputError
from vipatterns.plots import COLOURS, MOST_SCALARS, REFERENCE_COLOUR, Picture, grid, plain, under

BAND = 0.95
"""Probability that a right posterior's whole curve stays in the band."""
NUM_SIMULATIONS = 1_000


def ranks(calibration: Any, *, num: int = MOST_SCALARS) -> Picture:
    """ECDF of the true parameters' ranks less that of uniform ranks, a panel a scalar, with ArviZ's simultaneous band.

    A hill: true values lie low among the draws, whose mean is too high; a valley: too low. A hill and then a valley: draws too narrow; a
    valley and then a hill: too wide (Saeilynoja, Buerkner and Vehtari 2022, doi 10.1007/s11222-022-10090-6).

    Args:
        calibration: a `vip.Calibration` with two certified data sets or more.
        num: panels at most; the least uniform first where there are more scalars.
    """
    certified = shares_by_scalar(calibration.idata["prior_sbc"].to_dataset())
    if not certified or calibration.certified.count < 2:
        raise InputError("There is nothing to draw: fewer than two data sets earned a certificate.")
    raw = shares_by_scalar(calibration.idata["proposal_sbc"].to_dataset()) if "proposal_sbc" in calibration.idata.children else {}
    table = calibration.table
    names = list(table.sort_values("uniform_p").index[:num]) if len(table) > num else list(table.index)
    rows, columns = grid(len(names))
    figure = Picture(figsize=(2.9 * columns, 2.0 * rows + 0.6), layout="constrained")
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
        for shares, colour, style in [(raw.get(name), COLOURS[1], "--"), (certified[name], COLOURS[0], "-")]:
            if shares is None:
                continue
            x, ecdf, low, high = ecdf_pit(shares, BAND, NUM_SIMULATIONS)
            if style == "-":
                axes.fill_between(x, low - x, high - x, color=REFERENCE_COLOUR, alpha=0.35, linewidth=0)
            axes.plot(x, ecdf - x, color=colour, linestyle=style)
        axes.set(title=f"{plain(name)} (p {table.uniform_p[name]:.2g})", xlim=(0, 1))
        axes.axhline(0, color=REFERENCE_COLOUR, linewidth=0.8)
    for axes in figure.axes[len(names) :]:
        axes.remove()
    for axes in figure.axes[-columns:]:
        axes.set_xlabel("true parameter's rank")
    figure.supylabel("ECDF less uniform")
    handles = [
        Line2D([], [], color=COLOURS[0], label="certified draws"),
        *([Line2D([], [], color=COLOURS[1], linestyle="--", label="raw draws of q")] if raw else []),
        Patch(color=REFERENCE_COLOUR, alpha=0.35, label=f"{BAND:.0%} band"),
    ]
    under(figure, handles)
    outside = [name for name in names if _leaves_band(certified[name])]
    which = f"outside the band: {', '.join(outside)}" if outside else "none leaves the band"
    figure.alt = (
        f"Ranks of the true parameters of {len(names)} scalars among certified draws, as ECDF less uniform; {which}. {calibration.sentence}"
    )
    return figure


def _leaves_band(shares: np.ndarray) -> bool:
    _, ecdf, low, high = ecdf_pit(shares, BAND, NUM_SIMULATIONS)
    return bool(((ecdf < low) | (ecdf > high)).any())
