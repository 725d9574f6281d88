# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Rare events, importance weighted: several draws to one bound, and a guide that learns to be a good proposal.

**Technique** Gaussian, importance-weighted bound (IWAE).
**Use when** q is to be reweighted or resampled afterwards, or the ELBO is too loose a bound on the evidence.
**Avoid when** q itself is to be the answer: it is fitted to cover the posterior, and comes out wider.
**Cost** a few seconds; K evaluations of the model to each value of the bound.
**Bias to expect** the best q is computed below by quadrature: wider than the best ELBO guide, here wider than the posterior too.
**Source** Burda et al. 2016, arXiv 1509.00519; its gradient: Tucker et al. 2019, arXiv 1810.04152; on the data: arXiv astro-ph/0301603.
"""

# %%
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer.util import log_density
from scipy.optimize import minimize
from scipy.special import gammaincinv, gammaln, logsumexp

# %% [markdown]
# # Rare events by the importance-weighted bound
#
# The last supernova in our galaxy that anyone saw flared up in 1604. How many a century, from the four centuries since 1600?
# With $z$ the logarithm of the rate,
#
# $$e^z \sim \mathrm{Gamma}(\tfrac12, \tfrac12), \qquad y_i \mid z \sim \mathrm{Poisson}(e^z), \quad i = 1, \dots, N.$$
#
# With so few events the posterior of $z$ has a long tail towards minus infinity: a rate is hard to tell from none at all.

# %%
A0, B0 = 0.5, 0.5
PARTICLES = 8


def data(frame=None):
    """Counts `y`, (N,), in supernovae a century, and `num_observations`, N; from a table column `y`."""
    y = [1, 0, 0, 0] if frame is None else frame["y"]
    return {"y": np.asarray(y, int), "num_observations": len(y)}


def model(y=None, num_observations=1):
    """`num_observations` is read only where `y` is None: that many are then predicted."""
    log_of_gamma = dist.TransformedDistribution(dist.Gamma(A0, B0), dist.transforms.ExpTransform().inv)
    log_rate = numpyro.sample("log_rate", log_of_gamma)
    with numpyro.plate("century", num_observations if y is None else len(y)):
        numpyro.sample("y", dist.Poisson(jnp.exp(log_rate)), obs=y)


def guide(y=None, num_observations=1):
    """N(m, s^2) on the log rate; the free number is log s."""
    m, log_s = numpyro.param("m", 0.0), numpyro.param("log_s", 0.0)
    numpyro.sample("log_rate", dist.Normal(m, jnp.exp(log_s)))


# %% [markdown]
# ## The bound
#
# The mean of $K$ importance weights is unbiased for the evidence, and by Jensen its logarithm lies below it on average:
#
# $$\mathcal L_K = \mathbb E \log \frac1K \sum_{k=1}^K w_k \le \log p(y), \qquad w_k = \frac{p(y, z_k)}{q(z_k)}, \quad z_k \sim q.$$
#
# $\mathcal L_1$ is the ELBO; $\mathcal L_K$ does not decrease in $K$ and tends to $\log p(y)$. With $\tilde w_k = w_k / \sum_j w_j$ and
# $z_k = m + s \varepsilon_k$, its gradient in $v = (m, \log s)$ is *doubly reparameterised*: without $\log q$'s own dependence
# on $v$, for which the weights are squared, it is $\mathbb E \sum_k \tilde w_k^2 \, (\partial z_k / \partial v) \, \partial_z \log w_k$.


# %%
def log_weight(params, noise, y):
    """log w at the draw that `noise` makes; its derivative reaches log q through the draw alone."""
    z = params["m"] + jnp.exp(params["log_s"]) * noise
    of_q = lax.stop_gradient(params)
    return log_density(model, (y,), {}, {"log_rate": z})[0] - log_density(guide, (y,), {}, of_q | {"log_rate": z})[0]


def loss(params, noise, y):
    """-L_K estimated from `noise`, (groups, K); its gradient is the doubly reparameterised one."""
    log_w = jax.vmap(jax.vmap(lambda each: log_weight(params, each, y)))(noise)
    share = lax.stop_gradient(jax.nn.softmax(log_w, axis=1))
    surrogate = jnp.mean(jnp.sum(share**2 * log_w, axis=1))
    estimate = jnp.mean(jax.nn.logsumexp(log_w, axis=1)) - math.log(noise.shape[1])
    return -(surrogate + lax.stop_gradient(estimate - surrogate))


def fit(rng_key, y, num_observations=1, *, num_steps=3000):
    """Ascend L_K, K = PARTICLES, by Adam, its rate decaying from 0.1 to 0.001; a step averages 32 estimates.

    Returns:
        q: dict with the fitted Normal of `log_rate`.
        losses: (num_steps,), -L_K in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.01 ** (step / num_steps))

    def step(state, key):
        value, gradient = jax.value_and_grad(loss)(optimizer.get_params(state), random.normal(key, (32, PARTICLES)), y)
        return optimizer.update(gradient, state), value

    start = {"m": jnp.zeros(()), "log_s": jnp.zeros(())}
    state, losses = lax.scan(step, optimizer.init(start), random.split(rng_key, num_steps))
    params = optimizer.get_params(state)
    return {"log_rate": dist.Normal(params["m"], jnp.exp(params["log_s"]))}, losses


# %% [markdown]
# ## The exact answers
#
# The posterior of the rate is $\mathrm{Gamma}(a, b)$, $a = \tfrac12 + \sum_i y_i$, $b = \tfrac12 + N$. The best ELBO guide has
# $s = 1/\sqrt a$ and $m = \log(a / b) - 1/(2a)$. For any $K$, let $\phi(t) = \mathbb E\, e^{-t w}$: an integral over one draw. Since
# $\log S = \int_0^\infty (e^{-t} - e^{-t S})\, \mathrm d t / t$ and $1 / S = \int_0^\infty e^{-t S}\, \mathrm d t$,
#
# $$\mathcal L_K = \int_0^\infty \big(e^{-t} - \phi(t / K)^K\big) \frac{\mathrm d t}{t}, \qquad
# q_K(z) = q(z)\, w(z)\, K \int_0^\infty e^{-t\, w(z)}\, \phi(t)^{K - 1}\, \mathrm d t,$$
#
# where $q_K$ is the law of one draw resampled from $K$ by weight. It tends to the posterior.

# %%
NOISE = np.linspace(-8.0, 8.0, 161)
WEIGHT = np.exp(-(NOISE**2) / 2) / np.sum(np.exp(-(NOISE**2) / 2))
LOG_T = np.arange(-40.0, 200.0, 0.25)


def log_w(m, s, y):
    """log p(y, z) - log q(z) at z = m + s NOISE."""
    z = m + s * NOISE
    log_p = A0 * math.log(B0) - gammaln(A0) - np.sum(gammaln(y + 1)) + (A0 + np.sum(y)) * z - (B0 + len(y)) * np.exp(z)
    return log_p + NOISE**2 / 2 + math.log(s) + math.log(2 * math.pi) / 2


def bound(log_w, k):
    """L_k where the weights are exp(log_w) with probabilities WEIGHT."""
    if k == 1:
        return WEIGHT @ log_w
    log_mean = logsumexp(log_w, b=WEIGHT)
    phi = np.exp(-np.exp(LOG_T[:, None] + log_w - log_mean - math.log(k))) @ WEIGHT
    return log_mean + 0.25 * np.sum(np.exp(-np.exp(LOG_T)) - phi**k)


def resampled(log_w, k):
    """Probabilities of the nodes for one draw resampled from k."""
    log_tw = LOG_T[:, None] + log_w - logsumexp(log_w, b=WEIGHT)
    phi = np.exp(-np.exp(log_tw)) @ WEIGHT
    return WEIGHT * k * 0.25 * (phi ** (k - 1) @ np.exp(log_tw - np.exp(log_tw)))


def best(y, k):
    """m and s of the guide with the greatest L_k, searched from the best ELBO guide."""
    a, b = A0 + np.sum(y), B0 + len(y)
    start = [math.log(a / b) - 1 / (2 * a), -math.log(a) / 2]
    m, log_s = minimize(lambda p: -bound(log_w(p[0], math.exp(p[1]), y), k), start, method="BFGS").x
    return m, math.exp(log_s)


def documented_bias(y, num_observations=1):
    """Mean and sd of `log_rate` under the guide with the greatest L_K."""
    return {"log_rate": best(y, PARTICLES)}


def exact_posterior(y, num_observations=1):
    """100,000 evenly spread draws of `log_rate`, (100000,)."""
    quantile = (np.arange(100_000) + 0.5) / 100_000
    return {"log_rate": np.log(gammaincinv(A0 + np.sum(y), quantile) / (B0 + len(y)))}


def log_evidence(y, num_observations=1):
    """log p(y) in nats."""
    a, b = A0 + np.sum(y), B0 + len(y)
    return float(A0 * math.log(B0) - a * math.log(b) + gammaln(a) - gammaln(A0) - np.sum(gammaln(y + 1)))


# %%
def main():
    d = data()
    (q, losses), exact, y = fit(random.key(0), **d), exact_posterior(**d)["log_rate"], d["y"]
    m, s = float(q["log_rate"].loc), float(q["log_rate"].scale)
    print(f"K = {PARTICLES}: m {m:.4f}, best {best(y, PARTICLES)[0]:.4f}; s {s:.4f}, best {best(y, PARTICLES)[1]:.4f}")
    print(f"L_K {-jnp.mean(losses[-500:]):.4f}, by quadrature {bound(log_w(m, s, y), PARTICLES):.4f}, log p {log_evidence(y):.4f}")
    print(f"{'K':>14}{'best s':>10}{'L_K':>10}{'mean':>10}{'sd':>10}  of a resampled draw")
    for k in (1, 2, 8, 64):
        p = resampled(log_w(*best(y, k), y), k)
        z = best(y, k)[0] + best(y, k)[1] * NOISE
        mean = p @ z
        print(f"{k:14d}{best(y, k)[1]:10.4f}{bound(log_w(*best(y, k), y), k):10.4f}{mean:10.4f}{(p @ (z - mean) ** 2) ** 0.5:10.4f}")
    print(f"{'the posterior':<34}{exact.mean():10.4f}{exact.std():10.4f}")


if __name__ == "__main__":
    main()
