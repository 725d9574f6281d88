# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Local level: a random walk seen through noise, the smallest state-space model, on a century of the Nile.

**Technique** structured: the path given its scales.
**Use when** a regular series without gaps drifts, and the drift is to be told from the noise, with honest uncertainty for both.
**Avoid when** times are missing, or there are trends and seasons: the cosines below are for this model; use a Kalman filter and NUTS.
**Cost** seconds; a step costs N, the length of the series.
**Bias to expect** next to none in the sds (0.03 sd, 3 %) and the levels; the sd of the slowest wave's coefficient a tenth too small.
**Source** Durbin and Koopman 2012, chapter 2, doi 10.1093/acprof:oso/9780199641178.001.0001; Cobb 1978, doi 10.1093/biomet/65.2.243.
"""

# %%
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.infer import SVI, Predictive, Trace_ELBO
from scipy.optimize import minimize
from scipy.special import logsumexp, roots_hermitenorm

# %% [markdown]
# # Local level
#
# The yearly flow of the Nile at Aswan, $y_t$, is a level that wanders plus the weather of the year:
#
# $$y_t \sim \mathcal N(\ell_t, \sigma_y), \qquad \ell_{t+1} \sim \mathcal N(\ell_t, \sigma_\ell), \qquad
# \sigma_\ell, \sigma_y \sim \mathrm{HalfNormal}(s_y), \qquad \bar\ell \sim \mathcal N(\bar y, 10\, s_y).$$
#
# Neighbouring levels are nearly equal, and no guide that draws them independently can follow. But a random walk about its
# own average is a sum of cosines with *independent* coefficients $z_k$,
#
# $$\ell_t = \bar\ell + \sigma_\ell \sum_{k=1}^{N-1} z_k \sqrt{\tfrac{2 \lambda_k}{N}} \cos \frac{\pi k (t - 1/2)}{N}, \qquad
# \lambda_k = \frac1{2 - 2 \cos(\pi k / N)}, \qquad z_k \sim \mathcal N(0, 1).$$


# %%
def data(frame=None):
    """Series `y`, (N,), in the order of time, `num_times`, N, and `units`, (2,), mean and sd of y, in y's units.

    Without a table with a column y, the flow of the Nile in 1871 to 1970 (1e8 cubic metres a year).
    """
    if frame is None:
        flow = """1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140 1100 1210 1150 1250
            1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969 831 726 456 824 702 1120 1100 832 764 821 768 845
            864 862 698 845 744 796 1040 759 781 865 845 944 984 897 822 1010 771 676 649 846 812 742 801 1040 860 874 848 890 744
            749 838 1050 918 986 797 923 975 815 1020 906 901 1170 912 746 919 718 714 740"""
        frame = {"y": flow.split()}
    y = np.asarray(frame["y"], float)
    return {"y": y, "num_times": len(y), "units": known(y)}


def known(y, units=None, xp=np):
    """Mean and sd of y."""
    if units is None and y is None:
        raise ValueError("units are read from y: pass y too, or units=..., those of the series that was fitted")
    return xp.stack([xp.mean(y), xp.std(y)]) if units is None else units


def cosines(num_times):
    """The waves as orthonormal columns, (N, N), a constant first; heights of the others in a random walk of unit steps, (N - 1,)."""
    k, t = np.arange(num_times), np.arange(num_times) + 0.5
    waves = np.sqrt(np.where(k, 2, 1) / num_times) * np.cos(np.pi * np.outer(t, k) / num_times)
    return waves, 1 / (2 * np.sin(np.pi * k[1:] / (2 * num_times)))


def model(y=None, num_times=2, units=None):
    """`num_times` is read only where `y` is None: a series of that length is then predicted."""
    (mean, sd), (waves, height) = known(y, units, jnp), cosines(num_times if y is None else len(y))
    sigma_level, sigma_obs = (numpyro.sample(name, dist.HalfNormal(sd)) for name in ("sigma_level", "sigma_obs"))
    average = numpyro.sample("average", dist.Normal(mean, 10 * sd))
    with numpyro.plate("frequency", len(height)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    level = numpyro.deterministic("level", average + sigma_level * (waves[:, 1:] @ (height * z)))
    with numpyro.plate("time", len(waves)):
        numpyro.sample("y", dist.Normal(level, sigma_obs), obs=y)


# %% [markdown]
# ## The guide
#
# The cosines are orthogonal: given the two sds, the data leave the coefficients independent too. The guide draws them from
# that posterior, in which each is shrunk by its own signal-to-noise ratio $\lambda_k \sigma_\ell^2 / \sigma_y^2$: the Kalman smoother in
# this basis. The sds get a bivariate Gaussian on the log scale, five numbers: what is drift is not noise, so they are
# correlated. Had the levels not been allowed to depend on them, $\sigma_\ell$ would come out five times too sure.


# %%
def given(sigma_level, sigma_obs, y, units, xp=np):
    """Mean and sd of (average, z), (..., N), and log p(y | the sds), (...); the sds end in an axis of one and are in units of sd."""
    (mean, sd), (waves, height) = known(y, units, xp), cosines(len(y))
    seen = waves.T @ (y - mean) / sd
    prior = np.append(10.0, np.ones(len(height)))
    gain = xp.concatenate([xp.full_like(sigma_level, len(y) ** 0.5), sigma_level * height], axis=-1)
    var, total = 1 / (prior**-2 + (gain / sigma_obs) ** 2), sigma_obs**2 + (gain * prior) ** 2
    return var * gain * seen / sigma_obs**2, xp.sqrt(var), -0.5 * xp.sum(xp.log(2 * np.pi * sd**2 * total) + seen**2 / total, axis=-1)


def guide(y=None, num_times=2, units=None):
    """Needs y. The second sd is drawn given the first: `slope` is what ties their logarithms."""
    (mean, sd), (waves, height), positive = known(y, units, jnp), cosines(len(y)), dist.constraints.positive
    m, s = numpyro.param("level_m", -1.0), numpyro.param("level_s", 0.3, constraint=positive)
    sigma_level = numpyro.sample("sigma_level", dist.LogNormal(jnp.log(sd) + m, s)) / sd
    mean_obs = numpyro.param("obs_m", -0.5) + numpyro.param("slope", 0.0) * (jnp.log(sigma_level) - m)
    sigma_obs = numpyro.sample("sigma_obs", dist.LogNormal(jnp.log(sd) + mean_obs, numpyro.param("obs_s", 0.1, constraint=positive))) / sd
    m, s, _ = given(sigma_level[None], sigma_obs[None], y, units, jnp)
    average = numpyro.sample("average", dist.Normal(mean + sd * m[0], sd * s[0]))
    with numpyro.plate("frequency", len(y) - 1):
        z = numpyro.sample("z", dist.Normal(m[1:], s[1:]))
    numpyro.deterministic("level", average + sd * sigma_level * (waves[:, 1:] @ (height * z)))


def fit(rng_key, y, num_times=2, units=None, *, num_steps=1000):
    """Fit the guide by Adam, its rate decaying from 0.05 to 0.00005.

    Returns:
        q: dict, site -> draws, (10000,) and for `z` and `level` (10000, N - 1) and (10000, N), in y's units.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    svi = SVI(model, guide, numpyro.optim.Adam(lambda step: 0.05 * 0.001 ** (step / num_steps)), Trace_ELBO(num_particles=8))
    result = svi.run(rng_key, num_steps, y, num_times, units, progress_bar=False)
    q = Predictive(guide, params=result.params, num_samples=10_000)(rng_key, y, num_times, units)
    return {name: q[name] for name in ("sigma_level", "sigma_obs", "average", "z", "level")}, result.losses


# %% [markdown]
# ## The exact answer
#
# With the levels integrated out, two numbers are left, and a grid in their logarithms serves. The best guide of this family
# maximises an integral over the same two.


# %%
def log_joint(log_level, log_obs, y, units):
    """log p(y, the two log sds), standardised, over any one shape."""
    level, obs = np.exp(log_level), np.exp(log_obs)
    return given(level[..., None], obs[..., None], y, units)[2] + np.log(2 / np.pi * level * obs) - (level**2 + obs**2) / 2


def grid(y, units):
    """A grid for either log sd, (401,), standardised, and log p(y, cell), (401, 401), sigma_level first."""
    log_sd = np.linspace(-10, 2, 401)
    return log_sd, np.array([log_joint(np.full(401, row), log_sd, y, units) for row in log_sd]) + 2 * np.log(0.03)


def log_evidence(y, num_times=2, units=None):
    """log p(y) in nats."""
    return float(logsumexp(grid(y, units)[1]))


def exact_posterior(y, num_times=2, units=None):
    """100,000 draws of every site: cells of the grid in proportion to their mass, then what is Gaussian given the sds."""
    (log_sd, log_p), (mean, sd), rng = grid(y, units), known(y, units), np.random.default_rng(0)
    cell = np.searchsorted(np.cumsum(np.exp(log_p - logsumexp(log_p))), (np.arange(100_000) + 0.5) / 100_000)
    index = np.stack(np.unravel_index(np.minimum(cell, log_p.size - 1), log_p.shape))
    level, obs = np.exp(log_sd[index] + rng.uniform(-0.015, 0.015, index.shape))[..., None]
    b, (waves, height) = rng.normal(*given(level, obs, y, units)[:2]), cosines(len(y))
    draws = {"sigma_level": sd * level[:, 0], "sigma_obs": sd * obs[:, 0], "average": mean + sd * b[:, 0], "z": b[:, 1:]}
    return draws | {"level": mean + sd * (b[:, :1] + level * ((height * b[:, 1:]) @ waves[:, 1:].T))}


def documented_bias(y, num_times=2, units=None):
    """Mean and sd of the two sds under the best bivariate Gaussian of their logarithms, by Gauss-Hermite quadrature."""
    node, weight = roots_hermitenorm(24)

    def loss(p):
        log_sds = np.broadcast_arrays(p[0] + np.exp(p[1]) * node[:, None], p[2] + p[4] * node[:, None] + np.exp(p[3]) * node)
        return -weight @ log_joint(*log_sds, y, units) @ weight / weight.sum() ** 2 - p[1] - p[3]

    p = minimize(loss, [-1.0, -1.0, -0.5, -2.0, 0.0], method="BFGS").x
    q = {"sigma_level": (p[0], np.exp(2 * p[1])), "sigma_obs": (p[2], np.exp(2 * p[3]) + p[4] ** 2)}
    return {site: known(y, units)[1] * np.exp(m + var / 2) * np.array([1, np.sqrt(np.expm1(var))]) for site, (m, var) in q.items()}


# %%
def main():
    d = data()
    (q, losses), exact = fit(random.key(0), **d), exact_posterior(**d)
    print(f"{'':<14}{'mean':>10}{'exact':>10}{'sd':>10}{'exact':>10}")
    for site in ("sigma_level", "sigma_obs", "average"):
        row = (q[site].mean(), exact[site].mean(), q[site].std(), exact[site].std())
        print(f"{site:<14}" + "".join(f"{value:10.2f}" for value in row))
    print(f"elbo {-jnp.mean(losses[-100:]):.3f}, log evidence {log_evidence(**d):.3f}")


if __name__ == "__main__":
    main()
