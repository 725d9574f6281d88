"""The posterior of single data by a method that is trusted, beside what the guide says of them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpyro import handlers

from vipatterns import keys
from vipatterns.amortized.latents import Latents
from vipatterns.amortized.rows import number_of, rows_of
from vipatterns.amortized.trained import Trained
from vipatterns.density import precision
from vipatterns.draws import as_count, as_key
from vipatterns.programs import jitted


def with_networks(trained: Trained) -> Callable:
    """The model with its networks as they were trained: a NumPyro model without parameters, which every method of vip takes.

    `vip.fit(key, vip.amortized.with_networks(trained), {"x": x[:1]}, method=vip.NUTS())` is the posterior of the first datum.

    Args:
        trained: what `vip.train` returned.

    Returns:
        A model of the same arguments.
    """
    pair, params = trained.pair, trained.params

    def model(**rows):
        with handlers.block(hide_fn=lambda site: site["type"] == "param"), handlers.substitute(data=params):
            return _AsGiven(pair.model)(**rows, **pair.static)

    return model


class _AsGiven(handlers.substitute):
    """A plate that speaks for more rows than are given holds those that are given, each counted once."""

    def __init__(self, fn):
        super().__init__(fn, data={})

    def process_message(self, msg):
        if msg["type"] == "plate":
            size, given = msg["args"]
            if given not in (None, size):
                msg["value"] = jnp.arange(given)
                msg["stop"] = True
        elif msg["type"] == "sample":
            msg["scale"] = None


def reference(rng_key: jax.Array, trained: Trained, rows: dict | None = None, *, method: Any, num_samples: int = 4_000) -> pd.DataFrame:
    """Posterior of each datum by another method, and how far the guide's q is from it.

    Args:
        rng_key: a JAX key.
        trained: what `vip.train` returned.
        rows: argument -> (N, ...), a few, since each is fitted alone; by default the rows held out.
        method: such as `vip.NUTS()`.
        num_samples: draws of q a datum.

    Returns:
        A row for each (row, scalar): mean and sd of q; reference_mean and reference_sd; mean_error, the difference of the means in
        reference sds; sd_ratio, of q's sd to the reference's; mcse, the Monte Carlo error of mean_error; reference_ok, whether the
        reference earned its own certificate.

    Raises:
        InputError: the rows are not like those that were trained on, or the method cannot take such a model.
    """
    key_guide, key_method = keys.split(as_key(rng_key))
    rows, model = rows_of(trained, rows), with_networks(trained)
    parts = []
    with precision(trained.dtype):
        params = jax.tree.map(jnp.asarray, trained.params)
        latents = Latents.of(trained.pair, params, rows)

        def draws(rng_key, params, row):
            values, _, _ = trained.pair.draw(rng_key, params, row)
            return jnp.concatenate([jnp.ravel(values[name]) for name in latents.sizes])

        drawn = jitted(trained.pair.model, jax.vmap(draws, (0, None, None)))
    for i in range(number_of(rows)):
        with precision(trained.dtype):
            split = jax.random.split(keys.fold_in(key_guide, i), as_count(num_samples))
            values = np.asarray(drawn(split, params, {name: jnp.asarray(value[i]) for name, value in rows.items()}), float)
        fit = method.fit(keys.fold_in(key_method, i), model, {name: value[i : i + 1] for name, value in rows.items()}, progress=False)
        flat = [fit.posterior[name.replace("/", ".")].values.reshape(-1, max(math.prod(size), 1)) for name, size in latents.sizes.items()]
        exact = np.concatenate(flat, axis=1)
        sd = exact.std(0, ddof=1)
        figures = {
            "mean": values.mean(0),
            "sd": values.std(0, ddof=1),
            "reference_mean": exact.mean(0),
            "reference_sd": sd,
            "mean_error": (values.mean(0) - exact.mean(0)) / sd,
            "sd_ratio": values.std(0, ddof=1) / sd,
            "mcse": np.hypot(values.std(0, ddof=1) / sd / math.sqrt(num_samples), _mcse(fit, len(exact))),
            "reference_ok": fit.certificate.ok,
        }
        parts.append(pd.DataFrame(figures, index=pd.MultiIndex.from_product([[i], latents.names], names=["row", "scalar"])))
    return pd.concat(parts)


def _mcse(fit, num_draws: int) -> float:
    """Of a mean, in posterior sds: what the certificate says, at least that of independent draws."""
    stated = fit.certificate.mcse if math.isfinite(fit.certificate.mcse) else 0.0
    return max(stated, 1 / math.sqrt(num_draws))
