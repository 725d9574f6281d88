# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Gaussian process: a smooth curve of unknown shape through noisy points, its smoothness learnt too.

**Technique** full-rank Gaussian, the curve integrated out.
**Use when** y is an unknown, fairly smooth function of one or a few columns, rows are up to some hundreds and errors Gaussian.
**Avoid when** rows are thousands (a step costs N^3), the curve jumps, or y are counts: the guide's formula holds for Gaussian errors.
**Cost** seconds for thirty rows; a step costs N^3.
**Bias to expect** sds of the hyperparameters 4 % too small, their joint posterior being nearly log-normal; the curve next to exact.
**Source** Rasmussen and Williams 2006, chapters 2 and 5, doi 10.7551/mitpress/3206.001.0001; the data: results of the Games.
"""

# %%
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from jax.scipy.linalg import solve_triangular
from numpyro.infer import SVI, Predictive, Trace_ELBO
from scipy.special import logsumexp

# %% [markdown]
# # Gaussian process
#
# The winner's time over 100 metres at 29 Olympic Games falls, in no shape that a formula would give. A Gaussian process
# says only how alike neighbours are: values of the curve $f$ at distance $r$ (in ranges of $x$) have the correlation
#
# $$k(r) = (1 + \sqrt3\, r / \ell)\, e^{-\sqrt3\, r / \ell}, \ \ f \sim \mathcal N(\bar y, a^2 K), \ \ y_i \sim \mathcal N(f_i, \sigma),$$
#
# $$\log \ell \sim \mathcal N(\log \tfrac12, \tfrac34), \quad a \sim \mathrm{HalfNormal}(2 s_y), \quad
# \sigma \sim \mathrm{HalfNormal}(s_y).$$
#
# $\ell$ says how far one must go along $x$ for the curve to turn, $a$ how far it strays, $\sigma$ how far points lie from it. The
# curve itself need not be sampled: integrated out, it leaves $y \sim \mathcal N(\bar y, C)$, $C = a^2 K + \sigma^2 I$, and three numbers to
# infer. With $C = L L^\top$ and $e = L^{-1}(y - \bar y)$ that density is a product of one-step predictions, $y_i$ from those before it:
#
# $$p(y) = \prod_i \mathcal N\big(y_i;\ y_i - L_{ii} e_i,\ L_{ii}\big).$$


# %%
def data(frame=None):
    """Points `x`, (N, P), and `y`, (N,), in a table's units; `units`, (2, P + 1), means of all, then ranges of x's columns and y's sd.

    Without a table, the year of the Games and the winner's time over 100 metres, men, 1900 to 2024 (in seconds).
    """
    if frame is None:
        year = [1900, 1904, 1908, 1912, 1920, 1924, 1928, 1932, 1936, *range(1948, 2025, 4)]
        time = """11.0 11.0 10.8 10.8 10.8 10.6 10.8 10.3 10.3 10.3 10.4 10.5 10.2 10.0 9.95 10.14 10.06 10.25 9.99 9.92 9.96 9.84
            9.87 9.85 9.69 9.63 9.81 9.80 9.79"""
        frame = {"year": year, "y": np.array(time.split(), float)}
    columns = {name: np.asarray(frame[name]) for name in frame}
    y = columns.pop("y").astype(float)
    x = columns["x"] if "x" in columns else np.stack([c for c in columns.values() if c.dtype.kind in "biuf"], axis=1).astype(float)
    return {"x": x, "y": y, "units": known(x, y)}


def known(x, y, units=None, xp=np):
    """Means of x's columns and of y; ranges of x's columns, sd of y."""
    if units is None and y is None:
        raise ValueError("units are read from x and y: pass y too, or units=..., those of the table that was fitted")
    return xp.stack([xp.append(x.mean(0), y.mean()), xp.append(xp.ptp(x, axis=0), y.std())]) if units is None else units


def correlation(x, new, lengthscale, units, xp=np):
    """Of the curve at x, (N, P), and at new, (M, P): (..., N, M) for lengthscales (...)."""
    r = xp.sqrt(3 * xp.sum(((x[:, None] - new) / units[1, :-1]) ** 2, axis=-1)) / lengthscale[..., None, None]
    return (1 + r) * xp.exp(-r)


def model(x, y=None, units=None):
    units = known(x, y, units, jnp)
    mean, sd = units[:, -1]
    lengthscale = numpyro.sample("lengthscale", dist.LogNormal(jnp.log(0.5), 0.75))
    amplitude, noise = (numpyro.sample(name, dist.HalfNormal(scale)) for name, scale in (("amplitude", 2 * sd), ("noise", sd)))
    cov = amplitude**2 * correlation(x, x, jnp.asarray(lengthscale), units, jnp) + (noise**2 + 1e-5 * sd**2) * jnp.eye(len(x))
    root = jnp.linalg.cholesky(cov)
    if y is None:  # all at once: there are none before
        return numpyro.sample("y", dist.MultivariateNormal(mean, scale_tril=root))
    with numpyro.plate("observation", len(x)):
        step = jnp.diag(root)
        return numpyro.sample("y", dist.Normal(y - step * solve_triangular(root, y - mean, lower=True), step), obs=y)


# %% [markdown]
# ## The guide
#
# A full-rank Gaussian on the logarithms: a mean and a Cholesky factor, nine numbers. Its axes turn with the posterior's: a
# curve that turns sooner strays less, and the two are known together better than apart.


# %%
def guide(x, y=None, units=None):
    """`logs` is a site of the guide alone: the model's three are its exponentials, with the densities that follow."""
    sd = known(x, y, units, jnp)[1, -1]
    m = numpyro.param("m", jnp.array([-0.5, 0.0, -1.0]))
    tril = numpyro.param("tril", 0.3 * jnp.eye(3), constraint=dist.constraints.lower_cholesky)
    logs = numpyro.sample("logs", dist.MultivariateNormal(m, scale_tril=tril), infer={"is_auxiliary": True})
    for name, value in zip(("lengthscale", "amplitude", "noise"), jnp.exp(logs) * jnp.stack([1.0, sd, sd]), strict=True):
        numpyro.sample(name, dist.Delta(value, log_density=-jnp.log(value)))


def fit(rng_key, x, y, units=None, *, num_steps=1000):
    """Fit the guide by Adam, its rate decaying from 0.05 to 0.00005.

    Returns:
        q: dict, `lengthscale` in ranges of x, `amplitude` and `noise` in units of y -> joint draws, (10000,).
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    svi = SVI(model, guide, numpyro.optim.Adam(lambda step: 0.05 * 0.001 ** (step / num_steps)), Trace_ELBO(num_particles=8))
    result = svi.run(rng_key, num_steps, x, y, units, progress_bar=False)
    q = Predictive(guide, params=result.params, num_samples=10_000)(rng_key, x, y, units)
    return {name: q[name] for name in ("lengthscale", "amplitude", "noise")}, result.losses


# %% [markdown]
# ## The curve
#
# Given the hyperparameters, the curve anywhere is Gaussian again: one linear solve for every draw.


# %%
def curve(new, x, y, units, lengthscale, amplitude, noise):
    """Mean and sd of f at new, (M, P), given draws (S,) of the hyperparameters: each (S, M)."""
    mean, sd = units[:, -1]
    power, jitter = amplitude[:, None, None] ** 2, (noise[:, None, None] ** 2 + 1e-5 * sd**2) * np.eye(len(x))
    across = power * correlation(x, new, lengthscale, units)
    gain = np.linalg.solve(power * correlation(x, x, lengthscale, units) + jitter, across)
    return mean + np.einsum("snm,n->sm", gain, y - mean), np.sqrt(power[:, :, 0] - np.sum(gain * across, axis=1))


# %% [markdown]
# ## The exact answer
#
# Three numbers take a grid. The eigenvectors of $K$ make $C$ diagonal for every $a$ and $\sigma$ at once.


# %%
def grid(x, y, units):
    """Nodes of log lengthscale, log amplitude and log noise, (61,), (121,), (121,), standardised; log p(y, cell), (61, 121, 121)."""
    mean, sd = units[:, -1]
    logs = np.log(0.5) + 0.75 * np.linspace(-4, 4, 61), np.linspace(-4, 3, 121), np.linspace(-5, 1.5, 121)
    log_p = np.empty((61, 121, 121))
    for i, lengthscale in enumerate(np.exp(logs[0])):
        values, vectors = np.linalg.eigh(correlation(x, x, lengthscale, units))
        var = np.exp(2 * logs[1])[:, None, None] * np.maximum(values, 0) + np.exp(2 * logs[2])[:, None] + 1e-5
        log_p[i] = -0.5 * np.sum(np.log(2 * np.pi * sd**2 * var) + (vectors.T @ (y - mean) / sd) ** 2 / var, axis=-1)
    prior = [-0.5 * ((logs[0] - np.log(0.5)) / 0.75) ** 2 - 0.5 * np.log(2 * np.pi * 0.75**2)]
    prior += [log + 0.5 * np.log(2 / np.pi) - np.log(s) - np.exp(2 * log) / (2 * s**2) for log, s in zip(logs[1:], (2, 1), strict=True)]
    return logs, log_p + sum(np.ix_(*[p + np.log(log[1] - log[0]) for p, log in zip(prior, logs, strict=True)]))


def log_evidence(x, y, units=None):
    """log p(y) in nats."""
    return float(logsumexp(grid(x, y, known(x, y, units))[1]))


def exact_posterior(x, y, units=None):
    """100,000 joint draws of `lengthscale`, `amplitude` and `noise`: nodes of the grid in proportion to their mass."""
    logs, log_p = grid(x, y, units := known(x, y, units))
    cell = np.searchsorted(np.cumsum(np.exp(log_p - logsumexp(log_p))), (np.arange(100_000) + 0.5) / 100_000)
    draws = [np.exp(log[i]) for log, i in zip(logs, np.unravel_index(np.minimum(cell, log_p.size - 1), log_p.shape), strict=True)]
    return dict(zip(("lengthscale", "amplitude", "noise"), np.multiply(draws, [[1], [units[1, -1]], [units[1, -1]]]), strict=True))


# %%
def main():
    d = data()
    (q, losses), exact = fit(random.key(0), **d), exact_posterior(**d)
    print(f"{'':<14}{'mean':>10}{'exact':>10}{'sd':>10}{'exact':>10}")
    row = [(function(q[site]), function(exact[site])) for site in q for function in (np.mean, np.std)]
    for site, m, s in zip(q, row[::2], row[1::2], strict=True):
        print(f"{site:<14}" + "".join(f"{value:10.4f}" for value in (*m, *s)))
    for year in (1988, 2028):
        m, s = curve(np.array([[year]]), **d, **{site: np.asarray(q[site][:2000], float) for site in q})
        print(f"curve in {year}: {m.mean():.3f} s, sd {np.sqrt(m.var() + np.mean(s**2)):.3f}")
    print(f"elbo {-jnp.mean(losses[-100:]):.3f}, log evidence {log_evidence(**d):.3f}")


if __name__ == "__main__":
    main()
