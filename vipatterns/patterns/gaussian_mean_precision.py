# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Gaussian mean and precision: the textbook's first factorised posterior, and exactly how much it is off.

**Technique** mean-field, implicit gradients for the gamma.
**Use when** you want to see the price of independence where both the price and the posterior have formulas.
**Avoid when** you need the answer: the posterior is a normal-gamma, in closed form.
**Cost** under a second.
**Bias to expect** both means exact; var(mu) too small by (a - 1) / a, var(tau) by a / (a + 1/2), with a = 1/2 + N / 2.
**Source** Bishop 2006, Pattern Recognition and Machine Learning, section 10.1.3; the data: Student 1908, doi 10.1093/biomet/6.1.1.
"""

# %%
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO

# %% [markdown]
# # Gaussian mean and precision
#
# Ten patients took two sleeping drugs; $y_i$ is how many hours longer patient $i$ slept on the second one. Neither the
# mean $\mu$ nor the precision $\tau = 1 / \mathrm{sd}^2$ is known:
#
# $$\tau \sim \mathrm{Gamma}(a_0, b_0), \quad \mu \mid \tau \sim \mathcal N\big(0, (\lambda_0 \tau)^{-1/2}\big), \quad
# y_i \sim \mathcal N(\mu, \tau^{-1/2}), \quad a_0 = b_0 = \tfrac12,\ \lambda_0 = \tfrac1{10}.$$

# %%
A0, B0, LAMBDA0 = 0.5, 0.5, 0.1


def data(frame=None):
    """Measurements `y`, (N,), in hours, and `num_observations`, N; from a table column `y`, whose sd should not be far below 1."""
    y = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4] if frame is None else frame["y"]
    return {"y": np.asarray(y, float), "num_observations": len(y)}


def model(y=None, num_observations=1):
    """`num_observations` is read only where `y` is None: that many are then predicted."""
    tau = numpyro.sample("tau", dist.Gamma(A0, B0))
    mu = numpyro.sample("mu", dist.Normal(0.0, 1 / jnp.sqrt(LAMBDA0 * tau)))
    with numpyro.plate("observation", num_observations if y is None else len(y)):
        numpyro.sample("y", dist.Normal(mu, 1 / jnp.sqrt(tau)), obs=y)


# %% [markdown]
# ## The guide
#
# $q(\mu, \tau) = q(\mu)\, q(\tau)$. Whatever the factors are, coordinate ascent makes the first a Gaussian and the second a
# gamma, so these two families lose nothing: all that is lost is the dependence of $\mu$'s spread on $\tau$. The numbers
# are free in units of the data (shift, scale), and the gamma by its mean and shape, which the data move independently.


# %%
def guide(y=None, num_observations=1):
    shift, scale = (0.0, 1.0) if y is None else (jnp.mean(y), jnp.std(y))
    positive = dist.constraints.positive
    m, s = numpyro.param("mu_m", 0.0), numpyro.param("mu_s", 0.5, constraint=positive)
    mean, shape = numpyro.param("tau_mean", 1.0, constraint=positive), numpyro.param("tau_shape", 2.0, constraint=positive)
    numpyro.sample("tau", dist.Gamma(shape, shape * scale**2 / mean))
    numpyro.sample("mu", dist.Normal(shift + scale * m, scale * s))


def fit(rng_key, y, num_observations=1, *, num_steps=2000):
    """Fit the guide by Adam, its rate decaying from 0.1 to 0.0001; gamma draws have gradients too, implicit ones.

    Returns:
        q: dict, `tau` -> fitted Gamma, `mu` -> fitted Normal.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.001 ** (step / num_steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=16))
    result = svi.run(rng_key, num_steps, y, progress_bar=False)
    fitted = handlers.seed(handlers.substitute(guide, result.params), rng_key)
    sites = handlers.trace(fitted).get_trace(y)
    return {name: site["fn"] for name, site in sites.items() if site["type"] == "sample"}, result.losses


# %% [markdown]
# ## The exact answer
#
# With $\lambda = \lambda_0 + N$, $m = \sum_i y_i / \lambda$, $a = a_0 + N/2$ and $b = b_0 + \tfrac12 (\sum_i y_i^2 - \lambda m^2)$,
#
# $$\tau \mid y \sim \mathrm{Gamma}(a, b), \qquad \mu \mid y \sim \text{Student-}t_{2a}\big(m, \sqrt{b / (a \lambda)}\big).$$
#
# ## What the guide must get wrong
#
# Coordinate ascent comes to rest at $q(\tau) = \mathrm{Gamma}(a + \tfrac12, \cdot)$ with the exact mean
# $\mathbb E\tau = a / b$, and at $q(\mu) = \mathcal N\big(m, (\lambda\, a / b)^{-1/2}\big)$: a Gaussian in place of the $t$, and half
# an observation too many in the gamma. Ten patients make the sd of $\mu$ ten per cent too small; a hundred, one per cent.


# %%
def normal_gamma(y):
    """lambda, m, a, b of the posterior."""
    total = LAMBDA0 + len(y)
    m = np.sum(y) / total
    return total, m, A0 + len(y) / 2, B0 + (np.sum(y**2) - total * m**2) / 2


def exact_posterior(y, num_observations=1):
    """Marginals: `tau`, Gamma, and `mu`, StudentT."""
    total, m, a, b = normal_gamma(y)
    return {"tau": dist.Gamma(a, b), "mu": dist.StudentT(2 * a, m, math.sqrt(b / (a * total)))}


def log_evidence(y, num_observations=1):
    """log p(y) in nats."""
    total, _, a, b = normal_gamma(y)
    gammas = math.lgamma(a) - math.lgamma(A0) + A0 * math.log(B0) - a * math.log(b)
    return float(gammas + 0.5 * math.log(LAMBDA0 / total) - len(y) / 2 * math.log(2 * math.pi))


def documented_bias(y, num_observations=1):
    """The fixed point of coordinate ascent: mean and sd of `tau` and of `mu`."""
    total, m, a, b = normal_gamma(y)
    return {"tau": (a / b, a / b / math.sqrt(a + 0.5)), "mu": (m, math.sqrt(b / (a * total)))}


# %%
def main():
    d = data()
    (q, losses), exact, predicted = fit(random.key(0), **d), exact_posterior(**d), documented_bias(**d)
    print(f"{'':<6}{'mean':>10}{'exact':>10}{'sd':>10}{'predicted':>10}{'exact':>10}")
    for site in ("mu", "tau"):
        row = (q[site].mean, exact[site].mean, q[site].variance ** 0.5, predicted[site][1], exact[site].variance ** 0.5)
        print(f"{site:<6}" + "".join(f"{value:10.4f}" for value in row))
    print(f"elbo {-jnp.mean(losses[-100:]):.4f}, log evidence {log_evidence(**d):.4f}")


if __name__ == "__main__":
    main()
