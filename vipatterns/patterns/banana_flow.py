# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Banana: a bent Gaussian, how much every Gaussian guide must lose on it, and a normalizing flow that bends too.

**Technique** normalizing flow: affine couplings.
**Use when** the posterior has one mode and is bent, so that no Gaussian fits, and q must still be cheap to draw from and to evaluate.
**Avoid when** modes are far apart (a continuous map leaves a bridge between them), or a change of variables in the model unbends it.
**Cost** seconds; a step costs particles x layers x hidden units.
**Bias to expect** the ends of the banana are reached last: sds may come out too small there; how far the ELBO is below log Z = 0 tells.
**Source** Haario et al. 1999, doi 10.1007/s001800050022; Rezende and Mohamed 2015, arXiv 1505.05770; Dinh et al. 2017, arXiv 1605.08803.
"""

# %%
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.infer import SVI, Predictive, Trace_ELBO

# %% [markdown]
# # Banana
#
# A Gaussian, long in one direction, bent by $b$:
#
# $$x_1 \sim \mathcal N(0, S), \qquad x_2 \mid x_1 \sim \mathcal N\big(b\,(S^2 - x_1^2),\ 1\big), \qquad S = 10.$$
#
# There are no data; the distribution itself is what is to be approximated. It is normalised, so the log evidence is 0. The two
# coordinates are uncorrelated and far from independent. Haario et al. bend by $b = 0.03$ and $0.1$; here the bend is gentler.

# %%
SD = 10.0
LAYERS, HIDDEN = 4, 16


def data(frame=None):
    """Nothing is observed: a dict with `bend` alone, b, in units of 1 / x. A table has no use here."""
    return {"bend": np.asarray(0.01)}


def model(bend=0.01):
    x1 = numpyro.sample("x1", dist.Normal(0.0, SD))
    numpyro.sample("x2", dist.Normal(bend * (SD**2 - x1**2), 1.0))


# %% [markdown]
# ## The guide
#
# A flow pushes $z \sim \mathcal N(0, I)$ through invertible maps. A coupling layer leaves one coordinate as it is, and scales and
# shifts the other by functions of the first; whatever these are, the layer is inverted by dividing and subtracting, and its log
# Jacobian determinant is the log scale:
#
# $$x_j \leftarrow x_j\, e^{s(x_i)} + t(x_i), \qquad (s, t) = W \big[\tanh(a \odot x_i + c),\ x_i\big] + d, \qquad
# \log q(x) = \log \mathcal N(z; 0, I) - \sum_{\text{layers}} s.$$
#
# The coordinates take turns. One layer with a quadratic $t$ would be the banana itself; these know nothing of quadratics, they are
# smooth steps spread over the range of $z$. In NumPyro the guide draws $z$ as a site of its own, marked auxiliary, and hands
# $x$ to the model's sites as points whose log density is that of the map.


# %%
def guide(bend=0.01):
    """Starts as N(0, 5) in both coordinates: all couplings shift by 0 and scale by 1."""
    slope = numpyro.param("slope", jnp.ones((LAYERS, HIDDEN)))
    offset = numpyro.param("offset", jnp.tile(jnp.linspace(-3.0, 3.0, HIDDEN), (LAYERS, 1)))
    weight = numpyro.param("weight", jnp.zeros((LAYERS, 2, HIDDEN + 1)))
    bias = numpyro.param("bias", jnp.zeros((LAYERS, 2)))
    centre, log_scale = numpyro.param("centre", jnp.zeros(2)), numpyro.param("log_scale", jnp.full(2, math.log(5.0)))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1), infer={"is_auxiliary": True})
    x, log_det = [z[0], z[1]], jnp.sum(log_scale)
    for k in range(LAYERS):
        i, j = k % 2, 1 - k % 2
        s, t = weight[k] @ jnp.append(jnp.tanh(slope[k] * x[i] + offset[k]), x[i]) + bias[k]
        x[j] = x[j] * jnp.exp(s) + t
        log_det += s
    x1, x2 = centre + jnp.exp(log_scale) * jnp.stack(x)
    numpyro.sample("x1", dist.Delta(x1, log_density=-log_det))
    numpyro.sample("x2", dist.Delta(x2))


def fit(rng_key, bend=0.01, *, num_steps=3000):
    """Fit the flow by Adam, its rate decaying from 0.02 to 0.00002; many particles, for the ends of the banana are rarely visited.

    Returns:
        q: dict, `x1` and `x2` -> draws, (20000,).
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    key_fit, key_draw = random.split(rng_key)
    optimizer = numpyro.optim.Adam(lambda step: 0.02 * 0.001 ** (step / num_steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=256))
    result = svi.run(key_fit, num_steps, bend, progress_bar=False)
    draws = Predictive(guide, params=result.params, num_samples=20_000)(key_draw, bend)
    return {name: draws[name] for name in ("x1", "x2")}, result.losses


# %% [markdown]
# ## The exact answer
#
# $\mathbb E x_2 = 0$ and $\mathrm{var}\, x_2 = 1 + 2 b^2 S^4$; its density has no name, so it comes as draws.
#
# ## What every Gaussian must get wrong
#
# Let $q(x_1) = \mathcal N(m, \sqrt t)$ and $q(x_2 \mid x_1)$ be any line in $x_1$ plus noise. The part of $x_1^2$ that a line cannot follow
# has variance $2 t^2$, and
#
# $$\mathrm{ELBO} = \tfrac12 \Big(\log\frac{t}{S^2} + 1 - \frac{m^2 + t}{S^2} - 2 b^2 t^2\Big), \qquad
# m = 0, \quad t = \frac{\sqrt{1 + 16\, b^2 S^4} - 1}{8\, b^2 S^2}.$$
#
# At $m = 0$ the best line is flat: the full-rank Gaussian is the mean-field one, and a covariance matrix buys nothing.


# %%
def best_gaussian(bend=0.01):
    """sd of x1, mean of x2, and the ELBO in nats of the best Gaussian, with or without correlations; x1 has mean 0, x2 has sd 1."""
    b = float(bend)
    t = 2 * SD**2 / (1 + math.sqrt(1 + 16 * b**2 * SD**4))  # the formula's root, written so that b may be 0
    return math.sqrt(t), b * (SD**2 - t), 0.5 * (math.log(t / SD**2) + 1 - t / SD**2 - 2 * b**2 * t**2)


def exact_posterior(bend=0.01):
    """`x1`, Normal, and 100,000 independent draws of `x2`, (100000,)."""
    noise, u = np.random.default_rng(0).normal(size=(2, 100_000))
    return {"x1": dist.Normal(0.0, SD), "x2": bend * SD**2 * (1 - u**2) + noise}


def log_evidence(bend=0.01):
    """The banana is normalised: 0."""
    return 0.0


# %%
def main():
    d = data()
    (q, losses), (sd, mean, elbo) = fit(random.key(0), **d), best_gaussian(**d)
    exact = {"x1": (0.0, SD), "x2": (0.0, math.sqrt(1 + 2 * (d["bend"] * SD**2) ** 2))}
    gaussian = {"x1": (0.0, sd), "x2": (mean, 1.0)}
    print(f"{'':<6}{'mean':>10}{'gaussian':>10}{'exact':>10}{'sd':>10}{'gaussian':>10}{'exact':>10}")
    for site, draws in q.items():
        row = (draws.mean(), gaussian[site][0], exact[site][0], draws.std(), gaussian[site][1], exact[site][1])
        print(f"{site:<6}" + "".join(f"{value:10.3f}" for value in row))
    print(f"elbo {-jnp.mean(losses[-300:]):.4f}, of the best gaussian {elbo:.4f}, log evidence {log_evidence():.4f}")


if __name__ == "__main__":
    main()
