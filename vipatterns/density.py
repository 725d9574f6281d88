"""(model, data) -> Density: log p on unconstrained space, its dimension, and the way back to sites.

The model is read by shape only (`jax.eval_shape`): nothing is compiled or run to learn what its latents are. NumPyro's internals
are touched here and in svi.py alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer import init_to_uniform
from numpyro.infer.util import _unconstrain_params, compute_log_probs, constrain_fn, potential_energy

from vipatterns import programs, unobserved
from vipatterns.arguments import traced_and_static
from vipatterns.errors import InputError
from vipatterns.programs import Clock
from vipatterns.refusal import refuse, what_the_model_raised
from vipatterns.staleness import closes_over_arrays

MAX_BATCH_ELEMENTS = 2e7
"""Draws are evaluated in batches whose largest array has at most so many elements, so that memory stays bounded."""


LONG = 1e5
"""Elements of the data's largest array from which arithmetic takes longer than all else."""


def precision(dtype: str):
    """A context in which JAX computes in `dtype`; the caller's setting comes back after it."""
    if dtype not in ("float32", "float64"):
        raise InputError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
    return jax.enable_x64(dtype == "float64")


class FullSize(handlers.substitute):
    """Runs every plate at its full size: log p of all the data, whatever minibatch the model would draw."""

    def __init__(self, fn, subsampled: set[str] | None = None):
        super().__init__(fn, data={})
        self.subsampled = set() if subsampled is None else subsampled

    def process_message(self, msg):
        if msg["type"] == "plate":
            size, declared = msg["args"]
            if declared not in (None, size):
                self.subsampled.add(msg["name"])
            msg["args"] = (size, size)
            msg["value"] = jnp.arange(size)
        elif msg["type"] == "sample" and not msg["is_observed"] and msg["name"].endswith("_unobserved"):
            msg["fn"] = unobserved.spared(msg["fn"])


class UniqueNames(handlers.trace):
    """Also refuses a plate with the name of a site, which would take that site's place in the trace without a word."""

    def postprocess_message(self, msg):
        if msg["type"] == "plate" and self.trace.get(msg["name"], msg)["type"] != "plate":
            raise ValueError(f"the plate {msg['name']!r} has the name of a site; give it another")
        super().postprocess_message(msg)


@dataclass(frozen=True)
class Site:
    """What the model says of one sample or deterministic site."""

    shape: tuple[int, ...]
    dims: tuple[str, ...]
    unconstrained_shape: tuple[int, ...] = ()
    """Of a latent site; empty for the others."""
    plates: tuple[tuple[str, int], ...] = ()
    """Name and full size of each plate that it stands in."""


@dataclass(frozen=True, eq=False)
class Density:
    """A model on its data, as a log density over R^dim. Every function takes `arrays`, the traced part of the data."""

    model: Callable
    rebuild: Callable = field(repr=False)
    """arrays -> (args, kwargs) of the model, static parts put back."""
    arrays: tuple = field(repr=False)
    latents: dict[str, Site]
    deterministics: dict[str, Site]
    observations: dict[str, Site]
    subsampled: frozenset[str]
    """Plates of which the model would draw a part."""
    enumerated: int | None
    """First dimension free for discrete latents, which funsor sums out of log p; None where the model has none."""
    dim: int
    dtype: str
    programs: dict = field(default_factory=dict, repr=False)
    """What `compiled` has made, for all readings of this model that compute the same on data of these shapes."""
    widest: int = 1
    """Elements of the largest array that one evaluation of log p and of the sites makes of z: what it takes of memory, roughly."""
    closes_over_arrays: bool = False
    """A jitted helper of the model has arrays of its own, whose traces the next precision must not meet (see staleness.py)."""

    def on(self, data: dict | None, args: tuple = ()) -> "Density":
        """The same model on other data of the same shapes, without reading it anew.

        Raises:
            InputError: arrays of other shapes, or other arguments that are no arrays.
        """
        arrays, rebuild = traced_and_static(self.model, args, data, self.dtype)
        here, there = _likeness(self.rebuild(self.arrays)), _likeness(rebuild(arrays))
        if here != there:
            raise InputError(f"All data sets should be like the first, with {here}; one has {there}.")
        return replace(self, arrays=arrays, rebuild=rebuild)

    def compiled(self, clock: Clock, name: str, function: Callable, *args) -> Callable:
        """`function` compiled for arguments of these shapes, once for all readings that share their programs.

        Args:
            clock: counts compile time.
            name: of the function; what it closes over follows from the model and the shapes of the data, all else comes by `args`.
            function: takes `args`.
        """
        leaves, structure = jax.tree.flatten(args)
        key = name, structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        if key not in self.programs:
            self.programs[key] = clock.compile(function, *args, wide=self.num_data > LONG)
        return self.programs[key]

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the unconstrained scalars, in the order of z, such as theta[3]."""
        return tuple(label for name, site in self.latents.items() for label in labels(name, site.unconstrained_shape))

    @property
    def num_data(self) -> int:
        """Elements in the largest array of the data: what one evaluation of log p costs, roughly."""
        return max([1] + [a.size for a in self.arrays])

    def split(self, z) -> dict:
        """(dim,) -> unconstrained value of each latent site."""
        values, start = {}, 0
        for name, site in self.latents.items():
            size = math.prod(site.unconstrained_shape)
            values[name] = z[start : start + size].reshape(site.unconstrained_shape)
            start += size
        return values

    def _full(self, wrapped: Callable = FullSize) -> Callable:
        # The seed serves plates and prng_key(); no latent is drawn, all are substituted.
        return wrapped(handlers.seed(self.model, jax.random.key(0)))

    def log_p(self, z, arrays, wrapped: Callable = FullSize) -> jax.Array:
        """Log joint density at z (dim,), Jacobian included, in nats; `wrapped` is the handler that says which rows count."""
        args, kwargs = self.rebuild(arrays)
        model = self._full(wrapped)
        if self.enumerated is not None:
            from numpyro.contrib.funsor import config_enumerate, enum

            model = enum(config_enumerate(model), self.enumerated)
        return jnp.negative(potential_energy(model, args, kwargs, self.split(z), enum=self.enumerated is not None))

    def log_p_terms(self, z, arrays) -> dict:
        """The same, site by site."""
        args, kwargs = self.rebuild(arrays)
        terms, _ = compute_log_probs(_unconstrain_params(self._full(), self.split(z)), args, kwargs, {})
        return terms

    def constrain(self, z, arrays, deterministic: bool = True) -> dict:
        """z (dim,) -> latent (and deterministic) sites on their own supports."""
        args, kwargs = self.rebuild(arrays)
        sites = constrain_fn(self._full(), args, kwargs, self.split(z), return_deterministic=deterministic)
        return {k: v for k, v in sites.items() if k in self.latents or k in self.deterministics}

    def unconstrain(self, values: dict, arrays) -> tuple[jax.Array, jax.Array]:
        """Values of the latent sites -> z (dim,), and log |d values / d z|."""
        args, kwargs = self.rebuild(arrays)
        substituted = handlers.substitute(handlers.seed(self.model, jax.random.key(0)), data={k: values[k] for k in self.latents})
        trace = handlers.trace(FullSize(substituted)).get_trace(*args, **kwargs)
        z, log_jacobian = [], jnp.zeros(())
        for name in self.latents:
            transform = biject_to(trace[name]["fn"].support)
            unconstrained = transform.inv(values[name])
            z.append(jnp.ravel(unconstrained))
            log_jacobian += transform.log_abs_det_jacobian(unconstrained, values[name]).sum()
        return jnp.concatenate(z), log_jacobian

    def prior_centre(self, arrays):
        """The prior's median, or mean, unconstrained (dim,): a start that moves with the units. Zero where neither is known."""
        values = _unconstrained(self.model, self.rebuild, _init_to_centre)(jax.random.key(0), arrays)
        return jnp.concatenate([jnp.ravel(values[name]) for name in self.latents])

    def batch_size(self, num_points: int) -> int:
        """How many of `num_points` evaluations go through the model at once."""
        return int(np.clip(MAX_BATCH_ELEMENTS // max(self.widest, self.dim), 1, num_points))

    def over_points(self, function: Callable, num_points: int) -> Callable:
        """(point, arrays) -> value, mapped over the first axis of `points` in batches that fit in memory."""
        batch = self.batch_size(num_points)
        if batch >= num_points:
            return jax.vmap(function, (0, None))
        return lambda points, arrays: jax.lax.map(lambda point: function(point, arrays), points, batch_size=batch)

    @property
    def observed(self) -> dict[str, np.ndarray]:
        """Arrays of the data that are named like an observed site."""
        return {k: np.asarray(v) for k, v in self._named_arrays().items() if k in self.observations}

    @property
    def constant(self) -> dict[str, np.ndarray]:
        """The data's other arrays."""
        return {k: np.asarray(v) for k, v in self._named_arrays().items() if k not in self.observations}

    def _named_arrays(self) -> dict:
        _, kwargs = self.rebuild(self.arrays)
        return {k: v for k, v in kwargs.items() if isinstance(v, (jax.Array, np.ndarray))}


def _init_to_centre(site):
    """NumPyro init strategy: the median of the site's distribution where it has an icdf, else its mean, else unconstrained zero."""
    if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
        return None
    fn, transform = site["fn"], biject_to(site["fn"].support)
    zero = jnp.zeros(transform.inverse_shape(fn.shape()))
    for centre in (lambda: fn.icdf(jnp.full(fn.batch_shape, 0.5)), lambda: fn.mean):
        try:
            value = transform.inv(jnp.broadcast_to(centre(), fn.shape()))
        except (NotImplementedError, AttributeError, TypeError, ValueError, ImportError):  # some icdfs need TensorFlow Probability
            continue
        return transform(jnp.where(jnp.isfinite(value), value, zero))
    return transform(zero)


def _likeness(arguments) -> dict:
    """What data sets of one shape have in common: argument -> shape and dtype of an array, or the value itself."""
    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    named = {jax.tree_util.keystr(path[1:], simple=True, separator="."): leaf for path, leaf in leaves}
    return {k: f"{v.dtype}{list(v.shape)}" if isinstance(v, (jax.Array, np.ndarray)) else v for k, v in named.items()}


def labels(name: str, shape: tuple[int, ...]) -> list[str]:
    """Scalar labels of an array: theta, or theta[0], theta[1], ... or L[1, 0], ..."""
    if not shape:
        return [name]
    return [f"{name}[{', '.join(map(str, i))}]" for i in np.ndindex(*shape)]


def read(model: Callable, data: dict | None = None, *, args: tuple = (), dtype: str = "float64") -> Density:
    """Reads a NumPyro model on its data, by shape.

    Args:
        model: a NumPyro model.
        data: argument name -> value. Arrays (also lists of numbers, pandas and xarray columns) are traced; ints, floats, strings,
            bools, None and other objects stay static.
        args: positional arguments, for models that have positional-only ones.
        dtype: "float64" or "float32"; the caller is in `precision(dtype)`.

    Raises:
        InputError: the model cannot be called with this data, raises, has no latents, or has sites that no method here can treat.
    """
    if not callable(model):
        raise InputError(f"A model must be a function with NumPyro sample sites, got {type(model).__name__}.")
    arrays, rebuild = traced_and_static(model, args, data, dtype)
    sites: dict[str, dict] = {}
    subsampled: set[str] = set()
    try:
        shapes = jax.eval_shape(_unconstrained(model, rebuild, init_to_uniform, sites, subsampled), jax.random.key(0), arrays)
    except Exception as error:
        raise InputError(what_the_model_raised(model, error, rebuild(arrays))) from error
    refuse(sites)
    taken = set(sites)
    discrete = [k for k, s in sites.items() if s["is_discrete"] and not s["is_observed"]]

    def described(name, unconstrained_shape=()):
        site = sites[name]
        plates = tuple((plate, size) for plate, _, size in site["plates"])
        return Site(site["shape"], _dims(name, site, taken), unconstrained_shape, plates)

    target = Density(
        model=model,
        rebuild=rebuild,
        arrays=arrays,
        latents={k: described(k, shapes[k].shape) for k in sites if k in shapes},
        # Beside enumerated latents a deterministic site may depend on one of them, which no draw holds.
        deterministics={k: described(k) for k, s in sites.items() if s["type"] == "deterministic" and not discrete},
        observations={k: described(k) for k, s in sites.items() if s["type"] == "sample" and s["is_observed"]},
        subsampled=frozenset(subsampled),
        enumerated=min([0, *(dim for s in sites.values() for _, dim, _ in s["plates"])]) - 1 if discrete else None,
        dim=sum(math.prod(s.shape) for s in shapes.values()),
        dtype=dtype,
    )

    def everything(z, arrays):  # the priors' centres follow from what log p is made of
        return target.log_p(z, arrays), target.constrain(z, arrays)

    try:  # the sites' own log densities: shapes that do not match show only here
        trace = jax.make_jaxpr(everything)(jax.ShapeDtypeStruct((target.dim,), dtype), arrays)
    except Exception as error:
        raise InputError(what_the_model_raised(model, error, rebuild(arrays))) from error
    return replace(
        target, programs=programs.of(model, trace), widest=programs.widest(trace, 0), closes_over_arrays=closes_over_arrays(trace)
    )


def _unconstrained(model: Callable, rebuild: Callable, init: Callable, sites: dict | None = None, subsampled: set | None = None):
    """(key, arrays) -> unconstrained value of each latent site, chosen by `init`; what was seen goes into `sites` and `subsampled`."""

    def run(key, arrays):
        args, kwargs = rebuild(arrays)
        seeded = FullSize(handlers.substitute(handlers.seed(model, key), substitute_fn=init), subsampled)
        trace = UniqueNames(seeded).get_trace(*args, **kwargs)
        values = {}
        for name, site in trace.items():
            if site["type"] == "sample" and not site["is_observed"] and not site["fn"].support.is_discrete:
                values[name] = biject_to(site["fn"].support).inv(site["value"])
            if sites is not None and site["type"] != "plate":
                sites[name] = {
                    "type": site["type"],
                    "is_observed": site.get("is_observed", False),
                    "is_discrete": site["type"] == "sample" and site["fn"].support.is_discrete,
                    "is_enumerable": site["type"] == "sample" and site["fn"].has_enumerate_support,
                    "shape": () if site["type"] == "param" else jnp.shape(site["value"]),
                    "fn_shape": site["fn"].shape() if site["type"] == "sample" else None,
                    "event_dim": site["fn"].event_dim if site["type"] == "sample" else 0,
                    "plates": [(f.name, f.dim, f.size) for f in site.get("cond_indep_stack", [])],
                }
        return values

    return run


def _dims(name: str, site: dict, taken: set[str]) -> tuple[str, ...]:
    """Names for the axes of a site: its plates where they span an axis, else name_dim_i."""
    shape, ndim = site["shape"], len(site["shape"])
    dims = [f"{name}_dim_{i}" for i in range(ndim)]
    for plate, dim, size in site["plates"]:
        axis = ndim - site["event_dim"] + dim
        if 0 <= axis < ndim and shape[axis] == size:
            dims[axis] = f"{plate}_dim" if plate in taken else plate
    return tuple(dims)
