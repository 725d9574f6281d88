# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Gaussian mixture, amortised: a network reads each row and answers with its label, and what that costs is measured.

**Technique** amortised mean-field: a network gives q of every label; minibatches.
**Use when** rows are so many, or so often new, that a variational parameter for each of them is too much.
**Avoid when** rows are few: parameters of their own give a tighter bound, and cannot over-fit the way a network's weights can.
**Cost** seconds; a step costs the rows of a minibatch, and the number of parameters does not grow with the rows.
**Bias to expect** mean-field's, and on top of it the amortisation gap, which is never negative: sum_i KL(q(z_i) || best q(z_i)).
**Source** Kingma and Welling 2014, arXiv 1312.6114; the gap: Cremer, Li and Duvenaud 2018, arXiv 1801.03558.
"""

# %%
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import nn, random
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from scipy.special import expit, logsumexp

# %% [markdown]
# # Gaussian mixture, amortised
#
# A narrow component in a wide one; which of them a row is from, $z_i \in \{0, 1\}$, is unknown, and so are the two means:
#
# $$\mu_k \sim \mathcal N(0, 5), \qquad z_i \sim \mathrm{Bernoulli}(\tfrac12), \qquad y_i \mid z_i \sim \mathcal N(\mu_{z_i}, \sigma_{z_i}),
# \qquad \sigma = (2, \tfrac12).$$

# %%
PRIOR_SD, SDS = 5.0, np.array([2.0, 0.5])


def data(frame=None):
    """Measurements `y`, (N,), in units of half the wide component's sd, and `num_observations`, N.

    `y` is a table's column of that name; without a table, 300 simulated rows, half of them about -1 and half about 1.
    """
    if frame is None:
        z = np.arange(300) % 2
        frame = {"y": np.random.RandomState(42).normal(np.array([-1.0, 1.0])[z], SDS[z])}
    return {"y": np.asarray(frame["y"], float), "num_observations": len(frame["y"])}


def model(y=None, num_observations=1):
    """`num_observations` is read only where `y` is None: that many are then predicted."""
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.Normal(0.0, PRIOR_SD))
    with numpyro.plate("observation", num_observations if y is None else len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(mu[z], jnp.asarray(SDS)[z]), obs=y)


# %% [markdown]
# ## The guide
#
# Instead of a number for every row, one function for all of them: a network with a layer of eight units,
# $q(z_i = 1) = \mathrm{logit}^{-1} f(y_i)$. The units open to the left and to the right, at places spread across the data.


# %%
def encoder(y, shift, scale, width=8):
    """Log odds of z = 1 for every row, (N,); shift and scale are those of all rows."""
    start = jnp.where(jnp.arange(width) % 2, 2.0, -2.0), jnp.linspace(-1.0, 1.0, width)
    slope, at = numpyro.param("slope", start[0]), numpyro.param("at", start[1])
    weights, level = numpyro.param("weights", jnp.zeros(width)), numpyro.param("level", 0.0)
    return level + nn.softplus(slope * ((y[:, None] - shift) / scale - at)) @ weights


def means(y=None):
    m = numpyro.param("mu_m", jnp.full(2, 0.0 if y is None else jnp.mean(y)))
    s = numpyro.param("mu_s", jnp.full(2, 0.5), constraint=dist.constraints.positive)
    with numpyro.plate("component", 2):
        numpyro.sample("mu", dist.Normal(m, s))


def guide(y=None, num_observations=1):
    means(y)
    logits = jnp.zeros(num_observations) if y is None else encoder(y, jnp.mean(y), jnp.std(y))
    with numpyro.plate("observation", len(logits)):
        numpyro.sample("z", dist.BernoulliLogits(logits))


# %% [markdown]
# ## The fit
#
# A drawn label has no gradient, but it has only two values: the ELBO takes the mean over them under $q(z_i)$, exactly,
# $\sum_k q(z_i = k)\,[\log p(y_i, z_i = k \mid \mu) - \log q(z_i = k)]$. Rows come in minibatches, scaled up by their plate.


# %%
def joint(y, mu):
    """log p(y_i, z_i = k | mu), (N, 2)."""
    return dist.Normal(mu, jnp.asarray(SDS)).log_prob(y[:, None]) + jnp.log(0.5)


def averaged(y, batch_size):
    """The model with every label averaged over q, for rows drawn afresh at every step."""
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.Normal(0.0, PRIOR_SD))
    with numpyro.plate("observation", len(y), subsample_size=batch_size):
        rows = numpyro.subsample(y, event_dim=0)
        logits = encoder(rows, jnp.mean(y), jnp.std(y))
        log_q = jnp.stack([nn.log_sigmoid(-logits), nn.log_sigmoid(logits)], axis=1)
        numpyro.factor("y", jnp.sum(jnp.exp(log_q) * (joint(rows, mu) - log_q), axis=1))


def fit(rng_key, y, num_observations=1, *, num_steps=3000):
    """Fit means and network by Adam, its rate decaying from 0.1 to 0.00001, on half of the rows at a time.

    Returns:
        q: dict, `mu` -> fitted Normals, (2,), and `z` -> fitted Bernoullis, (N,).
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.0001 ** (step / num_steps))
    svi = SVI(averaged, lambda y, batch_size: means(y), optimizer, Trace_ELBO(num_particles=4))
    result = svi.run(rng_key, num_steps, jnp.asarray(y), max(1, len(y) // 2), progress_bar=False)
    fitted = handlers.seed(handlers.substitute(guide, result.params), rng_key)
    sites = handlers.trace(fitted).get_trace(jnp.asarray(y))
    return {name: site["fn"] for name, site in sites.items() if site["type"] == "sample"}, result.losses


# %% [markdown]
# ## What amortisation costs
#
# For given $q(\mu) = \prod_k \mathcal N(m_k, s_k)$ the best label of each row is known,
#
# $$r_{ik} \propto \sigma_k^{-1} e^{-[(y_i - m_k)^2 + s_k^2] / 2 \sigma_k^2}, \qquad
# s_k^{-2} = \sum_i \frac{r_{ik}}{\sigma_k^2} + \tfrac1{25}, \qquad m_k = \frac{s_k^2}{\sigma_k^2} \sum_i r_{ik}\, y_i,$$
#
# and with it the ELBO is larger by $\sum_i \mathrm{KL}(q(z_i) \,\|\, r_i) \ge 0$, the amortisation gap. Going on to the best means
# for those labels, and back, ends at the best $q$ with parameters of its own for every row: `documented_bias`, which no
# network can beat. `exact_posterior` shows what both miss: the labels' doubts widen the posterior of the means.


# %%
def best_labels(y, m, s):
    """Log odds of z = 1, (N,), of the best q(z) for given q(mu)."""
    log_rho = -((y[:, None] - m) ** 2 + s**2) / (2 * SDS**2) - np.log(SDS)
    return log_rho[:, 1] - log_rho[:, 0]


def amortization_gap(y, m, s, logits):
    """What every row loses by the network, (N,), in nats."""
    best, p = best_labels(y, m, s), expit(logits)
    return p * (np.logaddexp(0, -best) - np.logaddexp(0, -logits)) + (1 - p) * (np.logaddexp(0, best) - np.logaddexp(0, logits))


def documented_bias(y, num_observations=1):
    """Mean and sd of `mu` under the best q with parameters of its own for every row."""
    m, s = np.full(2, np.mean(y)), np.full(2, 0.5)
    for _ in range(1000):
        p = expit(best_labels(y, m, s))
        r = np.stack([1 - p, p], axis=1)
        s = (r.sum(0) / SDS**2 + PRIOR_SD**-2) ** -0.5
        m = s**2 / SDS**2 * (r.T @ y)
    return {"mu": (m, s)}


def grid(y):
    """`u`, (401,), and log p(y, cell), (401, 401), of means m + s sinh(u): fine about the best q, and out to a hundred of its sds."""
    (m, s), u = documented_bias(y)["mu"], np.linspace(-5.5, 5.5, 401)
    mu, width = m[:, None] + s[:, None] * np.sinh(u), s[:, None] * np.cosh(u) * (u[1] - u[0])
    log_p = np.add.outer(*(np.log(width) - 0.5 * (mu / PRIOR_SD) ** 2)) - np.log(2 * np.pi * PRIOR_SD**2)
    for row in y:
        log_p += np.logaddexp.outer(*(-0.5 * ((row - mu) / SDS[:, None]) ** 2 - np.log(2 * SDS[:, None] * np.sqrt(2 * np.pi))))
    return u, log_p


def exact_posterior(y, num_observations=1):
    """100,000 draws of `mu`, (100000, 2), spread evenly within cells of a grid."""
    (m, s), (u, log_p) = documented_bias(y)["mu"], grid(y)
    cdf = np.cumsum(np.exp(log_p - logsumexp(log_p)))
    cell = np.minimum(np.searchsorted(cdf, (np.arange(100_000) + 0.5) / 100_000), cdf.size - 1)
    at = np.stack(np.unravel_index(cell, log_p.shape), axis=1) + np.random.default_rng(0).uniform(-0.5, 0.5, (100_000, 2))
    return {"mu": m + s * np.sinh(u[0] + at * (u[1] - u[0]))}


def log_evidence(y, num_observations=1):
    """log p(y) in nats."""
    return float(logsumexp(grid(y)[1]))


# %%
def main():
    d = data()
    (q, _), (m, s), exact = fit(random.key(0), **d), documented_bias(**d)["mu"], exact_posterior(**d)["mu"]
    print(f"{'':<8}{'mean':>9}{'own':>9}{'exact':>9}{'sd':>11}{'own':>9}{'exact':>9}")
    for k, row in enumerate(zip(q["mu"].loc, m, exact.mean(0), q["mu"].scale, s, exact.std(0), strict=True)):
        print(f"{f'mu[{k}]':<8}" + "".join(f"{value:{11 if j == 3 else 9}.4f}" for j, value in enumerate(row)))
    gap = amortization_gap(d["y"], *(np.asarray(v, float) for v in (q["mu"].loc, q["mu"].scale, q["z"].logits)))
    print(f"amortisation gap {gap.sum():.4f} nats in {len(gap)} rows, {gap.max():.4f} of it where y is {d['y'][gap.argmax()]:.2f}")


if __name__ == "__main__":
    main()
