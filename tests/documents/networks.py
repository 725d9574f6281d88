"""Small networks for p(y | x), trained on a data set by maximum likelihood and judged on another."""

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

HIDDEN = 16


def one_gaussian(out, y):
    """log p(y | x) of a mean and a log sd."""
    return norm.logpdf(y, out[..., 0], jnp.exp(out[..., 1]))


def two_gaussians(out, y):
    """log sum_z p(z | x) p(y | x, z), z one of two: logits, means, log sds."""
    return logsumexp(jax.nn.log_softmax(out[..., :2]) + norm.logpdf(y[..., None], out[..., 2:4], jnp.exp(out[..., 4:6])), axis=-1)


def train(rng_key, log_density, start, x, y, num_steps=1_000):
    """Fits a network with one layer of tanh units, whose outputs scatter around `start` before training.

    Components that start alike may never part: `start` sets them apart.

    Returns:
        log p(y | x) as a function of x and y, each (N,), and the number of the network's weights.
    """
    key_in, key_out, key_bias = jax.random.split(rng_key, 3)
    weights = {
        "in": 2 * jax.random.normal(key_in, (HIDDEN,)),
        "bias": jax.random.normal(key_bias, (HIDDEN,)),
        "out": jax.random.normal(key_out, (HIDDEN, len(start))) / HIDDEN**0.5,
        "shift": jnp.asarray(start),
    }

    def log_p(w, x, y):
        return log_density(jnp.tanh(x[:, None] * w["in"] + w["bias"]) @ w["out"] + w["shift"], y)

    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))

    def step(state, _):
        w, opt = state
        updates, opt = optimizer.update(jax.grad(lambda w: -log_p(w, x, y).mean())(w), opt)
        return (optax.apply_updates(w, updates), opt), None

    (weights, _), _ = jax.jit(lambda w: jax.lax.scan(step, (w, optimizer.init(w)), length=num_steps))(weights)
    return lambda x, y: log_p(weights, x, y), sum(w.size for w in jax.tree.leaves(weights))
