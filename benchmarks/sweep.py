"""1,000 DADVI fits of a regression with 7 parameters, all data sets at once, beside the same fits one after the other.

    uv run python benchmarks/sweep.py           # writes benchmarks/results/sweep.md

A fit here is the mode, the optimum of the fixed-draw ELBO and the linear-response covariance, from two compiled programs; compiling is
timed apart, in a first run on other data. One by one means `mode.find` and `linear_response.maximise`, compiled already. Certificates, with
40,000 draws each, are timed on some of the data sets.
"""

import argparse
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import vipatterns as vip
from vipatterns import density, keys, linear_response, many, mode

RESULT = Path(__file__).parent / "results" / "sweep.md"
NUM_ROWS, NUM_FEATURES = 100, 5


def model(x, y=None):
    """Intercept, five slopes and the noise's sd."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
    with numpyro.plate("feature", NUM_FEATURES):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 5.0))
    noise = numpyro.sample("noise", dist.HalfNormal(5.0))
    with numpyro.plate("row", NUM_ROWS):
        numpyro.sample("y", dist.Normal(intercept + x @ slopes, noise), obs=y)


def datasets_of(rng, number):
    for _ in range(number):
        x = rng.normal(size=(NUM_ROWS, NUM_FEATURES)) @ (np.eye(NUM_FEATURES) + 0.4 * rng.normal(size=(NUM_FEATURES, NUM_FEATURES)))
        slopes, noise = rng.normal(0, 2, NUM_FEATURES), np.exp(rng.normal(0, 0.5))
        yield {"x": x, "y": rng.normal(0, 5) + x @ slopes + noise * rng.normal(size=NUM_ROWS)}


def sweep(seed, datasets, clock):
    """Seconds of compiling, seconds of the rest, and what was found."""
    began, key_like, key_base = time.perf_counter(), *keys.split(jax.random.key(seed))
    first = density.read(model, datasets[0])
    targets = [first.on(data) for data in datasets]
    like = mode.find(key_like, first, clock)
    base = linear_response.base_draws(key_base, vip.DADVI().num_draws, first.dim)
    found = many.optima(np.random.default_rng(seed), targets, like, base, clock)
    return time.perf_counter() - began, targets, base, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=1_000)
    parser.add_argument("--certified", type=int, default=50)
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    rng, clock = np.random.default_rng(0), density.Clock()
    with density.precision("float64"):
        cold, *_ = sweep(0, list(datasets_of(rng, asked.number)), clock)
        compiled = clock.compile_seconds
        datasets = list(datasets_of(rng, asked.number))
        seconds, targets, base, found = sweep(1, datasets, clock)
        assert clock.compile_seconds == compiled, "the second sweep compiled something"
        there = [f for f in found if f is not None]
        few = range(0, asked.number, max(1, asked.number // asked.certified))
        began = time.perf_counter()
        alone = []
        for i in few:
            start = mode.find(jax.random.key(i), targets[i], clock)
            alone.append(linear_response.maximise(targets[i], start, base, np.zeros(2 * start.loc.size), clock)[0])
        one_by_one = (time.perf_counter() - began) / len(few)
        apart = max(
            float(np.abs((found[i][1].loc - a.loc) / np.sqrt(np.diagonal(a.factor @ a.factor.T))).max())
            for i, a in zip(few, alone, strict=True)
        )
    chosen = [datasets[i] for i in few]
    list(vip.DADVI().fit_many(jax.random.key(2), model, chosen[:1]))
    began = time.perf_counter()
    fits = list(vip.DADVI().fit_many(jax.random.key(3), model, chosen))
    certified = (time.perf_counter() - began) / len(fits)
    errors = []
    for i, fit in zip(few, fits, strict=True):
        draws = np.concatenate(
            [fit.posterior["intercept"].values.reshape(-1, 1), fit.posterior["slopes"].values.reshape(-1, NUM_FEATURES)], 1
        )
        errors.append(np.abs((found[i][1].loc[:-1] - draws.mean(0)) / draws.std(0)).max())
    lines = [
        f"{asked.number} fits of a regression with {NUM_FEATURES + 2} parameters and {NUM_ROWS} rows:",
        "",
        "| what | seconds | a fit, ms |",
        "|---|--:|--:|",
        f"| all at once, compiled already | {seconds:.2f} | {1e3 * seconds / asked.number:.2f} |",
        f"| all at once, compiling counted | {cold:.2f} | {1e3 * cold / asked.number:.2f} |",
        f"| one by one, compiled already ({len(few)} of them timed) | {one_by_one * asked.number:.1f} | {1e3 * one_by_one:.1f} |",
        f"| with a certificate each ({len(few)} of them timed) | {certified * asked.number:.1f} | {1e3 * certified:.1f} |",
        "",
        f"{len(there)} of {asked.number} ended in a mode, {sum(f[1].converged for f in there)} converged; q's means are within "
        f"{apart:.1e} sd of those found alone, and within {max(errors):.3f} sd of the certified posterior means "
        f"({sum(f.certificate.ok for f in fits)} of {len(fits)} certified).",
        "",
        f"{os.cpu_count()} cores ({platform.machine()}), load average {load:.1f} before, Python {platform.python_version()}, "
        f"numpyro {version('numpyro')}, jax {version('jax')}.",
        "",
    ]
    print("\n".join(lines))
    if asked.number == 1_000:
        RESULT.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
