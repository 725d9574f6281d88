# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Poisson regression: counts with exposure, the one likelihood whose mean-field ELBO is a formula.

**Technique** mean-field, reparameterised gradients.
**Use when** y counts events over known exposures (person-years, areas, hours) and rates multiply.
**Avoid when** counts scatter more than their mean: sds are then too small whatever the guide. Use a negative binomial.
**Cost** seconds; a step costs N P, with N rows and P features.
**Bias to expect** means right to 0.05 sd; sds 1 / sqrt(diag(precision)), on the doctors 0.62 to 0.86 of the true ones.
**Source** Doll and Hill 1954, doi 10.1136/bmj.1.4877.1451; ten years of follow-up, tabled in Breslow and Day 1987.
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
from scipy.special import gammaln, logsumexp
from scipy.stats import multivariate_t

# %% [markdown]
# # Poisson regression
#
# British doctors, by age and by whether they smoked: $y_i$ deaths from coronary disease in $e_i$ person-years.
#
# $$y_i \sim \mathrm{Poisson}(e_i\, e^{\eta_i}), \quad \eta_i = \alpha + \sum_j (x_{ij} - \bar x_j)\,\beta_j, \quad
# \alpha \sim \mathcal N(0, 10), \quad \beta_j \sim \mathcal N(0, 2.5 / s_{x_j}).$$
#
# The rate grows with age, but ever more slowly: the third column is the square of the age's distance from 60, in decades.
# The intercept is the log rate of the average row, and the priors follow the units (means $\bar x$, sds $s_x$) of x.


# %%
def data(frame=None):
    """Counts and what explains them.

    Returns:
        dict with `x`, (N, P), `y`, (N,), events over `exposure`, (N,) or 1, and `units`, (2, P), means and sds of x's columns.
        Without a table, ten groups of doctors: smokes (0 or 1), age in years, squared distance from 60 in decades; person-years.
    """
    if frame is None:
        age = np.tile([40.0, 50.0, 60.0, 70.0, 80.0], 2)
        frame = {"smokes": np.repeat([1.0, 0.0], 5), "age": age, "age_squared": ((age - 60) / 10) ** 2}
        frame["y"] = [32, 104, 206, 186, 102, 2, 12, 28, 28, 31]
        frame["exposure"] = [52407, 43248, 28612, 12663, 5317, 18790, 10673, 5710, 2585, 1462]
    columns = {name: np.asarray(frame[name]) for name in frame}
    y, exposure, units = columns.pop("y"), columns.pop("exposure", 1), columns.pop("units", None)
    x = columns["x"] if "x" in columns else np.stack([c for c in columns.values() if c.dtype.kind in "biuf"], axis=1).astype(float)
    return {"x": x, "y": y, "exposure": exposure, "units": np.stack([x.mean(0), x.std(0)]) if units is None else units}


def standardised(x, y, units, xp=np):
    """Columns of x from their means in their sds, and those sds."""
    if units is None and y is None:
        raise ValueError("units are read from x only where y is given too: pass units=..., those of the x that was fitted")
    mean, sd = xp.stack([x.mean(0), x.std(0)]) if units is None else units
    return (x - mean) / sd, sd


def model(x, y=None, exposure=1, units=None):
    z, sd = standardised(x, y, units, jnp)
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
    with numpyro.plate("feature", x.shape[1]):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.5 / sd))
    with numpyro.plate("observation", x.shape[0]):
        numpyro.sample("y", dist.Poisson(exposure * jnp.exp(intercept + z @ (slopes * sd))), obs=y)


# %% [markdown]
# ## The guide
#
# One Gaussian for every parameter. It starts at the average rate, and narrow: from a wide start $e^\eta$ overflows.


# %%
def guide(x, y=None, exposure=1, units=None):
    _, sd = standardised(x, y, units, jnp)
    rate = 1.0 if y is None else jnp.sum(y) / jnp.sum(exposure * jnp.ones(len(y)))
    positive = dist.constraints.positive
    m, s = numpyro.param("intercept_m", 0.0), numpyro.param("intercept_s", 0.1, constraint=positive)
    numpyro.sample("intercept", dist.Normal(jnp.log(rate) + m, s))
    m = numpyro.param("slopes_m", jnp.zeros(x.shape[1]))
    s = numpyro.param("slopes_s", jnp.full(x.shape[1], 0.1), constraint=positive)
    with numpyro.plate("feature", x.shape[1]):
        numpyro.sample("slopes", dist.Normal(m / sd, s / sd))


def fit(rng_key, x, y, exposure=1, units=None, *, num_steps=4000):
    """Fit the guide by Adam, its rate decaying from 0.1 to 0.0001.

    Returns:
        q: dict, `intercept` and `slopes` -> fitted Normals, the slopes per unit of x.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.001 ** (step / num_steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=16))
    result = svi.run(rng_key, num_steps, x, y, exposure, units, progress_bar=False)
    fitted = handlers.seed(handlers.substitute(guide, result.params), rng_key)
    sites = handlers.trace(fitted).get_trace(x, y, exposure, units)
    return {name: site["fn"] for name, site in sites.items() if site["type"] == "sample"}, result.losses


# %% [markdown]
# ## What the guide must get wrong
#
# Under $q = \prod_k \mathcal N(m_k, s_k)$ and with a design $Z$, $\mathbb E_q e^{\eta_i} = e^{(Zm)_i + (Z^2 s^2)_i / 2} = \lambda_i / e_i$,
# so that the ELBO is a formula. At its maximum $s_k^{-2} = 1 / \sigma_k^2 + \sum_i \lambda_i Z_{ik}^2$: the conditional sds once more.
#
# The exact posterior is reweighted from a Student-$t$ around the mode. With four parameters nearly all draws count.


# %%
def problem(x, y, exposure, units):
    """Design (N, P + 1), prior sds, log exposure, and the scales that return to raw units."""
    z, sd = standardised(x, y, units)
    prior = np.append(10.0, np.full(len(sd), 2.5))
    return np.column_stack([np.ones(len(y)), z]), prior, np.log(np.broadcast_to(exposure, y.shape)), np.append(1.0, sd)


def documented_bias(x, y, exposure=1, units=None):
    """The maximum of the mean-field ELBO: mean and sd of `intercept` and `slopes`."""
    z, prior, offset, scale = problem(x, y, exposure, units)

    def loss(p):
        m, s = p[: len(prior)], np.exp(p[len(prior) :])
        rate = np.exp(offset + z @ m + z**2 @ s**2 / 2)
        gradient = z.T @ (rate - y) + m / prior**2, s**2 * (z.T**2 @ rate + prior**-2.0) - 1
        return np.sum(rate) - y @ (z @ m) + 0.5 * np.sum((m**2 + s**2) / prior**2) - np.sum(np.log(s)), np.concatenate(gradient)

    start = np.append(np.log(np.sum(y) / np.sum(np.exp(offset))), np.zeros(len(prior) - 1))
    p = minimize(loss, np.append(start, np.full(len(prior), -3.0)), jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-7}).x
    m, s = p[: len(prior)] / scale, np.exp(p[len(prior) :]) / scale
    return {"intercept": (m[0], s[0]), "slopes": (m[1:], s[1:])}


def weighted(x, y, exposure, units):
    """200,000 draws of (intercept, slopes), raw units, from a t around the posterior; their log weights log p(y, draw) - log t(draw)."""
    z, prior, offset, scale = problem(x, y, exposure, units)
    best = documented_bias(x, y, exposure, units)
    centre = np.append(best["intercept"][0], best["slopes"][0]) * scale
    precision = z.T @ (np.exp(offset + z @ centre)[:, None] * z) + np.diag(prior**-2.0)
    t = multivariate_t(centre, np.linalg.inv(precision), df=10)
    draws = t.rvs(200_000, random_state=0)
    eta = offset + draws @ z.T
    log_p = eta @ y - np.sum(np.exp(eta), axis=1) - np.sum(gammaln(y + 1)) - np.sum((draws / prior) ** 2, axis=1) / 2
    return draws / scale, log_p - np.sum(np.log(prior)) - len(prior) / 2 * np.log(2 * np.pi) - t.logpdf(draws)


def log_evidence(x, y, exposure=1, units=None):
    """log p(y) in nats, with a Monte Carlo error of about 0.001."""
    return float(logsumexp(weighted(x, y, exposure, units)[1]) - np.log(200_000))


def exact_posterior(x, y, exposure=1, units=None):
    """100,000 draws of `intercept`, (100000,), and `slopes`, (100000, P), resampled by weight; worth about as many independent ones."""
    draws, log_w = weighted(x, y, exposure, units)
    cdf = np.cumsum(np.exp(log_w - logsumexp(log_w)))
    pick = draws[np.minimum(np.searchsorted(cdf, (np.arange(100_000) + 0.5) / 100_000), len(draws) - 1)]
    return {"intercept": pick[:, 0], "slopes": pick[:, 1:]}


# %%
def main():
    d = data()
    (q, losses), exact, best = fit(random.key(0), **d), exact_posterior(**d), documented_bias(**d)
    print(f"{'':<11}{'mean':>9}{'best q':>9}{'exact':>9}{'sd':>11}{'best q':>9}{'exact':>9}")
    for site in q:
        rows = (q[site].mean, best[site][0], exact[site].mean(0), q[site].variance ** 0.5, best[site][1], exact[site].std(0))
        for row in zip(*map(np.atleast_1d, rows), strict=True):
            print(f"{site:<11}{row[0]:9.4f}{row[1]:9.4f}{row[2]:9.4f}{row[3]:11.4f}{row[4]:9.4f}{row[5]:9.4f}")
    print(f"elbo {-jnp.mean(losses[-100:]):.3f}, log evidence {log_evidence(**d):.3f}")


if __name__ == "__main__":
    main()
