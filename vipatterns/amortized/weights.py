"""A model and its amortised guide, looked at one datum at a time: log p(x, z) and log q(z | x)."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers

from vipatterns.errors import InputError


@dataclass(frozen=True)
class Pair:
    """A model and a guide whose rows are independent given the parameters of their networks."""

    model: Callable
    """Called with a batch of rows by keyword. Every latent stands in the plate of the rows; networks are numpyro.contrib.module's."""
    guide: Callable
    """Called as the model is."""
    static: dict[str, Any] = field(default_factory=dict)
    """Arguments that are no rows: sizes, switches."""

    def draw(self, rng_key, params: dict, row: dict) -> tuple[dict, jax.Array, jax.Array]:
        """One draw of one row's latents from q.

        Args:
            rng_key: a JAX key.
            params: name -> value of every numpyro.param site.
            row: argument -> one row of it, without the leading axis.

        Returns:
            Latent site -> its value, (1, ...); log p(x, z) and log q(z | x), scalars in nats. Scales of minibatches are left out.
        """
        key_guide, key_model = jax.random.split(rng_key)
        batch = {name: value[None] for name, value in row.items()}
        guide = self.run(self.guide, key_guide, params, batch)
        model = handlers.trace(handlers.replay(self._seeded(self.model, key_model, params), guide)).get_trace(**batch, **self.static)
        return {name: site["value"] for name, site in latent(guide).items()}, log_density(model), log_density(guide)

    def log_weights(self, rng_key, params: dict, batch: dict) -> jax.Array:
        """log p(x, z) - log q(z | x) at one draw of z for every row, (B,), in nats; its mean estimates the ELBO a datum."""
        num = len(next(iter(batch.values())))

        def one(rng_key, row):
            _, log_p, log_q = self.draw(rng_key, params, row)
            return log_p - log_q

        return jax.vmap(one)(jax.random.split(rng_key, num), batch)

    def run(self, function: Callable, rng_key, params: dict, batch: dict) -> OrderedDict:
        """The trace of the model or the guide on a batch."""
        return handlers.trace(self._seeded(function, rng_key, params)).get_trace(**batch, **self.static)

    def check(self, rng_key, batch: dict) -> tuple[float, int]:
        """Rows that the loss of this batch speaks for: their number, times the scale of a plate that is subsampled; and elements of a row.

        Raises:
            InputError: a latent is shared by all rows, or model and guide do not have the same latents.
        """
        guide, model = (self.run(function, rng_key, {}, batch) for function in (self.guide, self.model))
        drawn, needed = latent(guide), latent(model)
        if set(drawn) != set(needed):
            raise InputError(f"The guide draws {sorted(drawn)}, and the model's latents are {sorted(needed)}: they need the same names.")
        for name, site in needed.items():
            if not site["cond_indep_stack"]:
                raise InputError(
                    f"Latent {name!r} stands in no plate, so all rows share it, and amortised training wants one for each row: make it a "
                    "numpyro.param or a network's weight, or fit the model by vip.fit with vip.Guide."
                )
        num = len(next(iter(batch.values())))
        observed = [site for site in model.values() if site["type"] == "sample" and site["is_observed"]]
        speaks_for = num * float(observed[0]["scale"] or 1.0) if observed else float(num)
        return speaks_for, max(sum(jnp.size(site["value"]) for site in observed) // num, 1)

    def _seeded(self, function: Callable, rng_key, params: dict) -> Callable:
        return handlers.substitute(handlers.seed(function, rng_key), data=params)


def latent(trace: dict) -> dict:
    """The latent sample sites of a trace."""
    return {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"] and not site["infer"].get("is_auxiliary")
    }


def log_density(trace: dict) -> jax.Array:
    """The log density of a trace's sample sites, summed, without the scale of minibatches."""
    total = jnp.zeros(())
    for site in trace.values():
        if site["type"] == "sample":
            if site["intermediates"]:
                total += jnp.sum(site["fn"].log_prob(site["value"], site["intermediates"]))
            else:
                total += jnp.sum(site["fn"].log_prob(site["value"]))
    return total
