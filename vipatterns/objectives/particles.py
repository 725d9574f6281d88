"""Draws of a guide and their log densities, site by site: what every estimator of an ELBO is made of.

What the guide draws and what it computes are told apart. A `Delta` site holds a computed value, with a Jacobian for its density: its
gradient is that of any other term. The density of a draw enters twice: as a cost, scaled and masked as its site is, and as the score
of the law that it was drawn from, which neither a scale nor a mask changes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers

from vipatterns.errors import InputError

NOT_PLATES = ["sample", "prng_key", "control_flow"]


@dataclass(frozen=True)
class Terms:
    """The log densities of one particle, in nats, each of its site's batch shape."""

    log_p: dict[str, jax.Array]
    """Every sample site of the model: scaled and masked."""
    log_q: dict[str, jax.Array]
    """Every sample site of the guide: scaled and masked."""
    score: dict[str, jax.Array]
    """The guide's draws under the law that they came from: neither scaled nor masked."""
    plates: dict[str, tuple[int, float]]
    """Plates that hold every site of model and guide: name -> dimension (negative), full size over the size that was taken."""
    subsampled: str
    """A plate that was subsampled and does not hold every site; empty when there is none."""

    @property
    def elbo(self) -> jax.Array:
        """log p - log q, summed."""
        return _total(self.log_p) - _total(self.log_q)

    @property
    def rows(self) -> tuple[jax.Array, jax.Array, float]:
        """log p and log q summed but for the plates that hold every site, whose rows are independent; and the scale of a row.

        Raises:
            InputError: a plate is subsampled that not all sites are in.
        """
        if self.subsampled:
            raise InputError(
                f"Plate {self.subsampled!r} is subsampled and does not hold every site; a log of averaged weights needs all rows of it, "
                "so give it its full size, or use an objective that is an ELBO."
            )
        scale = 1.0
        for _, factor in self.plates.values():
            scale = scale * factor
        dims = [dim for dim, _ in self.plates.values()]
        log_p, log_q = (sum((_rows(x, dims) for x in terms.values()), jnp.zeros(())) / scale for terms in (self.log_p, self.log_q))
        return log_p, log_q, scale


@dataclass(frozen=True)
class Particles:
    """A model and a guide on their arguments. All particles share the rows of subsampled plates, so that they can be compared."""

    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict
    plate_key: jax.Array
    state: str = ""
    """The one mutable site that the estimator itself keeps."""

    def draw(self, rng_key, params: dict, path: Callable[[dict], bool]) -> dict[str, jax.Array]:
        """What the guide draws, latent site -> value, Delta sites left out.

        Args:
            rng_key: the particle's key.
            params: name -> value, constrained.
            path: whether gradients with respect to `params` pass through a draw, told its site.
        """

        def stopped(site):
            if not _is_draw(site) or path(site):
                return None
            return jax.lax.stop_gradient(site["fn"](*site["args"], **site["kwargs"]))

        key_guide, _ = jax.random.split(rng_key)
        guide = handlers.substitute(self._seeded(self.guide, key_guide, params), substitute_fn=stopped)
        trace = handlers.trace(guide).get_trace(*self.args, **self.kwargs)
        return {name: site["value"] for name, site in trace.items() if _is_draw(site)}

    def weigh(self, rng_key, values: dict, params: dict, fixed: bool = False) -> Terms:
        """The log densities at `values`.

        Args:
            rng_key: the particle's key.
            values: what `draw` gave.
            params: name -> value, constrained.
            fixed: whether the parameters of the law of the draws are held fixed, so that gradients reach it through `values` alone.

        Raises:
            InputError: guide and model do not have the same latents.
        """
        key_guide, key_model = jax.random.split(rng_key)
        guide = self._trace(self._seeded(self.guide, key_guide, params), values)
        law = guide
        if fixed:
            every = {name: site["value"] for name, site in guide.items() if site["type"] == "sample" and not site["is_observed"]}
            law = self._trace(self._seeded(self.guide, key_guide, jax.tree.map(jax.lax.stop_gradient, params)), every)
        model = handlers.trace(handlers.replay(self._seeded(self.model, key_model, params), guide)).get_trace(*self.args, **self.kwargs)
        _check(model, guide, self.state)
        drawn = {name for name, site in guide.items() if _is_draw(site)}
        plates, subsampled = _plates(model, guide)
        return Terms(
            log_p={name: _log_prob(site) for name, site in model.items() if site["type"] == "sample"},
            log_q={name: _log_prob(law[name] if name in drawn else site) for name, site in guide.items() if site["type"] == "sample"},
            score={name: unmasked(law[name]["fn"]).log_prob(law[name]["value"]) for name in guide if name in drawn},
            plates=plates,
            subsampled=subsampled,
        )

    def _seeded(self, program: Callable, rng_key, params: dict) -> Callable:
        return handlers.substitute(handlers.seed(handlers.seed(program, self.plate_key, hide_types=NOT_PLATES), rng_key), data=params)

    def _trace(self, program: Callable, values: dict) -> Any:
        return handlers.trace(handlers.substitute(program, data=values)).get_trace(*self.args, **self.kwargs)


def is_path(site: dict) -> bool:
    """True; for estimators that differentiate through every draw.

    Raises:
        InputError: the draw has no reparameterised sampler.
    """
    if not site["fn"].has_rsample:
        raise InputError(
            f"Site {site['name']!r} of the guide is drawn from {type(site['fn']).__name__}, which has no reparameterised sampler; use "
            "vip.objectives.ScoreFunction(), which needs none."
        )
    return True


def is_delta(fn) -> bool:
    """Whether a site holds a computed value, with or without a Jacobian for its density."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def unmasked(fn):
    """The law that is drawn from: a mask does not change the draws."""
    if isinstance(fn, dist.MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, dist.Independent):
        return dist.Independent(unmasked(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.ExpandedDistribution):
        return unmasked(fn.base_dist).expand(fn.batch_shape)
    return fn


def _is_draw(site: dict) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not is_delta(site["fn"])


def _log_prob(site: dict) -> jax.Array:
    fn = site["fn"]
    # A computed value that was computed twice may differ in its last digit from itself.
    value = fn(rng_key=jax.random.key(0)) if is_delta(fn) and not site["is_observed"] else site["value"]
    log_prob = fn.log_prob(value)
    return log_prob if site["scale"] is None else site["scale"] * log_prob


def _total(terms: dict[str, jax.Array]) -> jax.Array:
    return sum((x.sum() for x in terms.values()), jnp.zeros(()))


def _rows(x: jax.Array, dims: list[int]) -> jax.Array:
    """x summed but for the plates' dimensions, which become its only ones, in order."""
    return x.sum([i for i in range(x.ndim) if i - x.ndim not in dims])


def _plates(model: dict, guide: dict) -> tuple[dict[str, tuple[int, float]], str]:
    """The plates that hold every sample site, and one of the others that is subsampled."""
    sites = [site for trace in (model, guide) for site in trace.values() if site["type"] == "sample"]
    stacks = [{(f.name, f.dim) for f in site["cond_indep_stack"]} for site in sites]
    within = set.intersection(*stacks) if stacks else set()
    factors = {}
    for site in (*guide.values(), *model.values()):
        if site["type"] == "plate":
            factors[site["name"]] = site["args"][0] / len(site["value"])
    common = {name: (dim, factors[name]) for name, dim in sorted(within, key=lambda plate: plate[1])}
    return common, next((name for name, factor in factors.items() if factor != 1 and name not in common), "")


def _check(model: dict, guide: dict, state: str) -> None:
    for name, site in (*model.items(), *guide.items()):
        if site["type"] == "mutable" and name != state:
            raise InputError(f"Site {name!r} is a numpyro.mutable, which this objective does not carry; use numpyro.infer.Trace_ELBO.")
    latents = {name for name, site in model.items() if site["type"] == "sample" and not site["is_observed"]}
    found = {name: site for name, site in guide.items() if site["type"] == "sample" and not site["is_observed"]}
    missing = sorted(latents - set(found))
    extra = sorted(name for name in set(found) - latents if not found[name]["infer"].get("is_auxiliary", False))
    if missing or extra:
        raise InputError(
            f"The guide must have the model's latent sites: it lacks {missing}, and the model has no {extra}. "
            "A draw that only helps the guide is marked infer={'is_auxiliary': True}."
        )
    for name in latents:
        expected, came = tuple(model[name]["fn"].shape()), jnp.shape(found[name]["value"])
        if expected != came:
            raise InputError(f"The guide draws {name!r} with shape {came}, the model with shape {expected}.")
