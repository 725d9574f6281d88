# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Funnel: a scale that is itself unknown, and the formula for how badly mean-field misses it.

**Technique** mean-field, reparameterised gradients.
**Use when** you test a method, or wonder why the group sd of a hierarchical model comes out far too certain.
**Avoid when** the model is your own: there write x = exp(v / 2) z, and the funnel is gone.
**Cost** seconds.
**Bias to expect** v keeps its mean; its sd shrinks from 3 to sqrt(18 / (2 + 9 (D - 1))), 0.47 at D = 10, and goes on shrinking with D.
**Source** Neal 2003, Slice sampling, doi 10.1214/aos/1056562461, section 8.
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
# # Funnel
#
# One coordinate $v$ sets the scale of the $D - 1$ others:
#
# $$v \sim \mathcal N(0, 3), \qquad x_i \mid v \sim \mathcal N(0, e^{v/2}), \quad i = 1, \dots, D - 1.$$
#
# There are no data; the distribution itself is what is to be approximated. Its normalising constant is 1, so the log
# evidence is 0. Where $v = -6$ all $x_i$ lie within a twentieth of 0, where $v = 6$ they range over twenty.


# %%
def data(frame=None):
    """Nothing is observed: a dict with `num_dimensions` alone, D, v included. A table has no use here."""
    return {"num_dimensions": 10}


def model(num_dimensions=10):
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    with numpyro.plate("coordinate", num_dimensions - 1):
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)))


# %% [markdown]
# ## The guide
#
# Independent Gaussians. They are one box, as wide at the neck of the funnel as at its mouth. The sds of the $x_i$ are free in
# units of $e^{m/2}$, with $m$ the mean of $v$: the two trade places almost freely, and an optimiser that moves them one by one crawls.


# %%
def guide(num_dimensions=10):
    positive = dist.constraints.positive
    v_m, v_s = numpyro.param("v_m", 0.0), numpyro.param("v_s", 1.0, constraint=positive)
    numpyro.sample("v", dist.Normal(v_m, v_s))
    m = numpyro.param("x_m", jnp.zeros(num_dimensions - 1))
    s = numpyro.param("x_s", jnp.ones(num_dimensions - 1), constraint=positive)
    with numpyro.plate("coordinate", num_dimensions - 1):
        numpyro.sample("x", dist.Normal(m, jnp.exp(v_m / 2) * s))


def fit(rng_key, num_dimensions=10, *, num_steps=3000):
    """Fit the guide by Adam, its rate decaying from 0.1 to 0.0001.

    Returns:
        q: dict, `v` and `x` -> fitted Normals.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.001 ** (step / num_steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=64))
    result = svi.run(rng_key, num_steps, num_dimensions, progress_bar=False)
    fitted = handlers.seed(handlers.substitute(guide, result.params), rng_key)
    sites = handlers.trace(fitted).get_trace(num_dimensions)
    return {name: site["fn"] for name, site in sites.items() if site["type"] == "sample"}, result.losses


# %% [markdown]
# ## What the guide must get wrong
#
# With $q(v) = \mathcal N(m, s_v)$ and $q(x_i) = \mathcal N(0, s)$, and since $\mathbb E_q e^{-v} = e^{-m + s_v^2/2}$,
#
# $$\mathrm{ELBO} = -\frac{m^2 + s_v^2}{18} - \frac{D - 1}{2}\left(m + s^2 e^{-m + s_v^2/2} - \log s^2 - 1\right)
# + \log \frac{s_v}{3} + \frac12.$$
#
# The best $s^2$ is $e^{m - s_v^2/2}$. Put in, it leaves $-(m^2 + s_v^2)/18 - (D - 1) s_v^2 / 4 + \log s_v + \text{const}$, so that
#
# $$m = 0, \qquad s_v^2 = \frac{18}{2 + 9 (D - 1)}, \qquad s = e^{-s_v^2/4}, \qquad
# \mathrm{ELBO}^* = \tfrac12 \log \frac{2}{2 + 9 (D - 1)}.$$
#
# Every further coordinate pins $v$ more firmly, although none says anything about it.


# %%
def documented_bias(num_dimensions=10):
    """Mean and sd of `v` and `x` under the best q."""
    s_v = math.sqrt(18 / (2 + 9 * (num_dimensions - 1)))
    return {"v": (0.0, s_v), "x": (np.zeros(num_dimensions - 1), np.full(num_dimensions - 1, math.exp(-(s_v**2) / 4)))}


def exact_posterior(num_dimensions=10):
    """`v`, Normal, and 100,000 independent draws of `x`, (100000, D - 1)."""
    rng = np.random.default_rng(0)
    v = rng.normal(0.0, 3.0, (100_000, 1))
    return {"v": dist.Normal(0.0, 3.0), "x": np.exp(v / 2) * rng.normal(size=(100_000, num_dimensions - 1))}


def log_evidence(num_dimensions=10):
    """The funnel is normalised: 0."""
    return 0.0


# %%
def main():
    print(f"{'D':>3}{'sd of v':>10}{'predicted':>10}{'exact':>10}{'elbo':>10}{'predicted':>10}")
    for d in (2, 10):
        (q, losses), (_, s_v) = fit(random.key(0), d), documented_bias(d)["v"]
        elbo = -jnp.mean(losses[-500:]), 0.5 * math.log(2 / (2 + 9 * (d - 1)))
        print(f"{d:3d}{q['v'].variance ** 0.5:10.4f}{s_v:10.4f}{3.0:10.4f}{elbo[0]:10.4f}{elbo[1]:10.4f}")


if __name__ == "__main__":
    main()
