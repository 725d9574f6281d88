"""A Fit or a Comparison as plain values, for JSON and for one screen."""

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from vipatterns.agreement import scalar_labels
from vipatterns.posterior import Fit, described

if TYPE_CHECKING:
    from vipatterns.amortized.trained import Trained
    from vipatterns.comparison import Comparison


def scalars(fit: Fit, most: int | None = None) -> tuple[dict[str, dict[str, float]], int]:
    """Label -> mean, sd, 5 % and 95 % quantile of the first `most` posterior scalars, and how many there are."""
    rows, number = {}, 0
    for values in fit.posterior.transpose("chain", "draw", ...).data_vars.values():
        flat = values.values.reshape(values.shape[0] * values.shape[1], -1)
        kept = flat[:, : None if most is None else max(most - number, 0)]
        number += flat.shape[1]
        if kept.shape[1]:
            figures = np.stack([kept.mean(0), kept.std(0, ddof=1), *np.quantile(kept, [0.05, 0.95], axis=0)], axis=1)
            rows |= {
                label: dict(zip(("mean", "sd", "q5", "q95"), row, strict=True))
                for label, row in zip(scalar_labels(values), figures.tolist(), strict=False)
            }
    return rows, number


def of_fit(fit: Fit) -> dict[str, Any]:
    """The method, the certificate, how it ended and what it found."""
    plain = ("stopped_because", "num_steps", "elbo", "elbo_mcse", "compile_seconds", "run_seconds")
    return {
        "method": described(fit.method),
        **asdict(fit.certificate),
        **{name: getattr(fit, name) for name in plain},
        "rungs": [asdict(rung) for rung in fit.rungs],
        "posterior": scalars(fit)[0],
    }


def of_comparison(comparison: "Comparison") -> dict[str, Any]:
    """The reference, the table's rows, and each scalar beside the reference."""
    reference = comparison.reference
    return {
        "reference": {"kind": reference.kind, "ok": reference.ok, "sentence": reference.sentence},
        "log_evidence": comparison.log_evidence,
        "methods": [{**row, "standing": comparison.verdicts[row["method"]].standing} for row in comparison.table.to_dict("records")],
        "scalars": {label: agreement.scalars.to_dict("index") for label, agreement in comparison.agreement.items()},
    }


def of_training(trained: "Trained") -> dict[str, Any]:
    """The held-out ELBO, how training ended, and its course by epoch."""
    plain = ("stopped_because", "num_steps", "best_epoch", "elbo", "held_out_mcse", "compile_seconds", "run_seconds", "not_saved")
    return {
        **{name: getattr(trained, name) for name in plain},
        "elbos": trained.elbos.tolist(),
        "held_out_elbos": trained.held_out_elbos.tolist(),
    }


def to_json(record: dict[str, Any]) -> str:
    """JSON that every parser reads: nan becomes null, infinities the strings "inf" and "-inf"."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, (float, np.floating)) and not math.isfinite(value):
            return None if math.isnan(value) else str(float(value))
        return value.item() if isinstance(value, np.generic) else value

    return json.dumps(plain(record), indent=2, allow_nan=False)
