# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Gaussian mixture, regularised: every component must hold a given share of the rows.

**Technique** posterior regularisation, coordinate ascent with a projected E-step.
**Use when** labels are unknown row by row but their totals are known: a census, a quota, an earlier study of the same population.
**Avoid when** the shares themselves are in doubt: give them a prior and learn them.
**Cost** seconds; an update costs N K for every scaling of the labels, with N rows and K components.
**Bias to expect** shares as asked for, exactly; beyond that mean-field's: one of the K! modes, and sds as if its labels were independent.
**Source** Ganchev, Graca, Gillenwater and Taskar 2010, JMLR 11, 2001-2049; Zhu, Chen and Xing 2014, arXiv 1210.1766.
"""

# %%
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, nn, random
from numpyro import handlers
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

# %% [markdown]
# # Gaussian mixture, regularised
#
# The model of `gaussian_mixture`, with its labels, says that all components are equally likely:
#
# $$\mu_k \sim \mathcal N(0, 5), \qquad z_i \sim \mathrm{Uniform}\{1, \dots, K\}, \qquad y_i \mid z_i \sim \mathcal N(\mu_{z_i}, 1).$$
#
# But a census has counted them: the share of component $k$ is $\pi_k$. Which row is in which, it does not tell. So of all $q$ of a
# family take the one nearest to the posterior that agrees with the census in expectation:
#
# $$\min_q\ \mathrm{KL}(q \,\|\, p(\mu, z \mid y)) \quad \text{such that} \quad \sum_i q(z_i = k) = N \pi_k \quad \text{for all } k.$$

# %%
PRIOR_SD = 5.0


def data(frame=None):
    """Rows and census.

    Returns:
        dict with `y`, (N,), in units of the components' sd, `num_components`, K, `num_observations`, N, and `shares`, (K,), of
        the components in the order of their means. `y` is a table's column of that name, and `shares` is then None, no census:
        put yours here. Without a table, 36, 18 and 6 simulated rows about -2.5, 0 and 2.5, and the shares that they have.
    """
    if frame is not None:
        return {"y": np.asarray(frame["y"], float), "num_components": 3, "num_observations": len(frame["y"]), "shares": None}
    counts = np.array([36, 18, 6])
    y = np.random.RandomState(42).normal(np.repeat([-2.5, 0.0, 2.5], counts), 1.0)
    return {"y": y, "num_components": 3, "num_observations": len(y), "shares": counts / len(y)}


def model(y=None, num_components=3, num_observations=1, shares=None):
    """`num_observations` is read only where `y` is None: that many are then predicted. `shares` are no part of the model."""
    with numpyro.plate("component", num_components):
        mu = numpyro.sample("mu", dist.Normal(0.0, PRIOR_SD))
    equal = dist.Categorical(probs=jnp.full(num_components, 1 / num_components))
    with numpyro.plate("observation", num_observations if y is None else len(y)):
        z = numpyro.sample("z", equal, infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


# %% [markdown]
# ## The guide
#
# Mean-field over means and labels, $q(\mu) \prod_i q(z_i)$, with $q(z_i = k) = r_{ik}$ free for every row.


# %%
def guide(y=None, num_components=3, num_observations=1, shares=None):
    start = jnp.zeros(num_components) if y is None else jnp.quantile(y, (jnp.arange(num_components) + 0.5) / num_components)
    m = numpyro.param("mu_m", start)
    s = numpyro.param("mu_s", jnp.full(num_components, 0.5), constraint=dist.constraints.positive)
    rows = num_observations if y is None else len(y)
    r = numpyro.param("z_r", jnp.full((rows, num_components), 1 / num_components), constraint=dist.constraints.simplex)
    with numpyro.plate("component", num_components):
        numpyro.sample("mu", dist.Normal(m, s))
    with numpyro.plate("observation", rows):
        numpyro.sample("z", dist.Categorical(probs=r))


# %% [markdown]
# ## The projected E-step
#
# Without the census, coordinate ascent sets $r_{ik} \propto \rho_{ik}$, $\rho_{ik} = e^{-\frac12 [(y_i - m_k)^2 + s_k^2]}$, and then
#
# $$s_k^{-2} = \sum_i r_{ik} + \tfrac1{25}, \qquad m_k = s_k^2 \sum_i r_{ik}\, y_i.$$
#
# With it, $r$ is the nearest to that which has the asked-for column sums. Its dual has one multiplier a component,
#
# $$r_{ik} \propto \rho_{ik}\, e^{-\lambda_k}, \qquad \lambda = \arg\min_\lambda \sum_i \log \sum_k \rho_{ik}\, e^{-\lambda_k}
# + N \sum_k \pi_k \lambda_k,$$
#
# so that the $e^{-\lambda_k}$ act as mixing weights, though not those of the census: they make up for what $\rho$ says already.
# Scaling the columns to their sums, and the rows to 1, in turns, ends there (Sinkhorn's algorithm). Both steps raise the ELBO
# among all $q$ that agree with the census.


# %%
def fit(rng_key, y, num_components=3, num_observations=1, shares=None, *, num_steps=200):
    """Coordinate ascent from the guide's start; the key is for the draws of `z` alone.

    Returns:
        q: dict, `mu` -> Normals, (K,), and `z` -> draws of the labels, (1000, N), 0 to K - 1.
        losses: (num_steps,), the negative ELBO in nats, without noise.
    """
    start = handlers.trace(handlers.seed(guide, rng_key)).get_trace(y, num_components)
    y = jnp.asarray(y)

    def step(carry, _):
        m, s, multipliers = carry
        log_rho = -0.5 * ((y[:, None] - m) ** 2 + s**2)
        if shares is not None:

            def scale(_, value):
                return value + jnp.log(nn.softmax(log_rho - value).mean(0) / shares)

            multipliers = lax.fori_loop(0, 100, scale, multipliers)
        log_r = nn.log_softmax(log_rho - multipliers)
        r = jnp.exp(log_r)
        s = (r.sum(0) + PRIOR_SD**-2) ** -0.5
        m = s**2 * (r.T @ y)
        expected = -0.5 * ((y[:, None] - m) ** 2 + s**2 + jnp.log(2 * jnp.pi)) - jnp.log(num_components) - log_r
        kl = 0.5 * jnp.sum((m**2 + s**2) / PRIOR_SD**2 - 1 - jnp.log(s**2 / PRIOR_SD**2))
        return (m, s, multipliers), (kl - jnp.sum(r * expected), r)

    at = start["mu_m"]["value"], start["mu_s"]["value"], jnp.zeros(num_components)
    (m, s, _), (losses, r) = lax.scan(step, at, length=num_steps)
    fitted = handlers.seed(handlers.substitute(guide, {"mu_m": m, "mu_s": s, "z_r": r[-1]}), rng_key)
    sites = handlers.trace(fitted).get_trace(y, num_components)
    return {"mu": sites["mu"]["fn"], "z": sites["z"]["fn"].sample(rng_key, (1000,))}, losses


# %% [markdown]
# ## What the guide must get wrong
#
# `documented_bias` is the same fixed point in float64, with $\lambda$ from a general-purpose minimiser of the dual.


# %%
def projected(log_rho, shares):
    """The labels nearest to softmax(log_rho), (N, K), whose column means are the shares."""

    def dual(multipliers):
        r = softmax(log_rho - multipliers, axis=1)
        return np.mean(logsumexp(log_rho - multipliers, axis=1)) + shares @ multipliers, shares - r.mean(0)

    return softmax(log_rho - minimize(dual, np.zeros(len(shares)), jac=True, options={"gtol": 1e-10}).x, axis=1)


def documented_bias(y, num_components=3, num_observations=1, shares=None):
    """Mean and sd of `mu` in the mode that the guide starts in: the fixed point above."""
    m, s = np.quantile(y, (np.arange(num_components) + 0.5) / num_components), np.full(num_components, 0.5)
    for _ in range(200):
        log_rho = -0.5 * ((y[:, None] - m) ** 2 + s**2)
        r = softmax(log_rho, axis=1) if shares is None else projected(log_rho, shares)
        s = (r.sum(0) + PRIOR_SD**-2) ** -0.5
        m = s**2 * (r.T @ y)
    return {"mu": (m, s)}


# %%
def main():
    d = data()
    kept = np.repeat(np.arange(3), np.rint(d["shares"] * len(d["y"])).astype(int))  # the simulated labels, for comparison only
    print(f"means of the simulated groups: {[f'{d["y"][kept == k].mean():.3f}' for k in range(3)]}")
    for what, shares in (("no census", None), ("census", d["shares"])):
        (q, losses), (m, s) = fit(random.key(0), d["y"], shares=shares), documented_bias(d["y"], shares=shares)["mu"]
        print(f"{what}: elbo {-losses[-1]:.4f}\n{'':<8}{'mean':>9}{'best q':>9}{'sd':>9}{'best q':>9}{'share':>9}")
        for k, row in enumerate(zip(q["mu"].mean, m, q["mu"].scale, s, (q["z"][..., None] == jnp.arange(3)).mean((0, 1)), strict=True)):
            print(f"{f'mu[{k}]':<8}" + "".join(f"{value:9.4f}" for value in row))


if __name__ == "__main__":
    main()
