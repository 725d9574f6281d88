"""One datum's latents as a vector on unconstrained space: the densities of the model and its guide there, and the way back."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from vipatterns.amortized.weights import Pair, latent, log_density
from vipatterns.density import labels
from vipatterns.errors import InputError


@dataclass(frozen=True)
class Latents:
    """The latents of one row of a model; all densities are per row, in nats, Jacobian included."""

    pair: Pair
    shapes: dict[str, tuple[int, ...]]
    """Latent site -> shape of its unconstrained value for one row, (1, ...)."""
    sizes: dict[str, tuple[int, ...]]
    """Latent site -> shape of its value for one row, without the leading axis."""

    @classmethod
    def of(cls, pair: Pair, params: dict, rows: dict) -> "Latents":
        """Read by shape from the first of `rows`.

        Raises:
            InputError: a latent is discrete.
        """
        batch = {name: jnp.asarray(value[:1]) for name, value in rows.items()}
        shapes, sizes = {}, {}

        def look(rng_key):
            for name, site in latent(pair.run(pair.model, rng_key, params, batch)).items():
                if site["fn"].support.is_discrete:
                    raise InputError(f"Latent {name!r} is discrete, and this measure moves latents continuously; use log_likelihood.")
                shapes[name] = jnp.shape(biject_to(site["fn"].support).inv(site["value"]))
                sizes[name] = site["value"].shape[1:]

        jax.eval_shape(look, jax.random.key(0))
        return cls(pair, shapes, sizes)

    @property
    def dim(self) -> int:
        """Unconstrained scalars of one row."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def names(self) -> list[str]:
        """Labels of one row's scalars, on their own supports, such as z[3]."""
        return [label for name, size in self.sizes.items() for label in labels(name, size)]

    def split(self, u) -> dict:
        """(dim,) -> latent site -> unconstrained value, (1, ...)."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])[:-1]
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), jnp.split(u, ends), strict=True)}

    def densities(self, rng_key, params: dict, row: dict, u) -> tuple[jax.Array, jax.Array, jax.Array]:
        """log p(z), log p(x, z) and log q(z | x) at unconstrained z.

        Args:
            rng_key: what a guide that adds noise to its input draws it from: with the key of `from_guide`, the noise of that draw.
            params: name -> value of every numpyro.param site.
            row: argument -> one row of it.
            u: (dim,).
        """
        parts, jacobians, values = self.split(u), [], {}

        def place(site):
            if site["type"] != "sample" or site["name"] not in parts:
                return None
            transform = biject_to(site["fn"].support)
            unconstrained = parts[site["name"]]
            value = values[site["name"]] = transform(unconstrained)
            jacobians.append(jnp.sum(transform.log_abs_det_jacobian(unconstrained, value)))
            return value

        model = self._trace(self.pair.model, rng_key, params, row, substitute_fn=place)
        guide = self._trace(self.pair.guide, rng_key, params, row, data=values)
        log_jacobian = sum(jacobians)
        return log_density(latent(model)) + log_jacobian, log_density(model) + log_jacobian, log_density(guide) + log_jacobian

    def from_guide(self, rng_key, params: dict, row: dict) -> jax.Array:
        """One draw of q(z | x), (dim,)."""
        return self._drawn(self.pair.guide, rng_key, params, row)

    def from_prior(self, rng_key, params: dict, row: dict) -> jax.Array:
        """One draw of p(z), (dim,)."""
        return self._drawn(self.pair.model, rng_key, params, row)

    def _drawn(self, function, rng_key, params, row):
        drawn = latent(self.pair.run(function, rng_key, params, {name: value[None] for name, value in row.items()}))
        values = {name: drawn[name]["value"] for name in self.shapes}
        model = self._trace(self.pair.model, rng_key, params, row, data=values)
        return jnp.concatenate([jnp.ravel(biject_to(model[name]["fn"].support).inv(values[name])) for name in self.shapes])

    def _trace(self, function, rng_key, params, row, **substituted):
        batch = {name: value[None] for name, value in row.items()}
        seeded = handlers.substitute(handlers.substitute(handlers.seed(function, rng_key), data=params), **substituted)
        return handlers.trace(seeded).get_trace(**batch, **self.pair.static)


def family(latents: Latents, params: dict, rows: dict[str, np.ndarray]) -> str:
    """What q(z | x) is in unconstrained coordinates: "diagonal Gaussian", "full Gaussian" of one site, or "other".

    Two draws for the first row tell whether the parameters of a latent depend on another latent.
    """
    batch = {name: jnp.asarray(value[:1]) for name, value in rows.items()}
    pair, kinds = latents.pair, set()
    model = pair.run(pair.model, jax.random.key(0), params, batch)
    guides = [pair.run(pair.guide, jax.random.key(i), params, batch) for i in range(2)]
    for name in latents.shapes:
        moments = [gaussian(guide[name]["fn"]) for guide in guides]
        if not _unbounded(model[name]["fn"].support) or None in moments or not _equal(*moments):
            return "other"
        kinds.add("diagonal Gaussian" if univariate(guides[0][name]["fn"]) is not None else "full Gaussian")
    return kinds.pop() if len(kinds) == 1 and ("full Gaussian" not in kinds or len(latents.shapes) == 1) else "other"


def encoded(latents: Latents, rng_key, params: dict, row: dict, kind: str, num_moments: int = 256) -> tuple[jax.Array, jax.Array]:
    """Mean (d,) and sds (d,), or Cholesky factor (d, d), of q(z | x) in unconstrained coordinates; moments of draws where it is no
    Gaussian."""
    if kind == "other":
        draws = jax.vmap(lambda key: latents.from_guide(key, params, row))(jax.random.split(rng_key, num_moments))
        return draws.mean(0), draws.std(0)
    guide = latents.pair.run(latents.pair.guide, rng_key, params, {name: value[None] for name, value in row.items()})
    found = [moments for name in latents.shapes if (moments := gaussian(guide[name]["fn"])) is not None]
    if kind == "full Gaussian":
        return found[0]
    return jnp.concatenate([loc for loc, _ in found]), jnp.concatenate([scale for _, scale in found])


def univariate(fn: dist.Distribution) -> dist.Distribution | None:
    """The distribution of each scalar where they are independent, else None."""
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn if not fn.event_shape and not isinstance(fn, dist.MaskedDistribution) else None


def gaussian(fn: dist.Distribution) -> tuple[jax.Array, jax.Array] | None:
    """Mean (d,) and sds (d,), or lower Cholesky factor (d, d), of a Gaussian for one row; None of another distribution."""
    shape = fn.shape()
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    if type(fn) is dist.Normal:
        loc, scale = (jnp.ravel(jnp.broadcast_to(jnp.asarray(value), shape)) for value in (fn.loc, fn.scale))
        return loc, scale
    if type(fn) is dist.MultivariateNormal and math.prod(shape[:-1]) == 1:
        return jnp.ravel(jnp.asarray(fn.loc)), jnp.reshape(jnp.asarray(fn.scale_tril), (shape[-1], shape[-1]))
    return None


def _unbounded(support) -> bool:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is dist.constraints.real


def _equal(a, b) -> bool:
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(a, b, strict=True))
