# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Gaussian mean, control variates: four ways to quieten the score-function gradient, and how much each saves.

**Technique** the exact family, score-function gradients with control variates.
**Use when** you need the score function (discrete sites, no derivative of the draw), which is to say: never without one of these.
**Avoid when** the draws can be reparameterised: that gradient has less noise still, and needs no second thought.
**Cost** a few seconds; the control variates cost next to nothing beside the evaluations of the model.
**Bias to expect** none: what is taken off a draw's cost never depends on that draw.
**Source** Ranganath, Gerrish and Blei 2014, arXiv 1401.0118; leave-one-out (VarGrad): Richter et al. 2020, arXiv 2010.10436.
"""

# %%
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro import handlers
from numpyro.infer.util import log_density

# %% [markdown]
# # Gaussian mean with control variates
#
# $$\mu \sim \mathcal N(0, 1), \qquad y_i \mid \mu \sim \mathcal N(\mu, 1), \quad i = 1, \dots, N; \qquad q(\mu) = \mathcal N(m, s^2).$$

# %%
KINDS = ("none", "running mean", "leave one out", "optimal")
PARTICLES = 32


def data(frame=None):
    """100 measurements `y`, (N,), in units of their sd (or column `y` of the table, or its only one), and `num_observations`, N."""
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
# ## What may be taken off
#
# The gradient of the ELBO is $\mathbb E_q[(f - a) \nabla \log q]$ with $f = \log p(y, \mu) - \log q(\mu)$, for every $a$ that does not
# depend on the draw, since the score $\nabla \log q$ has mean zero. Of $K$ draws, draw $k$ may have taken off
#
# - *running mean*: the average $f$ of the steps before;
# - *leave one out*: the average $f$ of the $K - 1$ other draws of this step (VarGrad);
# - *optimal*: $a^* = \mathbb E[f\, (\nabla \log q)^2] / \mathbb E[(\nabla \log q)^2]$, another for each parameter, from the other draws.
#
# With several latent sites, Rao-Blackwellisation comes first: a site's score is multiplied only by those terms of $f$ that
# depend on it. Here there is one site and every term does.


# %%
def costs(params, mu, y):
    """f of one draw, in nats, and the score of each parameter."""

    def log_q(p):
        return log_density(guide, (y,), {}, p | {"mu": mu})[0]

    return log_density(model, (y,), {}, {"mu": mu})[0] - log_q(params), jax.grad(log_q)(params)


def gradient(kind, f, score, running):
    """The estimate for one parameter from `f` and `score`, (K,), and the mean cost of the steps before."""
    if kind == "optimal":
        a = (jnp.sum(score**2 * f) - score**2 * f) / (jnp.sum(score**2) - score**2)
    else:
        a = {"none": 0.0, "running mean": running, "leave one out": (jnp.sum(f) - f) / (len(f) - 1)}[kind]
    return jnp.mean((f - a) * score)


def evaluate(rng_key, params, y, num_particles=PARTICLES):
    """`num_particles` draws of the guide: their costs and scores."""

    def one(key):
        sites = handlers.trace(handlers.seed(handlers.substitute(guide, params), key)).get_trace(y)
        return costs(params, sites["mu"]["value"], y)

    return jax.vmap(one)(random.split(rng_key, num_particles))


def ascend(rng_key, y, kind, num_steps):
    """Adam with one of KINDS, its rate decaying from 0.1 to 0.001: the fitted q, and the losses."""
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.01 ** (step / num_steps))

    def step(carry, key):
        state, running = carry
        params = optimizer.get_params(state)
        f, scores = evaluate(key, params, y)
        downhill = jax.tree.map(lambda score: -gradient(kind, f, score, running), scores)
        return (optimizer.update(downhill, state), 0.9 * running + 0.1 * jnp.mean(f)), -jnp.mean(f)

    first, rng_key = random.split(rng_key)
    start = {"m": jnp.zeros(()), "log_s": jnp.zeros(())}
    carry = optimizer.init(start), jnp.mean(evaluate(first, start, y)[0])
    (state, _), losses = lax.scan(step, carry, random.split(rng_key, num_steps))
    params = optimizer.get_params(state)
    return {"mu": dist.Normal(params["m"], jnp.exp(params["log_s"]))}, losses


def fit(rng_key, y, num_observations=1, *, num_steps=3000):
    """Ascend the ELBO by the leave-one-out gradient.

    Returns:
        q: dict with the fitted Normal of `mu`.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    return ascend(rng_key, y, "leave one out", num_steps)


# %% [markdown]
# ## How much each saves
#
# With $\mu = m + s \varepsilon$, posterior $\mathcal N(M, 1/P)$, $c_1 = P s (M - m)$ and $c_2 = (1 - P s^2)/2$, the cost is
# $f = c_0 + c_1 \varepsilon + c_2 \varepsilon^2$, and one draw's estimate for $m$ has variance
# $(b^2 + 6 b c_2 + 2 c_1^2 + 15 c_2^2) / s^2$, $b = c_0 - a$; for $\log s$ it has $2 b^2 + 20 b c_2 + 10 c_1^2 + 74 c_2^2$. So
#
# | taken off | for $m$, times $s^2$ | for $\log s$ |
# |---|---|---|
# | nothing | $c_0^2 + 6 c_0 c_2 + 2 c_1^2 + 15 c_2^2$ | $2 c_0^2 + 20 c_0 c_2 + 10 c_1^2 + 74 c_2^2$ |
# | the mean, $c_0 + c_2$ | $2 c_1^2 + 10 c_2^2$ | $10 c_1^2 + 56 c_2^2$ |
# | $a^* = c_0 + 3 c_2$, or $c_0 + 5 c_2$ | $2 c_1^2 + 6 c_2^2$ | $10 c_1^2 + 24 c_2^2$ |
#
# $K$ draws divide this by $K$. Leave one out is the sample covariance of cost and score: to the mean's row it adds
# $(\mathrm{Var} f\, \mathrm{Var}\, \mathrm{score} + \mathrm{Cov}^2) / (K (K - 1))$. At the posterior $c_1 = c_2 = 0$, and all but the first
# are without noise.


# %%
def coefficients(params, y):
    """c_0, c_1, c_2."""
    s, precision = np.exp(params["log_s"]), len(y) + 1
    away = np.sum(y) / precision - params["m"]
    c_0 = log_evidence(y) + math.log(precision) / 2 + params["log_s"] - precision * away**2 / 2
    return c_0, precision * s * away, (1 - precision * s**2) / 2


def variance(kind, params, y, num_particles=PARTICLES):
    """Parameter -> variance of the gradient. A running mean is taken to be at rest; a* to be known: estimated, it costs order 1 / K^2."""
    (c_0, c_1, c_2), k = coefficients(params, y), num_particles
    b_m, b_s = {"none": (c_0, c_0), "optimal": (-3 * c_2, -5 * c_2)}.get(kind, (-c_2, -c_2))
    of_m = (b_m**2 + 6 * b_m * c_2 + 2 * c_1**2 + 15 * c_2**2) / k
    of_s = (2 * b_s**2 + 20 * b_s * c_2 + 10 * c_1**2 + 74 * c_2**2) / k
    if kind == "leave one out":
        var_f = c_1**2 + 2 * c_2**2
        of_m, of_s = of_m + (var_f + c_1**2) / (k * (k - 1)), of_s + (2 * var_f + 4 * c_2**2) / (k * (k - 1))
    return {"m": of_m / np.exp(2 * params["log_s"]), "log_s": of_s}


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
    exact = exact_posterior(**d)["mu"]
    print(f"{'':<16}{'mean of mu':>12}{'sd of mu':>10}{'variance for m: at the prior':>30}{'at the posterior':>18}")
    for kind in KINDS:
        q, _ = ascend(random.key(0), d["y"], kind, 3000)
        of = [variance(kind, {"m": m, "log_s": math.log(s)}, d["y"])["m"] for m, s in ((0.0, 1.0), (exact.loc, exact.scale))]
        print(f"{kind:<16}{q['mu'].loc:12.5f}{q['mu'].scale:10.5f}{of[0]:30.2f}{of[1]:18.2f}")
    print(f"{'exact':<16}{exact.loc:12.5f}{exact.scale:10.5f}")


if __name__ == "__main__":
    main()
