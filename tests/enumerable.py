"""Models whose ELBO and its gradient are known exactly: by enumeration, in closed form or by quadrature, with plates, masks and scales.

Each is (model, guide, exact): `exact(params)` is what the estimator estimates, and shares no code with it.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

Y = np.array([0.2, 1.7, -0.9, 2.4])
SEEN = np.array([True, False, True, True])
"""Rows whose observation counts."""
KNOWN = np.array([True, True, False, True])
"""Rows whose latent's densities count; the others are drawn all the same."""
SCALE = 0.7


def _parameter(name, start):
    return numpyro.param(name, jnp.asarray(start))


def rows(size, batch):
    return numpyro.plate("row", size, subsample_size=batch)


# Discrete: a global draw, a draw for each row.
DISCRETE = {"a": 0.4, "b": np.array([0.3, -0.8, 0.5, 1.0]), "c": 0.6, "shift": 0.3}


def discrete_model(batch):
    shift = _parameter("shift", 0.3)
    g = numpyro.sample("g", dist.Bernoulli(0.6))
    with rows(4, batch) as i, handlers.scale(scale=SCALE):
        with handlers.mask(mask=jnp.asarray(KNOWN)[i]):
            z = numpyro.sample("z", dist.Bernoulli(logits=0.5 * g - 0.2))
        with handlers.mask(mask=jnp.asarray(SEEN)[i]):
            numpyro.sample("y", dist.Normal(2.0 * z + g + shift, 1.0), obs=jnp.asarray(Y)[i])


def discrete_guide(batch):
    b, c = _parameter("b", DISCRETE["b"]), _parameter("c", 0.6)
    g = numpyro.sample("g", dist.Bernoulli(logits=_parameter("a", 0.4)))
    with rows(4, batch) as i, handlers.scale(scale=SCALE), handlers.mask(mask=jnp.asarray(KNOWN)[i]):
        numpyro.sample("z", dist.Bernoulli(logits=b[i] + c * g))


def log_bernoulli(logit, value):
    return jax.nn.log_sigmoid(jnp.where(value == 1, logit, -logit))


def log_normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd) - 0.5 * jnp.log(2 * jnp.pi)


def discrete_elbo(params):
    """The sum over all 2^5 states."""
    g, *z = np.array(list(itertools.product([0, 1], repeat=5))).T
    z = np.array(z).T
    g_row = g[:, None]
    log_q_g, log_q_z = log_bernoulli(params["a"], g), log_bernoulli(params["b"] + params["c"] * g_row, z)
    log_p_g, log_p_z = jnp.log(jnp.where(g == 1, 0.6, 0.4)), log_bernoulli(0.5 * g_row - 0.2, z)
    log_lik = log_normal(Y, 2.0 * z + g_row + params["shift"], 1.0)
    cost = log_p_g - log_q_g + SCALE * (KNOWN * (log_p_z - log_q_z) + SEEN * log_lik).sum(1)
    return (jnp.exp(log_q_g + log_q_z.sum(1)) * cost).sum()


# A plate that is left by way of a sum, and entered again: no row is independent of another's draw.
REENTERED = {"b": np.array([0.3, -0.8, 0.5]), "c": 1.5}


def reentered_model():
    with numpyro.plate("row", 3):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
    w = numpyro.sample("w", dist.Bernoulli(logits=z.sum() - 1.5))
    with numpyro.plate("row", 3):
        numpyro.sample("x", dist.Normal(3.0 * w, 1.0), obs=jnp.asarray(Y[:3]))
        numpyro.sample("y", dist.Normal(2.0 * (z - z.mean()), 1.0), obs=jnp.asarray(Y[1:]))


def reentered_guide():
    b, c = _parameter("b", REENTERED["b"]), _parameter("c", 1.5)
    with numpyro.plate("row", 3):
        z = numpyro.sample("z", dist.Bernoulli(logits=b))
    numpyro.sample("w", dist.Bernoulli(logits=c * z.sum() - 2.0))


def reentered_elbo(params):
    """The sum over all 2^4 states."""
    w, *z = np.array(list(itertools.product([0, 1], repeat=4))).T
    z = np.array(z).T
    log_q = log_bernoulli(params["b"], z).sum(1) + log_bernoulli(params["c"] * z.sum(1) - 2.0, w)
    log_p = 3 * jnp.log(0.5) + log_bernoulli(z.sum(1) - 1.5, w)
    log_p += log_normal(Y[:3], 3.0 * w[:, None], 1.0).sum(1) + log_normal(Y[1:], 2.0 * (z - z.mean(1, keepdims=True)), 1.0).sum(1)
    return (jnp.exp(log_q) * (log_p - log_q)).sum()


# Gaussian, or with a discrete draw on top: m is N(a, s^2) or Bernoulli(logit a); z_n = b_n + c m + t noise.
GAUSSIAN = {"a": 0.4, "log_s": -0.3, "b": DISCRETE["b"], "c": 0.6, "log_t": -0.5, "shift": 0.3}
MIXED = {k: v for k, v in GAUSSIAN.items() if k != "log_s"}


def _gaussian_rows(m, batch):
    with rows(4, batch) as i, handlers.scale(scale=SCALE):
        z = numpyro.sample("z", dist.Normal(m, 1.0))
        with handlers.mask(mask=jnp.asarray(SEEN)[i]):
            numpyro.sample("y", dist.Normal(z + _parameter("shift", 0.3), 0.8), obs=jnp.asarray(Y)[i])


def _gaussian_rows_guide(m, batch):
    b, c, t = _parameter("b", DISCRETE["b"]), _parameter("c", 0.6), jnp.exp(_parameter("log_t", -0.5))
    with rows(4, batch) as i, handlers.scale(scale=SCALE):
        numpyro.sample("z", dist.Normal(b[i] + c * m, t))


def gaussian_model(batch):
    _gaussian_rows(numpyro.sample("m", dist.Normal(0.0, 2.0)), batch)


def gaussian_guide(batch):
    _gaussian_rows_guide(numpyro.sample("m", dist.Normal(_parameter("a", 0.4), jnp.exp(_parameter("log_s", -0.3)))), batch)


def mixed_model(batch):
    _gaussian_rows(numpyro.sample("m", dist.Bernoulli(0.6)), batch)


def mixed_guide(batch):
    _gaussian_rows_guide(numpyro.sample("m", dist.Bernoulli(logits=_parameter("a", 0.4))), batch)


def _expected_rows(params, mean, variance):
    """E of the rows' terms where m has this mean and variance."""
    b, c, t = params["b"], params["c"], jnp.exp(params["log_t"])
    prior = -0.5 * ((b + (c - 1) * mean) ** 2 + (c - 1) ** 2 * variance + t**2) - 0.5 * jnp.log(2 * jnp.pi)
    entropy = jnp.log(t) + 0.5 * jnp.log(2 * jnp.pi) + 0.5
    squared = (Y - params["shift"] - b - c * mean) ** 2 + c**2 * variance + t**2
    log_lik = -0.5 * squared / 0.8**2 - jnp.log(0.8) - 0.5 * jnp.log(2 * jnp.pi)
    return SCALE * (prior + entropy + SEEN * log_lik).sum()


def gaussian_elbo(params):
    a, s = params["a"], jnp.exp(params["log_s"])
    return -0.5 * (a**2 + s**2) / 4 - jnp.log(2.0) + jnp.log(s) + 0.5 + _expected_rows(params, a, s**2)


def mixed_elbo(params):
    q = jax.nn.sigmoid(params["a"])
    of_m = q * (jnp.log(0.6) - jnp.log(q)) + (1 - q) * (jnp.log(0.4) - jnp.log(1 - q))
    return of_m + q * _expected_rows(params, 1.0, 0.0) + (1 - q) * _expected_rows(params, 0.0, 0.0)


# Independent rows, all in one plate: bounds that average weights are taken row by row.
LOCAL = {"b": DISCRETE["b"], "log_t": -0.2, "shift": 0.3}
FLIPS = {"b": DISCRETE["b"], "shift": 0.3}


def _local_likelihood(z, i):
    with handlers.mask(mask=jnp.asarray(SEEN)[i]), handlers.scale(scale=SCALE):
        numpyro.sample("y", dist.Normal(z + _parameter("shift", 0.3), 0.8), obs=jnp.asarray(Y)[i])


def local_model(batch):
    with rows(4, batch) as i:
        _local_likelihood(numpyro.sample("z", dist.Normal(0.0, 1.0)), i)


def local_guide(batch):
    b, t = _parameter("b", DISCRETE["b"]), jnp.exp(_parameter("log_t", -0.2))
    with rows(4, batch) as i:
        numpyro.sample("z", dist.Normal(b[i], t))


def flips_model(batch):
    with rows(4, batch) as i:
        _local_likelihood(1.0 * numpyro.sample("z", dist.Bernoulli(0.3)), i)


def flips_guide(batch):
    b = _parameter("b", DISCRETE["b"])
    with rows(4, batch) as i:
        numpyro.sample("z", dist.Bernoulli(logits=b[i]))


def _local_log_lik(params, z):
    return SCALE * SEEN * log_normal(Y, z + params["shift"], 0.8)


def local_bound(params, alpha=0.0):
    """E[1/(1 - alpha) log(mean of two w^(1 - alpha))], by Gauss-Hermite quadrature in both draws' noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    z = params["b"] + jnp.exp(params["log_t"]) * nodes[:, None]  # (node, row)
    log_w = log_normal(z, 0.0, 1.0) + _local_log_lik(params, z) - log_normal(z, params["b"], jnp.exp(params["log_t"]))
    pairs = jnp.logaddexp(log_w[:, None] * (1 - alpha), log_w[None] * (1 - alpha)) - jnp.log(2.0)
    return (weights[:, None, None] * weights[None, :, None] * pairs).sum() / (1 - alpha)


def flips_surrogate(params, num_particles):
    """Its gradient at `params` is E[sum_k w_k d(log q + log p)], w normalised over so many draws, all of whose states are summed."""
    held = jax.tree.map(jax.lax.stop_gradient, params)

    def log_pq(params, z):
        log_p = jnp.log(jnp.where(z == 1, 0.3, 0.7)) + _local_log_lik(params, z)
        return log_p, log_bernoulli(params["b"], z)

    z = np.array(list(itertools.product([0, 1], repeat=num_particles))).T[:, :, None] * np.ones(4)  # (draw, state, row)
    log_p, log_q = log_pq(held, z)
    weights = jax.nn.softmax(log_p - log_q, axis=0)
    return (jnp.exp(log_q.sum(0)) * (weights * sum(log_pq(params, z))).sum(0)).sum()
