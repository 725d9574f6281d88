# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Linear regression: a mean-field guide on correlated features in raw units.

**Technique** mean-field, reparameterised gradients.
**Use when** you need the slopes' means, or want to see on an exact answer what mean-field does to correlated parameters.
**Avoid when** you report an sd or an interval of a slope: mean-field makes it too short, and the closed form is free.
**Cost** seconds; a step costs N P, with N rows and P features.
**Bias to expect** means exact, sds too small: 1 / sqrt(diag(precision)) in place of sqrt(diag(precision^-1)).
**Source** Bishop 2006, sections 3.3 and 10.1.2; Giordano, Broderick and Jordan 2018, arXiv 1709.02536; priors as in rstanarm.
"""

# %%
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO

# %% [markdown]
# # Linear regression
#
# Rows $i = 1, \dots, N$, features $j = 1, \dots, P$, each in its own unit, the residual sd $\sigma$ known:
#
# $$y_i \sim \mathcal N\Big(\alpha + \sum_j (x_{ij} - \bar x_j)\,\beta_j,\ \sigma\Big), \qquad
# \alpha \sim \mathcal N(\bar y,\ 2.5\, s_y), \qquad \beta_j \sim \mathcal N(0,\ 2.5\, s_y / s_{x_j}).$$
#
# The intercept $\alpha$ is read at the average row. The priors carry the units of the table (means $\bar x, \bar y$ and
# sds $s_x, s_y$), so that metres or millimetres give the same answer. For $\sigma$ stands the residual sd of least
# squares: plugging it in leaves out its own uncertainty, one part in $\sqrt{2 (N - P - 1)}$.


# %%
def known(x, y, noise=None, units=None, xp=np):
    """What the model takes as known: `noise`, the residual sd, and `units`, (2, P + 1), means and sds of x's columns, then y's."""
    if (units is None or noise is None) and (y is None or len(y) < x.shape[1] + 2):
        raise ValueError(f"noise and units are read from y and at least {x.shape[1] + 2} rows of x: pass those, or noise=... and units=...")
    if units is None:
        table = xp.concatenate([x, y[:, None]], axis=1)
        units = xp.stack([table.mean(0), table.std(0)])
    if noise is None:
        z = (x - units[0, :-1]) / units[1, :-1]
        residual = y - units[0, -1] - z @ xp.linalg.lstsq(z, y - units[0, -1])[0]
        noise = xp.sqrt(xp.sum(residual**2) / (len(y) - x.shape[1] - 1))
    return xp.asarray(noise), units


def data(frame=None):
    """A table of correlated features.

    Returns:
        dict with `x`, (N, P), and `y`, (N,), in the table's units, and `noise` and `units` from `known`. Without a table, 100
        simulated persons: height (cm), weight (kg) and waist (cm) against body fat (%).
    """
    if frame is None:
        height, weight, waist, fat = np.random.default_rng(0).normal(size=(4, 100))
        height = 172 + 9 * height
        weight = 75 + 0.9 * (height - 172) + 9 * weight
        waist = 88 + 0.85 * (weight - 75) + 4 * waist
        fat = 22 + 0.7 * (waist - 88) - 0.25 * (weight - 75) + 4 * fat
        frame = {"height": height, "weight": weight, "waist": waist, "y": fat}
    columns = {name: np.asarray(frame[name]) for name in frame}
    y, noise, units = np.asarray(columns.pop("y"), float), columns.pop("noise", None), columns.pop("units", None)
    x = columns["x"] if "x" in columns else np.stack([c for c in columns.values() if c.dtype.kind in "biuf"], axis=1)
    noise, units = known(x.astype(float), y, noise, units)
    return {"x": x.astype(float), "y": y, "noise": noise, "units": units}


def model(x, y=None, noise=None, units=None):
    noise, (mean, sd) = known(x, y, noise, units, jnp)
    intercept = numpyro.sample("intercept", dist.Normal(mean[-1], 2.5 * sd[-1]))
    with numpyro.plate("feature", x.shape[1]):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.5 * sd[-1] / sd[:-1]))
    with numpyro.plate("observation", x.shape[0]):
        numpyro.sample("y", dist.Normal(intercept + (x - mean[:-1]) @ slopes, noise), obs=y)


# %% [markdown]
# ## The guide
#
# One Gaussian for every parameter, independent of the others. Its numbers are free in *standardised* coordinates: in raw
# units a slope may be $10^{-4}$ and an intercept $10^4$, and no single learning rate suits both.


# %%
def guide(x, y=None, noise=None, units=None):
    """Starts at the average of y, with every slope zero."""
    _, (mean, sd) = known(x, y, noise, units, jnp)
    positive = dist.constraints.positive
    m, s = numpyro.param("intercept_m", 0.0), numpyro.param("intercept_s", 0.1, constraint=positive)
    numpyro.sample("intercept", dist.Normal(mean[-1] + sd[-1] * m, sd[-1] * s))
    unit = sd[-1] / sd[:-1]
    m = numpyro.param("slopes_m", jnp.zeros(x.shape[1]))
    s = numpyro.param("slopes_s", jnp.full(x.shape[1], 0.1), constraint=positive)
    with numpyro.plate("feature", x.shape[1]):
        numpyro.sample("slopes", dist.Normal(unit * m, unit * s))


def fit(rng_key, x, y, noise=None, units=None, *, num_steps=4000):
    """Fit the guide by Adam, its rate decaying from 0.1 to 0.0001, so that the end is quiet.

    Returns:
        q: dict, site -> fitted Normal, in the table's units.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.001 ** (step / num_steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=8))
    result = svi.run(rng_key, num_steps, x, y, noise, units, progress_bar=False)
    fitted = handlers.seed(handlers.substitute(guide, result.params), rng_key)
    sites = handlers.trace(fitted).get_trace(x, y, noise, units)
    return {name: site["fn"] for name, site in sites.items() if site["type"] == "sample"}, result.losses


# %% [markdown]
# ## The exact answer
#
# Prior and likelihood are Gaussian, so the posterior of $(\alpha, \beta)$ is $\mathcal N(m, \Lambda^{-1})$, with precision
# $\Lambda = \Lambda_0 + Z^\top Z / \sigma^2$, where $Z$ holds a column of ones and the centred features.
# The mean-field Gaussian that is closest in $\mathrm{KL}(q \,\|\, p)$ has the same mean and the sds of the *conditionals*,
#
# $$s_j = \Lambda_{jj}^{-1/2} \le (\Lambda^{-1})_{jj}^{1/2}:$$
#
# what a slope may still do once all the others are pinned. Correlated features make that far too little.


# %%
def gaussian(x, y, noise, units):
    """Posterior mean and precision of (intercept, slopes), and log p(y); computed in units of the prior's sds."""
    noise, (mean, sd) = known(x, y, noise, units)
    prior_sd = 2.5 * sd[-1] / np.append(1.0, sd[:-1])
    z = np.column_stack([np.ones(len(y)), x - mean[:-1]]) * prior_sd / np.reshape(noise, (-1, 1))
    r = (y - mean[-1]) / noise
    precision = np.eye(z.shape[1]) + z.T @ z
    m = np.linalg.solve(precision, z.T @ r)
    log_det = np.linalg.slogdet(precision)[1] + 2 * np.sum(np.log(np.broadcast_to(noise, y.shape)))
    log_p = -0.5 * (len(y) * math.log(2 * math.pi) + log_det + r @ (r - z @ m))
    return prior_sd * m + np.append(mean[-1], 0 * m[1:]), precision / np.outer(prior_sd, prior_sd), float(log_p)


def exact_posterior(x, y, noise=None, units=None):
    """Marginals: `intercept`, Normal, and `slopes`, MultivariateNormal over (P,)."""
    m, precision, _ = gaussian(x, y, noise, units)
    cov = np.linalg.inv(precision)
    slopes = dist.MultivariateNormal(m[1:], scale_tril=np.linalg.cholesky(cov[1:, 1:]))
    return {"intercept": dist.Normal(m[0], cov[0, 0] ** 0.5), "slopes": slopes}


def log_evidence(x, y, noise=None, units=None):
    """log p(y) in nats."""
    return gaussian(x, y, noise, units)[2]


def documented_bias(x, y, noise=None, units=None):
    """The best mean-field q: exact means, sds 1 / sqrt(diag(precision))."""
    m, precision, _ = gaussian(x, y, noise, units)
    s = np.diag(precision) ** -0.5
    return {"intercept": (m[0], s[0]), "slopes": (m[1:], s[1:])}


# %%
def main():
    d = data()
    (q, losses), exact, predicted = fit(random.key(0), **d), exact_posterior(**d), documented_bias(**d)
    print(f"{'':<12}{'mean':>10}{'exact':>10}{'sd':>10}{'predicted':>10}{'exact':>10}")
    for site in q:
        rows = (q[site].mean, exact[site].mean, q[site].variance ** 0.5, predicted[site][1], exact[site].variance ** 0.5)
        for row in zip(*map(np.atleast_1d, rows), strict=True):
            print(f"{site:<12}" + "".join(f"{value:10.4f}" for value in row))
    print(f"elbo {-jnp.mean(losses[-100:]):.3f}, log evidence {log_evidence(**d):.3f}: the gap is KL(q || posterior)")


if __name__ == "__main__":
    main()
