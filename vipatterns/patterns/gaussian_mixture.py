# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Gaussian mixture: the labels summed out, and what is left of label switching.

**Technique** mean-field, labels summed out by hand.
**Use when** y falls into a known number of groups, which group each row is in is unknown, and means or densities are wanted.
**Avoid when** groups overlap so much that the posterior truly has several shapes: q takes one, and says nothing of the others.
**Cost** seconds; a step costs N K, with N rows and K components.
**Bias to expect** q describes one of the K! equal modes: right up to relabelling, its ELBO short of the evidence by log K!.
**Source** Blei, Kucukelbir and McAuliffe 2017, sections 3 and 5.1, arXiv 1601.00670; labels: Stephens 2000, doi 10.1111/1467-9868.00265.
"""

# %%
import itertools
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from scipy.special import logsumexp, softmax

# %% [markdown]
# # Gaussian mixture
#
# Each row comes from one of $K$ components, all equally likely a priori; only the components' means are unknown:
#
# $$\mu_k \sim \mathcal N(0, 5), \qquad z_i \sim \mathrm{Uniform}\{1, \dots, K\}, \qquad y_i \mid z_i \sim \mathcal N(\mu_{z_i}, 1).$$
#
# A discrete $z_i$ has no gradient. Nor is it needed: summed out, it leaves a density that is smooth in $\mu$,
#
# $$p(y_i \mid \mu) = \frac1K \sum_k \mathcal N(y_i; \mu_k, 1).$$

# %%
PRIOR_SD = 5.0


def data(frame=None):
    """Measurements `y`, (N,), in units of the components' sd, `num_components`, K, and `num_observations`, N.

    `y` is a table's column of that name; without a table, ten numbers in three groups.
    """
    if frame is None:
        frame = {"y": [-5.1, -4.7, -5.3, -0.2, 0.1, 0.4, -0.1, 4.8, 5.0, 5.5]}
    return {"y": np.asarray(frame["y"], float), "num_components": 3, "num_observations": len(frame["y"])}


def model(y=None, num_components=3, num_observations=1):
    """`num_observations` is read only where `y` is None: that many are then predicted."""
    with numpyro.plate("component", num_components):
        mu = numpyro.sample("mu", dist.Normal(0.0, PRIOR_SD))
    equal = dist.Categorical(probs=jnp.full(num_components, 1 / num_components))
    with numpyro.plate("observation", num_observations if y is None else len(y)):
        numpyro.sample("y", dist.MixtureSameFamily(equal, dist.Normal(mu, 1.0)), obs=y)


# %% [markdown]
# ## The guide
#
# One Gaussian for every mean. All components start alike in the prior, and from equal starts they would stay alike: the
# means start at quantiles of the data instead. Which of the $K!$ orders is found is decided there.


# %%
def guide(y=None, num_components=3, num_observations=1):
    start = jnp.zeros(num_components) if y is None else jnp.quantile(y, (jnp.arange(num_components) + 0.5) / num_components)
    m = numpyro.param("mu_m", start)
    s = numpyro.param("mu_s", jnp.full(num_components, 0.5), constraint=dist.constraints.positive)
    with numpyro.plate("component", num_components):
        numpyro.sample("mu", dist.Normal(m, s))


def fit(rng_key, y, num_components=3, num_observations=1, *, num_steps=2000):
    """Fit the guide by Adam, its rate decaying from 0.1 to 0.0001.

    Returns:
        q: dict with the fitted Normals of `mu`, (K,).
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.001 ** (step / num_steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=8))
    result = svi.run(rng_key, num_steps, y, num_components, progress_bar=False)
    fitted = handlers.seed(handlers.substitute(guide, result.params), rng_key)
    sites = handlers.trace(fitted).get_trace(y, num_components)
    return {name: site["fn"] for name, site in sites.items() if site["type"] == "sample"}, result.losses


# %% [markdown]
# ## The exact answer
#
# Given all labels the means are independent Gaussians. With $n_k$ rows in component $k$ and $S_k$ their sum,
#
# $$\mu_k \mid z, y \sim \mathcal N\!\Big(\frac{S_k}{n_k + 1/25}, \frac1{n_k + 1/25}\Big),$$
#
# and $p(y, z)$ has a closed form, so that ten rows and three components take a sum over $3^{10} = 59049$ assignments. Every
# $\mu_k$ has the same posterior, with one bump per group: its mean is the same for all, and tells none from another.
#
# ## What the guide must get wrong
#
# It takes one of the $3!$ modes, which hold a sixth of the posterior each. Where groups stand apart, the best Gaussian in
# one mode is the fixed point of coordinate ascent,
#
# $$r_{ik} \propto e^{-\frac12 [(y_i - m_k)^2 + s_k^2]}, \qquad s_k^{-2} = \sum_i r_{ik} + \tfrac1{25}, \qquad
# m_k = s_k^2 \sum_i r_{ik}\, y_i.$$


# %%
def assignments(y, num_components):
    """Of every assignment: log p(y, z), (K^N,); mean and variance of each mu_k given it, (K^N, K)."""
    if num_components ** len(y) > 1e6:
        raise ValueError(f"{num_components} components and {len(y)} rows are too many to enumerate: compare with NUTS")
    z = np.array(list(itertools.product(range(num_components), repeat=len(y))))
    member = z[:, :, None] == np.arange(num_components)
    var = 1 / (member.sum(1) + PRIOR_SD**-2)
    m = var * np.einsum("aik,i->ak", member, y)
    log_p = 0.5 * np.sum(np.log(var / PRIOR_SD**2) + m**2 / var, axis=1)
    return log_p - 0.5 * np.sum(y**2 + np.log(2 * np.pi * num_components**2)), m, var


def exact_posterior(y, num_components=3, num_observations=1):
    """100,000 draws of `mu`, (100000, K): assignments in proportion to their probability, then the means given them."""
    log_p, m, var = assignments(y, num_components)
    u = (np.arange(100_000) + 0.5) / 100_000  # evenly spread, so that the assignments have no Monte Carlo error
    which = np.minimum(np.searchsorted(np.cumsum(softmax(log_p)), u), len(log_p) - 1)
    return {"mu": np.random.default_rng(0).normal(m[which], np.sqrt(var[which]))}


def log_evidence(y, num_components=3, num_observations=1):
    """log p(y) in nats."""
    return float(logsumexp(assignments(y, num_components)[0]))


def documented_bias(y, num_components=3, num_observations=1):
    """Mean and sd of `mu` in the mode that the guide starts in: the fixed point above."""
    m, s = np.quantile(y, (np.arange(num_components) + 0.5) / num_components), np.full(num_components, 0.5)
    for _ in range(1000):
        r = softmax(-0.5 * ((y[:, None] - m) ** 2 + s**2), axis=1)
        s = (r.sum(0) + PRIOR_SD**-2) ** -0.5
        m = s**2 * (r.T @ y)
    return {"mu": (m, s)}


# %%
def main():
    d = data()
    (q, losses), exact, best = fit(random.key(0), **d), exact_posterior(**d)["mu"], documented_bias(**d)["mu"]
    ordered = np.sort(exact, axis=1)  # one name for each bump: the lowest mean, the middle one, the highest
    print(f"{'':<8}{'mean':>9}{'best q':>9}{'ordered':>9}{'exact':>9}{'sd':>11}{'best q':>9}{'ordered':>9}{'exact':>9}")
    rows = (q["mu"].mean, best[0], ordered.mean(0), exact.mean(0), q["mu"].scale, best[1], ordered.std(0), exact.std(0))
    for k, row in enumerate(zip(*rows, strict=True)):
        print(f"{f'mu[{k}]':<8}" + "".join(f"{value:{11 if j == 4 else 9}.4f}" for j, value in enumerate(row)))
    short = math.log(math.factorial(d["num_components"]))
    print(f"elbo {-jnp.mean(losses[-100:]):.4f} + log K! {short:.4f}, log evidence {log_evidence(**d):.4f}")


if __name__ == "__main__":
    main()
