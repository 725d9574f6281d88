# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Gaussian mean: the smallest problem where VI can be checked by hand.

**Technique** the exact family, reparameterised gradients.
**Use when** you meet VI for the first time, or want a fit that must come out right to test a new method.
**Avoid when** you need the answer: the posterior is known in closed form.
**Cost** under a second; one number of data or a million cost the same order.
**Bias to expect** none: the guide's family contains the posterior.
**Source** Blei, Kucukelbir and McAuliffe 2017, Variational inference: a review for statisticians, arXiv 1601.00670.
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
# # Gaussian mean
#
# A hundred measurements scatter around an unknown mean with a known standard deviation of 1:
#
# $$\mu \sim \mathcal N(0, 1), \qquad y_i \mid \mu \sim \mathcal N(\mu, 1), \quad i = 1, \dots, N.$$


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


# %% [markdown]
# ## The guide
#
# A guide is a family of distributions over the latent sites of the model, here $q(\mu) = \mathcal N(m, s^2)$, whose
# parameters $m$ and $s$ are chosen to maximise the evidence lower bound,
#
# $$\mathrm{ELBO}(m, s) = \mathbb E_q[\log p(y, \mu) - \log q(\mu)] = \log p(y) - \mathrm{KL}(q \,\|\, p(\mu \mid y)).$$
#
# It takes the arguments of the model, and samples every latent site under the name that it has in the model.


# %%
def guide(y=None, num_observations=1):
    """A Gaussian with free mean and standard deviation; it starts at the prior."""
    m = numpyro.param("m", 0.0)
    s = numpyro.param("s", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("mu", dist.Normal(m, s))


# %% [markdown]
# ## The fit
#
# Stochastic gradient ascent on the ELBO. A fixed rate never comes to rest, since the gradient is noisy: the rate decays
# from 0.1 to 0.0001, so that the start is quick and the end is quiet.


# %%
def fit(rng_key, y, num_observations=1, *, num_steps=2000):
    """Fit the guide.

    Returns:
        q: dict with the fitted Normal of `mu`.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.001 ** (step / num_steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=8))
    result = svi.run(rng_key, num_steps, y, progress_bar=False)
    fitted = handlers.seed(handlers.substitute(guide, result.params), rng_key)
    sites = handlers.trace(fitted).get_trace(y)
    return {name: site["fn"] for name, site in sites.items() if site["type"] == "sample"}, result.losses


# %% [markdown]
# ## The exact answer
#
# Prior and likelihood are conjugate. With $S = \sum_i y_i$,
#
# $$p(\mu \mid y) = \mathcal N\!\left(\frac{S}{N + 1}, \frac{1}{N + 1}\right), \qquad
# \log p(y) = -\tfrac N2 \log 2\pi - \tfrac12 \log(N + 1) - \tfrac12 \left(\sum_i y_i^2 - \frac{S^2}{N + 1}\right).$$
#
# The best $q$ *is* the posterior, so that at the optimum the ELBO equals $\log p(y)$, for every draw and without noise.


# %%
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
    q, losses = fit(random.key(0), **d)
    exact = exact_posterior(**d)["mu"]
    print(f"{'':<12}{'estimate':>12}{'exact':>12}")
    print(f"{'mean of mu':<12}{q['mu'].mean:12.5f}{exact.mean:12.5f}")
    print(f"{'sd of mu':<12}{q['mu'].variance ** 0.5:12.5f}{exact.variance**0.5:12.5f}")
    print(f"{'elbo':<12}{-jnp.mean(losses[-100:]):12.5f}{log_evidence(**d):12.5f}  log evidence")


if __name__ == "__main__":
    main()
