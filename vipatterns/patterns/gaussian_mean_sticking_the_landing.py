# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Gaussian mean, sticking the landing: the reparameterised gradient with its one noisy term left out.

**Technique** the exact family, path-derivative gradients.
**Use when** the guide can come close to the posterior, and the last digits matter: there this gradient has no noise.
**Avoid when** the guide is far too narrow: below half the posterior's variance the total derivative is the quieter of the two.
**Cost** about a second; a stop_gradient more than the usual estimator, and the density of q at the draws.
**Bias to expect** none: what is left out has mean zero, and the family contains the posterior.
**Source** Roeder, Wu and Duvenaud 2017, Sticking the landing, arXiv 1703.09194.
"""

# %%
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer.util import log_density

# %% [markdown]
# # Gaussian mean, sticking the landing
#
# $$\mu \sim \mathcal N(0, 1), \qquad y_i \mid \mu \sim \mathcal N(\mu, 1), \quad i = 1, \dots, N.$$
#
# The posterior is $\mathcal N(M, 1/P)$, with $P = N + 1$ and $M = \sum_i y_i / P$; the guide is $\mathcal N(m, s^2)$.


# %%
def data(frame=None):
    """The measurements.

    Returns:
        dict with `y`, (N,), in units of the measurement's standard deviation (column `y` of the table, or its only
        column), and `num_observations`, N. Without a table, 100 simulated draws from N(2, 1).
    """
    if frame is None:
        y = np.random.RandomState(42).normal(2.0, 1.0, 100)
    else:
        y = np.asarray(frame["y"] if "y" in frame else frame[next(iter(frame))], float)
    return {"y": y, "num_observations": len(y)}


def model(y=None, num_observations=1):
    """`num_observations` is read only where `y` is None: that many are then predicted."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("observation", num_observations if y is None else len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def guide(y=None, num_observations=1):
    """N(m, s^2), starting at the prior; the free number is log s."""
    m, log_s = numpyro.param("m", 0.0), numpyro.param("log_s", 0.0)
    numpyro.sample("mu", dist.Normal(m, jnp.exp(log_s)))


# %% [markdown]
# ## Two gradients
#
# A draw is a function of the parameters $v = (m, \log s)$ and of noise that has none, $\mu = m + s \varepsilon$, and
# $f = \log p(y, \mu) - \log q_v(\mu)$ depends on $v$ in two ways: through the draw, and directly through $q_v$. The *total* derivative,
# which is what automatic differentiation gives, has both:
#
# $$\frac{\mathrm d f}{\mathrm d v} =
# \underbrace{\frac{\partial \mu}{\partial v}\, \partial_\mu \big(\log p(y, \mu) - \log q_v(\mu)\big)}_{\text{path}}
# - \underbrace{\partial_v \log q_v(\mu)}_{\text{score}}.$$
#
# The score has mean zero. Left out, by stopping the gradient at the parameters of $q$'s density, it takes no bias with it.


# %%
def log_weight(params, noise, y, path):
    """f in nats at the draw that `noise` makes; with `path`, its derivative reaches log q through the draw alone."""
    mu = params["m"] + jnp.exp(params["log_s"]) * noise
    of_q = lax.stop_gradient(params) if path else params
    return log_density(model, (y,), {}, {"mu": mu})[0] - log_density(guide, (y,), {}, of_q | {"mu": mu})[0]


def fit(rng_key, y, num_observations=1, *, num_steps=2000):
    """Ascend the ELBO along the path derivative by Adam, 8 draws a step, its rate decaying from 0.1 to 0.001.

    Returns:
        q: dict with the fitted Normal of `mu`.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.01 ** (step / num_steps))

    def loss(params, key):
        return -jnp.mean(jax.vmap(lambda noise: log_weight(params, noise, y, True))(random.normal(key, (8,))))

    def step(state, key):
        value, gradient = jax.value_and_grad(loss)(optimizer.get_params(state), key)
        return optimizer.update(gradient, state), value

    start = {"m": jnp.zeros(()), "log_s": jnp.zeros(())}
    state, losses = lax.scan(step, optimizer.init(start), random.split(rng_key, num_steps))
    params = optimizer.get_params(state)
    return {"mu": dist.Normal(params["m"], jnp.exp(params["log_s"]))}, losses


# %% [markdown]
# ## Their variances
#
# With $r = P s^2$, the guide's variance in units of the posterior's, and $c = P s (M - m)$, one draw gives
#
# | | for $m$ | for $\log s$ |
# |---|---|---|
# | path | $\big(c + (1 - r)\, \varepsilon\big) / s$ | $c\, \varepsilon + (1 - r)\, \varepsilon^2$ |
# | total | $(c - r\, \varepsilon) / s$ | $c\, \varepsilon - r\, \varepsilon^2 + 1$ |
# | mean of both | $P (M - m)$ | $1 - r$ |
# | variance, path | $(1 - r)^2 / s^2$ | $c^2 + 2 (1 - r)^2$ |
# | variance, total | $r^2 / s^2$ | $c^2 + 2 r^2$ |
#
# At the posterior, $r = 1$ and $c = 0$, the path derivative is zero for every draw, and the total derivative keeps the variances of
# the score, $P$ and $2$. The two are equal at $r = \tfrac12$; in a narrower guide the path derivative is the noisier one, without bound.


# %%
def exact_gradient(params, y):
    """Parameter -> derivative of the ELBO."""
    precision = len(y) + 1
    return {"m": np.sum(y) - precision * params["m"], "log_s": 1 - precision * np.exp(2 * params["log_s"])}


def variance(params, y, path):
    """Parameter -> variance of one draw's gradient."""
    s, precision = np.exp(params["log_s"]), len(y) + 1
    c, r = s * (np.sum(y) - precision * params["m"]), precision * s**2
    left = 1 - r if path else r
    return {"m": left**2 / s**2, "log_s": c**2 + 2 * left**2}


def exact_posterior(y, num_observations=1):
    """Site `mu` -> its posterior, a Normal."""
    return {"mu": dist.Normal(np.sum(y) / (len(y) + 1), 1 / math.sqrt(len(y) + 1))}


def log_evidence(y, num_observations=1):
    """log p(y) in nats."""
    n = len(y)
    return float(-n / 2 * math.log(2 * math.pi) - math.log(n + 1) / 2 - (np.sum(y**2) - np.sum(y) ** 2 / (n + 1)) / 2)


# %%
def main():
    d = data()
    (q, losses), exact = fit(random.key(0), **d), exact_posterior(**d)["mu"]
    print(f"mean of mu {q['mu'].loc:.5f}, exact {exact.loc:.5f}; sd {q['mu'].scale:.5f}, exact {exact.scale:.5f}")
    print(f"elbo {-jnp.mean(losses[-100:]):.5f}, log evidence {log_evidence(**d):.5f}")
    print(f"{'variance of':>12}{'path, for m':>14}{'total':>12}{'path, log s':>14}{'total':>12}")
    for r in (0.1, 0.5, 0.9, 1.0, 2.0):
        params = {"m": exact.loc, "log_s": math.log(exact.scale) + math.log(r) / 2}
        path, total = variance(params, d["y"], True), variance(params, d["y"], False)
        print(f"{f'r = {r}':>12}{path['m']:14.4f}{total['m']:12.4f}{path['log_s']:14.4f}{total['log_s']:12.4f}")


if __name__ == "__main__":
    main()
