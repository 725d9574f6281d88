"""What a model says of data: predictions by its posterior or its prior, and the pointwise log likelihood."""

import functools
import inspect
import math
import re
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.experimental import checkify
from numpyro import handlers

from vipatterns import density
from vipatterns.density import Density, FullSize
from vipatterns.draws import as_count, as_key, stored, tree
from vipatterns.errors import InputError
from vipatterns.refusal import nonfinite_data

MAX_BYTES = 8e9
"""Predictions that would take more are refused, with the number of draws that would fit."""
BEYOND = 2**30
"""An index that is out of bounds anywhere."""


def extended(target: Density, data: dict | None, args: tuple = ()) -> Density:
    """The model on new data, its observed sites counted as observed whether or not their values are given.

    Args:
        target: the model on the data that it was fitted with.
        data: argument -> value, as for the model. Arguments that are no arrays keep their value where they are left out; those named
            as an observed site may be None or left out.
        args: positional arguments.

    Raises:
        InputError: the model cannot be called with this data, or has another set of latent scalars on it.
    """
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise InputError(f"new_data must be a dict of the model's arguments, got {type(data).__name__}; write {{'x': x}}.")
    _, known = target.rebuild(target.arrays)
    kept = {k: v for k, v in known.items() if not any(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(v))}
    # numpyro.sample(name, obs_mask=...) splits a site in two; without data it is whole again.
    split = {k.removesuffix("_observed") for k in target.observations if f"{k.removesuffix('_observed')}_unobserved" in target.latents}
    names = {*target.observations, *split}
    parameters = inspect.signature(target.model).parameters.values()
    unseen = {p.name: None for p in parameters if p.name in names and p.kind is not p.POSITIONAL_ONLY}
    new = density.read(_observing(target.model, names), {**unseen, **kept, **data}, args=args, dtype=target.dtype)
    for name, site in new.latents.items():
        if name not in target.latents:
            raise InputError(
                f"On this data the model has the latent site {name!r}, of which the fit knows nothing; it has {[*target.latents]}."
            )
        was = target.latents[name]
        if was.shape != site.shape:
            pairs = zip(was.dims, was.shape, site.shape, strict=False)
            grown = "; ".join(f"{dim} has {old}, and would have {size}" for dim, old, size in pairs if old != size)
            raise InputError(
                f"Site {name!r} has shape {was.shape} in the fit, and {site.shape} on this data"
                + (f" ({grown})" if len(was.shape) == len(site.shape) else "")
                + ": a posterior says nothing of groups that it has not seen; leave them out, or fit with them."
            )
    return new


def predict(rng_key, target: Density, new: Density, draws: xr.Dataset) -> dict[str, np.ndarray]:
    """Observed sites, drawn anew, and deterministic sites: one draw a posterior draw.

    Args:
        rng_key: a JAX key.
        target: the model on the data that it was fitted with; it may be `new` itself.
        new: the same model on the data that it predicts for.
        draws: latents, (chain, draw, ...).

    Returns:
        Site -> (chain, draw, *shape).
    """
    num_chains, num_draws = draws.sizes["chain"], draws.sizes["draw"]
    wanted = {k: s for k, s in {**new.observations, **new.deterministics}.items() if 0 not in s.shape}  # numpyro.factor has no value
    each = 8 * sum(math.prod(s.shape) for s in wanted.values())
    if each * num_chains * num_draws > MAX_BYTES:
        raise InputError(
            f"{num_chains * num_draws} predictions of {each / 8:.0f} numbers would take {each * num_chains * num_draws / 1e9:.0f} GB: "
            f"give num_samples={max(1, int(MAX_BYTES / each))} or fewer."
        )
    if not wanted:
        raise InputError("The model has neither observed nor deterministic sites, so there is nothing to predict.")

    def one(point, arrays):
        key, values = point
        args, kwargs = new.rebuild(arrays)
        model = FullSize(handlers.seed(handlers.substitute(handlers.uncondition(target.model), data=values), key))
        sites = handlers.trace(model).get_trace(*args, **kwargs)
        return {k: sites[k]["value"] for k in wanted}

    with density.precision(target.dtype):
        points = jax.random.split(rng_key, num_chains * num_draws), flat(target, draws)
        if new is not target:
            _refuse_unknown_indices(one, jax.tree.map(lambda leaf: leaf[0], points), target, new)
        out = {k: np.asarray(v) for k, v in jax.jit(new.over_points(one, num_chains * num_draws))(points, new.arrays).items()}
    if (missing := nonfinite_data(new)) and any(v.dtype.kind == "f" and not np.isfinite(v).all() for v in out.values()):
        raise InputError(f"Some predictions are not finite: {missing}; leave those rows out.")
    return {k: v.reshape(num_chains, num_draws, *v.shape[1:]) for k, v in out.items()}


def observed(target: Density, draws: xr.Dataset) -> dict[str, np.ndarray]:
    """The value of every observed site, whatever the argument that it came from is called; NaN where it is masked."""

    def one(values, arrays):
        args, kwargs = target.rebuild(arrays)
        sites = _trace(target, values, args, kwargs)
        values = {k: sites[k]["value"] for k, site in target.observations.items() if 0 not in site.shape}
        masks = {k: getattr(sites[k]["fn"], "_mask", True) for k in values}
        floats = {k for k, v in values.items() if jnp.issubdtype(jnp.result_type(v), jnp.floating) and not sites[k]["fn"].event_dim}
        return {k: jnp.where(masks[k], v, jnp.nan) if k in floats else v for k, v in values.items()}

    with density.precision(target.dtype):
        first = {k: v[0] for k, v in flat(target, draws).items()}
        return {k: np.asarray(v) for k, v in jax.jit(one)(first, target.arrays).items()}


def log_likelihood(target: Density, draws: xr.Dataset, dims: dict[str, list[str]]) -> xr.Dataset:
    """Pointwise log likelihood of the observed sites, nats.

    Args:
        target: the model on its data.
        draws: latents, (chain, draw, ...).
        dims: observed site, by its stored name -> names of its axes.

    Returns:
        Dims (chain, draw, ...). What is masked is not observed and has no likelihood: it is left out, and what remains of the site has
        one axis, SITE_observed, labelled by position.
    """
    if not target.observations:
        raise InputError("The model has no observed sites, so its data have no likelihood; give one of them obs=.")
    if target.enumerated is not None:
        raise InputError("The pointwise log likelihood needs each row's own term; a model whose discrete latents are summed out has none.")

    def one(values, arrays):
        args, kwargs = target.rebuild(arrays)
        sites = _trace(target, values, args, kwargs)
        fns = {k: sites[k]["fn"] for k in target.observations}
        terms = {k: fn.log_prob(sites[k]["value"]) for k, fn in fns.items()}
        return terms, {k: jnp.broadcast_to(getattr(fn, "_mask", True), terms[k].shape) for k, fn in fns.items()}

    num_chains, num_draws = draws.sizes["chain"], draws.sizes["draw"]
    with density.precision(target.dtype):
        points = flat(target, draws)
        _, masks = jax.jit(one)({k: v[0] for k, v in points.items()}, target.arrays)
        each = 8 * sum(mask.size for mask in masks.values())
        if each * num_chains * num_draws > MAX_BYTES:
            raise InputError(
                f"The log likelihood of {each / 8:.0f} observations at {num_chains * num_draws} draws would take "
                f"{each * num_chains * num_draws / 1e9:.0f} GB: fit with fewer draws (num_samples), or leave out the raw ones "
                "(proposal=False)."
            )
        kept = jax.jit(target.over_points(lambda point, arrays: one(point, arrays)[0], num_chains * num_draws))(points, target.arrays)
    out = {}
    for name, terms in kept.items():
        array = xr.DataArray(np.asarray(terms).reshape(num_chains, num_draws, *terms.shape[1:]))
        array = array.rename(dict(zip(array.dims, ("chain", "draw", *dims[stored(name)]), strict=False)))
        mask, seen = np.asarray(masks[name]), f"{stored(name)}_observed"
        if mask.any() and not mask.all():
            at = np.flatnonzero(mask)
            array = array.stack({seen: array.dims[2:]}, create_index=False)[:, :, at].assign_coords({seen: at})
        if mask.any():
            out[stored(name)] = array
    return xr.Dataset(out)


def prior_predictive(
    rng_key: jax.Array,
    model: Callable,
    data: dict | None = None,
    *,
    num_samples: int = 1_000,
    args: tuple = (),
    coords: dict | None = None,
    dims: dict | None = None,
    dtype: str = "float64",
) -> xr.DataTree:
    """Draws from the prior, and the data that the model would make of them.

    Args:
        rng_key: a JAX key.
        model: a NumPyro model.
        data: argument -> value. Sites named as an argument count as observed, given or None.
        num_samples: independent draws.
        args: positional arguments.
        coords: dim -> labels.
        dims: site -> names of its axes.
        dtype: "float64" or "float32".

    Returns:
        Groups prior (latent and deterministic sites) and prior_predictive, dims (chain, draw, ...), observed_data and constant_data.

    Raises:
        InputError: the model cannot be called with this data, or has an improper prior.
    """
    if not callable(model):
        raise InputError(f"A model must be a function with NumPyro sample sites, got {type(model).__name__}.")
    rng_key, num_samples = as_key(rng_key), as_count(num_samples)
    with density.precision(dtype):
        new = density.read(_observing(model, inspect.signature(model).parameters), data, args=args, dtype=dtype)

        def one(key, arrays):
            args, kwargs = new.rebuild(arrays)
            drawn = _ByName(handlers.seed(handlers.uncondition(model), key), data={})
            sites = handlers.trace(FullSize(drawn)).get_trace(*args, **kwargs)
            return {k: sites[k]["value"] for k in (*new.latents, *new.deterministics, *new.observations)}

        out = jax.jit(new.over_points(one, num_samples))(jax.random.split(rng_key, num_samples), new.arrays)
    values = {k: np.asarray(v)[None] for k, v in out.items()}
    groups = {
        "prior": {k: values[k] for k in (*new.latents, *new.deterministics)},
        "prior_predictive": {k: values[k] for k, site in new.observations.items() if 0 not in site.shape},
    }
    return tree(new, groups, rng_key=rng_key, coords=coords, dims=dims)


class _Observing(handlers.substitute):
    """Counts the named sites as observed, and draws their values where none are given."""

    def __init__(self, fn: Callable, names: Collection[str]):
        super().__init__(fn, data={})
        self.names = names

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["name"] in self.names and not msg["is_observed"]:
            msg["value"] = msg["fn"](rng_key=jax.random.key(0), sample_shape=msg["kwargs"]["sample_shape"])
            msg["is_observed"] = True


class _ByName(handlers.substitute):
    """Draws every site itself, so that a prior without draws is told by its site's name."""

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["value"] is None:
            try:
                msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
            except NotImplementedError as error:
                kind = type(msg["fn"]).__name__
                raise InputError(f"Site {msg['name']!r} has the prior {kind}, which has no draws; give it a proper one.") from error


def _observing(model: Callable, names: Collection[str]) -> Callable:
    """The model as `density.read` should see it: these sites count as observed. Nothing is drawn, since it reads shapes only."""

    @functools.wraps(model)
    def observing(*args, **kwargs):
        return _Observing(model, names)(*args, **kwargs)

    return observing


def flat(target: Density, draws: xr.Dataset) -> dict[str, jax.Array]:
    """Latents of all chains, (chain x draw, ...), in the caller's precision."""
    arrays = {k: draws[stored(k)].transpose("chain", "draw", ...).values for k in target.latents}
    return {k: jnp.asarray(v.reshape(-1, *v.shape[2:])) for k, v in arrays.items()}


def _trace(target: Density, values: dict, args: tuple, kwargs: dict) -> dict:
    model = FullSize(handlers.seed(handlers.substitute(target.model, data=values), jax.random.key(0)))
    return handlers.trace(model).get_trace(*args, **kwargs)


def _refuse_unknown_indices(one: Callable, point, target: Density, new: Density) -> None:
    """Groups beyond those of the fit: JAX would clamp their index to the last group, and -1 would mean the last, without a word."""
    was, now = _named(target), _named(new)
    whole = {k: np.asarray(v) for k, v in now.items() if v.dtype.kind in "iu" and v.size}
    if not whole:
        return
    # pandas codes unknown categories as -1: taken for an index beyond all bounds, unless the fit had negative values there too.
    negative = {k for k, v in whole.items() if v.min() < 0 and not (k in was and np.min(was[k]) < 0)}
    probe = tuple(jnp.where(v < 0, BEYOND, v).astype(v.dtype) if k in negative else v for k, v in now.items())
    error, _ = jax.jit(checkify.checkify(one, errors=checkify.index_checks))(point, probe)
    found = re.search(r"index -?(\d+) is out of bounds for axis \d+ with size (\d+)", error.get() or "")
    if not found:
        return
    index, size = map(int, found.groups())
    culprits = [k for k, v in whole.items() if v.max() >= size or (k in negative and index == BEYOND)]
    values = f"{int(whole[culprits[0]].min() if index == BEYOND else index)}" if culprits else f"{index}"
    sites = [f"{k!r}" for k, site in target.latents.items() if size in site.shape]
    raise InputError(
        f"{' or '.join(culprits).capitalize() or 'The data'} holds the index {values}, but "
        + (f"site {' or '.join(sites)} has {size} groups" if sites else f"what it indexes has size {size}")
        + f", numbered 0 to {size - 1}: a posterior says nothing of groups that it has not seen; leave them out, or fit with them."
    )


def _named(target: Density) -> dict[str, jax.Array]:
    """The arrays of the data in their order, by argument."""
    leaves = jax.tree_util.tree_leaves_with_path(target.rebuild(target.arrays))
    arrays = [(path[1:], leaf) for path, leaf in leaves if isinstance(leaf, jax.Array)]
    return {f"argument {jax.tree_util.keystr(path, simple=True, separator='.')!r}": leaf for path, leaf in arrays}
