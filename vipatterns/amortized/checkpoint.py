"""A training run on disk: parameters, optimiser, key and position in the data, in one safetensors file, without pickle.

The file is replaced whole, after it has reached the disk: whenever the process is killed, one whole file is there.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipatterns.errors import InputError

FORMAT = 1
"""Of the file; a greater one was written by a later version."""


def save(path: Path, trees: dict[str, Any], record: dict) -> None:
    """Writes pytrees of arrays and a record that JSON can hold.

    Raises:
        InputError: the file cannot be written; the one that was there is as it was.
    """
    tensors = {f"{name}{at}": value for name, tree in trees.items() for at, value in _leaves(tree).items()}
    data = _safetensors().save(tensors, metadata={"vipatterns": json.dumps({"format": FORMAT, **record})})
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise InputError(f"The checkpoint {path} cannot be written: {error.strerror}; make room, or name another file.") from error


def load(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays of a checkpoint, by name, and its record.

    Raises:
        InputError: the file is no whole checkpoint, or one of a later version.
    """
    rest = "delete it to begin anew, or name another file."
    try:
        with _safetensors(opening=True)(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except OSError as error:
        raise InputError(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # SafetensorError is an Exception and nothing closer
        raise InputError(f"{path} is no whole checkpoint ({str(error).splitlines()[0]}): {rest}") from error
    try:
        record = json.loads(metadata["vipatterns"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is a safetensors file, but no checkpoint of vip.train: {rest}") from error
    if record["format"] > FORMAT:
        raise InputError(
            f"{path} was written by a later version of vipatterns (format {record['format']}, known {FORMAT}): update, or {rest}"
        )
    return tensors, record


def restored(path: Path, name: str, template: Any, tensors: dict[str, np.ndarray]) -> Any:
    """The pytree `name` of a checkpoint, in the structure of `template`.

    Raises:
        InputError: the checkpoint is of another model, or another optimizer.
    """
    there = {at.removeprefix(name): value for at, value in tensors.items() if at.startswith(name)}
    needed = _leaves(template)
    for at in sorted(there.keys() ^ needed.keys()):
        has, wants = ("has", "this one has not") if at in there else ("has no", "this one has")
        raise InputError(f"The checkpoint {path} is of another model or optimizer: it {has} {at}, and {wants}; name another file.")
    for at, value in needed.items():
        if (value.shape, value.dtype) != (there[at].shape, there[at].dtype):
            raise InputError(
                f"The checkpoint {path} is of another model: there {at} is {there[at].dtype} {there[at].shape}, "
                f"here {value.dtype} {value.shape}; name another file."
            )
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    return jax.tree.unflatten(structure, [_like(leaf, there[jax.tree_util.keystr(at)]) for at, leaf in paths])


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    leaves = {jax.tree_util.keystr(at): leaf for at, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    return {at: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C") for at, leaf in leaves.items()}


def _like(leaf: Any, value: np.ndarray) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(leaf))
    return value if isinstance(leaf, np.ndarray) else jnp.asarray(value)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _safetensors(opening: bool = False) -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise InputError("A checkpoint is a safetensors file: pip install 'vipatterns[vae]'.") from error
    return safetensors.safe_open if opening else safetensors.numpy
