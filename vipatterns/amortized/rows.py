"""Rows to be measured: which they are, and how many of them go through the networks at once."""

import math
from collections.abc import Iterator

import numpy as np

from vipatterns.amortized.trained import Trained
from vipatterns.errors import InputError

MAX_ELEMENTS = 4_000_000
"""Draws times elements of a row that go through the networks together, so that memory stays bounded."""


def rows_of(trained: Trained, rows: dict | None) -> dict[str, np.ndarray]:
    """The rows that are asked for, by default those held out, in the precision that was trained in.

    Args:
        trained: what `vip.train` returned.
        rows: argument -> (N, ...), of the arguments and shapes that it was trained on.

    Raises:
        InputError: they are not like the rows held out, or not all finite.
    """
    known = trained.held_out
    rows = known if rows is None else rows
    if not isinstance(rows, dict) or set(rows) != set(known):
        given = sorted(rows) if isinstance(rows, dict) else type(rows).__name__
        raise InputError(f"rows must be a dict of the arguments that were trained on, {sorted(known)}; got {given}.")
    arrays = {name: np.asarray(value) for name, value in rows.items()}
    for name, value in arrays.items():
        if value.shape[1:] != known[name].shape[1:] or not value.ndim:
            raise InputError(f"Rows of {name!r} have shape {value.shape[1:]}, and were trained with {known[name].shape[1:]}.")
        if value.dtype.kind not in "biuf":
            raise InputError(f"Rows of {name!r} must hold numbers, got {value.dtype}.")
        bad = np.argwhere(~np.isfinite(value))
        if len(bad):
            raise InputError(f"Rows of {name!r} hold {len(bad)} NaN or infinite values, the first in row {bad[0][0]}; leave such rows out.")
    lengths = {name: len(value) for name, value in arrays.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise InputError(f"rows must be arrays of one length, 1 or more; got {lengths}.")
    return {name: value.astype(trained.dtype) if known[name].dtype.kind == "f" else value for name, value in arrays.items()}


def number_of(rows: dict[str, np.ndarray]) -> int:
    """How many rows there are."""
    return len(next(iter(rows.values())))


def pairs_at_once(rows: dict[str, np.ndarray], cost: int = 1) -> int:
    """How many (row, draw) pairs go through the networks together, each `cost` times as large as an evaluation."""
    return max(MAX_ELEMENTS // (cost * max(sum(math.prod(value.shape[1:]) for value in rows.values()), 1)), 1)


def blocks(num: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Indices (size,) of every block of `size` out of `num`, the last one padded, and how many of them count."""
    for start in range(0, num, size):
        yield np.arange(start, start + size).clip(max=num - 1), min(size, num - start)
