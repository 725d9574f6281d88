"""Posterior collapse: latents of which the guide says the same for every datum.

A unit is active where the mean of q(z | x) varies over data by more than a hundredth of the prior's variance (Burda, Grosse and
Salakhutdinov 2015, arXiv 1509.00519, whose prior has variance 1). The KL from prior to q, averaged over data, is what a unit costs and
the most that it can tell. A unit may be idle because training lost it, or because the data have no use for it, as the linear model shows
(Lucas, Tucker, Grosse and Norouzi 2019, arXiv 1911.02469).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpyro import handlers

from vipatterns import keys
from vipatterns.amortized.latents import gaussian, univariate
from vipatterns.amortized.rows import blocks, number_of, pairs_at_once, rows_of
from vipatterns.amortized.trained import Trained
from vipatterns.amortized.weights import latent, log_density
from vipatterns.density import labels, precision
from vipatterns.draws import as_count, as_key
from vipatterns.errors import InputError
from vipatterns.programs import jitted

THRESHOLD = 0.01
"""Variance of q's mean over data, in prior variances, above which a unit is active."""
SILENT = 0.01
"""Nats a datum below which a unit tells nothing."""


@dataclass(frozen=True, eq=False, repr=False)
class ActiveUnits:
    """What each scalar latent tells of the data."""

    table: pd.DataFrame
    """A row a scalar: variance (of q's mean over data), prior_variance, active, kl and kl_error (nats a datum, its mean over data and the
    standard error of that over data; nan where q or the prior does not factorise over scalars)."""
    kl: float
    """Nats a datum: KL from prior to q of all latents together, its mean over data."""
    kl_error: float
    """Its standard error over data, in which Monte Carlo error is contained."""
    num_data: int
    """Data that this was looked at on."""

    @property
    def number(self) -> int:
        """How many units are active."""
        return int(self.table.active.sum())

    @property
    def sentence(self) -> str:
        """Whether posterior collapse is seen, where, and what to try."""
        idle = self.table[~self.table.active]
        if idle.empty:
            return f"All {len(self.table)} units are active."
        some = [str(name) for name in idle.index[:8]]
        named = ", ".join(some) + (f" and {len(idle) - 8} more" if len(idle) > 8 else "")
        said = f"{len(idle)} of {len(self.table)} units are not active ({named}): q's mean there is nearly the same for every datum"
        if (idle.kl > SILENT).any():
            return (
                f"{said[0].upper()}{said[1:]}, and yet q is not the prior (KL up to {idle.kl.max():.3f} nats): the encoder pays there for "
                "nothing; train on, or look whether it sees its input."
            )
        if len(idle) == len(self.table):
            head = f"Posterior collapse: {said}, so the decoder learns nothing of x from z. Try"
        else:
            head = f"Posterior collapse of a part: {said}. That is harmless where the data need no more units; if they do, try"
        return (
            f"{head} a warm-up of the KL's weight (schedules of vip.train), a decoder with less freedom of its own, a smaller or learned "
            "noise scale, or fewer latents."
        )

    def __repr__(self) -> str:
        shown = self.table.head(20).to_string(float_format=lambda v: f"{v:.4g}")
        rest = f"\n... {len(self.table) - 20} more" if len(self.table) > 20 else ""
        return f"{self.sentence}\nKL {self.kl:.3f} ± {self.kl_error:.3f} nats a datum over {self.num_data} data\n{shown}{rest}"


def active_units(
    rng_key: jax.Array,
    trained: Trained,
    rows: dict | None = None,
    *,
    num_samples: int = 256,
    threshold: float = THRESHOLD,
) -> ActiveUnits:
    """Which latents vary with the data, and the KL of each.

    Where q and the prior are independent Gaussians of each scalar, means and KL are taken from their parameters; elsewhere from draws,
    and the variance is cleared of the draws' own.

    Args:
        rng_key: a JAX key.
        trained: what `vip.train` returned.
        rows: argument -> (N, ...), 2 or more; by default the rows held out.
        num_samples: draws of q a datum.
        threshold: variance of q's mean over data, in prior variances, above which a unit is active.

    Returns:
        An ActiveUnits; `print` it for a sentence and a table, KL in nats a datum.

    Raises:
        InputError: fewer than two rows, or rows unlike those that were trained on.
    """
    rng_key, num_samples = as_key(rng_key), as_count(num_samples)
    rows = rows_of(trained, rows)
    num = number_of(rows)
    if num < 2:
        raise InputError("Active units need two rows or more: a unit is active where q varies over data.")
    parts = []
    with precision(trained.dtype):
        params = jax.tree.map(jnp.asarray, trained.params)
        known = _known(trained, params, rows)
        program = jitted(
            trained.pair.model,
            jax.vmap(lambda key, params, row: _datum(key, trained, params, row, known, num_samples), (0, None, 0)),
        )
        for b, (chosen, count) in enumerate(blocks(num, min(max(pairs_at_once(rows) // num_samples, 1), num))):
            batch = {name: jnp.asarray(value[chosen]) for name, value in rows.items()}
            found = program(jax.random.split(keys.fold_in(rng_key, b), len(chosen)), params, batch)
            parts.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf, float)[:count], found))
    data = _Datum(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    # The variance of means of draws holds the draws' own, num_samples times smaller.
    variance = np.maximum(data.mean.var(0, ddof=1) - data.noise.mean(0), 0.0)
    prior_variance = data.prior_square.mean(0) - data.prior_mean.mean(0) ** 2
    root = math.sqrt(num)
    table = pd.DataFrame(
        {
            "variance": variance,
            "prior_variance": prior_variance,
            "active": variance > threshold * prior_variance,
            "kl": data.kl.mean(0),
            "kl_error": data.kl.std(0, ddof=1) / root,
        },
        index=pd.Index([label for name, site in known.items() for label in labels(name, site.size)], name="scalar"),
    )
    return ActiveUnits(table, float(data.total.mean()), float(data.total.std(ddof=1) / root), num)


class _Known(NamedTuple):
    """What is known of a latent site without drawing it."""

    size: tuple[int, ...]
    guide: bool
    """q's parameters depend on the datum alone."""
    prior: bool
    """The prior's depend on no other latent."""
    factorises: bool
    """Every site of the model and the guide is one of independent scalars."""


class _Datum(NamedTuple):
    """Of each datum (N, K scalars), or (N,)."""

    mean: Any
    """Of q."""
    noise: Any
    """Variance of that mean, were it taken from other draws; zero where it was not."""
    prior_mean: Any
    prior_square: Any
    kl: Any
    total: Any


def _known(trained: Trained, params: dict, rows: dict[str, np.ndarray]) -> dict[str, _Known]:
    """Two draws for the first row tell what depends on draws."""
    row = {name: jnp.asarray(value[0]) for name, value in rows.items()}
    (guide, model), (guide_too, model_too) = (_traces(jax.random.key(i), trained, params, row) for i in range(2))
    apart = all(
        univariate(first[name]["fn"]) is not None and _alike(first[name]["fn"], second[name]["fn"])
        for first, second in ((guide, guide_too), (model, model_too))
        for name in guide
    )
    return {
        name: _Known(
            site["value"].shape[1:],
            _alike(site["fn"], guide_too[name]["fn"]),
            _alike(model[name]["fn"], model_too[name]["fn"]),
            apart,
        )
        for name, site in guide.items()
    }


def _datum(rng_key, trained: Trained, params: dict, row: dict, known: dict[str, _Known], num_samples: int) -> _Datum:
    """Means, variances and KL of one datum."""

    def draw(key):
        key_q, key_p = jax.random.split(key)
        guide, model = _traces(key_q, trained, params, row)
        prior = latent(trained.pair.run(trained.pair.model, key_p, params, {name: value[None] for name, value in row.items()}))
        each = {
            name: _log_prob(site["fn"], site["value"]) - _log_prob(model[name]["fn"], site["value"])
            for name, site in guide.items()
            if known[name].factorises
        }
        values = [{name: trace[name]["value"] for name in guide} for trace in (guide, prior)]
        return *values, each, log_density(guide) - log_density(model)

    values, prior, each, total = jax.vmap(draw)(jax.random.split(rng_key, num_samples))
    guide, model = _traces(rng_key, trained, params, row)
    parts = []
    for name, site in known.items():
        z, from_prior = (jnp.reshape(v[name], (num_samples, -1)).astype(total.dtype) for v in (values, prior))
        mean, noise = z.mean(0), z.var(0, ddof=1) / num_samples
        centre, square = from_prior.mean(0), (from_prior**2).mean(0)
        kl = jnp.reshape(each[name], (num_samples, -1)).mean(0) if site.factorises else jnp.full(mean.shape, jnp.nan)
        q = gaussian(guide[name]["fn"]) if site.guide else None
        p = gaussian(model[name]["fn"]) if site.prior else None
        if q is not None:
            mean, noise = q[0], jnp.zeros_like(noise)
        if p is not None and p[1].ndim == 1:
            centre, square = p[0], p[0] ** 2 + p[1] ** 2
            if q is not None and site.factorises:
                kl = jnp.log(p[1] / q[1]) + (q[1] ** 2 + (q[0] - p[0]) ** 2) / (2 * p[1] ** 2) - 0.5
        parts.append((mean, noise, centre, square, kl))
    mean, noise, centre, square, kl = (jnp.concatenate(column) for column in zip(*parts, strict=True))
    return _Datum(mean, noise, centre, square, kl, kl.sum() if next(iter(known.values())).factorises else total.mean())


def _traces(rng_key, trained: Trained, params: dict, row: dict) -> tuple[dict, dict]:
    """Latent sites of the guide, and of the model at the guide's draws."""
    key_guide, key_model = jax.random.split(rng_key)
    batch = {name: value[None] for name, value in row.items()}
    pair = trained.pair
    guide = pair.run(pair.guide, key_guide, params, batch)
    return latent(guide), latent(pair.run(handlers.replay(pair.model, guide), key_model, params, batch))


def _log_prob(fn, value) -> jax.Array:
    """Log density of each scalar of a value, where they are independent."""
    scalar = univariate(fn)
    assert scalar is not None
    return jnp.asarray(scalar.log_prob(value))


def _alike(first, second) -> bool:
    """Whether two distributions have the same parameters."""
    leaves = [jax.tree.leaves(fn) for fn in (first, second)]
    return len(leaves[0]) == len(leaves[1]) and all(bool(jnp.array_equal(a, b)) for a, b in zip(*leaves, strict=True))
