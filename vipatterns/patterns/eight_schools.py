# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Eight schools, non-centred: a small hierarchical model, written so that a mean-field guide comes near.

**Technique** mean-field, non-centred.
**Use when** groups are few and their data weak, so that the groups' own sd is uncertain and may be near zero.
**Avoid when** each group has plenty of data: then the centred form is the nearly independent one.
**Cost** seconds.
**Bias to expect** the upper tail of tau is cut, its sd a quarter too small; the schools' means are pulled to 0.56 of their spread.
**Source** Rubin 1981, doi 10.3102/10769986006004377; priors and parametrisation: Betancourt and Girolami 2013, arXiv 1312.0906.
"""

# %%
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from scipy.optimize import minimize
from scipy.special import logsumexp, roots_hermitenorm

# %% [markdown]
# # Eight schools, non-centred
#
# Each of $J = 8$ schools measured the effect of coaching on a test score, $y_j$, with a known standard error $\sigma_j$.
# The schools are alike but not equal: their effects scatter around $\mu$ with sd $\tau$,
#
# $$\mu \sim \mathcal N(0, 5), \quad \tau \sim \mathrm{HalfCauchy}(5), \quad z_j \sim \mathcal N(0, 1), \quad
# \theta_j = \mu + \tau z_j, \quad y_j \sim \mathcal N(\theta_j, \sigma_j).$$
#
# The latent site is $z_j$, not $\theta_j$: where $\tau$ is small, every $\theta_j$ is pinned to $\mu$, a dependence that no
# independent guide can follow, while $z_j$ stays a standard normal whatever $\tau$ is.


# %%
def data(frame=None):
    """Effects `y` and their standard errors `sigma`, (J,), in points of the SAT-V test; columns of those names in a table."""
    if frame is None:
        frame = {"y": [28, 8, -3, 7, -1, 1, 18, 12], "sigma": [15, 10, 16, 11, 9, 11, 10, 18]}
    return {name: np.asarray(frame[name], float) for name in ("sigma", "y")}


def model(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(sigma)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


# %% [markdown]
# ## The guide
#
# Independent factors: a Gaussian for $\mu$ and every $z_j$, and, since $\tau$ is positive, a log-normal for $\tau$.


# %%
def guide(sigma, y=None):
    """Starts with small steps around mu = 0, tau = e, z = 0."""
    positive = dist.constraints.positive
    numpyro.sample("mu", dist.Normal(numpyro.param("mu_m", 0.0), numpyro.param("mu_s", 1.0, constraint=positive)))
    numpyro.sample("tau", dist.LogNormal(numpyro.param("tau_m", 1.0), numpyro.param("tau_s", 0.5, constraint=positive)))
    m, s = numpyro.param("z_m", jnp.zeros(len(sigma))), numpyro.param("z_s", jnp.ones(len(sigma)), constraint=positive)
    with numpyro.plate("school", len(sigma)):
        numpyro.sample("z", dist.Normal(m, s))


def fit(rng_key, sigma, y, *, num_steps=2000):
    """Fit the guide by Adam, its rate decaying from 0.1 to 0.0001.

    Returns:
        q: dict, `mu`, `tau` and `z` -> fitted distribution; `theta`, made of the three, -> draws, (20000, J).
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.001 ** (step / num_steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=64))
    result = svi.run(rng_key, num_steps, sigma, y, progress_bar=False)
    fitted = handlers.seed(handlers.substitute(guide, result.params), rng_key)
    q = {name: site["fn"] for name, site in handlers.trace(fitted).get_trace(sigma).items() if site["type"] == "sample"}
    mu, tau, z = (q[name].sample(key, (20_000,)) for name, key in zip(q, random.split(rng_key, 3), strict=True))
    return q | {"theta": mu[:, None] + tau[:, None] * z}, result.losses


# %% [markdown]
# ## The exact answer
#
# Given $\tau$ all is Gaussian, with $v_j = \sigma_j^2 + \tau^2$ the marginal variances:
#
# $$p(y \mid \tau) = \frac{\sqrt{V}}{5} \prod_j \mathcal N(y_j; 0, v_j)\, e^{m^2 / 2V}, \quad
# \frac1V = \frac1{25} + \sum_j \frac1{v_j}, \quad m = V \sum_j \frac{y_j}{v_j}, \quad \mu \mid \tau, y \sim \mathcal N(m, V).$$
#
# One integral over $\tau$ is left, done on a grid in $\log\tau$.


# %%
def grid(sigma, y):
    """Grid of tau, log p(y, log tau) on it, and mean and variance of mu given tau; each (30001,)."""
    log_tau = np.linspace(-20.0, 10.0, 30_001)
    tau = np.exp(log_tau)
    v = sigma**2 + tau[:, None] ** 2
    var = 1 / (1 / 25 + np.sum(1 / v, axis=1))
    m = var * np.sum(y / v, axis=1)
    log_p = 0.5 * (np.log(var / 25) + m**2 / var - np.sum(np.log(2 * np.pi * v) + y**2 / v, axis=1))
    return tau, log_p + np.log(2 / (5 * np.pi)) - np.log1p(tau**2 / 25) + log_tau, m, var


def log_evidence(sigma, y):
    """log p(y) in nats."""
    return float(logsumexp(grid(sigma, y)[1]) + np.log(0.001))


def exact_posterior(sigma, y):
    """Independent draws, 100,000 of them: `mu`, `tau`, (100000,), and `z`, `theta`, (100000, J)."""
    tau, log_p, m, var = grid(sigma, y)
    cdf = np.cumsum(np.exp(log_p - logsumexp(log_p)))
    u = (np.arange(100_000) + 0.5) / 100_000  # evenly spread, so that tau has no Monte Carlo error
    tau, m, var = (np.interp(u, cdf, column) for column in (tau, m, var))
    eps = np.random.default_rng(0).normal(size=(100_000, 1 + len(y)))
    mu = m + np.sqrt(var) * eps[:, 0]
    v = sigma**2 + tau[:, None] ** 2
    z = tau[:, None] * (y - mu[:, None]) / v + sigma / np.sqrt(v) * eps[:, 1:]
    return {"mu": mu, "tau": tau, "z": z, "theta": mu[:, None] + tau[:, None] * z}


# %% [markdown]
# ## What the guide must get wrong
#
# For a log-normal $\tau$ with parameters $a, b$ the ELBO needs only $\mathbb E\tau = e^{a + b^2/2}$,
# $\mathbb E\tau^2 = e^{2a + 2b^2}$ and one-dimensional quadrature for the prior of $\tau$. Its maximum is the best that this
# guide can do, known without any sampling.


# %%
def documented_bias(sigma, y):
    """Mean and sd of every site under the best q: the maximum of the ELBO in closed form."""
    node, weight = roots_hermitenorm(64)

    def moments(p):
        m, a, z_m = p[0], p[2], p[4 : 4 + len(y)]
        s, b, z_s = np.exp(p[1]), np.exp(p[3]), np.exp(p[4 + len(y) :])
        t1, t2 = np.exp(a + b**2 / 2), np.exp(2 * a + 2 * b**2)
        theta_var = s**2 + t2 * (z_s**2 + z_m**2) - (t1 * z_m) ** 2
        return {"mu": (m, s), "tau": (t1, np.sqrt(t2 - t1**2)), "z": (z_m, z_s), "theta": (m + t1 * z_m, np.sqrt(theta_var))}

    def loss(p):
        q = moments(p)
        (m, s), (z_m, z_s), (theta_m, theta_s) = q["mu"], q["z"], q["theta"]
        misfit = np.sum(((y - theta_m) ** 2 + theta_s**2) / sigma**2)
        prior = (m**2 + s**2) / 25 + np.sum(z_m**2 + z_s**2)
        log_prior_tau = -weight @ np.log1p(np.exp(2 * p[2] + 2 * np.exp(p[3]) * node) / 25) / weight.sum()
        return 0.5 * (misfit + prior) - log_prior_tau - p[1] - p[2] - p[3] - np.sum(p[4 + len(y) :])

    return moments(minimize(loss, np.append([0.0, 1.0, 1.0, -0.5], np.zeros(2 * len(y))), method="BFGS").x)


# %%
def main():
    d = data()
    (q, losses), exact, best = fit(random.key(0), **d), exact_posterior(**d), documented_bias(**d)
    print(f"{'':<8}{'mean':>9}{'best q':>9}{'exact':>9}{'sd':>11}{'best q':>9}{'exact':>9}")
    for site in ("mu", "tau", "theta"):
        m, s = (q[site].mean(0), q[site].std(0)) if site == "theta" else (q[site].mean, q[site].variance ** 0.5)
        rows = (m, best[site][0], exact[site].mean(0), s, best[site][1], exact[site].std(0))
        for row in zip(*map(np.atleast_1d, rows), strict=True):
            print(f"{site:<8}{row[0]:9.3f}{row[1]:9.3f}{row[2]:9.3f}{row[3]:11.3f}{row[4]:9.3f}{row[5]:9.3f}")
    print(f"elbo {-jnp.mean(losses[-100:]):.3f}, log evidence {log_evidence(**d):.3f}")


if __name__ == "__main__":
    main()
