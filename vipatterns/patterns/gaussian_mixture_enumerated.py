# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "funsor"]
# ///
"""Gaussian mixture, enumerated: the labels stay in the model, NumPyro sums them out, and gives them back.

**Technique** mean-field, labels enumerated by NumPyro.
**Use when** a model has discrete latents that you would rather write down than sum by hand, or when you want the labels themselves.
**Avoid when** a label takes many values, or labels depend on one another in other ways than along a chain: the sum then explodes.
**Cost** seconds; a step costs N K as in gaussian_mixture, whose sum this is.
**Bias to expect** that of gaussian_mixture: one of the K! equal modes, its ELBO short of the evidence by log K!.
**Source** Obermeyer et al. 2019, Tensor variable elimination for plated factor graphs, arXiv 1902.03210.
"""

# %%
import math

import funsor  # noqa: F401  # what enumeration runs on: where it is missing, the import says so
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro import handlers
from numpyro.infer import SVI, Predictive, TraceEnum_ELBO

# %% [markdown]
# # Gaussian mixture, enumerated
#
# The model of the pattern `gaussian_mixture`, with its labels $z_i$ as a site:
#
# $$\mu_k \sim \mathcal N(0, 5), \qquad z_i \sim \mathrm{Uniform}\{1, \dots, K\}, \qquad y_i \mid z_i \sim \mathcal N(\mu_{z_i}, 1).$$
#
# `infer={"enumerate": "parallel"}` asks that the label be tried at all its $K$ values at once, on an axis of its own to the
# left of the plates, and summed out. Because the rows are independent in their plate, that is $N$ sums of $K$ terms, not
# one of $K^N$.

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
        z = numpyro.sample("z", equal, infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


# %% [markdown]
# ## The guide
#
# It has no site `z`: what is enumerated in the model is summed exactly, and needs no approximation.


# %%
def guide(y=None, num_components=3, num_observations=1):
    start = jnp.zeros(num_components) if y is None else jnp.quantile(y, (jnp.arange(num_components) + 0.5) / num_components)
    m = numpyro.param("mu_m", start)
    s = numpyro.param("mu_s", jnp.full(num_components, 0.5), constraint=dist.constraints.positive)
    with numpyro.plate("component", num_components):
        numpyro.sample("mu", dist.Normal(m, s))


# %% [markdown]
# ## The fit
#
# `TraceEnum_ELBO` enumerates; `Trace_ELBO` would draw the labels and follow a wrong gradient. `max_plate_nesting` says how
# many axes plates take, so that enumeration knows where its own axis begins. After the fit the labels come back: drawn
# from $p(z \mid \mu, y)$ for draws of $\mu$, which is their posterior under $q$.


# %%
def fit(rng_key, y, num_components=3, num_observations=1, *, num_steps=2000):
    """Fit the guide by Adam, its rate decaying from 0.1 to 0.0001.

    Returns:
        q: dict, `mu` -> fitted Normals, (K,), and `z` -> draws of the labels, (1000, N), 0 to K - 1.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.001 ** (step / num_steps))
    svi = SVI(model, guide, optimizer, TraceEnum_ELBO(num_particles=8, max_plate_nesting=1))
    result = svi.run(rng_key, num_steps, y, num_components, progress_bar=False)
    fitted = handlers.seed(handlers.substitute(guide, result.params), rng_key)
    mu = handlers.trace(fitted).get_trace(y, num_components)["mu"]["fn"]
    key_mu, key_z = random.split(rng_key)
    labels = Predictive(model, {"mu": mu.sample(key_mu, (1000,))}, infer_discrete=True)(key_z, y, num_components)["z"]
    return {"mu": mu, "z": labels}, result.losses


# %% [markdown]
# ## What the guide must get wrong
#
# The same as in `gaussian_mixture`, since the ELBO is the same: where groups stand apart, $q$ is the fixed point of
#
# $$r_{ik} \propto e^{-\frac12 [(y_i - m_k)^2 + s_k^2]}, \qquad s_k^{-2} = \sum_i r_{ik} + \tfrac1{25}, \qquad
# m_k = s_k^2 \sum_i r_{ik}\, y_i.$$
#
# Labels share the fate of the means: "row 1 is in component 0" is true in a third of the posterior, and certain under $q$.
# What does not depend on the names, whether rows 1 and 2 are in the *same* component, is right.


# %%
def documented_bias(y, num_components=3, num_observations=1):
    """Mean and sd of `mu` in the mode that the guide starts in: the fixed point above."""
    m, s = np.quantile(y, (np.arange(num_components) + 0.5) / num_components), np.full(num_components, 0.5)
    for _ in range(1000):
        log_r = -0.5 * ((y[:, None] - m) ** 2 + s**2)
        r = np.exp(log_r - log_r.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        s = (r.sum(0) + PRIOR_SD**-2) ** -0.5
        m = s**2 * (r.T @ y)
    return {"mu": (m, s)}


# %%
def main():
    d = data()
    (q, losses), (m, s) = fit(random.key(0), **d), documented_bias(**d)["mu"]
    print(f"{'':<8}{'mean':>10}{'best q':>10}{'sd':>10}{'best q':>10}{'rows':>8}")
    for k, row in enumerate(zip(q["mu"].mean, m, q["mu"].scale, s, strict=True)):
        print(f"{f'mu[{k}]':<8}" + "".join(f"{value:10.4f}" for value in row) + f"{(q['z'] == k).sum(1).mean():8.2f}")
    elbo, orders = -jnp.mean(losses[-100:]), math.log(math.factorial(d["num_components"]))
    print(f"elbo {elbo:.4f}; with log K! for the orders that q leaves out {elbo + orders:.4f}, log evidence -26.3625 (gaussian_mixture)")


if __name__ == "__main__":
    main()
