"""The No-U-Turn sampler, NumPyro's, from a good start and in curvature coordinates.

Hoffman and Gelman 2014, arXiv 1111.4246; judged by rank-normalised R-hat and bulk and tail ess (Vehtari et al. 2021,
arXiv 1903.08008). It runs in compiled chunks, so that it reports progress and Ctrl-C keeps the draws made so far.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base.array import array_stats
from numpyro.infer.hmc import hmc

from vipatterns import density, diagnosis, mode, modes
from vipatterns.draws import scalars_of, tree
from vipatterns.errors import InputError
from vipatterns.evaluation import Points
from vipatterns.posterior import Certificate, Fit, described
from vipatterns.progress import reporting

CHUNK = 50
MAX_RHAT = 1.01
MIN_ESS = 400
MAX_DIVERGENT = 0.002
"""Share of draws that may diverge: more means that a part of the posterior was not reached."""
KEPT = {
    "potential_energy": "potential_energy",
    "diverging": "diverging",
    "energy": "energy",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
}
"""NumPyro's names -> ArviZ's."""


@dataclass(frozen=True)
class NUTS:
    """Markov chain Monte Carlo: the reference that VI is held against, and the ladder's last rung.

    Coordinates are scaled by the curvature at the start, so raw units cost no warm-up; the mass matrix adapts from there.
    """

    num_warmup: int = 500
    """Iterations of each chain that adapt step size and mass matrix, and are dropped."""
    num_samples: int = 1_000
    """Draws kept of each chain."""
    num_chains: int = 4
    """Run in step with one another in one compiled program."""
    target_accept_prob: float = 0.9
    """Acceptance that the step size is adapted to; higher takes smaller steps, against divergences."""
    max_tree_depth: int = 10
    """A trajectory takes at most 2 to this power leapfrog steps."""
    max_seconds: float = math.inf
    """Wall time, compiling included, after which it stops and keeps the draws that it has."""
    dtype: str = "float64"
    """Of all that is computed: float64, or float32."""

    def fit(
        self,
        rng_key,
        model: Callable,
        data: dict | None = None,
        *,
        args: tuple = (),
        coords: dict | None = None,
        dims: dict | None = None,
        progress: bool | None = None,
        around: mode.Start | None = None,
    ) -> Fit:
        """Samples the posterior of `model` given `data`; see `vip.fit` for the arguments.

        Args:
            around: a place and its coordinates to start from (`Fit.around`), instead of a search for a mode.
        """
        key_mode, key_start, key_chains = jax.random.split(rng_key, 3)
        clock = density.Clock()
        with density.precision(self.dtype):
            target = density.read(model, data, args=args, dtype=self.dtype)
            start = mode.find(key_mode, target, clock) if around is None else around
            frame = jnp.asarray(start.loc), jnp.asarray(start.factor), target.arrays

            def potential(loc, factor, arrays):
                return lambda u: -target.log_p(loc + mode.scaled(factor, u), arrays)

            kernel = hmc(potential_fn_gen=potential, algo="NUTS")
            found = modes.examine(target, start, clock)
            states = self._states(kernel[0], key_start, key_chains, target, frame, _centres(start, found, self.num_chains), clock)
            chunk = target.compiled(clock, f"nuts {self._compiled_in()}", _chunk(kernel[1]), states, *frame)
            kept, stopped, iterations = self._run(lambda states: chunk(states, *frame), states, clock, progress)
            z = start.loc + np.asarray(mode.scaled(start.factor, kept.pop("z")))
            _, values = Points(target, clock)(z)
            certificate = _judge(values, kept["diverging"], found)
            stats = {"lp": -kept.pop("potential_energy"), **kept}
            attrs = {
                "method": described(self),
                "verdict": certificate.verdict,
                "certified": int(certificate.ok),
                "stopped_because": stopped,
            }
            attrs["exchangeable"] = json.dumps(found.labels)
            idata = tree(target, {"posterior": values, "sample_stats": stats}, rng_key=rng_key, coords=coords, dims=dims, attrs=attrs)
        return Fit(
            method=self,
            idata=idata,
            certificate=certificate,
            stopped_because=stopped,
            num_steps=iterations,
            compile_seconds=clock.compile_seconds,
            run_seconds=clock.run_seconds,
            target=target,
        )

    def _compiled_in(self) -> tuple:
        """What NumPyro's kernel closes over."""
        return self.num_warmup, self.target_accept_prob, self.max_tree_depth

    def _states(self, init_kernel: Callable, key_start, key_chains, target, frame, centres, clock):
        """Warm-up states of all chains, dispersed about the start; the dispersal halves for chains that meet a non-finite log p."""

        def init(u, key, *frame):
            return init_kernel(
                u,
                self.num_warmup,
                target_accept_prob=self.target_accept_prob,
                max_tree_depth=self.max_tree_depth,
                rng_key=key,
                model_args=frame,
            )

        keys = jax.random.split(key_chains, self.num_chains)
        offset = jax.random.normal(key_start, (self.num_chains, target.dim), dtype=self.dtype)
        u = centres + offset
        init = jax.vmap(init, (0, 0, None, None, None))
        program = target.compiled(clock, f"nuts start {self._compiled_in()}", init, u, keys, *frame)
        states = program(u, keys, *frame)
        for _ in range(20):
            finite = jnp.isfinite(states.potential_energy) & jnp.isfinite(states.z_grad).all(1)
            if finite.all():
                break
            offset = jnp.where(finite[:, None], offset, offset / 2)
            u = centres + offset
            states = program(u, keys, *frame)
        return states

    def _run(self, chunk: Callable, states, clock: density.Clock, progress: bool | None) -> tuple[dict, str, int]:
        """Draws (chain, draw, ...), why it stopped, and iterations made; warm-up is made in whole chunks and then dropped."""
        total = -(-(self.num_warmup + self.num_samples) // CHUNK) * CHUNK
        parts, done, stopped = [], 0, ""
        with reporting("NUTS", total, progress) as report:
            try:
                while done < total:
                    states, out = chunk(states)
                    out = {k: np.asarray(v) for k, v in out.items()}
                    parts.append(out)
                    done += CHUNK
                    phase = "warm-up" if done <= self.num_warmup else f"{sum(int(p['diverging'].sum()) for p in parts)} divergences"
                    report(done, f"{phase}, {out['n_steps'].mean():.0f} leapfrog steps a draw")
                    if clock.compile_seconds + clock.run_seconds > self.max_seconds and done < total:
                        stopped = self._out_of_time(done, total)
                        break
            except KeyboardInterrupt:
                if done < self.num_warmup + CHUNK:
                    raise
                stopped = f"interrupted: Ctrl-C after {done - self.num_warmup} of {self.num_samples} draws a chain; these are kept"
        joined = {k: np.concatenate([p[k] for p in parts], axis=1)[:, self.num_warmup :][:, : self.num_samples] for k in parts[0]}
        return joined, stopped or f"sampled: {joined['z'].shape[1]} draws a chain after {self.num_warmup} of warm-up", done

    def _out_of_time(self, done: int, total: int) -> str:
        if done < self.num_warmup + CHUNK:
            raise InputError(
                f"NUTS was still in its warm-up after {self.max_seconds:.0f} s ({done} of {total} iterations): raise max_seconds, "
                "or try vip.DADVI()."
            )
        return f"time budget: {self.max_seconds:.0f} s were over after {done - self.num_warmup} of {self.num_samples} draws a chain"


def _chunk(sample_kernel: Callable) -> Callable:
    def chunk(states, *frame):
        def step(states, _):
            states = jax.vmap(lambda state: sample_kernel(state, frame))(states)
            kept = {ours: getattr(states, theirs) for theirs, ours in KEPT.items()}
            return states, {**kept, "z": states.z, "step_size": states.adapt_state.step_size}

        states, out = jax.lax.scan(step, states, length=CHUNK)
        return states, {k: jnp.swapaxes(v, 0, 1) for k, v in out.items()}

    return chunk


def _centres(start: mode.Start, found: modes.Modes, num_chains: int) -> np.ndarray:
    """Where the chains start (chain, D), in curvature coordinates: each mode that was met in turn, so that R-hat sees whether they mix."""
    others = [] if found.others is None else list(found.others)
    places = [start.unscaled(z - start.loc) for z in [start.loc, *others]]
    return np.array([places[i % len(places)] for i in range(num_chains)])


@np.errstate(divide="ignore", invalid="ignore")  # of chains that stand still, apart: their R-hat is infinite
def _judge(values: dict[str, np.ndarray], diverging: np.ndarray, found: modes.Modes) -> Certificate:
    """R-hat, bulk and tail ess, Monte Carlo errors of the mean and the sd of every scalar, and divergences.

    Ranks say nothing of how far out a tail reaches: with all the ess that is needed, the sd of a heavy one may be poorly known.
    """
    names, draws = scalars_of(values)
    if not np.isfinite(draws).all():
        return Certificate(False, "Not safe: some draws are NaN or infinite; bound the scales of the model away from zero.")
    if not names:
        return Certificate(
            False, "Not safe: no scalar of any site varies from draw to draw; look for a site that is a constant in disguise."
        )
    series = np.moveaxis(draws, 2, 0)
    rhat = array_stats.rhat(series)
    ess = np.minimum(array_stats.ess(series, method="bulk"), array_stats.ess(series, method="tail", prob=(0.05, 0.95)))
    worst, fewest = int(np.argmax(rhat)), int(np.argmin(ess))
    errors = np.stack([array_stats.mcse(series, method=of) for of in ("mean", "sd")]) / series.std((1, 2))
    of, least_known = np.unravel_index(int(np.argmax(errors)), errors.shape)
    error = float(errors[of, least_known])
    facts = {"rhat": float(rhat[worst]), "ess": float(ess[fewest]), "mcse": max(float(1 / np.sqrt(ess[fewest])), error)}
    divergent = int(diverging.sum())
    problems = ["one chain has no other to disagree with (num_chains=4 has)"] if len(draws) == 1 else []
    if not rhat[worst] <= MAX_RHAT:  # nan is no pass
        problems.append(f"chains disagree on {names[worst]} (R-hat {rhat[worst]:.4g}, needs <= {MAX_RHAT})")
    if ess[fewest] < MIN_ESS:
        problems.append(f"{names[fewest]} has {ess[fewest]:.0f} effective draws, needs {MIN_ESS}")
    if not error < diagnosis.MCSE_SHARE:  # nan is no pass
        what = f"{names[least_known]}'s {('mean', 'sd')[of]}"
        problems.append(f"the Monte Carlo error of {what} is {error:.2f} posterior sds, needs < {diagnosis.MCSE_SHARE}")
    if divergent > MAX_DIVERGENT * diverging.size:
        problems.append(f"{divergent} of {diverging.size} transitions diverged")
    if problems:
        remedy = "try more warm-up and draws, target_accept_prob=0.99, or a non-centred parameterisation"
        return Certificate(False, f"Not safe: {'; '.join(problems)}; {remedy}.", **facts)
    also = f", {divergent} divergences" if divergent else ""
    labels = f"; draws are of one labelling among {np.exp(found.log_copies):.0f}" if found.log_copies else ""
    measured = f"R-hat {rhat[worst]:.3f}, at least {ess[fewest]:.0f} effective draws{also}"
    verdict = f"Safe for means, sds and tails: {measured}; no log evidence{labels}."
    return Certificate(True, f"{verdict[:-1]}; modes that no chain met are not covered.", **facts)
