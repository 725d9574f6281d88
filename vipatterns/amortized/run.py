"""How far a training run has come, in memory and on disk."""

import hashlib
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vipatterns.amortized import checkpoint
from vipatterns.errors import InputError

SECONDS_BETWEEN = 10.0
"""Checkpoints are written no more often than this; a run that is killed does at most so much again."""


@dataclass
class Progress:
    """What training has come to so far. The best parameters are those at the start until an epoch has ended."""

    params: Any
    """Those of the best epoch."""
    epoch: int = 0
    chunk: int = 0
    """The chunk of the data that is being worked on."""
    call: int = 0
    """Compiled calls that are done with it."""
    num_steps: int = 0
    mcse: float = math.nan
    waited: int = 0
    """Epochs since the best."""
    elbos: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(S,): those of this epoch, nats a datum."""

    def took(self, losses: np.ndarray) -> None:
        """Counts the steps of one compiled call."""
        self.losses = np.concatenate([self.losses, losses])
        self.num_steps += len(losses)
        self.call += 1
        if not np.isfinite(losses).all():
            raise FloatingPointError

    def end_epoch(self, weights: np.ndarray, params: dict) -> None:
        """Judges the parameters by the held-out log weights, (M,)."""
        elbo = float(weights.mean())
        if math.isfinite(elbo) and elbo > max(self.held_out, default=-math.inf):
            self.params, self.mcse, self.waited = jax.tree.map(np.asarray, params), float(weights.std() / math.sqrt(len(weights))), 0
        else:
            self.waited += 1
        if not math.isfinite(elbo):
            raise FloatingPointError
        self.elbos.append(-float(self.losses.mean()))
        self.held_out.append(elbo)
        self.epoch, self.chunk, self.call, self.losses = self.epoch + 1, 0, 0, np.zeros(0)


class Disk:
    """The checkpoint of a run, where one is asked for.

    Args:
        path: the file, or None.
        described: what has to be the same for a run to go on: name -> value.
    """

    def __init__(self, path: str | Path | None, described: dict):
        self.path = None if path is None else Path(path)
        self.described = described
        self.written = time.monotonic()
        self.failed = ""
        if self.path is not None and not self.path.parent.is_dir():
            raise InputError(f"There is no folder {self.path.parent} to write {self.path.name} into: make it first.")

    def keep(self, state: Any, told: Progress, at_once: bool = False) -> None:
        """Writes the checkpoint if the last one is old. A disk that is full does not end the run: the sentence is kept."""
        if self.path is None or not (at_once or time.monotonic() - self.written > SECONDS_BETWEEN):
            return
        trees = {"state": state, "params": told.params, "losses": told.losses}
        plain = {name: value for name, value in vars(told).items() if name not in trees}
        try:
            checkpoint.save(self.path, trees, {"run": self.described, "progress": plain})
            self.failed = ""
        except InputError as error:
            self.failed = str(error)
        self.written = time.monotonic()

    def resume(self, state: Any, told: Progress) -> tuple[Any, Progress]:
        """State and progress as the checkpoint has them; as they were given, where there is none.

        Raises:
            InputError: it is of another run.
        """
        if self.path is None or not self.path.exists():
            return state, told
        tensors, record = checkpoint.load(self.path)
        for name, value in self.described.items():
            if record["run"].get(name) != value:
                raise InputError(
                    f"The checkpoint {self.path} is of another run: its {name} is {record['run'].get(name)}, here {value}; "
                    "name another file, or delete this one to begin anew."
                )
        losses = tensors.pop("losses")
        state = checkpoint.restored(self.path, "state", state, tensors)
        params = checkpoint.restored(self.path, "params", jax.tree.map(np.asarray, told.params), tensors)
        return state, Progress(params=params, losses=losses, **record["progress"])


def described(rng_key, batch_size: int, num_rows: int, dtype: str, first: dict) -> dict:
    """What a run is known by: its key, its sizes and the first rows of its data."""
    rows = hashlib.blake2b(digest_size=8)
    for name in sorted(first):
        rows.update(name.encode() + np.ascontiguousarray(first[name]).tobytes())
    return {
        "key": np.asarray(jax.random.key_data(rng_key)).tolist(),
        "batch_size": batch_size,
        "number of rows": num_rows,
        "dtype": dtype,
        "data, by the hash of its first rows,": rows.hexdigest(),
    }
