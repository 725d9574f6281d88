"""Figures of a Comparison. They are returned, never shown, change no setting of Matplotlib, and carry a text for those who cannot see them.

Densities are ArviZ's (`kde`). Colours hold on white and on black paper and to colour-blind eyes; line styles repeat what they say.
"""

import base64
import html
import io
from typing import Any, cast

import jax
import numpy as np
from arviz_stats.base.array import array_stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from vipatterns.marginals import scalar_draws
from vipatterns.verdict import MEAN_LIMIT

COLOURS = ("#2f7fc1", "#d9702b", "#2a9d74", "#a566c4", "#cf4f7f", "#8c8a22", "#1f9bb3", "#9a6a4f")
STYLES = ("-", "--", "-.", ":")
REFERENCE_COLOUR = "#8a8f98"
MOST_SCALARS = 12
MOST_PAIRS = 3
PAIR_DRAWS = 400
"""Points a method in each panel of the pair plot."""


class Picture(Figure):
    """A Matplotlib figure with a text alternative, which it gives to notebooks and web pages."""

    alt: str = ""

    def _repr_html_(self) -> str:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        data = base64.b64encode(buffer.getvalue()).decode()
        return f'<img alt="{html.escape(self.alt, quote=True)}" src="data:image/png;base64,{data}" style="max-width:100%">'


def marginals(comparison: Any, *, num: int = MOST_SCALARS, seed: int = 0) -> Picture:
    """Posterior density of each scalar by each method, over the reference's; the most wrong first where there are more than `num`.

    Args:
        comparison: a `vip.Comparison` with at least one finished fit.
        num: panels at most.
        seed: of the draws that stand for an exact reference.
    """
    names, total = comparison.worst(num)
    rows, columns = grid(len(names))
    figure = Picture(figsize=(2.9 * columns, 2.0 * rows + 0.5), layout="constrained")
    drawn = _draws(comparison, names, seed)
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
        _marginal(axes, comparison, name, drawn)
    for axes in figure.axes[len(names) :]:
        axes.remove()
    handles = [
        Patch(color=REFERENCE_COLOUR, alpha=0.5, label=plain(text))
        if is_reference(comparison, label)
        else Line2D([], [], label=plain(text), **line(comparison, label))
        for label, text in sources(comparison)
    ]
    under(figure, handles)
    which = f"all {total}" if len(names) == total else f"{len(names)} of {total}"
    order = ", the most wrong first" if comparison.agreement else ""
    figure.alt = " ".join(
        [
            f"Posterior densities of {which} scalars{order}: {', '.join(names)}. Drawn by {_and([t for _, t in sources(comparison)])}.",
            *(
                f"{label}: largest mean error {a.mean_error:.2f} sd, sd ratio {a.sd_ratio_min:.2f} to {a.sd_ratio_max:.2f}."
                for label, a in comparison.agreement.items()
            ),
        ]
    )
    return figure


def marginal_panels(comparison: Any, names: list[str], *, seed: int = 0) -> list[Picture]:
    """The same, a figure a scalar and without a legend, for a page that lays them out by its width."""
    drawn = _draws(comparison, names, seed)
    figures = []
    for name in names:
        figure = Picture(figsize=(2.9, 2.0), layout="constrained")
        _marginal(figure.subplots(), comparison, name, drawn)
        judged = {label: a.scalars.loc[name] for label, a in comparison.agreement.items() if name in a.scalars.index}
        errors = [f"{label}: mean off by {row.mean_error:+.2f} sd, sd ratio {row.sd_ratio:.2f}." for label, row in judged.items()]
        figure.alt = " ".join([f"Posterior density of {name} by {_and([t for _, t in sources(comparison)])}.", *errors])
        figures.append(figure)
    return figures


def _marginal(axes: Axes, comparison: Any, name: str, drawn: dict[str | None, dict[str, np.ndarray]]) -> None:
    shown = {label: draws[name] for label, draws in drawn.items() if name in draws}
    edges = np.array([np.quantile(draws, [0.002, 0.998]) for draws in shown.values()])
    for label, draws in shown.items():
        if np.ptp(draws) == 0:
            axes.axvline(draws[0], **line(comparison, label))
            continue
        grid, density, _ = array_stats.kde(draws)
        if is_reference(comparison, label):
            axes.fill_between(grid, density, color=REFERENCE_COLOUR, alpha=0.5, linewidth=0)
        else:
            axes.plot(grid, density, **line(comparison, label))
    low, high = edges[:, 0].min(), edges[:, 1].max()
    pad = 0.03 * (high - low) or 1.0
    axes.set(title=plain(name), yticks=[], xlim=(low - pad, high + pad), ylim=(0, None))
    axes.locator_params(axis="x", nbins=5)
    _trim(axes, "left")


def elbo_traces(comparison: Any) -> Picture | None:
    """ELBO against step, a line a restart, smoothed, with the log evidence where it is known. None where no method has an ELBO trace."""
    traced = {label: fit for label, fit in comparison.finished.items() if fit.losses is not None and np.isfinite(fit.elbo)}
    if not traced:
        return None
    figure = Picture(figsize=(5.2, 3.3), layout="constrained")
    axes = figure.subplots()
    late = []
    for label, fit in traced.items():
        elbo = -np.atleast_2d(np.asarray(fit.losses, float))
        window = max(1, elbo.shape[1] // 100)
        usable = elbo[:, : elbo.shape[1] // window * window].reshape(len(elbo), -1, window)
        smooth, steps = np.median(usable, axis=-1), (np.arange(usable.shape[1]) + 0.5) * window
        for restart in smooth:
            axes.plot(steps, restart, alpha=0.8, **(line(comparison, label) | {"linewidth": 1.0}))  # pyright: ignore[reportArgumentType]
        late.append(smooth[:, smooth.shape[1] // 2 :].ravel())
    known, late = _log_evidence(comparison), np.concatenate(late)
    if np.isfinite(late).any():
        # the first steps are far below and noisy: the axis belongs to the end
        low, high = np.quantile(late[np.isfinite(late)], [0.01, 0.99])
        low, high = (low, high) if known is None else (min(low, known[0]), max(high, known[0]))
        pad = max(0.4 * (high - low), 1e-4 * abs(high), 0.05)
        axes.set_ylim(low - pad, high + pad)
    handles = [Line2D([], [], label=plain(label), **line(comparison, label)) for label in traced]
    if known is not None:
        handles.append(axes.axhline(known[0], color=REFERENCE_COLOUR, linewidth=2, zorder=0, label=f"log evidence ({known[1]})"))
    axes.set(xlabel="optimiser step", ylabel="ELBO (nats), smoothed")
    axes.ticklabel_format(useOffset=False)
    _trim(axes)
    under(figure, handles)
    ends = "; ".join(f"{label} ends at {fit.elbo:.2f} nats after {fit.num_steps:,} steps" for label, fit in traced.items())
    figure.alt = f"ELBO against optimiser step, one line a restart. {ends}." + (
        f" The log evidence, {known[0]:.2f} nats ({known[1]}), is drawn as a horizontal line, which no ELBO can lie above." if known else ""
    )
    return figure


def pairs(comparison: Any, *, num: int = MOST_PAIRS, seed: int = 0) -> Picture | None:
    """Draws of the most correlated scalars against each other. None where fewer than two scalars vary.

    Correlations are those of the reference, or of the first fit where the reference is a set of marginals.
    """
    candidates, _ = comparison.worst(60)
    drawn = {label: draws for label, draws in _draws(comparison, candidates, seed).items() if label is not None or _joint(comparison)}
    if not drawn or len(candidates) < 2:
        return None
    leader = comparison.reference.label if comparison.reference.label in drawn else next(iter(drawn))
    table = {name: values for name, values in drawn[leader].items() if np.ptp(values) > 0}
    names = _most_correlated(table, num)
    if len(names) < 2:
        return None
    correlation = np.corrcoef([table[name] for name in names])
    size = len(names) - 1
    figure = Picture(figsize=(1.9 * size + 0.9, 1.8 * size + 0.9), layout="constrained")
    grid = figure.subplots(size, size, squeeze=False, sharex="col", sharey="row")
    rng = np.random.default_rng(seed)
    for i, j in np.ndindex(size, size):
        axes = cast(Axes, grid[i, j])
        if j > i:
            axes.remove()
            continue
        x, y = names[j], names[i + 1]
        for label, draws in drawn.items():
            if x not in draws or y not in draws:
                continue
            # each method's own draws are exchangeable: any few of them will do
            kept = rng.choice(draws[x].size, min(PAIR_DRAWS, draws[x].size), replace=False)
            colour = line(comparison, label)["color"]
            axes.plot(draws[x][kept], draws[y][kept], ".", color=colour, alpha=0.45, markersize=3, markeredgewidth=0, rasterized=True)
        if i == size - 1:
            axes.set_xlabel(plain(x))
        if j == 0:
            axes.set_ylabel(plain(y))
        _trim(axes)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=line(comparison, label)["color"], label=plain(text))
        for label, text in sources(comparison)
        if label in drawn
    ]
    under(figure, handles)
    shown = _and([text for label, text in sources(comparison) if label in drawn])
    strongest = np.unravel_index(np.argmax(np.abs(np.tril(correlation, -1))), correlation.shape)
    figure.alt = (
        f"Scatter of posterior draws of {_and(names)}, the most correlated scalars, by {shown}. The strongest "
        f"correlation, {names[strongest[1]]} with {names[strongest[0]]}, is {correlation[strongest]:.2f} by "
        f"{comparison.reference.name if leader is None else leader}."
    )
    return figure


def error_against_time(comparison: Any) -> Picture | None:
    """Largest mean error of each method against the seconds it took, compiling included. None where nothing was measured."""
    judged = {label: a for label, a in comparison.agreement.items() if np.isfinite(a.mean_error)}
    if not judged:
        return None
    figure = Picture(figsize=(5.2, 3.3), layout="constrained")
    axes = figure.subplots()
    told = []
    for i, (label, a) in enumerate(judged.items()):
        fit = comparison.fits[label]
        total, error = fit.compile_seconds + fit.run_seconds, max(a.mean_error, 1e-4)
        noise = a.mean_error_mcse if np.isfinite(a.mean_error_mcse) else 0.0
        colour = line(comparison, label)["color"]
        axes.plot([max(fit.run_seconds, 1e-3), total], [error, error], color=colour, alpha=0.4, linewidth=4, solid_capstyle="round")
        axes.errorbar(
            total, error, yerr=[[min(noise, 0.9 * error)], [noise]], color=colour, marker="osD^v<>P"[i % 8], capsize=3, label=label
        )
        told.append(f"{label} {a.mean_error:.3f} sd in {total:.1f} s")
    axes.axhline(MEAN_LIMIT, color=REFERENCE_COLOUR, linestyle="--", linewidth=1)
    axes.annotate(
        f"limit for safe, {MEAN_LIMIT} sd",
        (1, MEAN_LIMIT),
        xycoords=("axes fraction", "data"),
        xytext=(-3, 3),
        textcoords="offset points",
        ha="right",
        fontsize="small",
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="seconds (pale line: from running alone to compiling and running)",
        ylabel="largest mean error (sd)",
    )
    axes.margins(x=0.25, y=0.25)
    for axis, limits, widen in ((axes.xaxis, axes.get_xlim(), axes.set_xlim), (axes.yaxis, axes.get_ylim(), axes.set_ylim)):
        centre, half = np.sqrt(limits[0] * limits[1]), max(np.sqrt(limits[1] / limits[0]), np.sqrt(11))  # a power of ten is always in view
        widen(centre / half, centre * half)
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _trim(axes)
    under(figure, axes.get_legend_handles_labels()[0])
    figure.alt = f"Largest mean error against time, both on log scales: {'; '.join(told)}. The limit for safe is {MEAN_LIMIT} sd."
    return figure


def _draws(comparison: Any, names: list[str], seed: int) -> dict[str | None, dict[str, np.ndarray]]:
    """Method's label -> scalar -> draws; None stands for a reference that is no method, and comes first."""
    reference, finished = comparison.reference, comparison.finished
    like = next(iter(finished.values())).posterior
    return {
        label: scalar_draws(reference.draws if label is None else finished[label], names, jax.random.key(seed), like=like)
        for label, _ in sources(comparison)
    }


def _joint(comparison: Any) -> bool:
    """Whether the reference's sites may be set against each other: a dict holds marginals, a site at a time."""
    return not isinstance(comparison.reference.draws, dict)


def sources(comparison: Any) -> list[tuple[str | None, str]]:
    """Whose draws are shown, the reference first, and their name in a legend; None is a reference that is no method."""
    reference = comparison.reference
    names: list[tuple[str | None, str]] = (
        [(reference.label, f"{reference.name} (reference)" if reference.label else reference.name)] if reference.ok else []
    )
    return names + [(label, label) for label in comparison.finished if not (reference.ok and label == reference.label)]


def line(comparison: Any, label: str | None) -> dict[str, Any]:
    """How a method is drawn, or the reference."""
    if is_reference(comparison, label):
        return {"color": REFERENCE_COLOUR, "linestyle": "-", "linewidth": 1.6}
    i = list(comparison.fits).index(label)
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)], "linewidth": 1.6}


def is_reference(comparison: Any, label: str | None) -> bool:
    """Whether a label of `sources` is what the others are judged by."""
    return label is None or (comparison.reference.ok and label == comparison.reference.label)


def under(figure: Figure, handles: list[Any]) -> None:
    width = figure.get_size_inches()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, min(len(handles), int(width / 1.9))), frameon=False)


def _trim(axes: Any, *also: str) -> None:
    axes.spines[["top", "right", *also]].set_visible(False)


def grid(panels: int) -> tuple[int, int]:
    columns = panels if panels < 4 else 3 if panels in (5, 6, 9) else 4
    return max(1, -(-panels // max(columns, 1))), max(columns, 1)


def plain(text: str) -> str:
    """A name as it is, not as Matplotlib's mathematics."""
    return text.replace("$", r"\$")


def _most_correlated(table: dict[str, np.ndarray], num: int) -> list[str]:
    """The pair with the strongest correlation, then again and again the scalar that has the strongest with one of those chosen."""
    names = list(table)
    if len(names) < 2:
        return []
    strength = np.abs(np.nan_to_num(np.corrcoef([table[name] for name in names])))
    np.fill_diagonal(strength, -1)
    chosen = [int(i) for i in np.unravel_index(np.argmax(strength), strength.shape)]
    while len(chosen) < min(num, len(names)):
        left = [i for i in range(len(names)) if i not in chosen]
        chosen.append(max(left, key=lambda i: strength[i, chosen].max()))
    return [names[i] for i in sorted(chosen)]


def _log_evidence(comparison: Any) -> tuple[float, str] | None:
    """The exact one, or the estimate with the smallest error among the fits that passed."""
    if comparison.log_evidence is not None:
        return comparison.log_evidence, "exact"
    vouched = {label: fit.certificate for label, fit in comparison.finished.items() if "evidence" in comparison.verdicts[label].safe}
    if not vouched:
        return None
    best = min(vouched, key=lambda label: vouched[label].log_evidence_mcse)
    return vouched[best].log_evidence, f"estimate of {best}"


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "nothing"
