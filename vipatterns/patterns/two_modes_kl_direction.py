# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Two modes, one Gaussian: what each direction of the Kullback-Leibler divergence makes of them.

**Technique** reverse KL, and forward KL by weighted draws.
**Use when** you wonder why q sits in one mode and knows nothing of the other, or which divergence a method minimises.
**Avoid when** you need the posterior of a model with several modes: no single Gaussian is it, in either direction.
**Cost** seconds.
**Bias to expect** reverse: one mode, of share w, and an ELBO short by -log w; forward: mean and sd right, much mass where p has little.
**Source** Minka 2005, Divergence measures and message passing, MSR-TR-2005-173; forward fits: Bornschein and Bengio 2015, arXiv 1406.2751.
"""

# %%
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, nn, random, value_and_grad
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from scipy.optimize import minimize
from scipy.special import logsumexp

# %% [markdown]
# # Two modes, one Gaussian
#
# The target is a mixture of two Gaussians with unit sd, at $a_1$ and $a_2$, with shares $w_1$ and $w_2$:
#
# $$p(x) = w_1\, \mathcal N(x; a_1, 1) + w_2\, \mathcal N(x; a_2, 1).$$
#
# There are no data; $p$ is normalised, and the log evidence is 0. The divergence between $p$ and a Gaussian $q$ has two directions:
#
# $$\mathrm{KL}(q \,\|\, p) = \mathbb E_q \log\frac{q}{p} = -\mathrm{ELBO}, \qquad \mathrm{KL}(p \,\|\, q) = \mathbb E_p \log\frac{p}{q}.$$
#
# The first punishes $q$ where $p$ is small, so $q$ shuns the gap: it seeks a mode. The second punishes $q$ for being small
# where $p$ is not, so $q$ must reach everywhere: it covers the mass.


# %%
def data(frame=None):
    """Nothing is observed: `modes`, (2,), in units of their sd, and `shares`, (2,), in any unit. A table has no use here."""
    return {"modes": np.array([-4.0, 4.0]), "shares": np.array([0.5, 0.5])}


def model(modes, shares):
    numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(probs=shares / jnp.sum(shares)), dist.Normal(modes, 1.0)))


# %% [markdown]
# ## The guide
#
# One Gaussian, which starts between the modes, half the way from the middle to the second one. From the middle itself it would
# grow wide and stay there: the reverse direction has a third optimum, across both modes, with a lower ELBO.


# %%
def guide(modes, shares):
    m = numpyro.param("m", modes @ jnp.array([0.25, 0.75]))
    numpyro.sample("x", dist.Normal(m, numpyro.param("s", 1.0, constraint=dist.constraints.positive)))


def fit(rng_key, modes, shares, *, num_steps=2000):
    """Fit the guide in the reverse direction, as ever: by Adam, its rate decaying from 0.1 to 0.0001.

    Returns:
        q: dict, `x` -> fitted Normal.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.001 ** (step / num_steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=32))
    result = svi.run(rng_key, num_steps, modes, shares, progress_bar=False)
    fitted = handlers.seed(handlers.substitute(guide, result.params), rng_key)
    return {"x": handlers.trace(fitted).get_trace(modes, shares)["x"]["fn"]}, result.losses


# %% [markdown]
# ## The other direction
#
# $\mathrm{KL}(p \,\|\, q)$ is an average over $p$, which cannot be drawn from. But for a constant it is $-\mathbb E_p \log q$, and
# that takes any draws $x_i \sim r$ that reach all of $p$, weighted by $p(x_i) / r(x_i)$, the weights made to sum to 1: self-normalised
# importance sampling. Here $r$ is $q$ itself, which starts wide; its parameters, not its draws, take the gradient. A constant
# factor of $p$ cancels, so an unnormalised joint density does. A proposal that misses a mode would not know.


# %%
def fit_forward(rng_key, modes, shares, *, num_steps=1000):
    """Fit the same Gaussian in the forward direction, from N(0, 10), with 1,000 weighted draws a step.

    Returns:
        q: dict, `x` -> fitted Normal.
        losses: (num_steps,), estimates of -E_p log q in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.001 ** (step / num_steps))
    target = handlers.trace(handlers.seed(model, rng_key)).get_trace(modes, shares)["x"]["fn"]

    def loss(params, x):
        log_q = dist.Normal(params[0], jnp.exp(params[1])).log_prob(x)
        weight = lax.stop_gradient(nn.softmax(target.log_prob(x) - log_q))
        return -jnp.sum(weight * log_q)

    def step(state, key):
        m, log_s = params = optimizer.get_params(state)
        value, gradient = value_and_grad(loss)(params, m + jnp.exp(log_s) * random.normal(key, (1000,)))
        return optimizer.update(gradient, state, value=value), value

    state, losses = lax.scan(step, optimizer.init((jnp.array(0.0), jnp.log(10.0))), random.split(rng_key, num_steps))
    m, log_s = optimizer.get_params(state)
    return {"x": dist.Normal(m, jnp.exp(log_s))}, losses


# %% [markdown]
# ## What each must give
#
# **Forward**: setting the gradient of $\mathbb E_p \log q$ to zero matches moments, so $q$ has the mean and the variance of $p$,
#
# $$m = w_1 a_1 + w_2 a_2, \qquad s^2 = 1 + w_1 w_2 (a_1 - a_2)^2.$$
#
# **Reverse**: one integral, $\mathbb E_q \log p$, done on a grid, and a maximum over two numbers. Where the modes stand
# apart, $p = w_2\, \mathcal N(a_2, 1)$ wherever $q$ looks: $q$ becomes that mode, and its ELBO is $\log w_2$, for equal shares
# $-\log 2$. The ELBO of the forward fit is worse by far.


# %%
def log_density(x, modes, shares):
    """log p(x) in nats."""
    return logsumexp(-0.5 * (np.asarray(x)[..., None] - modes) ** 2, axis=-1, b=shares / np.sum(shares)) - 0.5 * math.log(2 * math.pi)


def elbo(m, s, modes, shares):
    """-KL(N(m, s) || p) in nats, by the trapezoid rule over ten sds on either side."""
    z = np.linspace(-10.0, 10.0, 4001)
    weight = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    return float(weight @ log_density(m + s * z, modes, shares)) + math.log(s) + 0.5 * math.log(2 * math.pi * math.e)


def documented_bias(modes, shares):
    """Mean and sd of `x` under the best Gaussian of the reverse direction, climbed to from where the guide starts."""
    best = minimize(lambda p: -elbo(p[0], math.exp(p[1]), modes, shares), [modes @ np.array([0.25, 0.75]), 0.0], method="BFGS")
    return {"x": (best.x[0], math.exp(best.x[1]))}


def best_forward(modes, shares):
    """Mean and sd of `x` under the best Gaussian of the forward direction: those of p."""
    w = shares / np.sum(shares)
    return {"x": (w @ modes, math.sqrt(1 + w[0] * w[1] * (modes[0] - modes[1]) ** 2))}


def exact_posterior(modes, shares):
    """`x`, the mixture itself."""
    return {"x": dist.MixtureSameFamily(dist.Categorical(probs=shares / np.sum(shares)), dist.Normal(modes, 1.0))}


def log_evidence(modes, shares):
    """The mixture is normalised: 0."""
    return 0.0


# %%
def main():
    d = data()
    print(f"{'':<9}{'mean':>10}{'best q':>10}{'sd':>10}{'best q':>10}{'elbo':>10}")
    for name, fitted, best in (("reverse", fit, documented_bias), ("forward", fit_forward, best_forward)):
        q, (m, s) = fitted(random.key(0), **d)[0]["x"], best(**d)["x"]
        print(f"{name:<9}{q.mean:10.4f}{m:10.4f}{q.scale:10.4f}{s:10.4f}{elbo(float(q.mean), float(q.scale), **d):10.4f}")
    p = exact_posterior(**d)["x"]
    share = d["shares"][1] / d["shares"].sum()
    print(f"{'exact':<9}{p.mean:10.4f}{'':10}{math.sqrt(p.variance):10.4f}; log of the second mode's share {math.log(share):.4f}")


if __name__ == "__main__":
    main()
