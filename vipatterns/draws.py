"""Draws by name: scalars with labels, and the DataTree that holds draws and data."""

import math
import platform
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from arviz_base import dict_to_dataset, from_dict

from vipatterns.density import Density, Site, labels
from vipatterns.errors import InputError


def as_key(rng_key):
    """A typed key; keys of the older jax.random.PRNGKey are taken too."""
    if isinstance(rng_key, jax.Array) and jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key):
        return rng_key
    if isinstance(rng_key, (jax.Array, np.ndarray)) and rng_key.dtype == np.uint32 and rng_key.shape == (2,):
        return jax.random.wrap_key_data(jnp.asarray(rng_key))
    raise InputError(f"rng_key must be a JAX key, got {type(rng_key).__name__}; write jax.random.key(0).")


def as_count(value, name: str = "num_samples") -> int:
    """A number of draws, of steps, of rows."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} must be a whole number, 1 or more, got {value!r}.")
    return int(value)


def scalars_of(values: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Every scalar that varies, of sites (chain, draw, ...): its labels, and draws (chain, draw, K).

    Sites with over 10,000 scalars (predictions for each row of a large table) are left out, unless there are no others.
    """
    floats = {k: v for k, v in values.items() if v.dtype.kind == "f"}
    kept = {k: v for k, v in floats.items() if math.prod(v.shape[2:]) <= 10_000} or floats
    names = [label for k, v in kept.items() for label in labels(k, v.shape[2:])]
    parts = [v.reshape(*v.shape[:2], -1) for v in kept.values()]
    flat = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    # What is NaN in every draw is missing data, not a failure; in some draws, it is kept to be seen. A correlation of one with itself, or
    # the sum of a simplex, varies by rounding alone.
    with np.errstate(invalid="ignore"):
        low, high = flat.min((0, 1)), flat.max((0, 1))
        still = np.isfinite(high - low) & (high - low <= 1e3 * np.finfo(flat.dtype).eps * np.maximum(abs(low), abs(high)))
    varies = np.isfinite(flat).any((0, 1)) & ~still
    # Held once where all of them vary: of many scalars a copy is large.
    return [n for n, v in zip(names, varies, strict=True) if v], flat if varies.all() else flat[:, :, varies]


def stored(name: str) -> str:
    """A site's name in a DataTree, where a slash means a path: numpyro.handlers.scope writes scope/site, here scope.site."""
    return name.replace("/", ".")


def stated(rng_key, dtype: str) -> dict:
    """What draws say of themselves: the key they came from, precision, device and versions."""
    device = jax.devices()[0]
    versions = {package: version(package) for package in ("vipatterns", "numpyro", "jax", "arviz")}
    return {
        "seed": np.asarray(jax.random.key_data(rng_key)).tolist(),
        "dtype": dtype,
        "device": device.platform if device.device_kind == device.platform else f"{device.platform} ({device.device_kind})",
        "python": platform.python_version(),
        **versions,
    }


def tree(
    target: Density,
    groups: dict[str, dict],
    *,
    rng_key=None,
    coords: dict | None = None,
    dims: dict | None = None,
    attrs: dict | None = None,
) -> xr.DataTree:
    """A DataTree of draws and data.

    Args:
        target: gives the sites' dims (its plates) and the data.
        groups: group -> variable -> array, (chain, draw, ...).
        rng_key: the key that all of it came from, recorded as `seed`.
        coords: dim -> labels, the caller's.
        dims: site -> names of its trailing axes, the caller's; they win over the plates' names.
        attrs: what the tree and its first group say of themselves, beside seed, dtype, device and versions.
    """
    named = axes(target, dims or {})
    shapes = _shapes(target)
    sizes = {d: n for k, names in named.items() for d, n in zip(names, shapes[k], strict=True)}
    for dim, given in (coords or {}).items():
        if dim in sizes and len(given) != sizes[dim]:
            raise InputError(f"coords gives {len(given)} labels for {dim!r}, which has size {sizes[dim]}.")
    kept = {d: np.asarray(v) for d, v in (coords or {}).items() if d in sizes}
    held = {"observed_data": target.observed, "constant_data": target.constant}
    out = from_dict(
        {group: {stored(k): v for k, v in values.items()} for group, values in {**groups, **held}.items() if values},
        coords=kept,
        dims={stored(k): v for k, v in named.items() if v},
    )
    says = {**stated(rng_key, target.dtype), **(attrs or {})}
    out.attrs = says
    out[next(iter(groups))].attrs.update(says)
    return out


def axes(target: Density, dims: dict) -> dict[str, list[str]]:
    """Site or argument -> names of its axes: the caller's, else its plates', else NAME_dim_i.

    No two axes of different sizes share a name, and no axis the name of a variable: xarray would pad the one and swallow the other.
    """
    shapes, sites = _shapes(target), _sites(target)
    for name, given in dims.items():
        if name not in shapes:
            raise InputError(f"dims names {name!r}, but the model's sites and arguments are {sorted(shapes)}.")
        if len(given) != len(shapes[name]):
            raise InputError(f"dims gives {name!r} the {len(given)} names {list(given)}, but its shape is {shapes[name]}.")
        if len({*given, "chain", "draw"}) < len(given) + 2:
            raise InputError(f"dims gives {name!r} the names {list(given)}: they should differ from one another, and from chain and draw.")
    named: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for name in sorted(shapes, key=lambda k: k not in dims):  # the caller's names are taken first
        shape, beside = shapes[name], sites if name in sites else shapes
        own = [f"{stored(name)}_dim_{i}" for i in range(len(shape))]
        wanted = list(dims.get(name, sites[name].dims if name in sites and sites[name].shape == shape else own))
        for i, (dim, size) in enumerate(zip(wanted, shape, strict=True)):
            if dim not in beside and sizes.setdefault(dim, size) == size:
                continue
            if name in dims:
                clash = "is the name of a variable" if dim in beside else f"has size {sizes[dim]} elsewhere"
                raise InputError(f"dims gives {name!r}, of shape {shape}, the names {wanted}, but {dim!r} {clash}: choose another.")
            wanted[i] = own[i]
            sizes[own[i]] = size
        named[name] = wanted
    return named


def labelled(
    values: dict[str, np.ndarray], like: xr.DataTree, target: Density | None, *, new: Density | None = None, coords: dict | None = None
) -> xr.Dataset:
    """Draws under the names and labels that their axes have in an earlier tree, as far as these hold on other data.

    Args:
        values: stored name -> (chain, draw, ...).
        like: holds posterior, and observed_data where there is any.
        target: the model on the data of `like`; None where it is not at hand.
        new: the model on the data that `values` are about; by default that of `like`.
        coords: dim -> labels, the caller's.
    """
    labels = {str(d): c.values for group in _held(like) for d, c in group.coords.items()}
    dims = axes_in(like, new or target)
    if target is not None and new is not None and new is not target:
        # Other rows may be as many as these were; the groups that latents have are the same.
        labels = {d: c for d, c in labels.items() if any(d in dims[stored(k)] for k in target.latents)}
    sizes: dict[str, int] = {}
    for name, value in values.items():
        for i, (dim, size) in enumerate(zip(dims[name], value.shape[2:], strict=True)):
            if sizes.setdefault(dim, size) != size:
                dims[name][i] = f"{name}_dim_{i}"
    for dim, given in (coords or {}).items():
        if len(given) != sizes.get(dim):
            raise InputError(f"coords gives {len(given)} labels for {dim!r}, but the axes here are {sizes}.")
    labels = {d: np.asarray(c) for d, c in {**labels, **(coords or {})}.items() if sizes.get(d) == len(c)}
    return dict_to_dataset(values, dims=dims, coords=labels, sample_dims=["chain", "draw"])  # pyright: ignore[reportArgumentType]


def axes_in(like: xr.DataTree, target: Density | None) -> dict[str, list[str]]:
    """Stored name -> names of its axes in an earlier tree; a site that is not in it has its plates'."""
    there = {str(k): [str(d) for d in v.dims if d not in ("chain", "draw")] for group in _held(like) for k, v in group.data_vars.items()}
    own = {} if target is None else {stored(k): v for k, v in axes(target, {}).items()}
    return there | {k: v for k, v in own.items() if len(there.get(k, "")) != len(v)}


def _held(like: xr.DataTree) -> list[xr.Dataset]:
    return [like[group].to_dataset() for group in ("posterior", "observed_data") if group in like.children]


def _sites(target: Density) -> dict[str, Site]:
    return {**target.latents, **target.deterministics, **target.observations}


def _shapes(target: Density) -> dict[str, tuple[int, ...]]:
    """Of every site and every array of the data; for an observed site, of the argument with its name."""
    data = {**target.observed, **target.constant}
    return {**{k: s.shape for k, s in _sites(target).items()}, **{k: a.shape for k, a in data.items()}}
