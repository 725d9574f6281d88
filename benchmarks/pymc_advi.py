# /// script
# requires-python = ">=3.12,<3.14"
# dependencies = ["pymc>=6"]
# ///
"""PyMC's ADVI on a few patterns, its models written by hand to be theirs; `speed.py` runs it, in an environment of its own.

    uv run --script benchmarks/pymc_advi.py PATTERN FOLDER

FOLDER holds first.npz and second.npz, the arguments of the pattern's model; it gets draws.npz, of the fit to the first, and times.json: the
seconds of the fit to the first, cold, and of that to the second. As PyMC's documentation has it: `pm.fit` for 10,000 steps of its default
optimiser, then 4,000 draws. A second `pm.fit` compiles anew; `pm.Data` spares it nothing of that.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

# PyTensor keeps what it compiled on disk, which a cold start does not have.
os.environ["PYTENSOR_FLAGS"] = f"base_compiledir={tempfile.mkdtemp()}," + os.environ.get("PYTENSOR_FLAGS", "")

import numpy as np
import pymc as pm


def eight_schools(sigma, y):
    mu, tau, z = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5), pm.Normal("z", 0, 1, shape=len(y))
    pm.Normal("y", pm.Deterministic("theta", mu + tau * z), sigma, observed=y)


def linear_regression(x, y, noise, units):
    mean, sd = units
    intercept, slopes = pm.Normal("intercept", mean[-1], 2.5 * sd[-1]), pm.Normal("slopes", 0, 2.5 * sd[-1] / sd[:-1])
    pm.Normal("y", intercept + (x - mean[:-1]) @ slopes, noise, observed=y)


def logistic_regression(x, y, trials, units):
    mean, scale = units
    intercept, slopes = pm.Normal("intercept", 0, 2), pm.Normal("slopes", 0, 10 / scale)
    pm.Binomial("y", trials, logit_p=intercept + ((x - mean) / scale) @ (slopes * scale), observed=y)


def poisson_regression(x, y, exposure, units):
    mean, sd = units
    intercept, slopes = pm.Normal("intercept", 0, 10), pm.Normal("slopes", 0, 2.5 / sd)
    pm.Poisson("y", exposure * pm.math.exp(intercept + ((x - mean) / sd) @ (slopes * sd)), observed=y)


def robust_regression(x, y, units):
    mean, sd = units
    intercept, slopes = pm.Normal("intercept", mean[-1], 2.5 * sd[-1]), pm.Normal("slopes", 0, 2.5 * sd[-1] / sd[:-1])
    sigma = pm.HalfNormal("sigma", sd[-1])
    pm.StudentT("y", nu=4, mu=intercept + (x - mean[:-1]) @ slopes, sigma=sigma, observed=y)


MODELS = [eight_schools, linear_regression, logistic_regression, poisson_regression, robust_regression]


def fit(build, data, seed):
    began, used = time.perf_counter(), sum(os.times()[:4])
    with pm.Model():
        build(**data)
        approximation = pm.fit(10_000, method="advi", random_seed=seed, progressbar=False)
        posterior = approximation.sample(4_000, random_seed=seed)["posterior"]
        draws = {str(name): posterior[name].values.reshape(-1, *posterior[name].shape[2:]) for name in posterior.data_vars}
    return time.perf_counter() - began, sum(os.times()[:4]) - used, draws


def main():
    name, folder = sys.argv[1], Path(sys.argv[2])
    build = {function.__name__: function for function in MODELS}[name]
    first, second = (dict(np.load(folder / f"{which}.npz")) for which in ("first", "second"))
    cold, cpu, draws = fit(build, first, 0)
    np.savez(folder / "draws.npz", **draws)
    warm, _, _ = fit(build, second, 1)
    times = {"cold": cold, "warm": warm, "cpu": cpu, "version": pm.__version__}
    (folder / "times.json").write_text(json.dumps(times), encoding="utf-8")


if __name__ == "__main__":
    main()
