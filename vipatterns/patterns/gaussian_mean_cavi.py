# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Gaussian mean and precision by coordinate ascent: each factor of q set to its optimum in turn, without a gradient.

**Technique** mean-field, coordinate ascent (CAVI).
**Use when** you want to see where coordinate ascent comes from, on the smallest model in which two factors wait for each other.
**Avoid when** a factor's optimum has no closed form: gaussian_mean_precision fits the same guide by gradients, as any model can be.
**Cost** under a second; a sweep costs one pass over the data, and each sweep shrinks the error by a factor of order N.
**Bias to expect** that of any factorised q: both means exact, var(mu) too small by (a - 1) / a, var(tau) by a / (a + 1/2), a = (N + 1) / 2.
**Source** Bishop 2006, Pattern Recognition and Machine Learning, section 10.1.3; Blei et al. 2017, section 2.4, arXiv 1601.00670.
"""

# %%
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.scipy.special import digamma, gammaln
from numpyro import handlers

# %% [markdown]
# # Gaussian mean and precision by coordinate ascent
#
# The model and the data of `gaussian_mean_precision`: how many hours longer each of ten patients slept on a drug, neither
# the mean $\mu$ nor the precision $\tau = 1 / \mathrm{sd}^2$ known:
#
# $$\tau \sim \mathrm{Gamma}(a_0, b_0), \quad \mu \mid \tau \sim \mathcal N\big(0, (\lambda_0 \tau)^{-1/2}\big), \quad
# y_i \sim \mathcal N(\mu, \tau^{-1/2}), \quad a_0 = b_0 = \tfrac12,\ \lambda_0 = \tfrac1{10}.$$

# %%
A0, B0, LAMBDA0 = 0.5, 0.5, 0.1


def data(frame=None):
    """Measurements `y`, (N,), in hours, and `num_observations`, N; `y` is a table's column of that name."""
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
# $q(\mu, \tau) = q(\mu)\, q(\tau)$, and nothing else is assumed. Hold one factor, and the best other one is known:
#
# $$\log q^*(\mu) = \mathbb E_{q(\tau)} \log p(y, \mu, \tau) + \text{const}, \qquad
# \log q^*(\tau) = \mathbb E_{q(\mu)} \log p(y, \mu, \tau) + \text{const}.$$
#
# The first is a quadratic in $\mu$, so $q(\mu)$ is Gaussian; the second has a $\log \tau$ and a $\tau$, so $q(\tau)$ is a
# gamma. The families are found, not chosen. With $\lambda = \lambda_0 + N$,
#
# $$q(\mu) = \mathcal N\Big(m = \frac{\sum_i y_i}{\lambda},\ s = (\lambda\, \mathbb E\tau)^{-1/2}\Big), \qquad
# q(\tau) = \mathrm{Gamma}\Big(a_0 + \frac{N + 1}2,\ b_0 + \tfrac12 \sum_i \mathbb E (y_i - \mu)^2
# + \tfrac{\lambda_0}2\, \mathbb E \mu^2\Big).$$


# %%
def guide(y=None, num_observations=1):
    """Starts at the prior's gamma; the fit sets all four numbers."""
    positive = dist.constraints.positive
    a, b = numpyro.param("tau_a", A0, constraint=positive), numpyro.param("tau_b", B0, constraint=positive)
    m, s = numpyro.param("mu_m", 0.0), numpyro.param("mu_s", 1.0, constraint=positive)
    numpyro.sample("tau", dist.Gamma(a, b))
    numpyro.sample("mu", dist.Normal(m, s))


def sweep(mean_tau, y):
    """q(mu) given E[tau], then q(tau) given q(mu): the guide's parameters."""
    total = LAMBDA0 + len(y)
    m, var = jnp.sum(y) / total, 1 / (total * mean_tau)
    b = B0 + 0.5 * (jnp.sum((y - m) ** 2) + len(y) * var + LAMBDA0 * (m**2 + var))
    return {"mu_m": m, "mu_s": jnp.sqrt(var), "tau_a": A0 + (len(y) + 1) / 2, "tau_b": b}


# %% [markdown]
# ## The fit
#
# Sweeps, from any positive $\mathbb E\tau$ whatever. All expectations are known, so the ELBO is a number and not an estimate,
# and no sweep can lower it: one that does has a mistake in it, which makes the ELBO the first thing to look at.


# %%
def elbo(params, y):
    """In nats, every constant included."""
    (m, s), (a, b) = (params["mu_m"], params["mu_s"]), (params["tau_a"], params["tau_b"])
    mean_tau, mean_log_tau = a / b, digamma(a) - jnp.log(b)
    log_lik = 0.5 * len(y) * (mean_log_tau - math.log(2 * math.pi)) - 0.5 * mean_tau * (jnp.sum((y - m) ** 2) + len(y) * s**2)
    log_mu = 0.5 * (math.log(LAMBDA0 / (2 * math.pi)) + mean_log_tau - LAMBDA0 * mean_tau * (m**2 + s**2))
    log_tau = A0 * math.log(B0) - math.lgamma(A0) + (A0 - 1) * mean_log_tau - B0 * mean_tau
    entropies = 0.5 * math.log(2 * math.pi * math.e) + jnp.log(s) + a - jnp.log(b) + gammaln(a) + (1 - a) * digamma(a)
    return log_lik + log_mu + log_tau + entropies


def fit(rng_key, y, num_observations=1, *, num_steps=20):
    """Sweep from a start that the key decides.

    Returns:
        q: dict, `tau` -> fitted Gamma, `mu` -> fitted Normal.
        losses: (num_steps,), the negative ELBO in nats after each sweep, exact.
    """

    def step(mean_tau, _):
        params = sweep(mean_tau, y)
        return params["tau_a"] / params["tau_b"], (params, -elbo(params, y))

    _, (path, losses) = lax.scan(step, random.exponential(rng_key), length=num_steps)
    last = {name: values[-1] for name, values in path.items()}
    sites = handlers.trace(handlers.seed(handlers.substitute(guide, last), rng_key)).get_trace(y)
    return {name: site["fn"] for name, site in sites.items() if site["type"] == "sample"}, losses


# %% [markdown]
# ## The exact answer, and what independence costs
#
# The posterior is a normal-gamma: with $a = a_0 + N/2$ and $b = b_0 + \tfrac12 (\sum_i y_i^2 - \lambda m^2)$,
# $\tau \mid y \sim \mathrm{Gamma}(a, b)$ and $\mu \mid y$ is a Student-$t_{2a}$. Sweeps come to rest at $\mathbb E\tau = a / b$,
# which is exact, with half an observation too many in the gamma and a Gaussian in place of the $t$.


# %%
def normal_gamma(y):
    """lambda, m, a, b of the posterior."""
    total = LAMBDA0 + len(y)
    m = np.sum(y) / total
    return total, m, A0 + len(y) / 2, B0 + (np.sum((y - m) ** 2) + LAMBDA0 * m**2) / 2


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
    """Where the sweeps come to rest: mean and sd of `tau` and of `mu`."""
    total, m, a, b = normal_gamma(y)
    return {"tau": (a / b, a / b / math.sqrt(a + 0.5)), "mu": (m, math.sqrt(b / (a * total)))}


# %%
def main():
    d = data()
    (q, losses), exact, predicted = fit(random.key(0), **d), exact_posterior(**d), documented_bias(**d)
    print("elbo by sweep " + " ".join(f"{-loss:.5f}" for loss in losses[:5]))
    print(f"{'':<6}{'mean':>10}{'exact':>10}{'sd':>10}{'predicted':>10}{'exact':>10}")
    for site in ("mu", "tau"):
        row = (q[site].mean, exact[site].mean, q[site].variance ** 0.5, predicted[site][1], exact[site].variance ** 0.5)
        print(f"{site:<6}" + "".join(f"{value:10.4f}" for value in row))
    print(f"elbo {-losses[-1]:.4f}, log evidence {log_evidence(**d):.4f}")


if __name__ == "__main__":
    main()
