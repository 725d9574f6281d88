"""Several methods on one model, side by side, and against a reference where there is one."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr

from vipatterns import relabelling, verdict
from vipatterns.agreement import SUMMARY, Agreement, against
from vipatterns.errors import InputError
from vipatterns.marginals import scalar_labels
from vipatterns.methods import fit as run
from vipatterns.methods.mean_field import MeanField
from vipatterns.methods.nuts import NUTS
from vipatterns.posterior import Fit


@dataclass(frozen=True)
class Failure:
    """A method that gave no posterior."""

    method: Any
    """The method, with its settings."""
    sentence: str
    """What went wrong, for the person at the keyboard."""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Fits of one model by several methods, judged."""

    title: str
    """The model's name."""
    fits: dict[str, Fit | Failure]
    """Method's label -> its fit, in the order they were asked for."""
    reference: verdict.Reference
    """What the methods are judged by, and whether that itself is sound."""
    agreement: dict[str, Agreement]
    """Method's label -> its fit against the reference; empty where nothing can be judged by it."""
    verdicts: dict[str, verdict.Verdict]
    """Method's label -> what its fit is safe for, in a sentence."""
    log_evidence: float | None = None
    """Exact log p(data) in nats, where the caller knew it."""
    relabelled: tuple[str, ...] = ()
    """Sites whose labels may be exchanged (components of a mixture): they stand here in the reference's order, in the fits too."""

    @property
    def table(self) -> pd.DataFrame:
        """A row a method. `mean_error` and `wasserstein` are the largest, in reference sds; `*_mcse` is a Monte Carlo standard error."""
        return pd.DataFrame([self._row(label) for label in self.fits])

    @property
    def finished(self) -> dict[str, Fit]:
        """The fits, without the failures."""
        return {label: fit for label, fit in self.fits.items() if isinstance(fit, Fit)}

    @property
    def summary(self) -> str:
        """Whether VI can stand in for MCMC on this model, in one sentence."""
        seconds = {label: fit.compile_seconds + fit.run_seconds for label, fit in self.finished.items()}
        quick = sorted((label for label, fit in self.finished.items() if not isinstance(fit.method, NUTS)), key=seconds.__getitem__)
        slow = next((label for label, fit in self.finished.items() if isinstance(fit.method, NUTS)), None)
        against = f", in {{:.1f}} s against {seconds[slow]:.1f} s" if slow else ", in {:.1f} s"
        how = "" if self.agreement else " by its own check alone"
        for label in quick:
            if self.verdicts[label].standing == "safe":
                return f"{label} can stand in for {slow or 'MCMC'}{how}{against.format(seconds[label])}."
        for label in sorted(quick, key=lambda name: ("means" not in self.verdicts[name].safe, -len(self.verdicts[name].safe))):
            if uses := [use for use in self.verdicts[label].safe if use != "evidence"]:
                return f"{label} can stand in for {slow or 'MCMC'} on {verdict.listed(uses)} only{against.format(seconds[label])}."
        if not quick:
            return "No VI method has a result here."
        return (
            f"{quick[0] if len(quick) == 1 else 'No VI method here'} can{'not' if len(quick) == 1 else ''} stand in for {slow or 'MCMC'}."
        )

    def worst(self, num: int) -> tuple[list[str], int]:
        """The scalars that are most wrong by any method, by mean error or by how far the sd's ratio is from one.

        Args:
            num: how many to name.

        Returns:
            Their labels, the worst first (in the model's order where there is no reference), and how many scalars there are.
        """
        if self.agreement:
            tables = [a.scalars for a in self.agreement.values()]
            wrong = pd.concat([np.fmax(t.mean_error.abs(), (t.sd_ratio - 1).abs()).fillna(np.inf) for t in tables], axis=1).max(axis=1)
            labels = list(wrong.sort_values(ascending=False, kind="stable").index)
        else:
            draws = next((fit.posterior for fit in self.finished.values()), xr.Dataset())
            varying = (values for values in draws.data_vars.values() if float(values.std()) > 0)
            labels = [label for values in varying for label in scalar_labels(values)]
        return labels[:num], len(labels)

    def show(self) -> None:
        """Prints what a person reads at a glance."""
        from vipatterns import report

        report.print(self)

    def to_html(self, path: str | Path) -> Path:
        """Writes one file with tables and figures that opens from disk.

        Args:
            path: the file, which is overwritten.

        Returns:
            Its path.
        """
        from vipatterns import report

        path = Path(path)
        path.write_text(report.html(self), encoding="utf-8")
        return path

    def save(self, directory: str | Path) -> Path:
        """Writes report.html, table.csv and one netCDF a method into a new directory.

        Args:
            directory: made if it is not there.

        Returns:
            Its path.

        Raises:
            InputError: the directory exists and is not empty.
        """
        directory = Path(directory)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise InputError(f"{directory} exists already: name a new directory, or remove it first.")
        directory.mkdir(parents=True, exist_ok=True)
        self.table.to_csv(directory / "table.csv", index=False)
        for label, fit in self.finished.items():
            fit.save(directory / f"{_file_name(label)}.nc")
        self.to_html(directory / "report.html")
        return directory

    def __repr__(self) -> str:
        from vipatterns import report

        return report.text(self)

    def _repr_html_(self) -> str:
        from vipatterns import report

        return report.fragment(self)

    def _row(self, label: str) -> dict[str, Any]:
        fit, judged = self.fits[label], self.verdicts[label].sentence
        if isinstance(fit, Failure):
            return {"method": label, **dict.fromkeys(_COLUMNS, math.nan), "verdict": judged}
        c, agreement = fit.certificate, self.agreement.get(label)
        row: dict[str, Any] = {"method": label, "elbo": fit.elbo, "elbo_mcse": fit.elbo_mcse}
        row |= {name: getattr(c, name) for name in ("log_evidence", "log_evidence_mcse", "khat", "ess", "rhat")}
        row |= {name: getattr(agreement, name) if agreement else math.nan for name in _MEASURED}
        return row | {"compile_seconds": fit.compile_seconds, "run_seconds": fit.run_seconds, "verdict": judged}


_MEASURED = [name + end for name in SUMMARY if name != "tail_error" for end in ("", "_mcse")]
_COLUMNS = ["elbo", "elbo_mcse", "log_evidence", "log_evidence_mcse", "khat", "ess", "rhat", *_MEASURED, "compile_seconds", "run_seconds"]


def compare(
    rng_key: jax.Array,
    model: Callable,
    data: dict | None = None,
    *,
    methods: Sequence[Any] | None = None,
    reference: Any = None,
    log_evidence: float | None = None,
    args: tuple = (),
    coords: dict | None = None,
    dims: dict | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Fits a model by several methods and judges them.

    Args:
        rng_key: every method gets a key of its own, from its place in the list.
        model: a NumPyro model.
        data: argument of the model -> value.
        methods: instances such as `vip.MeanField()`; MeanField and NUTS where None.
        reference: draws, or site -> distribution (see `agreement.against`). Where None, a healthy NUTS among the methods.
        log_evidence: exact log p(data) in nats, where it is known.
        args: positional arguments, for models that have positional-only ones.
        coords: dim -> labels.
        dims: site -> names of its trailing dims.
        progress: None decides by the terminal.

    Returns:
        A Comparison. A method that failed stands in it with a sentence.

    Raises:
        InputError: no method can run on this model and data, all for the same reason; or the reference does not fit the model.
    """
    methods = [MeanField(), NUTS()] if methods is None else list(methods)
    if not methods or any(isinstance(m, type) or not hasattr(m, "fit") for m in methods):
        raise InputError(f"methods must be a list of methods such as [vip.MeanField(), vip.NUTS()], got {methods!r}.")
    fits: dict[str, Fit | Failure] = {}
    interrupted = False
    for i, (label, method) in enumerate(zip(label_methods(methods), methods, strict=True)):
        if interrupted:
            fits[label] = Failure(method, "Interrupted before it began.")
            continue
        try:
            key = jax.random.fold_in(rng_key, i)
            fit = run(key, model, data, method=method, args=args, coords=coords, dims=dims, progress=progress)
        except (InputError, FloatingPointError, MemoryError, jax.errors.JaxRuntimeError) as e:  # the last is how XLA runs out of memory
            fits[label] = Failure(method, str(e).partition("\n")[0] or "Out of memory.")
        except KeyboardInterrupt:
            if not any(isinstance(f, Fit) for f in fits.values()):
                raise
            fits[label], interrupted = Failure(method, "Interrupted before it had a result."), True
        else:
            if reference is not None and not any(isinstance(f, Fit) for f in fits.values()):
                verdict.judge_reference(reference, fit.posterior)  # one that does not fit is found out after the first fit, not the last
            fits[label], interrupted = fit, fit.stopped_because.startswith("interrupted")
    sentences = {f.sentence if isinstance(f, Failure) else None for f in fits.values()}
    if len(sentences) == 1 and (sentence := sentences.pop()) is not None:
        raise InputError(sentence)
    return side_by_side(
        jax.random.fold_in(rng_key, len(methods)), fits, reference=reference, log_evidence=log_evidence, title=_name_of(model)
    )


def side_by_side(
    rng_key: jax.Array,
    fits: Mapping[str, Fit | Failure],
    *,
    reference: Any = None,
    log_evidence: float | None = None,
    title: str = "",
) -> Comparison:
    """Judges fits that are there already: label -> Fit, as from `vip.load`. Arguments as in `compare`."""
    posterior = next((fit.posterior for fit in fits.values() if isinstance(fit, Fit)), None)
    ref = _reference_among(fits) if reference is None or posterior is None else verdict.judge_reference(reference, posterior)
    fits, draws, relabelled = relabelling.match(fits, ref.label, None if ref.label else ref.draws)
    ref = dataclasses.replace(ref, draws=fits[ref.label] if ref.label else draws)
    agreement = {
        label: against(fit, ref.draws, jax.random.fold_in(rng_key, i))
        for i, (label, fit) in enumerate(fits.items())
        if isinstance(fit, Fit) and ref.ok and label != ref.label
    }
    judged = {label: _judge(fit, label, ref, agreement.get(label), log_evidence, "") for label, fit in fits.items()}
    passed = {label for label, v in judged.items() if v.standing in ("safe", "reference")}
    for label, fit in fits.items():
        judged[label] = _judge(fit, label, ref, agreement.get(label), log_evidence, _advice(fit, fits, passed))
    return Comparison(title, dict(fits), ref, agreement, judged, log_evidence, relabelled)


def _judge(
    fit: Fit | Failure, label: str, ref: verdict.Reference, agreement: Agreement | None, log_evidence: float | None, advice: str
) -> verdict.Verdict:
    if isinstance(fit, Failure):
        return verdict.Verdict((), "failed", f"Gave no posterior: {fit.sentence}")
    if label == ref.label and ref.ok:
        return verdict.as_reference(ref.sentence)
    if agreement is None:
        passed = advice if advice.startswith("use ") else ""
        return verdict.unmeasured(fit.certificate, ref.sentence, log_evidence=log_evidence, advice=passed)
    return verdict.measured(fit.certificate, agreement, ref.name, log_evidence=log_evidence, advice=advice)


def _advice(fit: Fit | Failure, fits: Mapping[str, Fit | Failure], passed: set[str]) -> str:
    """What to try if a fit falls short: the quickest that passed, else what may help."""
    seconds = {label: f.compile_seconds + f.run_seconds for label, f in fits.items() if isinstance(f, Fit) and label in passed}
    if seconds:
        best = min(seconds, key=lambda label: seconds[label])
        return f"use {best}, which passed in {seconds[best]:.1f} s"
    if not any(isinstance(f.method, NUTS) for f in fits.values()):
        return "try a richer family, such as Flow, or NUTS"
    longer = "run it longer" if isinstance(fit.method, NUTS) else "run NUTS longer"
    return f"no method passed: {longer} (num_warmup, num_samples), or write the model in another form (non-centred, better scaled)"


def _reference_among(fits: Mapping[str, Fit | Failure]) -> verdict.Reference:
    """The NUTS fit, the most effective one where there are several."""
    chains = {label: fit for label, fit in fits.items() if isinstance(fit, Fit) and isinstance(fit.method, NUTS)}
    healthy = {label: fit for label, fit in chains.items() if fit.certificate.ok}
    if healthy:
        label = max(healthy, key=lambda name: healthy[name].certificate.ess)
        c = healthy[label].certificate
        return verdict.Reference("NUTS", True, f"R-hat {c.rhat:.3f}, smallest ess {c.ess:,.0f}", healthy[label], label)
    if chains:
        label, fit = next(iter(chains.items()))
        return verdict.Reference(
            "NUTS", False, f"{label} failed, so nothing is judged by it: {fit.certificate.verdict.rstrip('.')}", fit, label
        )
    return verdict.Reference("none", False, "no reference was given and NUTS is not among the methods")


def label_methods(methods: Sequence[Any]) -> list[str]:
    """Names for a table: the class, with the settings that differ where a class comes twice, numbered where none does."""
    labels = []
    for method in methods:
        name = type(method).__name__
        twins = [m for m in methods if type(m) is type(method)]
        settings = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
        differ = [f.name for f in settings if len({repr(getattr(m, f.name)) for m in twins}) > 1]
        if len(twins) > 1 and differ:
            name += f"({', '.join(f'{f}={_short(getattr(method, f))}' for f in differ)})"
        labels.append(name)
    return [f"{n} #{labels[: i + 1].count(n)}" if labels.count(n) > 1 else n for i, n in enumerate(labels)]


def _short(value: Any) -> str:
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= 24 else type(value).__name__


def _name_of(model: Callable) -> str:
    name, module = getattr(model, "__name__", type(model).__name__), (getattr(model, "__module__", "") or "").rpartition(".")[2]
    return name if module in ("", "__main__") else module if name == "model" else f"{module}.{name}"


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_=." else "_" for c in label).strip("_")
