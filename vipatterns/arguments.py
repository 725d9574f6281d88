"""A model's arguments, parted: arrays that are traced, and everything else, which stays static."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipatterns.errors import InputError


def traced_and_static(model: Callable, args: tuple, data: dict | None, dtype: str) -> tuple[tuple, Callable]:
    """The arrays among a model's arguments, in the working precision, and the way back: arrays -> (args, kwargs).

    Raises:
        InputError: the model cannot be called so, or an argument holds text.
    """
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise InputError(f"data must be a dict of the model's arguments, got {type(data).__name__}; write {{'x': x, 'y': y}}.")
    try:
        inspect.signature(model).bind(*args, **data)
    except TypeError as error:
        wants = [p.name for p in inspect.signature(model).parameters.values() if p.default is p.empty and p.kind != p.VAR_KEYWORD]
        raise InputError(f"The model cannot be called with {sorted(data)}: {error}; it needs {wants}.") from error
    args = tuple(as_traceable(f"argument {i}", v) for i, v in enumerate(args))
    leaves, structure = jax.tree.flatten((args, {k: as_traceable(k, v) for k, v in data.items()}))
    is_array = [isinstance(leaf, (np.ndarray, jax.Array)) for leaf in leaves]
    static = [None if traced else leaf for leaf, traced in zip(leaves, is_array, strict=True)]

    def rebuild(arrays):
        traced = iter(arrays)
        return jax.tree.unflatten(structure, [next(traced) if t else s for s, t in zip(static, is_array, strict=True)])

    return tuple(_cast(leaf, dtype) for leaf, traced in zip(leaves, is_array, strict=True) if traced), rebuild


def as_traceable(name: str, value: Any) -> Any:
    """One argument of a model: array-likes become arrays, sizes stay Python numbers, text is refused."""
    if isinstance(value, np.generic) and not isinstance(value, np.str_):
        return value.item()
    if isinstance(value, (str, bytes, bool, int, float)) or value is None:
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (int, float, np.generic)) for v in jax.tree.leaves(value)):
        try:
            return as_traceable(name, np.asarray(value))
        except ValueError:
            raise InputError(
                f"Argument {name!r} holds lists of different lengths; pad them to one length, or pass one array each."
            ) from None
    if hasattr(value, "__array__") and not isinstance(value, jax.Array):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise InputError(f"Argument {name!r} must hold numbers, got {array.dtype}; code text as integers first (--index does).")
        return array
    return value


def _cast(array, dtype: str) -> jax.Array:
    """On the device, floats in the working precision."""
    kind = np.asarray(array).dtype.kind if not isinstance(array, jax.Array) else array.dtype.kind
    return jnp.asarray(array, dtype=dtype if kind == "f" else None)
