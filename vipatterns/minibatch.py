"""Log p from a random part of the rows: unbiased for log p at full size, its gradient too.

A model that declares a subsampled plate (`numpyro.plate(..., subsample_size=...)`, rows taken by `numpyro.subsample` or the plate's
indices) has that plate redrawn. In any other model with one data plate, the arguments whose first axis has the plate's size
are cut to the same random rows before the model sees them. What stands in the plate is scaled up.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from vipatterns.density import Density, FullSize
from vipatterns.errors import InputError


class Redrawn(FullSize):
    """Plates at full size, except one: `indices` of its rows, which count once each although the model would scale them up."""

    def __init__(self, fn, plate: str, indices, share: float):
        super().__init__(fn)
        self.plate, self.indices, self.share = plate, indices, share

    def process_message(self, msg):
        super().process_message(msg)
        if msg["type"] == "plate" and msg["name"] == self.plate:
            msg["args"] = (msg["args"][0], self.indices.shape[0])
            msg["value"] = self.indices
        elif _within(self.plate, msg):
            msg["scale"] = self.share * msg["scale"]


def _within(plate: str, msg: dict) -> bool:
    return msg["type"] == "sample" and any(f.name == plate for f in msg["cond_indep_stack"])


def log_p(target: Density, batch_size: int | None) -> tuple[Callable, int]:
    """(z, rng_key, arrays) -> estimate of log p from `batch_size` rows, and how many data elements one evaluation takes.

    Args:
        target: the density, at full size.
        batch_size: rows; None for all of them.

    Raises:
        InputError: the model has no plate of rows that hold observations and no latents, or its rows cannot be taken.
    """
    if batch_size is None:
        return lambda z, rng_key, arrays: target.log_p(z, arrays), target.num_data
    plate, size, declared = _data_plate(target)
    if not 0 < batch_size <= size:
        raise InputError(f"batch_size must be between 1 and the {size} rows of plate {plate!r}, got {batch_size}.")

    if batch_size == size:
        return lambda z, rng_key, arrays: target.log_p(z, arrays), target.num_data

    def of_rows(z, rows, arrays):
        share = rows.shape[0] / size
        if declared:
            inside = target.log_p(z, arrays, wrapped=lambda model: Redrawn(model, plate, rows, share))
        else:
            cut = tuple(jnp.take(a, rows, axis=0) if a.ndim and a.shape[0] == size else a for a in arrays)
            inside = target.log_p(z, cut)
        # Scaled up as a whole, not site by site: a discrete latent of the plate is summed out in between.
        outside = target.log_p(z, arrays, wrapped=lambda model: FullSize(handlers.block(model, hide_fn=partial(_within, plate))))
        return outside + (inside - outside) / share

    def estimate(z, rng_key, arrays):
        return of_rows(z, random_rows(rng_key, size, batch_size), arrays)

    advice = f"give every row-wise argument {size} rows as its first axis and pass as arguments what is summed over rows"
    try:
        halves_agree = _halves_agree(target, of_rows, size)
    except Exception as error:
        raise InputError(
            f"Rows of plate {plate!r} cannot be taken from this model ({str(error).splitlines()[0]}); {advice}, or use numpyro.subsample."
        ) from error
    if not halves_agree:
        raise InputError(
            f"Rows of plate {plate!r} cannot be taken from this model: log p of its rows, half by half, does not add up to that of all; "
            f"{advice}, or fit without batch_size."
        )
    return estimate, max(1, target.num_data * batch_size // size)


def centre(derivatives: Callable, loc: np.ndarray) -> tuple[jax.Array, ...]:
    """`loc` (D,), with log p (nats) and its gradient (D,) there, from all rows; `derivatives` is that of a `mode.Start`."""
    values, gradients, _ = derivatives(loc[None])
    return jnp.asarray(loc), jnp.asarray(-values[0]), jnp.asarray(-gradients[0])


def steadied(estimate: Callable, centre: tuple[jax.Array, ...]) -> Callable:
    """The same expectation with less noise: where the posterior is, the rows' slopes differ by far more than they bend.

    What the drawn rows make of log p and its gradient at `centre` is taken off, and what all rows make of them put in its place (Baker,
    Fearnhead, Fox and Nemeth 2019, arXiv 1706.05439).

    Args:
        estimate: of `log_p`.
        centre: of `centre`, which should be near q's mean: far from it there is more noise, not less.
    """
    loc, value, gradient = centre

    def steady(z, rng_key, arrays):
        of_rows, slope = jax.value_and_grad(estimate)(loc, rng_key, arrays)
        return estimate(z, rng_key, arrays) - (of_rows - value) - jnp.vdot(slope - gradient, z - loc)

    return steady


def random_rows(rng_key, size: int, batch_size: int) -> jax.Array:
    """(batch_size,) different rows out of `size`, each as likely as any other: one from each of as many stretches, which begin anywhere.

    A stratified sample (Cochran 1977, Sampling Techniques, chapter 5), which takes as long as the batch is large, where
    shuffling the rows takes longer than all else.
    """
    key_start, key_within = jax.random.split(rng_key)
    bounds = np.arange(batch_size + 1) * size // batch_size
    within = jax.random.randint(key_within, (batch_size,), bounds[:-1], bounds[1:])
    return (jax.random.randint(key_start, (), 0, size) + within) % size


def _halves_agree(target: Density, of_rows: Callable, size: int) -> bool:
    """Whether log p and its gradient at one point are the mean of those that two halves of the rows give.

    They are not where the data's rows are not its first axis, are no argument at all, or are also used as a whole (y.std()).
    """
    half, rows = size // 2, jnp.arange(size)

    def all_three(arrays):
        # The gradient tells at any point, in any units: a value may hide behind a slope that is zero there.
        z = target.prior_centre(arrays)
        log_ps = target.log_p, lambda z, arrays: of_rows(z, rows[:half], arrays), lambda z, arrays: of_rows(z, rows[half:], arrays)
        return [jnp.append(gradient, value) for value, gradient in (jax.value_and_grad(f)(z, arrays) for f in log_ps)]

    whole, first, second = jax.jit(all_three)(target.arrays)
    first, second = first * half / size, second * (1 - half / size)
    share, rounding = (1e-3, 1e-6) if target.dtype == "float32" else (1e-8, 1e-13)
    # A slope that is zero, by the symmetry of a mixture's components say, is a sum of terms that cancel but for rounding.
    allowed = share * (abs(whole) + abs(first) + abs(second)) + rounding * abs(whole).max()
    return not bool((abs(whole - first - second) > allowed).any())  # where log p is not finite, the search for a mode says so


def _data_plate(target: Density) -> tuple[str, int, bool]:
    """Name and size of the largest plate that holds observed sites and no latent ones, and whether the model subsamples it."""
    held = {name for site in target.latents.values() for name, _ in site.plates}
    found = [plate for site in target.observations.values() for plate in site.plates if plate[0] not in held]
    if not found:
        raise InputError("batch_size needs a plate that holds the observations and no latents; the model has none.")
    name, size = max(found, key=lambda plate: plate[1])
    return name, size, name in target.subsampled
