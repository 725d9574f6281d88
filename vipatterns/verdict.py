"""What a fit is safe for, in one plain sentence: from its certificate, and from its measured agreement with a reference.

Nothing is called safe whose measured error is beyond the limits below, or whose Monte Carlo error is too large to tell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.base.array import array_stats

from vipatterns.agreement import Agreement
from vipatterns.marginals import Draws, by_site
from vipatterns.posterior import Certificate, Fit

MEAN_LIMIT = 0.15
"""A mean may be off by this many reference sds."""
SD_LIMIT = 0.15
"""An sd may be off by this share of the reference's."""
TAIL_LIMIT = 0.025
"""Beyond the reference's 5 % or 95 % quantile may lie this much more or less than 5 %: about what an sd off by 15 % does to it."""
EVIDENCE_LIMIT = 0.1
"""A log evidence may be off by this many nats, and its Monte Carlo error may be this large."""
USES = ("means", "sds", "tails", "evidence")
RHAT_LIMIT = 1.05
"""Draws that a caller gives as the reference must mix at least this well."""


@dataclass(frozen=True)
class Verdict:
    """A judgement for a person who has to decide whether to use a fit."""

    safe: tuple[str, ...]
    """Those of means, sds, tails and evidence that the fit may be used for."""
    standing: str
    """One word for a table: safe, partly (some uses), unsafe, unknown (nothing to judge by), failed."""
    sentence: str
    """What it is safe for, which parameters are off, what to try next, what the figures cannot tell."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What the methods are judged by."""

    kind: str
    """given (draws), exact (distributions), NUTS (the one among the methods) or none."""
    ok: bool
    """False where it failed its own diagnostics, or there is none: nothing is then judged by it."""
    sentence: str
    """Its own diagnostics."""
    draws: Any = field(default=None, repr=False)
    """In any form that `agreement.against` reads."""
    label: str | None = None
    """The method whose fit it is."""

    @property
    def name(self) -> str:
        """What a sentence calls it."""
        return {"given": "the reference draws", "exact": "the exact posterior"}.get(self.kind, self.label or "no reference")


def judge_reference(reference: Any, posterior: xr.Dataset) -> Reference:
    """A caller's reference for a posterior, and its own diagnostics.

    Raises:
        InputError: it is neither draws nor distributions of the posterior's sites.
    """
    sites = {name: value for name, value in by_site(reference, posterior).items() if name in posterior}
    failed = "the reference failed, so nothing is judged by it: "
    if isinstance(reference, Fit):
        c = reference.certificate
        return Reference("given", c.ok, c.verdict.rstrip(".") if c.ok else failed + c.verdict.rstrip("."), reference)
    draws = [value for value in sites.values() if isinstance(value, Draws)]
    if len(draws) < len(sites):
        return Reference("exact", True, f"known for {listed(list(sites))}", reference)
    num_chains, num_draws = draws[0].values.shape[:2]
    chains = [value.values for value in draws if value.effective is None]
    if not chains:
        return Reference("given", True, f"{num_draws:,} draws, counted as independent", reference)
    rhat = max(map(_rhat, chains))
    sentence = f"{num_chains} x {num_draws:,} draws, R-hat {rhat:.3f}"
    if rhat > RHAT_LIMIT:
        return Reference("given", False, f"{failed}{sentence}, above {RHAT_LIMIT}", reference)
    return Reference("given", True, sentence, reference)


def _rhat(values: np.ndarray) -> float:
    """Largest R-hat of the halves of each chain, over a site's scalars that vary; inf where there are too few draws to tell."""
    half = values.shape[1] // 2
    if half < 2:
        return math.inf
    halves = np.concatenate([values[:, :half], values[:, half : 2 * half]]).reshape(2 * values.shape[0], half, -1)
    varies = halves.std((0, 1)) > 0
    if not varies.any():
        return 1.0
    with np.errstate(all="ignore"):
        rhat = array_stats.rhat(halves[..., varies], chain_axis=0, draw_axis=1, method="identity")
    return float(np.nan_to_num(np.max(rhat), nan=np.inf))  # pyright: ignore[reportArgumentType]


def measured(certificate: Certificate, agreement: Agreement, reference: str, *, log_evidence: float | None, advice: str) -> Verdict:
    """The verdict on a fit that has a reference.

    Args:
        certificate: the fit's own.
        agreement: the fit against the reference.
        reference: the reference's name in a sentence ("NUTS", "the exact posterior").
        log_evidence: exact log p(data) in nats, where it is known.
        advice: what to try if the fit falls short; a clause without a full stop.
    """
    t = agreement.scalars
    if not len(t):
        return Verdict((), "unknown", f"Nothing to judge: no scalar that {reference} holds varies.")
    errors = {"means": t.mean_error.abs(), "sds": (t.sd_ratio - 1).abs(), "tails": t.tail_error}
    noise = {"means": t.mean_error_mcse, "sds": t.sd_ratio_mcse, "tails": t.tail_error_mcse}
    limits = {"means": MEAN_LIMIT, "sds": SD_LIMIT, "tails": TAIL_LIMIT}
    found = {use: _weigh(errors[use].to_numpy(), noise[use].to_numpy(), limits[use]) for use in errors}
    safe = [use for use, (state, _) in found.items() if state == "within"]
    if not {"means", "sds"} <= set(safe):  # right tails on a wrong body are luck
        safe = [use for use in safe if use != "tails"]
    elif _evidence(certificate, log_evidence):
        safe.append("evidence")
    faults = [_fault(use, rows, t, reference) for use, (state, rows) in found.items() if state == "off"]
    if len(faults) > 1 and found["tails"][0] == "off":
        faults.pop()  # what is said of the mean or sd implies it
    unclear = [use for use, (state, _) in found.items() if state == "unclear"]
    doubts = [*faults, *([f"Monte Carlo error is too large to tell for {listed(unclear)}"] if unclear else [])]
    if not certificate.ok and not doubts:
        text = f"Agrees with {reference} here ({_near(errors)}), but its own check fails: without {reference} nothing would tell; {advice}."
        return Verdict((), "unsafe", text)
    if not certificate.ok:
        return Verdict((), "unsafe", f"Do not use: {'; '.join(doubts)}; its own check fails too; {advice}.")
    if not safe:
        return Verdict((), "unsafe" if faults else "unknown", f"Do not use: {'; '.join(doubts)}; {advice}.")
    if doubts:
        return Verdict(tuple(safe), "partly", f"Safe for {listed(safe)} only: {'; '.join(doubts)}; {advice}.")
    caveat = "" if reference.startswith("the exact") else f"; a mode that {reference} missed too would not show"
    return Verdict(tuple(safe), "safe", f"Safe for {listed(safe)}: {_near(errors)} of {reference}{caveat}.")


def unmeasured(certificate: Certificate, why: str, *, log_evidence: float | None, advice: str) -> Verdict:
    """The verdict on a fit without a reference: its certificate alone speaks, and it says so.

    Args:
        certificate: the fit's own.
        why: why there is no reference, as a clause ("NUTS failed").
        log_evidence: exact log p(data) in nats, where it is known.
        advice: what passed instead, if anything did; the certificate has a remedy of its own.
    """
    if not certificate.ok:
        return Verdict((), "unsafe", certificate.verdict.rstrip(".") + (f"; {advice}." if advice else "."))
    # the weights of VI are not looked at tail by tail; the ess of MCMC is
    safe = [
        "means",
        "sds",
        *(["tails"] if math.isnan(certificate.khat) else []),
        *(["evidence"] if _evidence(certificate, log_evidence) else []),
    ]
    text = f"Safe for {listed(safe)} by its own check alone ({why}); a mode that it missed would not show."
    return Verdict(tuple(safe), "safe", text)


def as_reference(diagnostics: str) -> Verdict:
    """The verdict on the fit that the others are judged by; MCMC gives no evidence."""
    text = (
        f"The reference, safe for means, sds and tails: {diagnostics}; it gives no evidence, and a mode that no chain found would not show."
    )
    return Verdict(("means", "sds", "tails"), "reference", text)


def _weigh(error: np.ndarray, mcse: np.ndarray, limit: float) -> tuple[str, np.ndarray]:
    """within, off or unclear; and which scalars are off, worst first.

    An error beyond the limit counts as off where Monte Carlo error does not explain it, with two standard errors to spare for one
    scalar and more for many, since the worst of many is the noisiest. One within it counts only where the noise is half of it at most.
    """
    known = np.isfinite(error) & np.isfinite(mcse)
    margin = max(2.0, math.sqrt(2 * math.log(2 * error.size)))
    off = np.flatnonzero(known & ((np.where(known, error, 0) - limit) / margin > mcse))
    if off.size:
        return "off", off[np.argsort(-error[off], kind="stable")]
    return ("within" if (known & (error <= limit) & (mcse <= limit / 2)).all() else "unclear"), off


def _near(errors: dict[str, pd.Series]) -> str:
    """The largest errors, rounded up."""
    mean, sd = (math.ceil(100 * errors[use].max() - 1e-9) for use in ("means", "sds"))
    return f"means within {mean / 100:.2f} sd and sds within {sd} %"


def _fault(use: str, rows: np.ndarray, scalars: pd.DataFrame, reference: str) -> str:
    """Which parameters are off, by how much, and how many more."""
    row, name = scalars.iloc[rows[0]], str(scalars.index[rows[0]]) + (f" (and {rows.size - 1} more)" if rows.size > 1 else "")
    if use == "means":
        return f"the mean of {name} is off by {abs(row.mean_error):.2f} sd"
    if use == "sds":
        return f"the sd of {name} is {row.sd_ratio:.2f} times that of {reference}"
    return f"a tail of {name} holds {row.tail_share:.1%} of the draws and should hold {row.reference_tail_share:.1%}"


def _evidence(certificate: Certificate, log_evidence: float | None) -> bool:
    """Whether the log evidence may be used: small Monte Carlo error, and near the exact one where that is known."""
    if not (math.isfinite(certificate.log_evidence) and certificate.log_evidence_mcse <= EVIDENCE_LIMIT):
        return False
    return log_evidence is None or abs(certificate.log_evidence - log_evidence) <= EVIDENCE_LIMIT


def listed(words: Sequence[str]) -> str:
    """means, sds and tails."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
