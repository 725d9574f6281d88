"""What follows from rows that a file gives to a model, and the file does not say: sizes of networks, pixels that are ink or paper."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import jax
import numpy as np

from vipatterns.amortized.stream import parted
from vipatterns.amortized.values import Values
from vipatterns.amortized.weights import Pair
from vipatterns.errors import InputError

MOST_LABELS = 1_000
"""Greatest number of labels where rows are fewer."""


def sizes(parameters: Mapping[str, inspect.Parameter], data: Mapping[str, Any]) -> dict[str, int]:
    """The arguments `num_pixels` and `num_columns`, the width of x, and `num_labels`, 1 + the largest label, of those that a model has.

    Raises:
        InputError: the labels are no codes but numbers of another kind, such as years.
    """
    x, label = (np.asarray(data.get(name, 0)) for name in ("x", "label"))
    found = {name: x.shape[1] for name in ("num_pixels", "num_columns") if name in parameters and x.ndim == 2}
    if "num_labels" in parameters and label.ndim == 1 and label.size and label.dtype.kind in "biuf" and np.isfinite(label.max()):
        found["num_labels"] = 1 + max(int(label.max()), 0)
        if found["num_labels"] > max(MOST_LABELS, len(label)):
            raise InputError(
                f"Labels should be the codes 0, 1, 2 and so on, and the largest of {len(label):,} is {label.max():,}: code them, a table's "
                "by --index label."
            )
    return found


def ink(model: Callable, data: Mapping[str, Any]) -> np.ndarray | None:
    """Images as 0 and 1, split at half of full ink, (N, D), where the model wants no others and grey ones are given; else None.

    Args:
        model: a NumPyro function of these arguments.
        data: argument -> value; x in [0, 1].
    """
    x = data["x"]
    grey = np.flatnonzero(((x != 0) & (x != 1)).any(axis=1))
    if not grey.size:
        return None
    with suppress(Exception):  # what is wrong with the model is said when it is run
        rows, static = parted(dict(data))
        one = {name: value[grey[:1]] for name, value in rows.items()}
        values = Values(Pair(model, model, static), jax.random.key(0), "float32")
        if values.outside(one) and not values.outside({**one, "x": (one["x"] > 0.5).astype(x.dtype)}):
            return (x > 0.5).astype(x.dtype)
    return None
