"""Values that cannot be trained on are refused by a sentence with their row: not finite, outside the support, a code that is none."""

import inspect
from collections.abc import Callable

import jax
import numpy as np

from vipatterns.amortized.rows import blocks, number_of
from vipatterns.amortized.weights import Pair
from vipatterns.errors import InputError

AT_ONCE = 1_000
"""Rows that are looked at together."""


class Values:
    """What the rows of one model may hold.

    Args:
        pair: the model and its guide.
        rng_key: a JAX key; no answer depends on it.
        dtype: what floats are made.
    """

    def __init__(self, pair: Pair, rng_key: jax.Array, dtype: str):
        self.dtype = dtype
        self.sizes = {name: p.default for name, p in inspect.signature(pair.model).parameters.items()} | pair.static

        @jax.jit  # which leaves the networks out wherever the support does not depend on them
        def inside(batch: dict) -> dict:
            sites = pair.run(pair.model, rng_key, {}, batch).items()
            sites = {name: site for name, site in sites if site["type"] == "sample" and site["is_observed"]}
            found = {name: site["fn"].support(site["value"]) for name, site in sites.items()}
            return {name: ok.reshape(len(ok), -1).all(1) for name, ok in found.items() if ok.size and ok.ndim}

        self._inside = inside

    def refuse(self, rows: dict[str, np.ndarray], where: Callable[[int], str]) -> None:
        """Raises the sentence of the first row that cannot be trained on.

        Args:
            rows: argument -> (N, ...).
            where: a row's number among them -> where the user finds it, such as "Row 3 of the data (counted from 0)".
        """
        for name, value in rows.items():
            if value.dtype.kind == "f" and not (finite := np.isfinite(value)).all():
                at = np.argwhere(~finite)
                more = f", the first of {len(at)} such values" if len(at) > 1 else ""
                raise InputError(f"{where(int(at[0][0]))} holds NaN or infinity for {name}{more}: drop or fill such rows.")
            self._refuse_codes(name, value, where)
        if found := self.outside(rows):
            site, row = found
            low, high = (f(rows.get(site, np.full(row + 1, np.nan))[row]) for f in (np.min, np.max))
            raise InputError(
                f"{where(row)} has values from {low:g} to {high:g} that are outside the support of the site {site!r}: "
                "rescale them, or give the model another likelihood."
            )

    def outside(self, rows: dict[str, np.ndarray]) -> tuple[str, int] | None:
        """The observed site and the row of the first value outside the support, such as a pixel of 2 to a Bernoulli."""
        for index, _ in blocks(number_of(rows), min(AT_ONCE, number_of(rows))):
            batch = {name: value[index].astype(self.dtype) if value.dtype.kind == "f" else value[index] for name, value in rows.items()}
            for name, ok in self._inside(batch).items():
                if not ok.all():
                    return name, int(index[np.argmin(ok)])
        return None

    def _refuse_codes(self, name: str, value: np.ndarray, where: Callable[[int], str]) -> None:
        """Codes that another argument counts, as num_labels does label: JAX would take any other code for the last one, or none."""
        number = next((n for n in (f"num_{name}s", f"num_{name}") if isinstance(self.sizes.get(n), int | np.integer)), None)
        if number is None or value.ndim != 1 or value.dtype.kind not in "biuf":
            return
        known = (value >= 0) & (value < self.sizes[number]) & (value == np.floor(value))
        if not known.all():
            row = int(np.argmin(known))
            raise InputError(
                f"{where(row)} has the {name} {value[row]:g}, and by {number} = {self.sizes[number]} it is a whole number from 0 to "
                f"{self.sizes[number] - 1}: mend it, or state another {number}."
            )


def refuse_unlike(kept: dict[str, np.ndarray], chunk: dict[str, np.ndarray]) -> None:
    """Raises where the rows held out have not the arguments and the shapes of those to train on, or not as many of each."""
    wanted = {name: value.shape[1:] for name, value in chunk.items()}
    given = {name: value.shape[1:] for name, value in kept.items()}
    if given != wanted or len({value.shape[:1] for value in kept.values()} - {()}) != 1 or not number_of(kept):
        shapes = {name: value.shape for name, value in kept.items()}
        told = ", ".join(f"{name} (M, {', '.join(map(str, shape))})".replace(", )", ",)") for name, shape in wanted.items())
        raise InputError(f"Rows to hold out should be as those to train on, {told}, M at least 1; got {shapes or 'none'}.")
