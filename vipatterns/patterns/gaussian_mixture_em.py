# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Gaussian mixture by EM: the most probable weights, means and precisions, a prior in the way of its singularities.

**Technique** point mass, expectation maximisation (EM), best of restarts.
**Use when** a density or a partition of many rows is wanted at once, without uncertainty, from a known number of groups.
**Avoid when** a group has few rows, or you ask how sure its mean is: a point does not say; gaussian_mixture_cavi does, at the same cost.
**Cost** about a second; a step costs N K for each start, with N rows and K components.
**Bias to expect** q is the highest mode that the starts found, in one of the K! orders of the components, and has no sd.
**Source** Dempster et al. 1977, doi 10.1111/j.2517-6161.1977.tb01600.x; the prior: Fraley and Raftery 2007, doi 10.1007/s00357-007-0004-5.
"""

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

# %% [markdown]
# # Gaussian mixture by EM
#
# How fast 82 galaxies recede tells how far they are; clumps in their velocities are clumps in space. $K$ clumps, all their
# numbers unknown, with $\bar y$ and $s_y$ the mean and sd of the data:
#
# $$w \sim \mathrm{Dirichlet}(1), \quad \tau_k \sim \mathrm{Gamma}(a_0, b_0\, s_y^2), \quad
# \mu_k \mid \tau_k \sim \mathcal N\big(\bar y, (\kappa_0 \tau_k)^{-1/2}\big), \quad
# p(y_i \mid w, \mu, \tau) = \sum_k w_k\, \mathcal N\big(y_i; \mu_k, \tau_k^{-1/2}\big).$$
#
# The prior of $\tau$ is not decoration. The likelihood alone has no maximum: put one component on one row and let its
# precision grow, and it rises for ever while the others explain the rest. With $b_0 > 0$ the posterior falls there instead.

# %%
A0, B0, KAPPA0 = 2.0, 0.1, 0.01
NUM_STARTS = 32


def data(frame=None):
    """Measurements `y`, (N,), `num_components`, K, `num_observations`, N, and `units`, (2,), mean and sd of y, in y's units.

    `y` is a table's column of that name; without a table, velocities in 1000 km / s of 82 galaxies in the Corona Borealis region
    (Postman, Huchra and Geller 1986; Roeder 1990). They are kept as Roeder's readers know them: the 78th is a misprint of 26.96.
    """
    if frame is None:
        velocity = """9172 9350 9483 9558 9775 10227 10406 16084 16170 18419 18552 18600 18927 19052 19070 19330 19343 19349 19440
            19473 19529 19541 19547 19663 19846 19856 19863 19914 19918 19973 19989 20166 20175 20179 20196 20215 20221 20415 20629
            20795 20821 20846 20875 20986 21137 21492 21701 21814 21921 21960 22185 22209 22242 22249 22314 22374 22495 22746 22747
            22888 22914 23206 23241 23263 23484 23538 23542 23666 23706 23711 24129 24285 24289 24366 24717 24990 25633 26690 26995
            32065 32789 34279"""
        frame = {"y": np.array(velocity.split(), float) / 1000}
    y = np.asarray(frame["y"], float)
    return {"y": y, "num_components": 3, "num_observations": len(y), "units": known(y)}


def known(y, units=None, xp=np):
    """Mean and sd of y."""
    if units is None and y is None:
        raise ValueError("units are read from y: pass y too, or units=..., those of the table that was fitted")
    return xp.stack([xp.mean(y), xp.std(y)]) if units is None else units


def model(y=None, num_components=3, num_observations=1, units=None):
    """`num_observations` is read only where `y` is None: that many are then predicted."""
    mean, sd = known(y, units, jnp)
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(num_components)))
    with numpyro.plate("component", num_components):
        tau = numpyro.sample("tau", dist.Gamma(A0, B0 * sd**2))
        mu = numpyro.sample("mu", dist.Normal(mean, (KAPPA0 * tau) ** -0.5))
    with numpyro.plate("observation", num_observations if y is None else len(y)):
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(mu, tau**-0.5)), obs=y)


# %% [markdown]
# ## The guide, and the two steps
#
# A point for every unknown, and for the labels, which the model has summed out, $q(z_i = k) = r_{ik}$.
#
# - **E-step** $r_{ik} \propto w_k\, \mathcal N(y_i; \mu_k, \tau_k^{-1/2})$.
# - **M-step** with $n_k = \sum_i r_{ik}$, the mode of the posterior that labels of these shares would leave:
#
# $$w_k = \frac{n_k}N, \qquad \mu_k = \frac{\kappa_0 \bar y + \sum_i r_{ik}\, y_i}{\kappa_0 + n_k}, \qquad
# \tau_k = \frac{2 a_0 - 1 + n_k}{2 b_0 s_y^2 + \sum_i r_{ik} (y_i - \mu_k)^2 + \kappa_0 (\mu_k - \bar y)^2}.$$
#
# No $\tau_k$ can exceed $(2 a_0 - 1 + n_k) / (2 b_0 s_y^2)$. With $a_0 = \frac12$ and $b_0 = \kappa_0 = 0$ this is maximum likelihood.


# %%
def guide(y=None, num_components=3, num_observations=1, units=None):
    (mean, sd), k = known(y, units, jnp), num_components
    weights = numpyro.param("weights_value", jnp.full(k, 1 / k), constraint=dist.constraints.simplex)
    tau = numpyro.param("tau_value", jnp.full(k, 4.0) / sd**2, constraint=dist.constraints.positive)
    mu = numpyro.param("mu_value", mean + sd * jnp.linspace(-1, 1, k))
    numpyro.sample("weights", dist.Delta(weights, event_dim=1))
    with numpyro.plate("component", k):
        numpyro.sample("tau", dist.Delta(tau))
        numpyro.sample("mu", dist.Delta(mu))


def expect(point, y):
    """E-step: the share of each component in each row, (N, K)."""
    log_p = jnp.log(point["weights"] * point["tau"] ** 0.5) - 0.5 * point["tau"] * (y[:, None] - point["mu"]) ** 2
    return jax.nn.softmax(log_p, axis=1)


def maximise(r, y, units):
    """M-step: the point, site -> (K,)."""
    (mean, sd), n = units, r.sum(0)
    mu = (KAPPA0 * mean + r.T @ y) / (KAPPA0 + n)
    scatter = jnp.sum(r * (y[:, None] - mu) ** 2, axis=0) + KAPPA0 * (mu - mean) ** 2
    return {"weights": n / n.sum(), "mu": mu, "tau": (2 * A0 - 1 + n) / (2 * B0 * sd**2 + scatter)}


def fit(rng_key, y, num_components=3, num_observations=1, units=None, *, num_steps=200):
    """Climb from NUM_STARTS starts, means on rows drawn at random, and keep the highest; components in the order of their means.

    Returns:
        q: dict, `weights`, `mu` and `tau` -> Deltas, the point.
        losses: (num_steps,), minus log p(y, point) in nats after each step of the best start, exact.
    """
    y, units = jnp.asarray(y), known(y, units, jnp)

    def climb(key):
        def step(point, _):
            point = maximise(expect(point, y), y, units)
            return point, -log_density(model, (y, num_components, num_observations, units), {}, point)[0]

        equal = jnp.ones(num_components)
        rows = random.choice(key, y, (num_components,), replace=False)
        start = {"weights": equal / num_components, "mu": rows, "tau": 4 * equal / units[1] ** 2}
        return lax.scan(step, start, length=num_steps)

    points, losses = jax.vmap(climb)(random.split(rng_key, NUM_STARTS))
    best = jnp.argmin(losses[:, -1])
    order = jnp.argsort(points["mu"][best])
    params = {f"{site}_value": values[best][order] for site, values in points.items()}
    sites = handlers.trace(handlers.seed(handlers.substitute(guide, params), rng_key)).get_trace(y, num_components, units=units)
    return {name: site["fn"] for name, site in sites.items() if site["type"] == "sample"}, losses[best]


# %% [markdown]
# ## The same mode, climbed another way
#
# BFGS on $\log p(y, w, \mu, \tau)$ over all numbers at once, from means spread evenly over the range of the data.


# %%
def documented_bias(y, num_components=3, num_observations=1, units=None):
    """The mode, site -> (point, 0)."""
    (mean, sd), k = known(y, units), num_components
    z = (y - mean) / sd

    def loss(u):
        logits, m, log_tau = np.split(u, 3)
        log_lik = logsumexp(log_softmax(logits) + 0.5 * log_tau - 0.5 * np.exp(log_tau) * (z[:, None] - m) ** 2, axis=1)
        return -np.sum(log_lik) - np.sum((A0 - 0.5) * log_tau - np.exp(log_tau) * (B0 + 0.5 * KAPPA0 * m**2))

    start = np.concatenate([np.zeros(k), np.linspace(z.min(), z.max(), k), np.full(k, np.log(4))])
    logits, m, log_tau = np.split(minimize(loss, start, method="BFGS", options={"gtol": 1e-6}).x, 3)
    point = {"weights": np.exp(log_softmax(logits)), "mu": mean + sd * m, "tau": np.exp(log_tau) / sd**2}
    order = np.argsort(point["mu"])
    return {site: (values[order], np.zeros(k)) for site, values in point.items()}


# %%
def main():
    d = data()
    (q, losses), expected = fit(random.key(0), **d), documented_bias(**d)
    print(f"{'':<14}{'weight':>10}{'mean':>10}{'sd':>10}   (1000 km/s)")
    for name, point in {"EM": {site: q[site].mean for site in q}, "BFGS": {site: m for site, (m, _) in expected.items()}}.items():
        for k in range(d["num_components"]):
            print(f"{f'{name} {k}':<14}{point['weights'][k]:10.4f}{point['mu'][k]:10.4f}{point['tau'][k] ** -0.5:10.4f}")
    print(f"log p(y, point) {-losses[-1]:.4f}")


if __name__ == "__main__":
    main()
