"""What a fit returns: plain, immutable records. Draws are a DataTree that ArviZ reads; signs live in the names."""

import dataclasses
import html
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from vipatterns import density, prediction, resampling
from vipatterns.density import Density
from vipatterns.draws import as_count, as_key, axes_in, labelled, stated, stored
from vipatterns.errors import InputError

MOST_SITES = 8
"""Sites that the one-screen view of a fit names."""


@dataclass(frozen=True)
class Certificate:
    """A judgement of draws. It vouches for the smoothed, resampled draws in `Fit.posterior`, or says why it does not."""

    ok: bool
    """True when the draws may stand in for the posterior, within what `verdict` says was looked at."""
    verdict: str
    """One plain sentence (or two): what the draws are safe for, or what failed and what to try next."""
    khat: float = math.nan
    """Pareto k of the importance weights log_p - log_q; -inf for perfect weights, nan for MCMC."""
    khat_threshold: float = math.nan
    """min(1 - 1 / log10(number of proposals), 0.7); Vehtari et al. 2024, arXiv 1507.02646."""
    ess: float = math.nan
    """Effective number of draws: 1 / sum of squared weights, or the smallest bulk or tail ess of MCMC."""
    mcse: float = math.nan
    """Largest Monte Carlo error of a posterior mean or sd, in posterior sds."""
    rhat: float = math.nan
    """Largest R-hat: of the draws for MCMC, of the restarts' variational parameters for SVI."""
    log_evidence: float = math.nan
    """Importance-sampling estimate of log p(data), in nats; nan where the method gives none."""
    log_evidence_mcse: float = math.nan
    """Its Monte Carlo standard error, in nats."""


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: what was tried and how it ended."""

    method: str
    """Its name."""
    ok: bool
    """Whether it was certified."""
    verdict: str
    """Why, or why not."""
    seconds: float
    """Wall time, compiling included."""


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A posterior and the evidence for and against it."""

    method: Any
    """The method, a frozen dataclass with its settings, that made this fit."""
    idata: xr.DataTree
    """Groups posterior (chain, draw), sample_stats, observed_data, constant_data; for VI also proposal (raw draws of q, chain = restart;
    of very many the first) and proposal_stats (their log_p, log_q). A site scope/name is called scope.name there."""
    certificate: Certificate
    """Judges `posterior`."""
    stopped_because: str
    """Begins with converged, step budget, time budget, diverged, interrupted or sampled; then a sentence."""
    num_steps: int
    """Optimiser steps taken (a restart), or warm-up plus sampling iterations (a chain)."""
    compile_seconds: float
    """Wall time spent tracing and compiling."""
    run_seconds: float
    """Wall time spent on everything else."""
    target: Density | None
    """The model on its data: log p on unconstrained space and the way back. None for a fit that was loaded without its model."""
    proposal_certificate: Certificate | None = None
    """Judges the raw draws of q, had they been used without weights; None for MCMC."""
    elbo: float = math.nan
    """Mean of log_p - log_q over the raw draws, in nats; maximised. DADVI's is that of its mean-field q, by fresh draws."""
    elbo_mcse: float = math.nan
    """Its Monte Carlo standard error."""
    losses: np.ndarray | None = None
    """(restart, step): what the optimiser minimised, noisy; None where nothing was optimised step by step."""
    rungs: tuple[Rung, ...] = ()
    """For the ladder: every rung in the order it was tried."""
    around: Any = None
    """A `mode.Start` at q, from which another method may go on; None where the method gives none, and for a loaded fit."""
    sampler: Callable | None = None
    """rng_key -> `thinning.Drawn`: as many fresh draws of q as were judged; None for MCMC and for a loaded fit."""

    @property
    def name(self) -> str:
        """The method's name, as users type it."""
        return type(self.method).__name__

    @property
    def posterior(self) -> xr.Dataset:
        """The draws that the certificate judges, dims (chain, draw, ...)."""
        return self.idata["posterior"].to_dataset()

    def sample(self, rng_key: jax.Array, num_samples: int) -> xr.Dataset:
        """As many draws as are asked for, of the kind that the certificate judges.

        VI draws afresh from q, in rounds as large as the one that was judged, each weighed, Pareto-smoothed and resampled. MCMC and
        loaded fits have no q to draw from: theirs are resampled from the posterior's own draws, each as often as any other. The attr
        `drawn` says which.

        Args:
            rng_key: a JAX key.
            num_samples: number of draws.

        Returns:
            Latent and deterministic sites, dims (chain, draw, ...) with one chain.
        """
        rng_key = as_key(rng_key)
        values, says = self._more(rng_key, as_count(num_samples))
        return self._stated(labelled(values, self.idata, self.target), rng_key, **says)

    def predict(
        self,
        rng_key: jax.Array,
        new_data: dict | None = None,
        *,
        num_samples: int | None = None,
        args: tuple = (),
        coords: dict | None = None,
    ) -> xr.Dataset:
        """Draws of what the model observes and of its deterministic sites, on new data.

        Args:
            rng_key: a JAX key.
            new_data: argument -> value, as for the model. Arguments that are no arrays (sizes, switches) keep their value where they
                are left out; those named as an observed site are left out or None. By default the fit's own data.
            num_samples: by default one prediction for every draw of the posterior.
            args: positional arguments, for models that have positional-only ones.
            coords: dim -> labels of the new data. Labels of groups that the posterior knows are kept.

        Returns:
            Dims (chain, draw, ...); one chain if `num_samples` is given.

        Raises:
            InputError: the model cannot be called with this data; or the data has groups that the fit has not seen, which the error names.
        """
        target, rng_key = self._target("predict"), as_key(rng_key)
        with density.precision(target.dtype):
            new = target if new_data is None and not args else prediction.extended(target, new_data, args)
        key_draws, key_predict = jax.random.split(rng_key)
        draws = self.posterior
        if num_samples is not None:
            few = as_count(num_samples) <= draws.sizes["chain"] * draws.sizes["draw"]
            values = resampling.again(key_draws, draws, num_samples) if few else self._more(key_draws, num_samples)[0]
            draws = labelled(values, self.idata, target)
        values = prediction.predict(key_predict, target, new, draws)
        out = labelled({stored(k): v for k, v in values.items()}, self.idata, target, new=new, coords=coords)
        return self._stated(out, rng_key)

    def with_posterior_predictive(self, rng_key: jax.Array, *, num_samples: int | None = None) -> "Fit":
        """This fit with a posterior_predictive group added: its observed sites drawn anew, one draw for each of the posterior's.

        `az.plot_ppc_dist(fit.with_posterior_predictive(key).idata)` then shows both. Observed values that came by an argument of another
        name than their site's are added to observed_data.

        Args:
            rng_key: a JAX key.
            num_samples: by default one prediction for every draw of the posterior.

        Returns:
            A new Fit; this one is left as it is.
        """
        target = self._target("with_posterior_predictive")
        predicted = self.predict(rng_key, num_samples=num_samples)
        groups = {"posterior_predictive": predicted[[stored(k) for k in target.observations if stored(k) in predicted]]}
        there = self.idata["observed_data"].to_dataset() if "observed_data" in self.idata.children else xr.Dataset()
        values = {stored(k): v for k, v in prediction.observed(target, self.posterior).items()}
        seen = {k: (predicted[k].dims[2:], v) for k, v in values.items() if k not in there}
        if seen:
            groups["observed_data"] = there.merge(xr.Dataset(seen))
        return self._with_groups(groups)

    def with_log_likelihood(self, *, proposal: bool = True) -> "Fit":
        """This fit with its pointwise log likelihood added: log_likelihood goes with the posterior's draws, for `az.loo`.

        Masked observations are left out.

        Args:
            proposal: for VI, adds proposal_log_likelihood too, which goes with the raw draws, for `az.loo_approximate_posterior`. It is
                ten times as large.

        Returns:
            A new Fit; log likelihoods are in nats, with the shape of their site.

        Raises:
            InputError: it would take more than 8 GB.
        """
        target = self._target("with_log_likelihood")
        dims = axes_in(self.idata, target)
        groups = {"log_likelihood": prediction.log_likelihood(target, self.posterior, dims)}
        if proposal and "proposal" in self.idata.children:
            groups["proposal_log_likelihood"] = prediction.log_likelihood(target, self.idata["proposal"].to_dataset(), dims)
        return self._with_groups(groups)

    def save(self, path: str | Path) -> Path:
        """Writes one netCDF file, which `vip.load` reads back and ArviZ opens.

        Everything goes in but q itself and the model's code. The file is replaced whole, or left as it was.

        Args:
            path: the file.

        Returns:
            Its path.
        """
        from vipatterns import archive

        return archive.save(self, path)

    def __repr__(self) -> str:
        return "\n".join(f"{label:<12}{value}" for label, value in _rows(self))

    def _repr_html_(self) -> str:
        # No colour but the border's: notebooks are light or dark, and say so to nobody.
        left = "text-align:left;vertical-align:top;padding:.15em .8em;white-space:normal"
        cells = "".join(
            f"<tr><th scope='row' style='{left}'>{html.escape(label)}</th><td style='{left}'>{html.escape(value)}</td></tr>"
            for label, value in _rows(self)
        )
        tone = "#2e9e5b" if self.certificate.ok else "#e0483e"
        return f"<table style='border-collapse:collapse;border-left:4px solid {tone};max-width:60em'><tbody>{cells}</tbody></table>"

    def _target(self, what: str) -> Density:
        if self.target is None:
            raise InputError(f"{what} needs the model, and this fit was loaded without: vip.load(path, model=model).")
        return self.target

    def _more(self, rng_key, num_samples: int) -> tuple[dict[str, np.ndarray], dict]:
        """Variable -> (1, draw, ...), and where they come from."""
        sizes = self.posterior.sizes
        kept = sizes["chain"] * sizes["draw"]
        if self.sampler is None:
            values = resampling.again(rng_key, self.posterior, num_samples)
            return values, {"drawn": f"resampled from the fit's own {kept} draws"}
        values, number, khat = resampling.fresh(rng_key, self.sampler, num_samples, kept=kept)
        return values, {"drawn": f"afresh from q, resampled by the smoothed weights of {number} draws", "khat": khat}

    def _stated(self, draws: xr.Dataset, rng_key, **says: Any) -> xr.Dataset:
        c = self.certificate
        judged = {"method": described(self.method), "verdict": c.verdict, "certified": int(c.ok)}
        draws.attrs |= {**stated(rng_key, self.idata.attrs.get("dtype", "")), **judged, **says}
        return draws

    def _with_groups(self, groups: dict[str, xr.Dataset]) -> "Fit":
        tree = self.idata.copy()
        for name, dataset in groups.items():
            tree[name] = xr.DataTree(dataset)
        return replace(self, idata=tree)


def described(value: Any) -> str:
    """A method or a setting as text: its repr, but for an address in memory the function's name, or the class and its settings.

    So what a fit says of its method is the same in the next run, and of use in it.
    """
    text = repr(value)
    if " at 0x" not in text:
        return text
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        inner = ", ".join(map(described, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if function := getattr(value, "__qualname__", None):
        return f"{getattr(value, '__module__', '')}.{function}"
    names = getattr(value, "_fields", None) or list(inspect.signature(type(value)).parameters)
    settings = [f"{name}={described(getattr(value, name))}" for name in names if hasattr(value, name)]
    return f"{type(value).__name__}({', '.join(settings)})" if settings else re.sub(r" at 0x[0-9a-f]+", "", text)


def _settings(method: Any) -> str:
    """The method with what differs from its defaults."""
    if not dataclasses.is_dataclass(method):
        return described(method)
    changed = [f for f in dataclasses.fields(method) if repr(getattr(method, f.name)) != repr(f.default)]
    return f"{type(method).__name__}({', '.join(f'{f.name}={described(getattr(method, f.name))}' for f in changed)})"


def _rows(fit: Fit) -> list[tuple[str, str]]:
    """What one screen shows of a fit."""
    c = fit.certificate
    rows = [("method", _settings(fit.method)), ("verdict", f"{'ok' if c.ok else 'NOT ok'}. {c.verdict}")]
    rows += [("stopped", fit.stopped_because)]
    if math.isfinite(fit.elbo):
        rows += [("elbo", f"{fit.elbo:.3f} +- {fit.elbo_mcse:.3f} nats")]
    if not math.isnan(c.khat):
        rows += [("k-hat", f"{c.khat:.2f} (needs < {c.khat_threshold:.2f}), ess {c.ess:.0f}")]
    else:
        rows += [("r-hat", f"{c.rhat:.3f}, ess {c.ess:.0f}")]
    rows += [(f"rung {i}", f"{r.method}: {'ok' if r.ok else 'refused'} ({r.seconds:.1f} s)") for i, r in enumerate(fit.rungs, 1)]
    rows += [("time", f"{fit.compile_seconds:.1f} s compiling, {fit.run_seconds:.1f} s running, {fit.num_steps} steps")]
    posterior, says = fit.posterior, fit.idata.attrs
    sites = [f"{k}{list(v.shape[2:]) or ''}" for k, v in posterior.transpose("chain", "draw", ...).data_vars.items()]
    more = f" and {len(sites) - MOST_SITES} more" if len(sites) > MOST_SITES else ""
    rows += [("draws", f"{posterior.sizes['chain']} x {posterior.sizes['draw']} of {', '.join(sites[:MOST_SITES])}{more}")]
    rows += [("seed", f"{says.get('seed')}, {says.get('dtype')} on {says.get('device')}, vipatterns {says.get('vipatterns')}")]
    return rows
