"""One file is one way to a posterior: a frozen dataclass with fit(rng_key, model, data) -> Fit."""

from collections.abc import Callable
from typing import Any

import jax

from vipatterns.draws import as_key
from vipatterns.errors import InputError
from vipatterns.methods.adaptive import IMIS
from vipatterns.methods.dadvi import DADVI
from vipatterns.methods.flow import Flow
from vipatterns.methods.full_rank import FullRank
from vipatterns.methods.guide import Guide
from vipatterns.methods.ladder import Ladder
from vipatterns.methods.laplace import Laplace
from vipatterns.methods.low_rank import LowRank
from vipatterns.methods.mean_field import MeanField
from vipatterns.methods.nuts import NUTS
from vipatterns.methods.pathfinder import Pathfinder
from vipatterns.posterior import Fit

__all__ = ["DADVI", "IMIS", "NUTS", "Flow", "FullRank", "Guide", "Ladder", "Laplace", "LowRank", "MeanField", "Pathfinder", "fit"]


def fit(
    rng_key: jax.Array,
    model: Callable,
    data: dict | None = None,
    *,
    method: Any = None,
    args: tuple = (),
    coords: dict | None = None,
    dims: dict | None = None,
    progress: bool | None = None,
) -> Fit:
    """A posterior with a certificate that says what it is safe for.

    Args:
        rng_key: a JAX key, `jax.random.key(0)`.
        model: a NumPyro model.
        data: argument name of the model -> value. Arrays are traced; ints, strings, bools and None stay static.
        method: for example `vip.MeanField()`; by default `vip.Ladder()`, the cheapest that earns a certificate.
        args: positional arguments, for models that have positional-only ones.
        coords: dimension -> labels, kept in the draws.
        dims: site -> names of its axes; the model's plates name theirs by themselves.
        progress: a bar on stderr; None shows it on a terminal only, and prints plain lines in CI.

    Returns:
        A Fit. One that went wrong comes back with `certificate.ok` False and a sentence.

    Raises:
        InputError: the model, the data or a setting cannot be used, or nothing finite exists.
    """
    method = Ladder() if method is None else method
    if not hasattr(method, "fit") or isinstance(method, type):
        raise InputError(f"method must be one such as vip.MeanField(), got {method!r}; write it with parentheses.")
    options = {"args": args, "coords": coords, "dims": dims, "progress": progress}
    fitted = method.fit(as_key(rng_key), model, data, **options)
    target = getattr(fitted, "target", None)
    if target is not None and target.closes_over_arrays and jax.config.jax_enable_x64 != (target.dtype == "float64"):
        jax.clear_caches()  # the caller's next use of the helper that holds these arrays is in the caller's precision
    return fitted
