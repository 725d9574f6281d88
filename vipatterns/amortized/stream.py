"""Rows for training, a chunk at a time, the next one prepared while the first is worked on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from vipatterns.errors import InputError


class Stream(Protocol):
    """What training reads: chunks that fit into memory, in an order that is drawn anew for each epoch."""

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        ...

    def chunks(self, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
        """Argument -> rows, (n, ...); every row once, chunk by chunk, in an order that `rng` decides."""
        ...


class Memory:
    """Rows that are in memory: one chunk.

    Args:
        arrays: argument of the model -> (N, ...).
        numbers: (N,), the rows' numbers in the data that they are a part of; by default they are all of it.
    """

    def __init__(self, arrays: dict[str, np.ndarray], numbers: np.ndarray | None = None):
        lengths = {name: len(value) for name, value in arrays.items()}
        if not lengths or len(set(lengths.values())) != 1:
            raise InputError(f"Training needs arrays with one row a datum, all of one length; got {lengths or 'none'}.")
        self.arrays = arrays
        self.num_rows = next(iter(lengths.values()))
        self.numbers = np.arange(self.num_rows) if numbers is None else numbers

    def chunks(self, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
        """All rows at once."""
        yield self.arrays

    def where(self, chunk: dict[str, np.ndarray], row: int) -> str:
        """A row of the chunk, as the beginning of a sentence."""
        return in_rows(int(self.numbers[row]))


def in_rows(row: int, which: str = "the data") -> str:
    """A row, as the beginning of a sentence."""
    return f"Row {row} of {which} (counted from 0)"


def ahead(chunks: Iterator) -> Iterator:
    """The same chunks, each prepared by a thread while the one before it is worked on."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = thread.submit(next, chunks, None)
            yield chunk


def parted(data: dict) -> tuple[dict[str, np.ndarray], dict]:
    """The rows among a model's arguments, (N, ...), and the arguments that are none: sizes, shapes, switches, arrays of another length."""
    arrays = {name: np.asarray(value) for name, value in data.items() if np.ndim(value) > 0 and not isinstance(value, tuple)}
    if not arrays:
        raise InputError(f"Training needs an array with one row a datum; got {sorted(data)}, none of which is one.")
    longest = max(len(value) for value in arrays.values())
    rows = {name: value for name, value in arrays.items() if len(value) == longest}
    return rows, {name: value for name, value in data.items() if name not in rows}
