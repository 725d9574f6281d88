"""Where an amortised posterior loses its nats, a datum: in the encoder, or in the family of q.

log p(x) - ELBO = (best ELBO of the family for this datum - ELBO of the encoder's q) + (log p(x) - that best ELBO): the amortisation gap
and the approximation gap (Cremer, Li and Duvenaud 2018, arXiv 1801.03558). A guide with parameters of its own for every datum has no
amortisation gap.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from vipatterns import diagnosis, keys
from vipatterns.amortized.latents import Latents, encoded, family
from vipatterns.amortized.likelihood import FEWEST_FOR_KHAT, LogLikelihood, estimated
from vipatterns.amortized.refinement import Gaussian, improved
from vipatterns.amortized.rows import blocks, number_of, pairs_at_once, rows_of
from vipatterns.amortized.trained import Trained
from vipatterns.density import precision
from vipatterns.draws import as_count, as_key
from vipatterns.errors import InputError
from vipatterns.programs import jitted
from vipatterns.progress import reporting

GRADIENT_COST = 4
"""Evaluations of the networks that one gradient holds in memory, about."""
NUM_PARTICLES = 16
"""Draws of q a step of refinement."""
NUM_COMPARED = 256
"""Draws by which a round's q is compared with the one before; the better is kept."""
SETTLED = 0.002
"""Nats a datum: a round that gains less on average is the last."""
MOST_ROUNDS = 8
WIDER = 2.0
"""A refined q is narrower than the posterior where its family is too poor: for log p(x) half the draws then come from a q wider by this."""
LIGHT_KHAT = 0.3
"""Of the refined q's own weights, up to which they give log p(x) with an error that can be believed."""


@dataclass(frozen=True, eq=False, repr=False)
class Gaps:
    """The two gaps of N data, and what they are differences of."""

    table: pd.DataFrame
    """A row a datum, nats: elbo, best_elbo, log_p, amortisation_gap, approximation_gap, each with its Monte Carlo standard error in a
    column of that name and _mcse; khat, of the weights that log_p came from (nan where it was given)."""
    family: str
    """Of q(z | x) on unconstrained latents: "diagonal Gaussian", "full Gaussian", or "other"."""
    num_rounds: int
    """Rounds of refinement that the slowest block of data took."""
    last_gain: float
    """Nats a datum that the last round gained; below SETTLED where refinement is over."""
    num_samples: int
    """Draws a datum behind each figure."""

    def mean(self, column: str) -> tuple[float, float]:
        """Mean of a column over data.

        Args:
            column: of `table`.

        Returns:
            The mean, nats a datum, and its standard error over data, in which Monte Carlo error is contained.
        """
        values = self.table[column].to_numpy()
        return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan

    def mean_mcse(self, column: str) -> float:
        """Monte Carlo standard error of that mean, for these data.

        Args:
            column: of `table`.

        Returns:
            Nats a datum.
        """
        return float(np.sqrt((self.table[f"{column}_mcse"] ** 2).sum()) / len(self.table))

    @property
    def sentence(self) -> str:
        """What the gaps are of, which of them is the larger, and what to try."""
        said = []
        first, second = self.mean("amortisation_gap")[0], self.mean("approximation_gap")[0]
        if self.family == "other":
            said.append(
                "q is no Gaussian whose parameters the encoder gives outright, so what was refined is a diagonal Gaussian from q's own "
                "moments: the amortisation gap is to the best of those, and is negative where q's family is the richer; encoder and family "
                f"together lose {first + second:.3f} nats a datum"
            )
        elif max(first, second) > max(2 * self.mean_mcse("amortisation_gap"), 2 * self.mean_mcse("approximation_gap"), 0.01):
            said.append(
                "the encoder loses more than its family: a larger encoder, more training of it alone, or a few steps of refinement a datum"
                if first > second
                else "the family loses more than the encoder: a full covariance, a flow, or an importance-weighted objective"
            )
        else:
            said.append("neither gap can be told from nothing")
        if self.last_gain > SETTLED:
            said.append(f"refinement still gained {self.last_gain:.3f} nats a datum in its last round: give more num_steps")
        worst = int((self.table.khat > diagnosis.khat_threshold(max(self.num_samples, FEWEST_FOR_KHAT))).sum())
        if worst:
            said.append(
                f"{worst} of {len(self.table)} data have a k-hat that makes log p too low, and the approximation gap with it: pass "
                "log_likelihood=vip.amortized.annealed_log_likelihood(...)"
            )
        return "; ".join(part[0].upper() + part[1:] if i == 0 else part for i, part in enumerate(said)) + "."

    def __repr__(self) -> str:
        labels = {
            "elbo": "ELBO of the encoder",
            "best_elbo": "ELBO after refinement",
            "log_p": "log p(x)",
            "amortisation_gap": "amortisation gap",
            "approximation_gap": "approximation gap",
        }
        lines = [f"{'nats a datum':<24}{'mean':>10}{'± data':>9}{'± draws':>9}   over {len(self.table)} data"]
        for column, label in labels.items():
            mean, error = self.mean(column)
            lines.append(f"{label:<24}{mean:>10.3f}{error:>9.3f}{self.mean_mcse(column):>9.3f}")
        return "\n".join([*lines, f"q: {self.family}", self.sentence])


def gaps(
    rng_key: jax.Array,
    trained: Trained,
    rows: dict | None = None,
    *,
    log_likelihood: LogLikelihood | None = None,
    num_samples: int = 5_000,
    num_steps: int = 200,
    progress: bool | None = None,
) -> Gaps:
    """Amortisation gap and approximation gap of each datum.

    Every datum gets a q of its own, of the encoder's family and from where the encoder put it, refined by gradient ascent on its ELBO in
    rounds, until a round gains next to nothing. Both ELBOs are then estimated by fresh draws, the same for both where q is Gaussian.

    Args:
        rng_key: a JAX key.
        trained: what `vip.train` returned.
        rows: argument -> (N, ...); by default the rows held out. Refinement costs some thousand gradients a datum.
        log_likelihood: log p(x) of the same rows, such as `annealed_log_likelihood` gives; by default importance sampling from the
            refined q.
        num_samples: draws a datum of each q.
        num_steps: of refinement, a round.
        progress: None for automatic, True or False to force.

    Returns:
        A Gaps; `print` it for the means over data, in nats, with their errors.

    Raises:
        InputError: a latent is discrete, or the rows are not like those that were trained on.
    """
    key_refine, key_measure = keys.split(as_key(rng_key))
    num_samples, num_steps = as_count(num_samples), as_count(num_steps)
    rows = rows_of(trained, rows)
    num = number_of(rows)
    if log_likelihood is not None and len(log_likelihood.log_p) != num:
        raise InputError(f"log_likelihood is of {len(log_likelihood.log_p)} data, and there are {num} rows: give both the same rows.")
    num_rows = min(max(pairs_at_once(rows, GRADIENT_COST) // NUM_PARTICLES, 1), num)
    num_draws = min(max(pairs_at_once(rows) // (3 * num_rows), 1), num_samples)
    parts, rounds, gained = [], [], []
    with precision(trained.dtype), reporting("gaps", num, progress) as report:
        params = jax.tree.map(jnp.asarray, trained.params)
        latents = Latents.of(trained.pair, params, rows)
        kind = family(latents, params, rows)
        start, improve, compare, weigh = _programs(latents, kind, num_steps)
        for b, (chosen, count) in enumerate(blocks(num, num_rows)):
            key = jax.random.split(keys.fold_in(key_refine, b), num_rows)
            batch = {name: jnp.asarray(value[chosen]) for name, value in rows.items()}
            first = best = start(key, params, batch)
            i, gain = 0, math.inf
            for i in range(MOST_ROUNDS):
                key_round = jax.vmap(jax.random.fold_in, (0, None))(key, i)
                new = improve(key_round, params, batch, best)
                best, gain = compare(key_round, params, batch, best, new)
                gain = float(np.asarray(gain)[:count].mean())
                report(int(chosen[0]), f"round {i + 1} gained {gain:.3f} nats a datum")
                if gain < SETTLED:
                    break
            rounds.append(i + 1)
            gained.append(gain)
            key = jax.random.split(keys.fold_in(key_measure, b), num_rows)
            found = [
                np.asarray(weigh(key, params, batch, first, best, jnp.asarray(draws)), float)[:count, :few]
                for draws, few in blocks(num_samples, num_draws)
            ]
            parts.append(_figures(np.concatenate(found, axis=1), kind, log_likelihood, chosen[:count]))
            report(int(chosen[count - 1]) + 1, f"amortisation gap {parts[-1]['amortisation_gap'].mean():.3f} nats a datum")
    return Gaps(pd.concat(parts, ignore_index=True).rename_axis("row"), kind, max(rounds), max(gained), num_samples)


def _programs(latents: Latents, kind: str, num_steps: int) -> tuple:
    """Compiled functions of a block of rows: start, improve, compare, weigh."""

    def log_p(key, params, row):
        return lambda u: latents.densities(key, params, row, u)[1]

    def weight(q, noise, target):
        return target(q.at(noise)) - q.log_density_of(noise)

    def start(key, params, row):
        return Gaussian(*encoded(latents, key, params, row, kind))

    def improve(key, params, row, q):
        return improved(key, log_p(key, params, row), q, num_steps, NUM_PARTICLES)

    def compare(key, params, row, old, new):
        target = log_p(key, params, row)
        noise = jax.random.normal(jax.random.fold_in(key, 1), (NUM_COMPARED, latents.dim), old.loc.dtype)
        gain = jax.vmap(lambda e: weight(new, e, target) - weight(old, e, target))(noise).mean()
        better = gain > 0  # false of NaN too
        return jax.tree.map(lambda a, b: jnp.where(better, b, a), old, new), jnp.where(better, gain, 0.0)

    def weigh(key, params, row, first, best, draws):
        target = log_p(key, params, row)

        def one(j):
            key_first, key_best = jax.random.split(jax.random.fold_in(key, j))
            noise = jax.random.normal(key_best, (latents.dim,), best.loc.dtype)
            of_best = weight(best, noise, target)
            wide = jnp.where(j % 2, WIDER, 1.0) * noise
            shares = jnp.stack([best.log_density_of(wide), best.log_density_of(wide / WIDER) - latents.dim * math.log(WIDER)])
            of_both = target(best.at(wide)) - jax.nn.logsumexp(shares) + math.log(2)
            if kind != "other":
                return jnp.stack([weight(first, noise, target), of_best, of_both])
            _, log_joint, log_q = latents.pair.draw(key_first, params, row)
            return jnp.stack([log_joint - log_q, of_best, of_both])

        return jax.vmap(one)(draws)

    kept = partial(jitted, latents.pair.model)
    return (
        kept(jax.vmap(start, (0, None, 0))),
        kept(jax.vmap(improve, (0, None, 0, 0))),
        kept(jax.vmap(compare, (0, None, 0, 0, 0))),
        kept(jax.vmap(weigh, (0, None, 0, 0, 0, None))),
    )


def _figures(log_weights: np.ndarray, kind: str, given: LogLikelihood | None, chosen: np.ndarray) -> pd.DataFrame:
    """The table of a block, of log weights (N, S, 3) of the encoder's q, of the refined one, and of that with a wider one."""
    root = math.sqrt(log_weights.shape[1])
    encoder, best, both = np.moveaxis(log_weights, 2, 0)

    def error(values):
        return values.std(1) / root

    figures = {"elbo": encoder.mean(1), "elbo_mcse": error(encoder), "best_elbo": best.mean(1), "best_elbo_mcse": error(best)}
    if given is None:
        (log_p, mcse, khat, _), (log_p_both, mcse_both, khat_both, _) = estimated(best), estimated(both)
        light = khat <= LIGHT_KHAT
        # One set of draws gives both terms of the difference, whose errors partly cancel.
        approximation_mcse = np.where(light, error(np.exp(best - log_p[:, None]) - best), np.hypot(mcse_both, error(best)))
        log_p, mcse, khat = (np.where(light, a, b) for a, b in ((log_p, log_p_both), (mcse, mcse_both), (khat, khat_both)))
    else:
        log_p, mcse, khat = given.log_p[chosen], given.mcse[chosen], np.full(len(chosen), math.nan)
        approximation_mcse = np.hypot(mcse, error(best))
    figures |= {"log_p": log_p, "log_p_mcse": mcse, "khat": khat, "amortisation_gap": best.mean(1) - encoder.mean(1)}
    figures["amortisation_gap_mcse"] = np.hypot(error(encoder), error(best)) if kind == "other" else error(best - encoder)
    return pd.DataFrame({**figures, "approximation_gap": log_p - best.mean(1), "approximation_gap_mcse": approximation_mcse})
