# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Varying intercepts: a regression on grouped rows, every group with a level of its own.

**Technique** structured: levels given scales and slopes.
**Use when** rows come in groups (children, schools, machines) and errors are Gaussian: slopes and levels come out all but exact.
**Avoid when** errors are not Gaussian: the guide's formulas then fail, and a mean-field guide on the same model takes its place.
**Cost** seconds; a step costs J P^2, with J groups and P features, however many rows.
**Bias to expect** next to none: the sds of tau and sigma 2 % too small, since their joint posterior is not quite log-normal.
**Source** Laird and Ware 1982, doi 10.2307/2529876; the data: Potthoff and Roy 1964, doi 10.1093/biomet/51.3-4.313.
"""

# %%
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.infer import SVI, Predictive, Trace_ELBO
from scipy.special import logsumexp

# %% [markdown]
# # Varying intercepts
#
# The jaws of 27 children were measured at ages 8, 10, 12 and 14. Rows of one child are not independent: child $j$ gets a
# level $\gamma_j$ of its own. The priors carry the units of the table, means $\bar x, \bar y$ and sds $s_x, s_y$:
#
# $$y_i \sim \mathcal N\Big(\gamma_{j(i)} + \sum_p (x_{ip} - \bar x_p)\,\beta_p,\ \sigma\Big), \quad
# \gamma_j \sim \mathcal N(\alpha, \tau), \quad \alpha \sim \mathcal N(\bar y, 2.5\, s_y), \quad
# \beta_p \sim \mathcal N(0, 2.5\, s_y / s_{x_p}), \quad \tau, \sigma \sim \mathrm{HalfNormal}(s_y).$$


# %%
def data(frame=None):
    """A table whose rows come in groups.

    Returns:
        dict with `x`, (N, P), and `y`, (N,), in the table's units, `group`, (N,), coded from 0 in sorted order of its labels,
        `num_groups`, J, and `units`, (2, P + 1), means and sds of x's columns, then y's. Without a table: age (years) and
        male (0 or 1) against the distance from pituitary gland to pterygomaxillary fissure (mm), 16 boys and 11 girls.
    """
    if frame is None:
        mm = """26 25 29 31  21.5 22.5 23 26.5  23 22.5 24 27.5  25.5 27.5 26.5 27  20 23.5 22.5 26  24.5 25.5 27 28.5  22 22 24.5 26.5
            24 21.5 24.5 25.5  23 20.5 31 26  27.5 28 31 31.5  23 23 23.5 25  21.5 23.5 24 28  17 24.5 26 29.5  22.5 25.5 25.5 26
            23 24.5 26 30  22 21.5 23.5 25  21 20 21.5 23  21 21.5 24 25.5  20.5 24 24.5 26  23.5 24.5 25 26.5  21.5 23 22.5 23.5
            20 21 21 22.5  21.5 22.5 23 25  23 23 23.5 24  20 21 22 21.5  16.5 19 19 19.5  24.5 25 28 28"""
        child = np.repeat(np.arange(27), 4)
        frame = {"age": np.tile([8, 10, 12, 14], 27), "male": (child < 16).astype(int), "group": child, "y": np.array(mm.split(), float)}
    columns = {name: np.asarray(frame[name]) for name in frame}
    (labels, group), y = np.unique(columns.pop("group"), return_inverse=True), columns.pop("y").astype(float)
    x = columns["x"] if "x" in columns else np.stack([c for c in columns.values() if c.dtype.kind in "biuf"], axis=1).astype(float)
    return {"x": x, "group": group, "num_groups": len(labels), "y": y, "units": known(x, y)}


def known(x, y, units=None, xp=np):
    """Means and sds of x's columns, then y's."""
    if units is None and y is None:
        raise ValueError("units are read from x and y: pass y too, or units=..., those of the table that was fitted")
    return xp.stack([xp.append(x.mean(0), y.mean()), xp.append(x.std(0), y.std())]) if units is None else units


def model(x, group, num_groups, y=None, units=None):
    mean, sd = known(x, y, units, jnp)
    intercept = numpyro.sample("intercept", dist.Normal(mean[-1], 2.5 * sd[-1]))
    with numpyro.plate("feature", x.shape[1]):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.5 * sd[-1] / sd[:-1]))
    tau, sigma = (numpyro.sample(name, dist.HalfNormal(sd[-1])) for name in ("tau", "sigma"))
    with numpyro.plate("group", num_groups):
        level = numpyro.sample("level", dist.Normal(intercept, tau))
    with numpyro.plate("observation", x.shape[0]):
        numpyro.sample("y", dist.Normal(level[group] + (x - mean[:-1]) @ slopes, sigma), obs=y)


# %% [markdown]
# ## The guide
#
# A mean-field guide would hold $\gamma$ still while it moves $\beta$, and make the slope of male, which is constant within a
# child, three times too sure. But given $\tau$ and $\sigma$ all the rest is Gaussian, and its posterior known. So the guide draws
# the two sds, and the rest from that posterior: four numbers to fit. With its level integrated out, a group of $n_j$ rows has
# precision $\sigma^{-2} (I - p_j \mathbf 1 \mathbf 1^\top)$, $p_j = \tau^2 / (\sigma^2 + n_j \tau^2)$: it enters through its sums.


# %%
def given(tau, sigma, x, group, num_groups, y, units, xp=np):
    """Standardised, for tau and sigma of any one shape: log p(y | tau, sigma), mean and precision of b = (intercept, slopes), and a
    function b -> mean and sd of the levels."""
    mean, sd = known(x, y, units, xp)
    z, r = xp.concatenate([xp.ones((len(y), 1)), (x - mean[:-1]) / sd[:-1]], axis=1), (y - mean[-1]) / sd[-1]
    member = xp.eye(num_groups)[group]
    n, z_sum, r_sum = member.sum(0), member.T @ z, member.T @ r
    t2, s2 = tau[..., None] ** 2, sigma[..., None] ** 2
    p = t2 / (s2 + n * t2)
    precision = (z.T @ z - xp.einsum("...j,jp,jq->...pq", p, z_sum, z_sum, optimize=True)) / s2[..., None] + xp.eye(z.shape[1]) / 2.5**2
    rhs = (z.T @ r - p @ (z_sum * r_sum[:, None])) / s2
    m = xp.linalg.solve(precision, rhs[..., None])[..., 0]
    log_det = xp.linalg.slogdet(2.5**2 * precision)[1] + xp.sum(xp.log1p(n * t2 / s2), axis=-1) + len(r) * xp.log(2 * np.pi * s2[..., 0])
    log_p = -0.5 * (log_det + (r @ r - p @ r_sum**2) / s2[..., 0] - xp.sum(rhs * m, axis=-1)) - len(r) * xp.log(sd[-1])

    def levels(b):
        pull = 1 / t2 + n / s2
        return (b[..., :1] / t2 + (r_sum - b[..., 1:] @ z_sum[:, 1:].T) / s2) / pull, pull**-0.5

    return log_p, m, precision, levels


def guide(x, group, num_groups, y=None, units=None):
    """Needs y. `coefficients` is a site of the guide alone: the model's two are read off it, their densities the change of units."""
    mean, sd = known(x, y, units, jnp)
    scales, unit = [], sd[-1] / sd[:-1]
    for name in ("tau", "sigma"):
        m, s = numpyro.param(f"{name}_m", -0.5), numpyro.param(f"{name}_s", 0.2, constraint=dist.constraints.positive)
        scales.append(numpyro.sample(name, dist.LogNormal(jnp.log(sd[-1]) + m, s)) / sd[-1])
    _, m, precision, levels = given(*scales, x, group, num_groups, y, units, jnp)
    together = dist.MultivariateNormal(m, scale_tril=jnp.linalg.cholesky(jnp.linalg.inv(precision)))
    b = numpyro.sample("coefficients", together, infer={"is_auxiliary": True})
    numpyro.sample("intercept", dist.Delta(mean[-1] + sd[-1] * b[0], log_density=-jnp.log(sd[-1])))
    with numpyro.plate("feature", x.shape[1]):
        numpyro.sample("slopes", dist.Delta(unit * b[1:], log_density=-jnp.log(unit)))
    m, s = levels(b)
    with numpyro.plate("group", num_groups):
        numpyro.sample("level", dist.Normal(mean[-1] + sd[-1] * m, sd[-1] * s))


def fit(rng_key, x, group, num_groups, y, units=None, *, num_steps=1000):
    """Fit the guide by Adam, its rate decaying from 0.05 to 0.00005.

    Returns:
        q: dict, site -> draws, (20000,), of `slopes` (20000, P), of `level` (20000, J), in the table's units.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    svi = SVI(model, guide, numpyro.optim.Adam(lambda step: 0.05 * 0.001 ** (step / num_steps)), Trace_ELBO(num_particles=8))
    result = svi.run(rng_key, num_steps, x, group, num_groups, y, units, progress_bar=False)
    draws = Predictive(guide, params=result.params, num_samples=20_000)(rng_key, x, group, num_groups, y, units)
    return {name: draws[name] for name in ("intercept", "slopes", "tau", "sigma", "level")}, result.losses


# %% [markdown]
# ## The exact answer
#
# With two numbers left, a grid in $\log\tau$ and $\log\sigma$ serves: steps of 0.02, fine enough for some thousand rows.


# %%
def grid(x, group, num_groups, y, units):
    """A grid of tau and of sigma, (601,), standardised; log p(y, cell), (601, 601), sigma first."""
    scale = np.exp(np.linspace(-10, 2, 601))
    log_p = np.array([given(scale, np.full(601, sigma), x, group, num_groups, y, units)[0] for sigma in scale])
    prior = np.log(0.02 * scale) + 0.5 * (np.log(2 / np.pi) - scale**2)
    return scale, log_p + prior + prior[:, None]


def log_evidence(x, group, num_groups, y, units=None):
    """log p(y) in nats."""
    return float(logsumexp(grid(x, group, num_groups, y, units)[1]))


def exact_posterior(x, group, num_groups, y, units=None):
    """100,000 draws of every site: cells of the grid in proportion to their mass, then what is Gaussian given tau and sigma."""
    (scale, log_p), (mean, sd), rng = grid(x, group, num_groups, y, units), known(x, y, units), np.random.default_rng(0)
    cell = np.searchsorted(np.cumsum(np.exp(log_p - logsumexp(log_p))), (np.arange(100_000) + 0.5) / 100_000)
    index = np.stack(np.unravel_index(np.minimum(cell, log_p.size - 1), log_p.shape))
    sigma, tau = scale[index] * np.exp(rng.uniform(-0.01, 0.01, index.shape))
    _, m, precision, levels = given(tau, sigma, x, group, num_groups, y, units)
    b = m + np.einsum("apq,aq->ap", np.linalg.cholesky(np.linalg.inv(precision)), rng.normal(size=m.shape))
    draws = {"tau": sd[-1] * tau, "sigma": sd[-1] * sigma, "level": mean[-1] + sd[-1] * rng.normal(*levels(b))}
    return draws | {"intercept": mean[-1] + sd[-1] * b[:, 0], "slopes": sd[-1] / sd[:-1] * b[:, 1:]}


# %%
def main():
    d = data()
    (q, losses), exact = fit(random.key(0), **d), exact_posterior(**d)
    print(f"{'':<11}{'mean':>10}{'exact':>10}{'sd':>10}{'exact':>10}")
    for site in q:
        rows = (q[site].mean(0), exact[site].mean(0), q[site].std(0), exact[site].std(0))
        for row in list(zip(*map(np.atleast_1d, rows), strict=True))[:3]:
            print(f"{site:<11}" + "".join(f"{value:10.3f}" for value in row))
    print(f"elbo {-jnp.mean(losses[-100:]):.3f}, log evidence {log_evidence(**d):.3f}")


if __name__ == "__main__":
    main()
