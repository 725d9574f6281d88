# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Gaussian mean, regularised: the posterior that also obeys a bound on an expectation, found by its dual.

**Technique** posterior regularisation, one multiplier beside reparameterised gradients.
**Use when** you know something about the answer (on average no more than b) that is awkward to say as a prior or a likelihood.
**Avoid when** the knowledge is about every single value, not about their mean: that is a prior, or a truncated one.
**Cost** that of the plain fit, and one more number to update for each bound.
**Bias to expect** a deliberate one: the mean is moved to the bound where the posterior's lies beyond it; the sd is left as it is.
**Source** Ganchev, Graca, Gillenwater and Taskar 2010, JMLR 11, 2001-2049; Zhu, Chen and Xing 2014, arXiv 1210.1766.
"""

# %%
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO

# %% [markdown]
# # Gaussian mean, regularised
#
# The model and the measurements of `gaussian_mean`,
#
# $$\mu \sim \mathcal N(0, 1), \qquad y_i \mid \mu \sim \mathcal N(\mu, 1), \quad i = 1, \dots, N,$$
#
# and beside them a piece of knowledge: $\mu$ should not exceed $b$ in expectation. Of all distributions that obey, take the
# one nearest to the posterior:
#
# $$\min_q\ \mathrm{KL}(q \,\|\, p(\mu \mid y)) \quad \text{such that} \quad \mathbb E_q[\mu] \le b.$$


# %%
def data(frame=None):
    """The measurements, and the bound.

    Returns:
        dict with `y`, (N,), in units of the measurement's standard deviation (column `y` of the table, or its only column),
        `num_observations`, N, and `bound`, (), in the units of y. Without a table, 100 simulated draws from N(2, 1) and a
        bound of 1.75; with one, no bound (infinity): put yours here.
    """
    if frame is None:
        y, bound = np.random.RandomState(42).normal(2.0, 1.0, 100), 1.75
    else:
        y, bound = np.asarray(frame["y"] if "y" in frame else frame[next(iter(frame))], float), math.inf
    return {"y": y, "num_observations": len(y), "bound": np.asarray(bound)}


def model(y=None, num_observations=1, bound=math.inf):
    """`num_observations` is read only where `y` is None: that many are then predicted. `bound` is no part of the model."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("observation", num_observations if y is None else len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def guide(y=None, num_observations=1, bound=math.inf):
    """A Gaussian with free mean and standard deviation; it starts at the prior."""
    m = numpyro.param("m", 0.0)
    s = numpyro.param("s", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("mu", dist.Normal(m, s))


# %% [markdown]
# ## The dual
#
# A multiplier $\lambda \ge 0$ is the price of a unit beyond the bound. The Lagrangian
#
# $$\mathrm{KL}(q \,\|\, p(\mu \mid y)) + \lambda\, (\mathbb E_q[\mu] - b)$$
#
# is least in $q$ at $q_\lambda(\mu) \propto p(\mu \mid y)\, e^{-\lambda \mu}$: the posterior, tilted. So a plain fit finds
# $q_\lambda$, to a model with the factor $e^{-\lambda \mu}$. What is left as a function of $\lambda$ alone, the dual, is concave; its
# slope is $\mathbb E_{q_\lambda}[\mu] - b$ and its curvature $-\mathrm{Var}_{q_\lambda}[\mu]$, both read off the guide. So $\lambda$
# takes a step of Newton's method, a fraction of it since $q$ has not yet followed, and stops at 0:
#
# $$\lambda \leftarrow \max\!\Big(0,\ \lambda + \rho\, \frac{\mathbb E_q[\mu] - b}{\mathrm{Var}_q[\mu]}\Big).$$
#
# An expectation without a closed form would be a mean over draws of $q$; a second bound would bring a second $\lambda$.


# %%
def tilted(multiplier, y):
    """The model with the factor exp(-multiplier mu)."""
    with handlers.trace() as sites:
        model(y)
    numpyro.factor("tilt", -multiplier * sites["mu"]["value"])


def fit(rng_key, y, num_observations=1, bound=math.inf, *, num_steps=2000):
    """Fit the guide by Adam, its rate decaying from 0.1 to 0.0001, and the multiplier beside it, at five times that rate.

    Returns:
        q: dict with the fitted Normal of `mu`.
        losses: (num_steps,), the Lagrangian less log p(y), in nats, noisy; without a bound the negative ELBO.
    """

    def rate(step):
        return 0.1 * 0.001 ** (step / num_steps)

    svi = SVI(tilted, lambda multiplier, y: guide(y), numpyro.optim.Adam(rate), Trace_ELBO(num_particles=8))

    def step(carry, i):
        state, multiplier = carry
        state, loss = svi.update(state, multiplier, y)
        p = svi.get_params(state)
        paid = jnp.where(multiplier > 0, multiplier * bound, 0.0)  # 0, and not 0 times infinity, without a bound
        return (state, jnp.maximum(0.0, multiplier + 5 * rate(i) * (p["m"] - bound) / p["s"] ** 2)), loss - paid

    (state, _), losses = lax.scan(step, (svi.init(rng_key, 0.0, y), jnp.zeros(())), jnp.arange(num_steps))
    fitted = handlers.seed(handlers.substitute(guide, svi.get_params(state)), rng_key)
    sites = handlers.trace(fitted).get_trace(y)
    return {name: site["fn"] for name, site in sites.items() if site["type"] == "sample"}, losses


# %% [markdown]
# ## The exact answer
#
# The posterior is $\mathcal N(M, V)$ with $V = 1 / (N + 1)$ and $M = V \sum_i y_i$. Tilted, a Gaussian keeps its variance and
# moves by $-\lambda V$. Where $M > b$ the bound is active, and
#
# $$\lambda^* = \frac{M - b}{V}, \qquad q^* = \mathcal N(b, V), \qquad \mathrm{KL}(q^* \,\|\, p(\mu \mid y)) = \frac{(M - b)^2}{2 V};$$
#
# elsewhere $\lambda^* = 0$, and $q^*$ is the posterior itself. `documented_bias` is this $q^*$, `exact_posterior` the posterior.


# %%
def exact_posterior(y, num_observations=1, bound=math.inf):
    """Site `mu` -> its posterior without the bound, a Normal."""
    return {"mu": dist.Normal(np.sum(y) / (len(y) + 1), 1 / math.sqrt(len(y) + 1))}


def log_evidence(y, num_observations=1, bound=math.inf):
    """log p(y) in nats."""
    n = len(y)
    return float(-n / 2 * math.log(2 * math.pi) - math.log(n + 1) / 2 - (np.sum(y**2) - np.sum(y) ** 2 / (n + 1)) / 2)


def documented_bias(y, num_observations=1, bound=math.inf):
    """Mean and sd of `mu` under the regularised posterior."""
    posterior = exact_posterior(y)["mu"]
    return {"mu": (min(posterior.loc, float(bound)), posterior.scale)}


# %%
def main():
    d = data()
    posterior, evidence = exact_posterior(**d)["mu"], log_evidence(**d)
    print(f"posterior without a bound: mean {posterior.loc:.5f}, sd {posterior.scale:.5f}")
    print(f"{'bound':>6}{'mean':>10}{'exact':>10}{'sd':>10}{'exact':>10}{'KL':>10}{'exact':>10}")
    for bound in (1.75, 1.85, 2.0):
        d["bound"] = np.asarray(bound)
        (q, losses), (m, s) = fit(random.key(0), **d), documented_bias(**d)["mu"]
        kl = jnp.mean(losses[-100:]) + evidence, (m - posterior.loc) ** 2 / (2 * s**2)
        print(f"{bound:6.2f}{q['mu'].mean:10.5f}{m:10.5f}{q['mu'].variance ** 0.5:10.5f}{s:10.5f}{kl[0]:10.4f}{kl[1]:10.4f}")


if __name__ == "__main__":
    main()
