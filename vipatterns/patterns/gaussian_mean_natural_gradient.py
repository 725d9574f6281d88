# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Gaussian mean by natural gradients: steps measured by how far q moves, not by how far its parameters do.

**Technique** the exact family, natural gradients.
**Use when** q is of an exponential family, and plain gradients creep because its parameters have different units and curvatures.
**Avoid when** the family is not exponential, or draws are cheap and dimensions few: Adam with a decaying rate then does as well.
**Cost** under a second; in D dimensions with a full covariance a step inverts a D x D matrix.
**Bias to expect** none: the guide's family contains the posterior, and a step of 1 lands on it.
**Source** Amari 1998, doi 10.1162/089976698300017746; Hoffman et al. 2013, arXiv 1206.7051; Khan and Rue 2021, arXiv 2107.04562.
"""

# %%
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro import handlers

# %% [markdown]
# # Gaussian mean by natural gradients
#
# The model and the data of `gaussian_mean`: a hundred measurements scatter around an unknown mean with a known sd of 1,
#
# $$\mu \sim \mathcal N(0, 1), \qquad y_i \mid \mu \sim \mathcal N(\mu, 1), \quad i = 1, \dots, N.$$

# %%
RATE = 0.5


def data(frame=None):
    """Measurements `y`, (N,), in units of their standard deviation, and `num_observations`, N.

    `y` is a table's column of that name, or its only one; without a table, 100 simulated draws from N(2, 1).
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


def guide(y=None, num_observations=1):
    """A Gaussian; it starts at the prior."""
    m = numpyro.param("m", jnp.array(0.0))
    s = numpyro.param("s", jnp.array(1.0), constraint=dist.constraints.positive)
    numpyro.sample("mu", dist.Normal(m, s))


# %% [markdown]
# ## Which way is up
#
# $q = \mathcal N(m, s^2)$ is $q(\mu) \propto \exp(\lambda_1 \mu + \lambda_2 \mu^2)$ with natural parameters
# $\lambda = (m / s^2, -\frac1{2 s^2})$. A gradient is steepest for a given length of step, and lengths of $(m, s)$ mean little:
# moving $m$ by 0.1 is nothing to a wide $q$ and everything to a narrow one. Let the length be $\mathrm{KL}$ between the old $q$ and
# the new; the steepest direction is then $F^{-1} \nabla_\lambda \mathrm{ELBO}$, with $F$ the Fisher information of $q$.
#
# No matrix is needed. In an exponential family $F$ is the derivative of the mean parameters $\eta = (\mathbb E \mu, \mathbb E \mu^2) =
# (m, m^2 + s^2)$ with respect to $\lambda$, so that
#
# $$F^{-1} \nabla_\lambda \mathrm{ELBO} = \nabla_\eta \mathrm{ELBO}
# = \Big(\frac{\partial}{\partial m} - 2 m \frac{\partial}{\partial s^2},\ \frac{\partial}{\partial s^2}\Big) \mathrm{ELBO},$$
#
# the chain rule having turned $\eta$ into $m$ and $s^2$, which automatic differentiation can reach.


# %%
def elbo(m, var, y):
    """In nats, every constant included; all expectations have closed forms."""
    log_lik = -0.5 * jnp.sum((y - m) ** 2 + var + math.log(2 * math.pi))
    return log_lik + 0.5 * (1 + jnp.log(var) - m**2 - var)


def natural_step(m, var, y, rate):
    """lambda + rate x natural gradient, as (m, s^2)."""
    by_m, by_var = jax.grad(elbo, argnums=(0, 1))(m, var, y)
    first, second = m / var + rate * (by_m - 2 * m * by_var), -0.5 / var + rate * by_var
    return -0.5 * first / second, -0.5 / second


# %% [markdown]
# ## The fit
#
# The ELBO is $\langle \lambda^*, \eta \rangle$ plus the entropy of $q$ and a constant, where $\lambda^*$ belongs to the posterior, and its
# natural gradient is $\lambda^* - \lambda$: a straight line to the answer. A step of rate $\rho$ leaves $1 - \rho$ of the way, so
#
# $$\lambda_t - \lambda^* = (1 - \rho)^t\, (\lambda_0 - \lambda^*),$$
#
# and $\rho = 1$ arrives at once, which is what coordinate ascent does. The fit takes $\rho = \frac12$, for there to be something to see;
# where a model is not conjugate, or rows come in minibatches, small steps are what remains.


# %%
def fit(rng_key, y, num_observations=1, *, num_steps=40):
    """Natural gradient ascent from a Gaussian that the key decides.

    Returns:
        q: dict with the fitted Normal of `mu`.
        losses: (num_steps,), the negative ELBO in nats after each step, exact.
    """

    def step(q, _):
        q = natural_step(*q, y, RATE)
        return q, -elbo(*q, y)

    key_m, key_var = random.split(rng_key)
    (m, var), losses = lax.scan(step, (random.normal(key_m), random.exponential(key_var) + 0.1), length=num_steps)
    fitted = handlers.seed(handlers.substitute(guide, {"m": m, "s": jnp.sqrt(var)}), rng_key)
    return {"mu": handlers.trace(fitted).get_trace(y)["mu"]["fn"]}, losses


# %% [markdown]
# ## The exact answer


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
    exact, q, plain = exact_posterior(**d)["mu"], (jnp.array(0.0), jnp.array(1.0)), jnp.zeros(2)
    print(f"{'step':<8}{'natural gradients, elbo':>26}{'plain gradients, elbo':>26}   (start: the prior; plain in m and log s^2)")
    for step in range(1, 9):
        q = natural_step(*q, d["y"], RATE)
        plain += 0.01 * jax.grad(lambda u: elbo(u[0], jnp.exp(u[1]), d["y"]))(plain)
        print(f"{step:<8}{elbo(*q, d['y']):26.5f}{elbo(plain[0], jnp.exp(plain[1]), d['y']):26.5f}")
    (m, var), (fitted, _) = natural_step(jnp.array(0.0), jnp.array(1.0), d["y"], 1.0), fit(random.key(0), **d)
    print(f"{'':<12}{'one step of 1':>15}{'fit':>12}{'exact':>12}")
    print(f"{'mean of mu':<12}{m:15.5f}{fitted['mu'].mean:12.5f}{exact.mean:12.5f}")
    print(f"{'sd of mu':<12}{var**0.5:15.5f}{fitted['mu'].variance ** 0.5:12.5f}{exact.variance**0.5:12.5f}")
    print(f"log evidence {log_evidence(**d):.5f}")


if __name__ == "__main__":
    main()
