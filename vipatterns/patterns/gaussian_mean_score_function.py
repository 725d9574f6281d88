# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Gaussian mean, black box: the gradient that asks nothing of the model but its log density, and what it costs.

**Technique** the exact family, score-function gradients.
**Use when** draws have no derivative: discrete sites, simulators, a log density that is code you cannot differentiate.
**Avoid when** draws can be reparameterised; and never without an origin: an error of e sds then takes (log p(y) / e)^2 draws.
**Cost** a few seconds; one evaluation of the log density a draw, and no backward pass through the model.
**Bias to expect** none, in the gradient as in the fit: the family contains the posterior.
**Source** Ranganath, Gerrish and Blei 2014, Black box variational inference, arXiv 1401.0118.
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
# # Gaussian mean by the score function
#
# $$\mu \sim \mathcal N(0, 1), \qquad y_i \mid \mu \sim \mathcal N(\mu, 1), \quad i = 1, \dots, N.$$
#
# The posterior $\mathcal N(M, 1/P)$, with $P = N + 1$ and $M = \sum_i y_i / P$, is known, and so is everything below.


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
# ## The gradient
#
# With $f(\mu) = \log p(y, \mu) - \log q(\mu)$, the ELBO is $\mathbb E_q f$. The derivative of $q$ is $q \, \nabla \log q$, and the
# *score* $\nabla \log q$ has mean zero, so that for every number $a$ that does not depend on the draw
#
# $$\nabla\, \mathrm{ELBO} = \mathbb E_q\big[(f(\mu) - a)\, \nabla \log q(\mu)\big].$$
#
# Nothing is differentiated but $\log q$, at a draw that is held fixed. The *origin* $a$ changes no mean, and all of the noise:
# a log density has no natural zero (in other units of $y$ it is another number), and the plain estimator, $a = 0$, multiplies
# every score by wherever that zero happens to be. Here $a = f(m)$, its value in the middle of the guide.


# %%
def weight(params, mu, y):
    """f(mu) = log p(y, mu) - log q(mu), in nats."""
    return log_density(model, (y,), {}, {"mu": mu})[0] - log_density(guide, (y,), {}, params | {"mu": mu})[0]


def score(params, mu, y):
    """Parameter -> its derivative of log q(mu)."""
    return jax.grad(lambda p: log_density(guide, (y,), {}, p | {"mu": mu})[0])(params)


def one_draw(params, mu, y, origin):
    """f(mu), and the estimate of the gradient that one draw gives."""
    f = weight(params, mu, y)
    return f, jax.tree.map(lambda each: (f - origin) * each, score(params, mu, y))


def draw(rng_key, params, y):
    """One draw of mu from the guide."""
    return handlers.trace(handlers.seed(handlers.substitute(guide, params), rng_key)).get_trace(y)["mu"]["value"]


def fit(rng_key, y, num_observations=1, *, num_steps=3000):
    """Ascend the ELBO by Adam, 32 draws a step, its rate decaying from 0.1 to 0.001.

    Returns:
        q: dict with the fitted Normal of `mu`.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.01 ** (step / num_steps))

    def step(state, key):
        params = optimizer.get_params(state)
        origin = weight(params, params["m"], y)
        mu = jax.vmap(lambda k: draw(k, params, y))(random.split(key, 32))
        f, each = jax.vmap(lambda x: one_draw(params, x, y, origin))(mu)
        return optimizer.update(jax.tree.map(lambda g: -g.mean(), each), state), -jnp.mean(f)

    start = {"m": jnp.zeros(()), "log_s": jnp.zeros(())}
    state, losses = lax.scan(step, optimizer.init(start), random.split(rng_key, num_steps))
    params = optimizer.get_params(state)
    return {"mu": dist.Normal(params["m"], jnp.exp(params["log_s"]))}, losses


# %% [markdown]
# ## What one draw is worth
#
# Put $\mu = m + s \varepsilon$. Then $f = c_0 + c_1 \varepsilon + c_2 \varepsilon^2$ with $c_1 = P s (M - m)$, $c_2 = (1 - P s^2) / 2$ and
# $c_0 = f(m)$; the scores are $\varepsilon / s$ for $m$ and $\varepsilon^2 - 1$ for $\log s$. The moments of $\varepsilon$ give the exact
# gradient $(c_1 / s,\ 2 c_2)$ and, with $b = c_0 - a$, the variance of one draw's estimate,
#
# $$\frac{b^2 + 6 b c_2 + 2 c_1^2 + 15 c_2^2}{s^2} \quad (m), \qquad 2 b^2 + 20 b c_2 + 10 c_1^2 + 74 c_2^2 \quad (\log s).$$
#
# At the posterior $c_1 = c_2 = 0$ and $f$ is $\log p(y)$ whatever the draw. With the origin $f(m)$ no variance is left. With $a = 0$
# it is $P \log^2 p(y)$ for $m$, so that $n$ draws pin $m$ down to $|\log p(y)| / \sqrt n$ posterior sds and no better.


# %%
def coefficients(params, y):
    """c_0, c_1, c_2 of f as a polynomial in (mu - m) / s."""
    s, precision = np.exp(params["log_s"]), len(y) + 1
    away = np.sum(y) / precision - params["m"]
    c_0 = log_evidence(y) + math.log(precision) / 2 + params["log_s"] - precision * away**2 / 2
    return c_0, precision * s * away, (1 - precision * s**2) / 2


def exact_gradient(params, y):
    """Parameter -> derivative of the ELBO."""
    _, c_1, c_2 = coefficients(params, y)
    return {"m": c_1 / np.exp(params["log_s"]), "log_s": 2 * c_2}


def variance(params, y, origin):
    """Parameter -> variance of one draw's estimate."""
    c_0, c_1, c_2 = coefficients(params, y)
    b = c_0 - origin
    of_m = (b**2 + 6 * b * c_2 + 2 * c_1**2 + 15 * c_2**2) / np.exp(2 * params["log_s"])
    return {"m": of_m, "log_s": 2 * b**2 + 20 * b * c_2 + 10 * c_1**2 + 74 * c_2**2}


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
    print(f"{'variance for m':<24}{'a = 0':>16}{'a = f(m)':>16}")
    for name, m, log_s in (("at the prior", 0.0, 0.0), ("at the posterior", exact.loc, math.log(exact.scale))):
        params = {"m": m, "log_s": log_s}
        of = [variance(params, d["y"], a)["m"] for a in (0.0, coefficients(params, d["y"])[0])]
        print(f"{name:<24}" + "".join(f"{v:16.4f}" for v in of))
    draws = (log_evidence(**d) / 0.01) ** 2
    print(f"Without an origin, an error of 0.01 posterior sds takes {draws:.2g} draws.")


if __name__ == "__main__":
    main()
