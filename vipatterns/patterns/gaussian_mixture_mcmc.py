# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Gaussian mixture by MCMC: Gibbs sampling beside VI, label switching shown and undone.

**Technique** Gibbs sampling with random relabelling.
**Use when** you want to know what VI left out of a mixture's posterior, or no single mode of it will do.
**Avoid when** rows are many: a sweep passes over all of them, and thousands of sweeps are needed where VI takes a few updates.
**Cost** seconds; a sweep costs N K, with N rows and K components, and groups that overlap take many more of them.
**Bias to expect** none in the long run, over all K! modes; undone by sorting, label switching leaves the means of the ordered components.
**Source** Diebolt, Robert 1994, doi 10.1111/j.2517-6161.1994.tb01985.x; names: Fruehwirth-Schnatter 2001, doi 10.1198/016214501750333063.
"""

# %%
import itertools
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro import handlers
from scipy.special import logsumexp, softmax

# %% [markdown]
# # Gaussian mixture by MCMC
#
# The model and the rows of `gaussian_mixture`:
#
# $$\mu_k \sim \mathcal N(0, 5), \qquad p(y_i \mid \mu) = \frac1K \sum_k \mathcal N(y_i; \mu_k, 1).$$
#
# No name of a component is better than another, so the posterior has $K!$ copies of one mode. VI describes one of them. A
# sampler that moves a little at a time, such as NUTS, also stays in one where groups stand apart, and says nothing of it.

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
# Here it is where a chain starts: one Gaussian for every mean, about the quantiles of the data. `best_guide` is what VI
# would make of it, by coordinate ascent,
#
# $$r_{ik} \propto e^{-\frac12 [(y_i - m_k)^2 + s_k^2]}, \qquad s_k^{-2} = \sum_i r_{ik} + \tfrac1{25}, \qquad
# m_k = s_k^2 \sum_i r_{ik}\, y_i.$$


# %%
def guide(y=None, num_components=3, num_observations=1):
    start = jnp.zeros(num_components) if y is None else jnp.quantile(y, (jnp.arange(num_components) + 0.5) / num_components)
    m = numpyro.param("mu_m", start)
    s = numpyro.param("mu_s", jnp.full(num_components, 0.5), constraint=dist.constraints.positive)
    with numpyro.plate("component", num_components):
        numpyro.sample("mu", dist.Normal(m, s))


def best_guide(y, num_components=3):
    """Mean and sd, (K,) each, of VI's best Gaussians in the mode that the guide starts in."""
    m, s = np.quantile(y, (np.arange(num_components) + 0.5) / num_components), np.full(num_components, 0.5)
    for _ in range(1000):
        r = softmax(-0.5 * ((y[:, None] - m) ** 2 + s**2), axis=1)
        s = (r.sum(0) + PRIOR_SD**-2) ** -0.5
        m = s**2 * (r.T @ y)
    return m, s


# %% [markdown]
# ## The sampler
#
# A sweep draws the labels given the means, and the means given the labels; $n_k$ rows have label $k$, and $S_k$ is their sum:
#
# $$z_i \mid \mu, y \sim \mathrm{Categorical}\big(\propto \mathcal N(y_i; \mu_k, 1)\big), \qquad
# \mu_k \mid z, y \sim \mathcal N\!\Big(\frac{S_k}{n_k + 1/25}, \frac1{n_k + 1/25}\Big).$$
#
# Then it gives the components new names at random. The posterior does not change under that, so the step is a draw from it
# that costs nothing, and it is the one that visits all $K!$ modes.


# %%
def sweep(key, mu, y):
    """(K,) -> (K,): labels, means, names; leaves the posterior of `mu` as it is."""
    key_z, key_mu, key_name = random.split(key, 3)
    z = random.categorical(key_z, -0.5 * (y[:, None] - mu) ** 2)
    member = z[:, None] == jnp.arange(len(mu))
    var = 1 / (member.sum(0) + PRIOR_SD**-2)
    mu = var * jnp.sum(member * y[:, None], axis=0) + jnp.sqrt(var) * random.normal(key_mu, mu.shape)
    return random.permutation(key_name, mu)


def fit(rng_key, y, num_components=3, num_observations=1, *, num_steps=10_000):
    """One chain of `num_steps` sweeps, from a draw of the guide.

    Returns:
        q: dict, `mu` -> draws, (num, K), under all names; the first tenth of the sweeps is left out.
        losses: (num_steps,), -log p(y, mu) after every sweep, in nats. Nothing is minimised: a trace that drifts has not settled.
    """
    key_start, key_chain = random.split(rng_key)
    y = jnp.asarray(y)
    start = handlers.trace(handlers.seed(guide, key_start)).get_trace(y, num_components)["mu"]["value"]

    def step(mu, key):
        mu = sweep(key, mu, y)
        log_y = jnp.sum(dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(len(mu))), dist.Normal(mu, 1.0)).log_prob(y))
        return mu, (mu, -log_y - jnp.sum(dist.Normal(0.0, PRIOR_SD).log_prob(mu)))

    _, (draws, losses) = lax.scan(step, start, random.split(key_chain, num_steps))
    return {"mu": draws[num_steps // 10 :]}, losses


# %% [markdown]
# ## The exact answer
#
# Given all labels the means are independent Gaussians and $p(y, z)$ has a closed form, so that ten rows and three components
# take a sum over $3^{10} = 59049$ assignments. Every $\mu_k$ has the same posterior, one bump per group. Sorting each draw
# gives the bumps names again, the lowest mean, the middle one, the highest: there, and only there, VI can be compared.


# %%
def assignments(y, num_components):
    """Of every assignment: log p(y, z), (K^N,); mean and variance of each mu_k given it, (K^N, K)."""
    if num_components ** len(y) > 1e6:
        raise ValueError(f"{num_components} components and {len(y)} rows are too many to enumerate: compare chains with one another")
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


# %%
def main():
    d = data()
    (q, _), exact, (m, s) = fit(random.key(0), **d), exact_posterior(**d)["mu"], best_guide(d["y"])
    orders, counts = np.unique(np.argsort(q["mu"], axis=1), axis=0, return_counts=True)
    print(f"{len(orders)} of {math.factorial(3)} orders visited, from {counts.min()} to {counts.max()} draws each")
    print(f"{'':<14}{'mean':>9}{'exact':>9}{'VI':>9}{'sd':>11}{'exact':>9}{'VI':>9}")
    for what, a, b in (("as drawn", q["mu"], exact), ("sorted", np.sort(q["mu"], axis=1), np.sort(exact, axis=1))):
        for k in range(a.shape[1]):
            row = a[:, k].mean(), b[:, k].mean(), m[k], a[:, k].std(), b[:, k].std(), s[k]
            print(f"{f'{what} [{k}]':<14}" + "".join(f"{value:{11 if j == 3 else 9}.4f}" for j, value in enumerate(row)))


if __name__ == "__main__":
    main()
