"""From a proposal q to a Fit with its certificate: draw, weigh, judge, resample.

Every method that has a log q ends here, so that all of them are judged alike.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from vipatterns import diagnosis, keys
from vipatterns.density import Clock, Density, precision
from vipatterns.draws import scalars_of, tree
from vipatterns.evaluation import Points
from vipatterns.modes import Modes
from vipatterns.posterior import Certificate, Fit, described
from vipatterns.thinning import Drawn

BLOCK = 4_000
"""Draws of a traced q are made in blocks of this many, compiled once."""
FEWEST_PROPOSALS, FIRST_PROPOSALS = 4_000, 40_000
MAX_PROPOSALS = 640_000
"""Drawn where the first are refused though k-hat of the weights passes, for a Monte Carlo error or one scalar's tail; or though the weights
are fairly even: at 40,000 draws k-hat scatters, and a bounded weight whose peak is rarely met looks like a heavy tail."""
MORE = 4
HELD_NUMBERS = 1.6e7
"""Up to so many numbers hold the draws, 128 MB. Where only a Monte Carlo error is too large, MORE times as many are weighed, and half as
many held (thinning.py)."""
EVEN = 0.3
"""Effective share of the draws from which more draws are worth their cost."""
NEARLY_EVEN = 0.95
"""Effective share of the draws from which a heavy tail is that of a few draws among even ones."""
MAX_JUDGED = 16_000_000
"""Each scalar's own k-hat is looked at for up to so many draws in all, 400 scalars of 40,000: those with the largest Monte Carlo error."""


@dataclass(frozen=True)
class Proposal:
    """A mixture, in equal parts, of the q's that the restarts ended with."""

    draw: Callable
    """(rng_key, component) -> z (D,); or z and its log density where `log_q` is None."""
    log_q: Callable | None
    """(z, component) -> log density of that component, nats; None where it is known at a component's own draws only."""
    components: np.ndarray
    """Indices of the components that take part."""

    def sampler(self, clock: Clock) -> Callable:
        """(rng_key, num_draws) -> z (S, D), log_q (S,), on the host: the components take turns in equal blocks."""
        components = jnp.asarray(self.components)

        def block(rng_key, component):
            drawn = jax.vmap(self.draw, (0, None))(jax.random.split(rng_key, BLOCK), component)
            each = self.log_q
            if each is None:
                return drawn
            return drawn, jax.vmap(lambda z: logsumexp(jax.vmap(each, (None, 0))(z, components)))(drawn) - jnp.log(len(components))

        program = clock.compile(block, jax.random.key(0), components[0])

        def draw(rng_key, num_draws: int):
            each = -(-num_draws // len(components))
            z, log_q = [], []
            for i, key in enumerate(keys.split(rng_key, len(components))):
                blocks = [program(k, components[i]) for k in keys.split(key, -(-each // BLOCK))]
                z.append(np.concatenate([np.asarray(b[0]) for b in blocks])[:each])
                log_q.append(np.concatenate([np.asarray(b[1]) for b in blocks])[:each])
            return np.concatenate(z), np.concatenate(log_q)

        return draw


class HostProposal(Protocol):
    """A q of one component that is drawn from by NumPy: nothing to compile."""

    @property
    def components(self) -> np.ndarray:
        """Indices of the components that take part: of one."""
        ...

    def sampler(self, clock: Clock) -> Callable:
        """(rng_key, num_draws) -> z (S, D), log_q (S,)."""
        ...


@dataclass(frozen=True)
class Account:
    """What a method has to say of how it got to its q."""

    stopped_because: str
    num_steps: int = 0
    losses: np.ndarray | None = None
    rhat: float = math.nan
    """Of the restarts' variational parameters; nan where nothing was restarted."""
    caveat: str = ""
    """A sentence for the verdict: what was not looked at."""
    refused: str = ""
    """Why there is no certificate whatever the weights say; empty where these decide."""
    modes: Modes = field(default_factory=Modes)
    """What the search for a mode met besides the one that q was started from."""


@np.errstate(over="ignore", invalid="ignore")  # of draws along a flat direction; they are refused for it
def certify(
    rng_key,
    method: Any,
    target: Density,
    proposal: Proposal | HostProposal,
    account: Account,
    clock: Clock,
    *,
    num_samples: int = 1_000,
    coords: dict | None = None,
    dims: dict | None = None,
) -> Fit:
    """Draws from q, weighs the draws by log_p - log_q, judges and resamples them.

    Args:
        rng_key: the key that the method was given, recorded as the seed; what is drawn here comes from keys that no method splits off.
        method: recorded in the Fit.
        target: the density; the caller is in its precision.
        proposal: q.
        account: how the method came to it.
        clock: counts compile time.
        num_samples: posterior draws a chain, four chains; chains of resampled draws are parts of one sample, not restarts.
        coords: dim -> labels.
        dims: site -> names of its axes.
    """
    key_draws, key_more, key_resample = keys.split(keys.fold_in(rng_key, 0), 3)
    sampler, points = proposal.sampler(clock), Points(target, clock)
    held, most = (
        int(np.clip(min(4e9 / target.num_data, numbers / points.size), FEWEST_PROPOSALS, MAX_PROPOSALS))
        for numbers in (HELD_NUMBERS, MORE * HELD_NUMBERS)
    )

    def weighed(z, log_q):
        log_p, values = points(z)
        return Drawn(log_p, log_q, values)

    def fresh(rng_key, number: int):
        return weighed(*sampler(rng_key, number))

    num_components = len(proposal.components)
    z, log_q = sampler(key_draws, min(held, FEWEST_PROPOSALS if clock.over else FIRST_PROPOSALS))
    further = _further_modes(target, z, proposal, account.modes)
    raw = drawn = weighed(z, log_q)
    del z  # as large as what is held
    judged = _judge(drawn, 4 * num_samples, account, further)
    stopped = account.stopped_because
    while judged.more_may_help and (number := drawn.size) < (most if judged.too_few else held):
        if clock.over and stopped.startswith("time budget"):
            break
        if clock.over:
            stopped = f"time budget: {clock.max_seconds:.0f} s were over before more than {number:,} draws could be weighed; {stopped}"
            break
        key_more, key = keys.split(key_more)
        if number < held:
            raw = drawn = drawn.joined(fresh(key, min(held, MORE * number) - number), num_components)
            judged = _judge(drawn, 4 * num_samples, account, further)
        else:
            key_thin, key = keys.split(key)
            raw, drawn = replace(raw, values={k: raw.values[k] for k in target.latents}), drawn.thinned(keys.generator(key_thin), held // 2)
            drawn = drawn.extended(fresh, key, min(most, MORE * number) - number, batch=points.block)
            judged = _judge(drawn, 4 * num_samples, account, further, judged.raw)
    first, more, certificate = raw.size, drawn.size - raw.size, judged.certificate

    def sampled(rng_key):
        with precision(target.dtype):
            if not more:
                return fresh(rng_key, first)
            key_first, key_thin, key_more = keys.split(rng_key, 3)
            drawn = fresh(key_first, first).thinned(keys.generator(key_thin), held // 2)
            return drawn.extended(fresh, key_more, more, batch=points.block)

    rng = keys.generator(key_resample)
    chosen = diagnosis.resample(rng, judged.log_weights, 4 * num_samples)
    grouped = {k: v[chosen].reshape(4, num_samples, *v.shape[1:]) for k, v in drawn.values.items()}
    ratio = drawn.log_p - drawn.log_q
    chains = (num_components, first // num_components)
    groups = {
        "posterior": grouped,
        "sample_stats": {k: v.reshape(4, -1) for k, v in drawn.log_densities(chosen).items()},
        "proposal": {k: v.reshape(*chains, *v.shape[1:]) for k, v in raw.values.items() if k in target.latents},
        "proposal_stats": {"log_p": raw.log_p.reshape(chains), "log_q": raw.log_q.reshape(chains)},
    }
    attrs = {
        "exchangeable": json.dumps(account.modes.labels),
        "method": described(method),
        "verdict": certificate.verdict,
        "certified": int(certificate.ok),
        "stopped_because": stopped,
        "khat": certificate.khat,
        "deterministic_sites_left_out": ", ".join(points.left_out),
    }
    return Fit(
        method=method,
        idata=tree(target, groups, rng_key=rng_key, coords=coords, dims=dims, attrs=attrs),
        certificate=certificate,
        proposal_certificate=judged.of_raw,
        stopped_because=stopped,
        num_steps=account.num_steps,
        losses=account.losses,
        elbo=float(ratio.mean()),
        elbo_mcse=float(ratio.std() / math.sqrt(ratio.size)) if np.isfinite(ratio).all() else math.nan,
        compile_seconds=clock.compile_seconds,
        run_seconds=clock.run_seconds,
        target=target,
        sampler=sampled,
    )


def _further_modes(target: Density, z: np.ndarray, proposal: Proposal | HostProposal, modes: Modes) -> str:
    """A sentence when the restarts, or the search for a mode, ended in places that q's draws do not join; empty otherwise."""
    parts = z.reshape(len(proposal.components), -1, target.dim)
    means, sds = parts.mean(1), parts.std(1)
    gap = np.abs(means[:, None] - means[None]) / np.maximum(sds[:, None], sds[None])
    a, b, i = np.unravel_index(int(np.argmax(gap)), gap.shape)
    if gap[a, b, i] >= 3:
        return f"restarts ended in different modes ({target.names[i]} lies {gap[a, b, i]:.0f} sds apart), and there may be more"
    for other in [] if modes.others is None else modes.others:
        away = np.abs(other - z.mean(0)) / z.std(0)
        if away.max() >= 3:
            i = int(np.argmax(away))
            return f"the search met another mode that q leaves out ({target.names[i]} lies {away[i]:.0f} sds from q's mean)"
    return ""


@dataclass(frozen=True)
class _Judged:
    """Draws of q that were weighed."""

    certificate: Certificate
    of_raw: Certificate
    log_weights: np.ndarray  # (n,) of those that are held
    raw: dict[str, np.ndarray]  # scalar -> mean and sd of the draws of q without weights
    more_may_help: bool
    too_few: bool  # of a q that is good enough: a Monte Carlo error is too large, which more draws make smaller for certain


def _judge(drawn: Drawn, num_kept: int, account: Account, further: str, raw: dict | None = None) -> _Judged:
    """Weighs draws of q, whole and in halves: both halves must pass. Where some are held only, `raw` is known from before."""
    log_p, log_q = drawn.log_p, drawn.log_q
    names, scalars = scalars_of({k: v[None] for k, v in drawn.values.items()})
    scalars = scalars[0]
    halves = [diagnosis.smooth(log_p[i::2], log_q[i::2]) for i in range(2)]
    weights = diagnosis.smooth(log_p, log_q)
    log_weights = drawn.log_weights(weights)
    certificate = _certificate(weights, halves, names, scalars, num_kept, account, further, log_weights)
    if raw is None:
        raw = dict(zip(names, diagnosis.by_columns(lambda x: np.stack([x.mean(0), x.std(0)]), scalars).T, strict=True))
    worth = weights.ess > EVEN * log_p.size or certificate.khat < certificate.khat_threshold
    sound = not (certificate.ok or further or account.refused) and names and bool(np.isfinite(scalars).all())
    of_raw = _judge_raw(log_weights, names, scalars, raw, certificate, log_p.size)
    too_few = certificate.khat < certificate.khat_threshold and not certificate.mcse < diagnosis.MCSE_SHARE
    return _Judged(certificate, of_raw, log_weights, raw, bool(worth and sound), too_few)


def _certificate(weights, halves, names, scalars, num_kept: int, account: Account, modes: str, log_weights=None) -> Certificate:
    """The certificate of the smoothed, resampled draws; `log_weights` (n,) are of the draws whose scalars are held, by default of all."""
    log_weights = weights.log_weights if log_weights is None else log_weights
    num_draws = weights.log_weights.size
    threshold = diagnosis.khat_threshold(num_draws)
    w = np.exp(log_weights)
    broken = np.flatnonzero(~np.isfinite(scalars).all(0))
    errors = np.full((2, 1), math.nan) if broken.size or not names else diagnosis.monte_carlo_error(scalars, w, num_kept)
    worst = int(np.argmax(errors.max(0)))
    joint = max(weights.khat, *(h.khat for h in halves))
    facts = {
        "khat": joint,
        "khat_threshold": threshold,
        "ess": weights.ess if w.size == num_draws else min(weights.ess, float(1 / (w @ w))),
        "mcse": float(errors.max()),
        "rhat": account.rhat,
        "log_evidence": weights.log_evidence + account.modes.log_copies,
        "log_evidence_mcse": weights.log_evidence_mcse,
    }
    remedy = "try vip.NUTS() or a richer q"
    if account.stopped_because.startswith("diverged"):
        return Certificate(False, f"Not safe: the optimiser {account.stopped_because}.", **facts)
    if broken.size or not names:
        some = f"some draws of {names[broken[0]]} are NaN or infinite" if names else "no scalar has finite draws that vary"
        remedy = "bound the scales of the model away from zero, give what the data say nothing of a proper prior, or leave that site out"
        return Certificate(False, f"Not safe: {some}; {remedy}.", **facts)
    if any(math.isnan(w.log_evidence) for w in (weights, *halves)):
        return Certificate(
            False, f"Not safe: log p - log q is not finite where q puts its draws, so nothing can be weighed; {remedy}.", **facts
        )
    if joint >= threshold:
        measured = f"(k-hat {joint:.2f}, needs < {threshold:.2f})"
        reason = f"q misses part of the posterior {measured}"
        if joint == math.inf:
            measured = "(no k-hat: many of the largest are equal)"
            reason = f"no tail can be fitted to the weights {measured}"
        if weights.ess > NEARLY_EVEN * num_draws:
            # The same weights are seen of a q that rarely meets a bounded peak of p / q, and of one whose tails end long before p's.
            few = f"the weights of {num_draws:,} draws are even but for a few, whose tail is too heavy to trust {measured}"
            reason = f"{few}: q misses part of the posterior, or rarely meets where the weights have their bound"
        return Certificate(False, f"Not safe: {reason}, so means, sds and evidence may be off by an unknown amount; {remedy}.", **facts)
    if modes:
        return Certificate(False, f"Not safe: {modes}; compare with vip.NUTS() from several starts, or constrain the model.", **facts)
    if account.refused:
        return Certificate(False, f"Not safe: {account.refused}; {remedy}.", **facts)
    if math.isfinite(joint):
        looked_at = np.argsort(-errors.max(0))[: max(1, MAX_JUDGED // w.size)]
        khats, needed = diagnosis.scalar_khats(scalars, log_weights, looked_at), diagnosis.khat_threshold(w.size)
        if khats.max() >= needed:
            name = names[looked_at[int(np.argmax(khats))]]
            reason = f"the weighted tail of {name} is too heavy for its mean and sd (k-hat {khats.max():.2f}, needs < {needed:.2f})"
            return Certificate(False, f"Not safe for {name}: {reason}; {remedy}.", **facts)
    if not errors.max() < diagnosis.MCSE_SHARE:  # nan is no pass
        reason = f"the Monte Carlo error of {names[worst]} is {errors.max():.2f} posterior sds, needs < {diagnosis.MCSE_SHARE}"
        return Certificate(False, f"Not safe: {reason}; {remedy}.", **facts)
    khat = "the weights are even" if joint == -math.inf else f"k-hat {joint:.2f} < {threshold:.2f}"
    copies = account.modes.log_copies
    labels = f"draws are of one labelling among {math.exp(copies):.0f}, which the log evidence counts" if copies else ""
    caveat = "; ".join(filter(None, [labels, account.caveat or "modes that no start met are not covered"]))
    verdict = f"Safe for means, sds and log evidence: {khat}, Monte Carlo errors within {errors.max():.3f} sd; {caveat}."
    return Certificate(True, verdict, **facts)


def _judge_raw(log_weights, names, scalars, raw: dict, smoothed: Certificate, num_draws: int) -> Certificate:
    """The certificate of the raw draws of q: how far they are from the smoothed ones, where these can be trusted."""
    facts = {"khat": smoothed.khat, "khat_threshold": smoothed.khat_threshold, "ess": float(num_draws)}
    if not smoothed.ok:
        return Certificate(False, f"Not safe: nothing to hold the raw draws against. {smoothed.verdict}", **facts)
    w = np.exp(log_weights)
    mean, sd = diagnosis.by_columns(lambda x: np.stack([w @ x, np.sqrt(w @ (x - w @ x) ** 2)]), scalars)
    of_q = np.array([raw.get(name, (math.nan, math.nan)) for name in names]).T
    shift, ratio = np.abs(of_q[0] - mean) / sd, of_q[1] / sd
    off = np.abs(np.log(ratio))
    i, j = int(np.argmax(shift)), int(np.argmax(off))
    ok = bool(shift[i] < 0.15 and abs(ratio[j] - 1) < 0.15)
    measured = (
        f"raw draws of q are off by up to {shift[i]:.2f} sd in the mean ({names[i]}) and by a factor {ratio[j]:.2f} in the sd ({names[j]})"
    )
    return Certificate(ok, f"{'Close' if ok else 'Not safe'}: {measured}.", **facts)
