"""Why a model cannot be treated, in one sentence that names the site, or the line of the user's code."""

import inspect
import math
import traceback
from collections.abc import Callable
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np

from vipatterns.errors import InputError


def refuse(sites: dict) -> None:
    """Says by name what no method of ours can treat."""
    for name, site in sites.items():
        if site["type"] == "sample" and site["is_discrete"] and not site["is_observed"]:
            if not site["is_enumerable"]:
                raise InputError(
                    f"Site {name!r} is a discrete latent that cannot be enumerated, and these methods need continuous ones; "
                    "sum it out of the likelihood, or put a continuous latent in its place."
                )
            if find_spec("funsor") is None:
                raise InputError(
                    f"Site {name!r} is a discrete latent; to sum it out install funsor with pip install 'vipatterns[enumerate]', or "
                    "write the sum yourself (numpyro.distributions.MixtureSameFamily does for mixtures)."
                )
        if site["type"] == "sample" and site["is_observed"] and math.prod(site["shape"]) > 1:
            try:
                fits = np.broadcast_shapes(site["shape"], site["fn_shape"]) == site["shape"]
            except ValueError:
                fits = False
            if not fits:
                raise InputError(
                    f"Observed site {name!r} has data of shape {site['shape']}, but its distribution has shape {site['fn_shape']}; "
                    "are rows missing, or is a column two-dimensional?"
                )
        if site["type"] in ("param", "mutable"):
            raise InputError(
                f"The model has a numpyro.{site['type']} {name!r}, which this method would leave at its start; "
                "give it a prior with numpyro.sample, or train it with a guide by vip.train or vip.Guide."
            )
    if not any(s["type"] == "sample" and not s["is_observed"] for s in sites.values()):
        raise InputError("The model has no latent sample sites, so there is no posterior to find; is every numpyro.sample given obs=?")


def what_the_model_raised(model: Callable, error: Exception, call: tuple) -> str:
    """One sentence: where the user's own code raised, what, and the shapes it was given."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(inspect.unwrap(model), "__code__", None)
    own = [f for f in frames if code is not None and f.filename == code.co_filename]
    where = f" at {own[-1].filename}, line {own[-1].lineno} ({own[-1].line})" if own else ""
    args, kwargs = call
    named = {**{f"argument {i}": v for i, v in enumerate(args)}, **kwargs}
    shapes = ", ".join(f"{k} {v.shape}" for k, v in named.items() if isinstance(v, jax.Array))
    what = str(error).strip().split("\n")[0]
    return f"The model raised {type(error).__name__}{where}: {what}" + (f" The data's shapes are {shapes}." if shapes else "")


def nonfinite_data(target) -> str:
    """A sentence that names each array of the data with NaN or infinity: how many, where first; empty when there are none."""
    args, kwargs = target.rebuild(target.arrays)
    found = []
    for name, value in [*((f"argument {i}", v) for i, v in enumerate(args)), *((repr(k), v) for k, v in kwargs.items())]:
        for array in (np.asarray(leaf) for leaf in jax.tree.leaves(value) if isinstance(leaf, jax.Array)):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = np.argwhere(~np.isfinite(array))
                row = int(bad[0][0]) if bad[0].size else 0
                found.append(f"{name} holds {len(bad)} NaN or infinite values (the first at index {row})")
    return "; ".join(found)


def nonfinite_sites(target, z) -> list[str]:
    """Sites whose log density at z is not finite."""
    terms = jax.jit(target.log_p_terms)(jnp.asarray(z), target.arrays)
    return [name for name, term in terms.items() if not np.isfinite(term)]
