"""Held-out log p(x), a datum, by importance sampling from the guide.

The log of the mean of K weights p(x, z) / q(z | x) is, in expectation, a lower bound of log p(x) that does not fall as K grows and tends
to it (Burda, Grosse and Salakhutdinov 2015, arXiv 1509.00519). K = 1 is the ELBO. What a finite K says is judged by Pareto k-hat, a datum
(Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv 1507.02646).
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from vipatterns import diagnosis
from vipatterns.amortized.rows import blocks, number_of, pairs_at_once, rows_of
from vipatterns.amortized.trained import Trained
from vipatterns.density import precision
from vipatterns.draws import as_count, as_key
from vipatterns.programs import jitted
from vipatterns.progress import reporting

FEWEST_FOR_KHAT = 100
"""A tail of fewer weights than these give says nothing of its shape."""
FEWEST_SHARE = 4
"""Annealed chains rest on a few where their effective number is less than one in so many."""


@dataclass(frozen=True, eq=False, repr=False)
class LogLikelihood:
    """log p(x) of N data, estimated from K weights each."""

    log_p: np.ndarray
    """(N,): log of the mean weight, nats."""
    mcse: np.ndarray
    """(N,): its Monte Carlo standard error by the delta method; nan where K is 1. The bias is about minus half its square."""
    khat: np.ndarray
    """(N,): Pareto k-hat of the weights; -inf where they are all equal, nan where they are too few, or were annealed."""
    ess: np.ndarray
    """(N,): effective number of the weights, 1 to K."""
    bounds: dict[int, np.ndarray]
    """K' -> (N,): the bound of K' weights, averaged over as many groups of that size as the draws make. The same draws serve every bound,
    so those whose sizes divide one another are in order for every datum."""
    num_samples: int
    """K, the number of weights a datum."""
    num_dims: int
    """Observed elements a datum."""
    method: str
    """How the weights came about."""
    acceptance: np.ndarray | None = None
    """(N,): of annealing, the share of moves that were accepted."""

    @property
    def mean(self) -> float:
        """Nats a datum."""
        return float(self.log_p.mean())

    @property
    def mean_mcse(self) -> float:
        """Monte Carlo standard error of `mean` for these data."""
        return float(np.sqrt((self.mcse**2).sum()) / len(self.mcse))

    @property
    def mean_error(self) -> float:
        """Standard error of `mean` over data, for data of the same kind; Monte Carlo error is in it. nan of one datum."""
        return _error(self.log_p)

    @property
    def bits_per_dim(self) -> float:
        """-mean in bits, an observed element."""
        return -self.mean / (self.num_dims * math.log(2))

    @property
    def bits_per_dim_error(self) -> float:
        """Standard error of `bits_per_dim` over data."""
        return self.mean_error / (self.num_dims * math.log(2))

    @property
    def unreliable(self) -> int:
        """How many data have a k-hat above what K weights allow."""
        return int((self.khat > diagnosis.khat_threshold(self.num_samples)).sum()) if self.num_samples >= FEWEST_FOR_KHAT else 0

    @property
    def table(self) -> pd.DataFrame:
        """A row a datum: log_p, mcse, khat, ess, and bound_1, bound_50, ..."""
        columns = {"log_p": self.log_p, "mcse": self.mcse, "khat": self.khat, "ess": self.ess}
        columns |= {f"bound_{size}": value for size, value in self.bounds.items()}
        columns |= {} if self.acceptance is None else {"acceptance": self.acceptance}
        return pd.DataFrame(columns).rename_axis("row")

    @property
    def sentence(self) -> str:
        """Whether the figures are to be believed, and what to do where they are not."""
        num = len(self.log_p)
        if np.isnan(self.log_p).any():
            return f"{int(np.isnan(self.log_p).sum())} of {num} data have weights that are NaN or infinite: are its scales bounded there?"
        if self.acceptance is not None:
            few = int((self.ess < self.num_samples / FEWEST_SHARE).sum())
            if few:
                return f"For {few} of {num} data a few chains hold most of the weight: give more temperatures."
            return "No datum rests on a few chains."
        if self.num_samples < FEWEST_FOR_KHAT:
            return f"A bound of {self.num_samples} weights: log p itself is above it, by how much more weights show."
        if self.unreliable:
            return (
                f"{self.unreliable} of {num} data have k-hat above {diagnosis.khat_threshold(self.num_samples):.2f}: their figures lie "
                "below log p by more than the error says; measure them by vip.amortized.annealed_log_likelihood."
            )
        return f"k-hat is below {diagnosis.khat_threshold(self.num_samples):.2f} for every datum."

    def __repr__(self) -> str:
        bounds = ", ".join(f"L_{size} {value.mean():.3f} ± {_error(value):.3f}" for size, value in self.bounds.items())
        rows = [
            ("log p(x)", f"{self.mean:.3f} ± {self.mean_error:.3f} nats a datum over {len(self.log_p)} data"),
            ("", f"± {self.mean_mcse:.3f} of it Monte Carlo error for these data"),
            ("", f"{self.bits_per_dim:.4f} ± {self.bits_per_dim_error:.4f} bits per dimension ({self.num_dims} a datum)"),
            *([("bounds", bounds)] if bounds else []),
            ("by", self.method),
            ("", self.sentence),
        ]
        return "\n".join(f"{label:<10}{value}" for label, value in rows)


def log_likelihood(
    rng_key: jax.Array,
    trained: Trained,
    rows: dict | None = None,
    *,
    num_samples: int = 5_000,
    bounds: tuple[int, ...] = (1, 50),
    progress: bool | None = None,
) -> LogLikelihood:
    """log p(x) of each datum, by importance sampling from the trained guide.

    Args:
        rng_key: a JAX key. Draw j of datum i has a key of its own, so that fewer draws are the first of more.
        trained: what `vip.train` returned.
        rows: argument -> (N, ...); by default the rows held out.
        num_samples: K, the weights a datum.
        bounds: sizes of groups of the same weights, each of which gives a bound of its own; those above K are left out.
        progress: None for automatic, True or False to force.

    Returns:
        Nats a datum, with errors; `print` it for one screen, `.table` for a row a datum.

    Raises:
        InputError: the rows are not like those that were trained on.
    """
    rng_key, num_samples = as_key(rng_key), as_count(num_samples)
    sizes = [as_count(size) for size in bounds if size <= num_samples]
    rows = rows_of(trained, rows)
    pair, num = trained.pair, number_of(rows)
    at_once = pairs_at_once(rows)
    num_rows, num_draws = min(max(at_once // num_samples, 1), num), min(num_samples, at_once)

    def weights(params, rng_key, index, batch, draws):
        def datum(i, row):
            key = jax.random.fold_in(rng_key, i)

            def one(j):
                _, log_p, log_q = pair.draw(jax.random.fold_in(key, j), params, row)
                return log_p - log_q

            return jax.vmap(one)(draws)

        return jax.vmap(datum)(index, batch)

    parts = []
    with precision(trained.dtype), reporting("log p(x)", num, progress) as report:
        params = jax.tree.map(jnp.asarray, trained.params)
        program = jitted(pair.model, weights)
        for chosen, count in blocks(num, num_rows):
            batch = {name: jnp.asarray(value[chosen]) for name, value in rows.items()}
            found = [
                np.asarray(program(params, rng_key, jnp.asarray(chosen), batch, jnp.asarray(draws)), float)[:count, :few]
                for draws, few in blocks(num_samples, num_draws)
            ]
            log_weights = np.concatenate(found, axis=1)
            parts.append((estimated(log_weights), [grouped(log_weights, size) for size in sizes]))
            report(int(chosen[count - 1]) + 1, f"{parts[-1][0][0].mean():.3f} nats a datum")
        num_dims = observed_size(trained, params, rows)
    log_p, mcse, khat, ess = (np.concatenate([part[0][i] for part in parts]) for i in range(4))
    return LogLikelihood(
        log_p=log_p,
        mcse=mcse,
        khat=khat,
        ess=ess,
        bounds={size: np.concatenate([part[1][i] for part in parts]) for i, size in enumerate(sizes)},
        num_samples=num_samples,
        num_dims=num_dims,
        method=f"importance sampling from the guide, {num_samples} draws a datum",
    )


def estimated(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Log of the mean weight, its standard error, k-hat and ess, each (N,), of log weights (N, K)."""
    num, num_samples = log_weights.shape
    log_p, mcse, khat, ess = (np.full(num, math.nan) for _ in range(4))
    for i, row in enumerate(log_weights):
        if np.isnan(row).any() or not np.isfinite(row.max()):
            khat[i] = math.inf
            continue
        log_p[i] = np.logaddexp.reduce(row) - math.log(num_samples)
        relative = np.exp(row - log_p[i])
        ess[i] = relative.sum() ** 2 / (relative**2).sum()
        if num_samples > 1:
            mcse[i] = relative.std(ddof=1) / math.sqrt(num_samples)
        if num_samples >= FEWEST_FOR_KHAT:
            khat[i] = diagnosis.smooth(row, np.zeros(num_samples)).khat
    return log_p, mcse, khat, ess


def grouped(log_weights: np.ndarray, size: int) -> np.ndarray:
    """The bound of `size` weights, averaged over the groups of that size among (N, K): (N,)."""
    number = log_weights.shape[1] // size
    groups = log_weights[:, : number * size].reshape(len(log_weights), number, size)
    return (np.logaddexp.reduce(groups, axis=2) - math.log(size)).mean(1)


def observed_size(trained: Trained, params: dict, rows: dict[str, np.ndarray]) -> int:
    """Observed elements of one datum."""
    first = {name: jnp.asarray(value[:1]) for name, value in rows.items()}
    shapes = []

    def look(rng_key):
        trace = trained.pair.run(trained.pair.model, rng_key, params, first)
        shapes.extend(site["value"].shape for site in trace.values() if site["type"] == "sample" and site["is_observed"])

    jax.eval_shape(look, jax.random.key(0))
    return max(sum(math.prod(shape) for shape in shapes), 1)


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
