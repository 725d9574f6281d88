"""Numbers of a Comparison as people read them: every value to the digits that its error leaves, each with its error."""

import math
from typing import Any

import jax
import numpy as np

from vipatterns.marginals import scalar_draws
from vipatterns.verdict import listed

SCALAR_HEADINGS = ("mean", "sd", "error in sds", "sd ratio")


def number(value: float, scale: float) -> str:
    """`value` to four digits of `scale`, which is an sd or an error; empty where it is no number."""
    if math.isnan(value):
        return ""
    if not math.isfinite(value) or not math.isfinite(scale) or scale <= 0:
        return f"{value:.5g}"
    decimals = 3 - math.floor(math.log10(scale))
    return f"{value:.{max(decimals, 0)}f}" if decimals <= 8 and abs(value) < 1e9 else f"{value:.6g}"


def with_error(value: float, error: float) -> str:
    """value±error, to two digits of the error and no more than three decimals."""
    if math.isnan(value):
        return ""
    if not math.isfinite(error):
        return f"{value:.3g}" + ("" if math.isnan(error) else "±inf")
    decimals = min(3, max(0, 1 - math.floor(math.log10(error)))) if error > 0 else 3
    return f"{value:.{decimals}f}±{error:.{decimals}f}"


def seconds(value: float) -> str:
    """Seconds, in tenths below a hundred."""
    return "" if math.isnan(value) else f"{value:.0f} s" if value >= 100 else f"{value:.1f} s"


def reference_line(comparison: Any) -> str:
    """What the methods are judged by, in a sentence or two."""
    reference = comparison.reference
    text = f"Reference: {reference.name} ({reference.sentence})." if reference.ok else f"No reference: {reference.sentence}."
    known = comparison.log_evidence
    if comparison.relabelled:
        text += f" Labels of {listed(comparison.relabelled)} may be exchanged: each fit's are in the order that fits best."
    return text if known is None else f"{text} Exact log evidence: {known:.4f} nats."


def method_rows(comparison: Any) -> dict[str, dict[str, str]]:
    """Method's label -> heading -> text, empty where there is nothing to say."""
    rows = {}
    for row in comparison.table.to_dict("records"):
        khat, ratios = row["khat"], (row["sd_ratio_min"], row["sd_ratio_max"])
        rows[row["method"]] = {
            "elbo": with_error(row["elbo"], row["elbo_mcse"]),
            "log evidence": with_error(row["log_evidence"], row["log_evidence_mcse"]),
            "k-hat": "" if math.isnan(khat) else f"{khat:.2f}",
            "R-hat": "" if math.isnan(row["rhat"]) else f"{row['rhat']:.3f}",
            "ess": "" if math.isnan(row["ess"]) else f"{row['ess']:,.0f}",
            "mean error": with_error(row["mean_error"], row["mean_error_mcse"]),
            "sd ratio": "" if np.isnan(ratios).any() else " to ".join(dict.fromkeys(f"{r:.2f}" for r in ratios)),
            "distance": with_error(row["wasserstein"], row["wasserstein_mcse"]),
            "time": seconds(row["compile_seconds"] + row["run_seconds"]),
        }
    return rows


def remarks(comparison: Any, label: str) -> list[str]:
    """What stands in small print under a verdict: how the fit ended if not well, and the words of its own check if it failed."""
    fit = comparison.fits[label]
    if label not in comparison.finished:
        return []
    ended = [] if fit.stopped_because.startswith(("converged", "sampled")) else [f"Stopped: {fit.stopped_because}"]
    check = fit.certificate.verdict
    return ended + ([f"Its own check: {check}"] if not fit.certificate.ok and check not in comparison.verdicts[label].sentence else [])


def scalar_rows(comparison: Any, names: list[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Scalar -> who says it, the reference first -> texts under SCALAR_HEADINGS."""
    reference = comparison.reference
    if not comparison.finished:
        return {}
    like = next(iter(comparison.finished.values())).posterior
    draws = {label: scalar_draws(fit, names, jax.random.key(0), like=like) for label, fit in comparison.finished.items()}
    rows: dict[str, dict[str, tuple[str, ...]]] = {}
    for name in names:
        judged = {label: a.scalars.loc[name] for label, a in comparison.agreement.items() if name in a.scalars.index}
        known = next(iter(judged.values()), None)
        scale = math.nan if known is None else known.reference_sd
        rows[name] = {}
        if known is not None:
            who = f"{reference.label} (reference)" if reference.label else reference.name
            rows[name][who] = (number(known.reference_mean, scale), number(scale, scale), "", "")
        for label in comparison.finished:
            if label in judged:
                row = judged[label]
                errors = (with_error(row.mean_error, row.mean_error_mcse), with_error(row.sd_ratio, row.sd_ratio_mcse))
                rows[name][label] = (number(row["mean"], scale), number(row.sd, scale), *errors)
            elif name in draws[label] and not (reference.ok and label == reference.label):
                mean, sd = draws[label][name].mean(), draws[label][name].std(ddof=1)
                rows[name][label] = (number(mean, sd), number(sd, sd), "", "")
    return rows
