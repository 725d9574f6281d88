"""Held-out log p(x), a datum, by annealed importance sampling: where the guide is too far from the posterior for plain weights.

Neal 2001, doi 10.1023/A:1008923215028; for decoders Wu, Burda, Salakhutdinov and Grosse 2017, arXiv 1611.04273. Chains move by
Hamiltonian Monte Carlo (Neal 2011, arXiv 1206.1901) on unconstrained latents, from the guide or the prior to the joint density, along
log r(z)^(1 - b) p(x, z)^b with b from 0 to 1. The mean weight is unbiased for p(x) because the step sizes do not depend on the chains
that are weighed: a few chains of their own go along and find them.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vipatterns.amortized.latents import Latents
from vipatterns.amortized.likelihood import LogLikelihood, estimated, observed_size
from vipatterns.amortized.rows import blocks, number_of, pairs_at_once, rows_of
from vipatterns.amortized.trained import Trained
from vipatterns.density import precision
from vipatterns.draws import as_count, as_key
from vipatterns.errors import InputError
from vipatterns.programs import jitted
from vipatterns.progress import reporting

NUM_PILOTS = 8
"""Chains a datum that find the step sizes and are then dropped."""
NUM_MOMENTS = 64
"""Draws a datum of the start, whose sds are the units of the moves."""
ACCEPTANCE = 0.75
"""What the step sizes aim at."""
ADAPTATION = 0.25
"""How far a log step size moves at a temperature, times how far the acceptance of the pilots is from its aim."""
SHARPNESS = 4.0
"""Of the sigmoid schedule, which spends its temperatures at both ends (Wu et al. 2017)."""
GRADIENT_COST = 4
"""Evaluations of the networks that one gradient holds in memory, about."""


def annealed_log_likelihood(
    rng_key: jax.Array,
    trained: Trained,
    rows: dict | None = None,
    *,
    start: str = "guide",
    num_chains: int = 16,
    num_temperatures: int = 200,
    num_leapfrog: int = 10,
    progress: bool | None = None,
) -> LogLikelihood:
    """log p(x) of each datum, by annealed importance sampling.

    Args:
        rng_key: a JAX key.
        trained: what `vip.train` returned.
        rows: argument -> (N, ...); by default the rows held out.
        start: "guide" anneals from q(z | x), "prior" from p(z), which asks more temperatures and trusts the guide in nothing.
        num_chains: weights a datum.
        num_temperatures: steps from the start to the joint density; more make the weights more even.
        num_leapfrog: leapfrog steps of each move; the cost is num_chains * num_temperatures * num_leapfrog gradients a datum.
        progress: None for automatic, True or False to force.

    Returns:
        Nats a datum, with errors from the spread of the chains' weights.

    Raises:
        InputError: a latent is discrete, or the rows are not like those that were trained on.
    """
    if start not in ("guide", "prior"):
        raise InputError(f"start must be 'guide' or 'prior', got {start!r}.")
    rng_key, num_chains, num_leapfrog = as_key(rng_key), as_count(num_chains), as_count(num_leapfrog)
    rows = rows_of(trained, rows)
    num = number_of(rows)
    parts = []
    with precision(trained.dtype), reporting("annealing", num, progress) as report:
        params = jax.tree.map(jnp.asarray, trained.params)
        latents = Latents.of(trained.pair, params, rows)
        betas = jnp.asarray(schedule(as_count(num_temperatures)), trained.dtype)

        def block(params, rng_key, index, batch):
            def datum(i, row):
                return _annealed(jax.random.fold_in(rng_key, i), latents, params, row, betas, start, num_chains, num_leapfrog)

            return jax.vmap(datum)(index, batch)

        program = jitted(trained.pair.model, block)
        for chosen, count in blocks(num, min(max(pairs_at_once(rows, GRADIENT_COST) // num_chains, 1), num)):
            batch = {name: jnp.asarray(value[chosen]) for name, value in rows.items()}
            log_weights, accepted = (np.asarray(v, float)[:count] for v in program(params, rng_key, jnp.asarray(chosen), batch))
            parts.append((*estimated(log_weights), accepted))
            report(int(chosen[count - 1]) + 1, f"{parts[-1][0].mean():.3f} nats a datum")
        num_dims = observed_size(trained, params, rows)
    log_p, mcse, _, ess, acceptance = (np.concatenate(column) for column in zip(*parts, strict=True))
    return LogLikelihood(
        log_p=log_p,
        mcse=mcse,
        khat=np.full(num, math.nan),
        ess=ess,
        bounds={},
        num_samples=num_chains,
        num_dims=num_dims,
        method=f"annealed importance sampling from the {start}, {num_chains} chains a datum over {num_temperatures} temperatures",
        acceptance=acceptance,
    )


def schedule(num_temperatures: int) -> np.ndarray:
    """Inverse temperatures (num_temperatures + 1,) from 0 to 1."""
    curve = 1 / (1 + np.exp(-SHARPNESS * np.linspace(-1, 1, num_temperatures + 1)))
    return (curve - curve[0]) / (curve[-1] - curve[0])


def _annealed(rng_key, latents: Latents, params, row, betas, start: str, num_chains: int, num_leapfrog: int):
    """Log weights (num_chains,) of one datum, and the share of moves that were accepted."""
    key_moments, key_chains, key_moves = jax.random.split(rng_key, 3)
    draw = latents.from_guide if start == "guide" else latents.from_prior
    draws = jax.vmap(lambda key: draw(key, params, row))
    chains = jax.random.split(key_chains, NUM_PILOTS + num_chains)
    u = draws(jnp.concatenate([chains, jax.random.split(key_moments, NUM_MOMENTS)]))
    u, units = u[: len(chains)], u[len(chains) :].std(0)
    units = jnp.where(units > 0, units, 1.0)

    def density(v, chain, beta):
        """Log density at v (d,), in units, and log p(x, z) - log r(z); `chain` is the key that the chain was drawn by."""
        prior, joint, guide = latents.densities(chain, params, row, v * units)
        origin = guide if start == "guide" else prior
        return (1 - beta) * origin + beta * joint, joint - origin

    def temperature(carry, at):
        v, log_weight, log_step = carry
        key, last, beta = at
        noise = _noise(key, v)

        def move(v, chain, *noise):
            return _move(lambda v: density(v, chain, beta), v, jnp.exp(log_step), num_leapfrog, *noise)

        v, rise, accepted = jax.vmap(move)(v, chains, *noise)
        log_weight += (beta - last) * rise  # of where the chain stood before it moved
        log_step += ADAPTATION * (accepted[:NUM_PILOTS].mean() - ACCEPTANCE)
        return (v, log_weight, log_step), accepted[NUM_PILOTS:].mean()

    log_step = jnp.log(jnp.asarray(latents.dim, betas.dtype)) * -0.25
    at = jax.random.split(key_moves, len(betas) - 1), betas[:-1], betas[1:]
    (_, log_weight, _), accepted = jax.lax.scan(temperature, (u / units, jnp.zeros(len(chains), betas.dtype), log_step), at)
    return log_weight[NUM_PILOTS:], accepted.mean()


def _noise(rng_key, v):
    """What the moves of chains v (C, d) draw: momenta (C, d), jitter of the step sizes (C,), and (C,) uniform numbers to accept by."""
    key_momentum, key_uniform = jax.random.split(rng_key)
    uniform = jax.random.uniform(key_uniform, (2, len(v)), v.dtype)
    # A step size that varies keeps trajectories from closing on themselves.
    return jax.random.normal(key_momentum, v.shape, v.dtype), 0.7 + 0.6 * uniform[0], uniform[1]


def _move(density, v, step_size, num_leapfrog: int, momentum, jitter, uniform):
    """One Hamiltonian Monte Carlo transition of v (d,); what `density` gives beside its value at the start; how likely it was accepted."""
    evaluate, step = jax.value_and_grad(density, has_aux=True), step_size * jitter
    (value, beside), slope = evaluate(v)

    def leapfrog(_, state):
        v, momentum, _, slope = state
        momentum = momentum + 0.5 * step * slope
        v = v + step * momentum
        (value, _), slope = evaluate(v)
        return v, momentum + 0.5 * step * slope, value, slope

    end, momentum_end, value_end, _ = jax.lax.fori_loop(0, num_leapfrog, leapfrog, (v, momentum, value, slope))
    gain = value_end - value - 0.5 * (momentum_end @ momentum_end - momentum @ momentum)
    probability = jnp.where(jnp.isfinite(gain), jnp.exp(jnp.minimum(gain, 0.0)), 0.0)
    return jnp.where(uniform < probability, end, v), beside, probability
