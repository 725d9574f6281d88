"""Cost against size: logistic regression with 20 features, N rows, by DADVI and by NumPyro's NUTS (one chain, 500 + 1,000).

    uv run python benchmarks/scaling.py                 # N = 1e3, 1e4, 1e5; writes benchmarks/results/scaling.md
    uv run python benchmarks/scaling.py 1000000         # NUTS is extrapolated where it would take over ten minutes, and says so

Every row runs in a process of its own without a cache of compiled programs: wall seconds with compiling, without imports and without the
making of the data; peak memory of the process. Where NUTS ran to its end, the error is the largest difference of the two posterior means,
in posterior sds, beside the Monte Carlo error that it should have.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "scaling.md"
NUM_FEATURES = 20
WARMUP, DRAWS = 500, 1_000
PATIENCE = 600.0
"""Seconds; NUTS is extrapolated from a short run where the whole would take longer."""


def data_of(num_rows):
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_rows, NUM_FEATURES)) @ (np.eye(NUM_FEATURES) + 0.3 * rng.normal(size=(NUM_FEATURES, NUM_FEATURES)))
    slopes = rng.normal(size=NUM_FEATURES) / 3
    return {"x": x, "y": (rng.uniform(size=num_rows) < 1 / (1 + np.exp(-(x @ slopes)))).astype(float)}


def model(x, y=None):
    import numpyro
    import numpyro.distributions as dist

    slopes = numpyro.sample("slopes", dist.Normal(0, 1).expand([NUM_FEATURES]).to_event(1))
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)


def dadvi(data):
    import jax

    import vipatterns as vip

    method = vip.DADVI()
    began = time.perf_counter()
    fit = method.fit(jax.random.key(0), model, data, progress=False)
    seconds = time.perf_counter() - began
    draws = fit.posterior["slopes"].values.reshape(-1, NUM_FEATURES)
    return {"seconds": seconds, "ok": fit.certificate.ok, "khat": fit.certificate.khat, "error": fit.certificate.mcse}, draws


def nuts(data):
    import jax
    import numpy as np
    from arviz_stats.base.array import array_stats
    from numpyro.infer import MCMC, NUTS

    jax.config.update("jax_enable_x64", True)

    def run(num_warmup, num_samples):
        began = time.perf_counter()
        mcmc = MCMC(NUTS(model), num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
        mcmc.run(jax.random.key(0), extra_fields=("num_steps",), **data)
        draws = np.asarray(mcmc.get_samples()["slopes"])
        return time.perf_counter() - began, draws

    short, _ = run(10, 10)
    longer, _ = run(50, 50)
    expected = longer + (longer - short) * (WARMUP + DRAWS - 100) / 80
    if expected > PATIENCE:
        return {"seconds": expected, "extrapolated": True}, None
    seconds, draws = run(WARMUP, DRAWS)
    ess = min(array_stats.ess(draws[None, :, j]) for j in range(NUM_FEATURES))
    return {"seconds": seconds, "error": float(ess**-0.5)}, draws


def one(num_rows, method, keep):
    import numpy as np

    row, draws = {"DADVI": dadvi, "NUTS": nuts}[method](data_of(num_rows))
    if draws is not None:
        np.savez(keep, mean=draws.mean(0), sd=draws.std(0))
    row["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(row))


def main():
    import tempfile

    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return one(asked.sizes[0], *asked.one)
    lines = [
        "| N | DADVI s | MB | certified | k-hat | NUTS s | MB | DADVI / NUTS | means apart (sd) | expected |",
        "|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    print("\n".join(lines), flush=True)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    loads = []
    for num_rows in asked.sizes or [1_000, 10_000, 100_000]:
        with tempfile.TemporaryDirectory() as folder:
            rows = {}
            for method in ("DADVI", "NUTS"):
                argv = [sys.executable, __file__, str(num_rows), "--one", method, f"{folder}/{method}.npz"]
                done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                rows[method] = json.loads(done.stdout.splitlines()[-1])
                loads.append(os.getloadavg()[0])
            a, b = rows["DADVI"], rows["NUTS"]
            apart = expected = ""
            if not b.get("extrapolated"):
                ours, theirs = (np.load(f"{folder}/{method}.npz") for method in rows)
                apart = f"{np.abs((ours['mean'] - theirs['mean']) / theirs['sd']).max():.3f}"
                expected = f"{np.hypot(a['error'], b['error']):.3f}"
        told = f"{b['seconds']:.1f}" + (" (extrapolated)" if b.get("extrapolated") else "")
        lines.append(
            f"| {num_rows} | {a['seconds']:.1f} | {a['megabytes']:.0f} | {'yes' if a['ok'] else 'no'} | {a['khat']:.2f} | {told} | "
            f"{b['megabytes']:.0f} | {a['seconds'] / b['seconds']:.3f} | {apart} | {expected} |"
        )
        print(lines[-1], flush=True)
    end = [
        "",
        "Expected: one Monte Carlo standard error of the worst mean, both methods' together; 20 means are compared.",
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, numpyro {version('numpyro')}, "
        f"jax {version('jax')}; load average {min(loads):.1f} to {max(loads):.1f} meanwhile.",
        "",
    ]
    print("\n".join(end))
    if not asked.sizes:
        RESULT.write_text("\n".join([*lines, *end]), encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
