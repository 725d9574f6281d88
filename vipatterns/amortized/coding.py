"""Both ways through a trained pair: rows to the means of their codes, codes to the mean of what is observed."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from vipatterns import keys
from vipatterns.amortized.rows import number_of, rows_of
from vipatterns.amortized.trained import Trained
from vipatterns.amortized.weights import latent
from vipatterns.density import labels, precision
from vipatterns.draws import as_key
from vipatterns.errors import InputError
from vipatterns.programs import jitted

NUM_DRAWS = 64
"""Draws whose mean stands for that of a distribution that cannot say its own."""
BLOCK = 500
"""Rows that go through the networks at once."""


@dataclass(frozen=True)
class Codes:
    """Codes of N data: all latents of each, a row of K scalars."""

    values: np.ndarray
    """(N, K)."""
    sizes: dict[str, tuple[int, ...]]
    """Latent site -> shape of its value for one datum."""

    @property
    def names(self) -> list[str]:
        """Labels of the K scalars, such as z[3]."""
        return [label for name, size in self.sizes.items() for label in labels(name, size)]

    def replaced(self, values: np.ndarray) -> "Codes":
        """Other codes, (M, K), of the same latents."""
        return Codes(np.asarray(values), self.sizes)

    def sites(self) -> dict[str, np.ndarray]:
        """Latent site -> (N, ...)."""
        ends = np.cumsum([math.prod(size) for size in self.sizes.values()])[:-1]
        parts = np.split(self.values, ends, axis=1)
        return {name: part.reshape(len(part), *size) for (name, size), part in zip(self.sizes.items(), parts, strict=True)}


def encode(rng_key, trained: Trained, rows: dict | None = None) -> Codes:
    """The mean of q(z | x) of each row; where a latent's q depends on another latent, given that one's mean.

    Args:
        rng_key: a JAX key, read only where the guide adds noise to its input or q cannot say its mean; then draws stand for it.
        trained: what `vip.train` returned.
        rows: argument -> (N, ...); by default the rows held out.
    """

    def means(key, params, batch):
        def mean(site):
            return site["fn"].mean if site["type"] == "sample" and not site["is_observed"] else None

        pair = trained.pair
        try:
            guide = pair.run(handlers.substitute(pair.guide, substitute_fn=mean), key, params, batch)
        except NotImplementedError:  # such as that of a flow
            draws = jax.vmap(lambda key: {k: v["value"] for k, v in latent(pair.run(pair.guide, key, params, batch)).items()})
            return jax.tree.map(lambda v: v.mean(0), draws(jax.random.split(key, NUM_DRAWS)))
        return {name: jnp.broadcast_to(site["value"], site["fn"].shape()) for name, site in latent(guide).items()}

    rows = rows_of(trained, rows)
    return _joined(_by_blocks(as_key(rng_key), trained, rows, means))


def decode(rng_key, trained: Trained, codes: Codes, rows: dict | None = None, site: str | None = None) -> np.ndarray:
    """The mean of an observed site given codes, (N, ...).

    Args:
        rng_key: a JAX key, read only where the model adds noise of its own, or the site cannot say its mean.
        trained: what `vip.train` returned.
        codes: N codes.
        rows: argument -> (N, ...), for a model that reads more of them than what it observes, such as labels; by default the rows held
            out, again and again.
        site: by default the largest that is observed.
    """
    num = len(codes.values)
    rows = rows_of(trained, repeated(trained.held_out, num) if rows is None else rows)
    if number_of(rows) != num:
        raise InputError(f"decode needs a row for each of the {num} codes, got {number_of(rows)} rows.")
    site = observed(trained) if site is None else site

    def mean(key, params, batch):
        batch, given = batch
        pair = trained.pair
        return _mean(pair.run(handlers.substitute(pair.model, data=given), key, params, batch)[site], key)

    dtype = np.dtype(trained.dtype)
    given = {name: value.astype(dtype) for name, value in codes.sites().items()}
    return _by_blocks(as_key(rng_key), trained, (rows, given), mean)


def imagine(rng_key, trained: Trained, num: int, rows: dict | None = None, site: str | None = None) -> np.ndarray:
    """Means of an observed site at draws of the prior, (num, ...); arguments as of `decode`."""
    rows = rows_of(trained, repeated(trained.held_out if rows is None else rows, num))
    site = observed(trained) if site is None else site
    return _by_blocks(
        as_key(rng_key),
        trained,
        rows,
        lambda key, params, batch: _mean(trained.pair.run(trained.pair.model, key, params, batch)[site], key),
    )


def prior_codes(rng_key, trained: Trained, num: int, rows: dict | None = None) -> Codes:
    """Draws of p(z), `num` of them; arguments as of `decode`."""
    rows = rows_of(trained, repeated(trained.held_out if rows is None else rows, num))

    def drawn(key, params, batch):
        return {name: site["value"] for name, site in latent(trained.pair.run(trained.pair.model, key, params, batch)).items()}

    return _joined(_by_blocks(as_key(rng_key), trained, rows, drawn))


def observed(trained: Trained) -> str:
    """The name of the observed site with the most elements."""
    found = {}

    def look(key):
        first = {name: jnp.asarray(value[:1]) for name, value in rows_of(trained, None).items()}
        trace = trained.pair.run(trained.pair.model, key, jax.tree.map(jnp.asarray, trained.params), first)
        found.update({name: site["value"].size for name, site in trace.items() if site["type"] == "sample" and site["is_observed"]})

    with precision(trained.dtype):
        jax.eval_shape(look, jax.random.key(0))
    if not found:
        raise InputError("The model observes nothing, so there is nothing to decode.")
    return max(found, key=lambda name: found[name])


def repeated(rows: dict, num: int) -> dict:
    """`num` rows: the given ones, again and again."""
    return {name: np.asarray(value)[np.arange(num) % len(value)] for name, value in rows.items()}


def _mean(site: dict, rng_key):
    try:
        mean = site["fn"].mean
    except NotImplementedError:
        mean = site["fn"].sample(rng_key, (NUM_DRAWS,)).mean(0)
    return jnp.broadcast_to(mean, site["value"].shape)


def _by_blocks(rng_key, trained: Trained, rows, function):
    """function(key, params, rows) of each block of rows, put together; the last block is padded, so that one program serves all."""
    num = len(jax.tree.leaves(rows)[0])
    size = min(num, BLOCK)
    parts = []
    with precision(trained.dtype):
        params, program = jax.tree.map(jnp.asarray, trained.params), jitted(trained.pair.model, function)
        for b, start in enumerate(range(0, num, size)):
            chosen = np.arange(start, start + size).clip(max=num - 1)
            batch = jax.tree.map(lambda value, chosen=chosen: jnp.asarray(value[chosen]), rows)
            found = program(keys.fold_in(rng_key, b), params, batch)
            few = min(size, num - start)
            parts.append(jax.tree.map(lambda leaf, few=few: np.asarray(leaf, float)[:few], found))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _joined(sites: dict[str, np.ndarray]) -> Codes:
    flat = [value.reshape(len(value), -1) for value in sites.values()]
    return Codes(np.concatenate(flat, axis=1), {name: value.shape[1:] for name, value in sites.items()})
