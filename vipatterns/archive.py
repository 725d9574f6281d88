"""A Fit as one netCDF file, and back, without pickle: a file from anybody may be opened.

The DataTree goes in as it is, so that ArviZ and xarray open the file too; the record goes into an attribute of the root, as JSON. What JSON
cannot hold (an optimizer, a guide) is kept as its text. The model is code, and stays with the user.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from vipatterns import density, prediction
from vipatterns.density import Density
from vipatterns.draws import stored
from vipatterns.errors import InputError
from vipatterns.posterior import Certificate, Fit, Rung, described

FORMAT = 1
"""Of the file; a greater one was written by a later version."""
RECORD = "vipatterns_fit"
"""The root's attribute that holds the record."""
PLAIN = ("stopped_because", "num_steps", "compile_seconds", "run_seconds", "elbo", "elbo_mcse")
NUM_CHECKED = 10
"""Draws at which a model is held against the log p that was saved."""


@dataclasses.dataclass(frozen=True)
class NotSaved:
    """Stands where a file could not hold the thing itself."""

    text: str

    def __repr__(self) -> str:
        return self.text


def save(fit: Fit, path: str | Path) -> Path:
    """Writes `fit` to `path`; a file that is there is replaced whole, once the new one is written."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it, such as {path / 'fit.nc'}.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} into: make it first.")
    tree, arrays = fit.idata.copy(), {}
    record = {name: getattr(fit, name) for name in PLAIN} | {
        "format": FORMAT,
        "vipatterns": version("vipatterns"),
        "method": _method(fit.method),
        "certificate": dataclasses.asdict(fit.certificate),
        "proposal_certificate": None if fit.proposal_certificate is None else dataclasses.asdict(fit.proposal_certificate),
        "rungs": [dataclasses.asdict(rung) for rung in fit.rungs],
        "arguments": None,
    }
    if fit.target is not None:
        args, kwargs = fit.target.rebuild(fit.target.arrays)
        named = {k: _stored_with(fit.idata, k, v) or _packed(v, arrays) for k, v in kwargs.items()}
        record["arguments"] = {"args": _packed(args, arrays), "kwargs": {"dict": named}}
        record["dtype"] = fit.target.dtype
    if arrays:
        tree["arguments"] = xr.DataTree(xr.Dataset({k: ([f"{k}_dim_{i}" for i in range(v.ndim)], v) for k, v in arrays.items()}))
    if fit.losses is not None:
        tree["optimisation"] = xr.DataTree(xr.Dataset({"losses": (("restart", "step"), np.asarray(fit.losses))}))
    tree.attrs = {**tree.attrs, RECORD: json.dumps(record, default=lambda value: value.item())}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        tree.to_netcdf(part, engine="netcdf4")
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # the netCDF library tells of a full disk by a RuntimeError
        raise InputError(f"{path} could not be written: {getattr(error, 'strerror', None) or error}.") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def load(path: str | Path, *, model: Callable | None = None, data: dict | None = None) -> Fit:
    """A Fit from a file that `Fit.save` wrote.

    Args:
        path: the file.
        model: the model that was fitted. Without it draws and certificate are there, but nothing can be predicted.
        data: arguments of the model that the file does not hold, since they are neither arrays nor plain values.

    Returns:
        The Fit. It has no q: `sample` resamples the draws that were saved.

    Raises:
        InputError: there is no such file, it is damaged or was written by something else, or the model is another one.
    """
    path = Path(path)
    tree = _opened(path)
    try:
        record = json.loads(tree.attrs.pop(RECORD))
        if record["format"] > FORMAT:
            raise InputError(
                f"{path} was written by vipatterns {record['vipatterns']}, in format {record['format']}; this is vipatterns "
                f"{version('vipatterns')}, which reads up to format {FORMAT}: install that version, or a later one."
            )
        certificates = {k: Certificate(**record[k]) if record[k] else None for k in ("certificate", "proposal_certificate")}
        rungs = tuple(Rung(**rung) for rung in record["rungs"])
        plain = {name: record[name] for name in PLAIN}
        method = _made(record["method"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} was not written by Fit.save of this version, or it is damaged; xarray.open_datatree opens any netCDF file."
        ) from error
    for node in tree.subtree:
        node.attrs = {k: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for k, v in node.attrs.items()}
    losses = tree["optimisation"].to_dataset()["losses"].values if "optimisation" in tree.children else None
    target = None if model is None else _target(path, model, data, record, tree)
    tree = tree.drop_nodes(["arguments", "optimisation"], errors="ignore")
    return Fit(method=method, idata=tree, target=target, losses=losses, rungs=rungs, **certificates, **plain)


def _opened(path: Path) -> xr.DataTree:
    if not path.is_file():
        raise InputError(f"There is no file {path}: check its name and folder.")
    try:
        with xr.open_datatree(path, engine="netcdf4") as tree:
            return tree.load()
    except (OSError, RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"{path} cannot be read as a netCDF file ({error}): it is cut short, damaged, or something else.") from error


def _target(path: Path, model: Callable, data: dict | None, record: dict, tree: xr.DataTree) -> Density:
    """The model on the data that it was fitted with."""
    if record["arguments"] is None:
        raise InputError(f"{path} does not hold the model's arguments, since the fit had been loaded without its model: fit it again.")
    args = tuple(_unpacked(record["arguments"]["args"], tree))
    kwargs = {**_unpacked(record["arguments"]["kwargs"], tree), **(data or {})}
    missing = [str(k) for k, v in kwargs.items() if any(isinstance(leaf, NotSaved) for leaf in jax.tree.leaves(v))]
    if missing:
        raise InputError(f"{path} could not hold the arguments {missing}: give them again, vip.load(path, model=model, data={{...}}).")
    with density.precision(record["dtype"]):
        target = density.read(model, kwargs, args=args, dtype=record["dtype"])
        shapes = {stored(k): site.shape for k, site in target.latents.items()}
        posterior = tree["posterior"].to_dataset()
        held = {str(k): v.shape[2:] for k, v in posterior.data_vars.items()}
        if wrong := {k: s for k, s in shapes.items() if held.get(k) != s}:
            raise InputError(
                f"The model has the latent sites {shapes}, and the fit in {path} has {held}; {sorted(wrong)} differ: "
                "give the model that it was fitted with."
            )
        stats = tree["sample_stats"].to_dataset() if "sample_stats" in tree.children else {}
        was = next((stats[k].values.ravel() for k in ("log_p", "lp") if k in stats), None)
        if was is not None:
            _hold(path, target, posterior, was)
    return target


def _hold(path: Path, target: Density, posterior: xr.Dataset, was: np.ndarray) -> None:
    """Says so when the model gives none of the saved draws the log p that it had: a prior or the likelihood has changed."""
    some = np.linspace(0, was.size - 1, NUM_CHECKED).astype(int)
    points = {k: v[some] for k, v in prediction.flat(target, posterior).items()}

    def log_p(values, arrays):
        return target.log_p(target.unconstrain(values, arrays)[0], arrays)

    now = np.asarray(jax.jit(jax.vmap(log_p, (0, None)))(points, target.arrays))
    tolerance = 1e-6 if target.dtype == "float64" else 1e-3
    # One that agrees is enough: a draw at the edge of its support does not survive the way to unconstrained space and back.
    if not (np.abs(now - was[some]) <= tolerance * (1 + np.abs(was[some]))).any():
        raise InputError(
            f"The model gives the first draw in {path} log p = {now[0]:.6g}, where the fit had {was[0]:.6g}: "
            "its sites are the same, but a prior, the likelihood or the data has changed; give the model that it was fitted with."
        )


def _stored_with(tree: xr.DataTree, name: str, value: Any) -> dict | None:
    """Where the DataTree holds this argument as it is; None where it does not."""
    for group in ("observed_data", "constant_data"):
        there = tree[group].to_dataset() if group in tree.children else {}
        if isinstance(value, (np.ndarray, jax.Array)) and name in there:
            held = there[name].values
            if held.dtype == value.dtype and np.array_equal(held, value, equal_nan=held.dtype.kind == "f"):
                return {"array": f"{group}/{name}"}
    return None


def _packed(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON; arrays go into `arrays`, what cannot be written is kept as its text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.ndarray, jax.Array)):
        name = f"array_{len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"array": f"arguments/{name}"}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _packed(v, arrays) for k, v in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_packed(v, arrays) for v in value]}
    return {"text": described(value)}


def _unpacked(packed: Any, tree: xr.DataTree) -> Any:
    if not isinstance(packed, dict):
        return packed
    [(kind, held)] = packed.items()
    if kind == "array":
        return tree[held].values
    if kind == "dict":
        return {k: _unpacked(v, tree) for k, v in held.items()}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_unpacked(v, tree) for v in held)
    return NotSaved(held)


def _method(method: Any) -> dict:
    """A method by the room it is from, its name and its settings."""
    settings = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)} if dataclasses.is_dataclass(method) else {}
    packed = {k: {"text": repr(v)} if isinstance(v, (np.ndarray, jax.Array)) else _packed(v, {}) for k, v in settings.items()}
    return {"module": type(method).__module__, "name": type(method).__name__, "settings": packed, "text": described(method)}


def _made(record: dict) -> Any:
    """The method again, where it is one of ours and has these settings; else a thing of its name that prints as it did."""
    if record["module"].startswith("vipatterns.methods."):
        with suppress(ImportError, AttributeError, TypeError):  # of a version with other methods, or other settings
            made = getattr(import_module(record["module"]), record["name"])
            if isinstance(made, type) and dataclasses.is_dataclass(made):
                return made(**{k: _unpacked(v, xr.DataTree()) for k, v in record["settings"].items()})
    return type(record["name"], (NotSaved,), {})(record["text"])
