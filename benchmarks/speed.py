"""Cold wall time of one posterior, compiling counted, imports not: ours beside NumPyro's own NUTS and SVI on every pattern.

    uv run python benchmarks/speed.py                   # all patterns; writes benchmarks/results/speed.md
    uv run python benchmarks/speed.py eight_schools     # one of them, printed only

Every row runs in a process of its own without a cache of compiled programs; the processes of a pattern run in turn. Errors are the largest
of a mean, in posterior sds, and of an sd, as a share, over the scalars that both have, against the exact posterior where the pattern has
one, else against a long run of NUTS. NumPyro's NUTS is one chain, 500 of warm-up and 1,000 draws, started as `MCMC` starts; its SVI is
AutoNormal with Adam(0.01) for 5,000 steps, as tutorials have it.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "speed.md"
METHODS = ["DADVI", "Ladder", "NumPyro NUTS", "NumPyro SVI"]
TIMEOUT = 600


def ours(name, model, data):
    import jax

    import vipatterns as vip

    method = getattr(vip, name)()  # imports what it needs
    began = time.perf_counter()
    fit = method.fit(jax.random.key(0), model, data, progress=False)
    draws = {str(k): v.values.reshape(-1, *v.shape[2:]) for k, v in fit.posterior.transpose("chain", "draw", ...).data_vars.items()}
    return time.perf_counter() - began, draws, "yes" if fit.certificate.ok else "no", fit.name


def nuts(name, model, data):
    import jax
    from numpyro.infer import MCMC, NUTS

    jax.config.update("jax_enable_x64", True)
    began = time.perf_counter()
    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=1_000, progress_bar=False)
    mcmc.run(jax.random.key(0), **data)
    draws = jax.block_until_ready(mcmc.get_samples())
    return time.perf_counter() - began, draws, "", ""


def svi(name, model, data):
    import jax
    import numpyro
    from numpyro.infer import SVI, Predictive, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    jax.config.update("jax_enable_x64", True)
    began = time.perf_counter()
    guide = AutoNormal(model)
    result = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO()).run(jax.random.key(0), 5_000, **data, progress_bar=False)
    latents = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(4_000,))
    given = {k: v for k, v in data.items() if k not in latents}
    draws = jax.block_until_ready({**latents, **Predictive(model, latents)(jax.random.key(2), **given)})
    return time.perf_counter() - began, draws, "", ""


def reference(pattern, model, data):
    """Site -> (mean, sd), and where they come from."""
    import jax
    from numpyro.distributions import Distribution

    import vipatterns as vip

    if hasattr(pattern, "exact_posterior"):
        found = pattern.exact_posterior(**data)
        return {k: (q.mean, q.variance**0.5) if isinstance(q, Distribution) else (q.mean(0), q.std(0)) for k, q in found.items()}, "exact"
    fit = vip.fit(jax.random.key(7), model, data, method=vip.NUTS(num_warmup=1_000, num_samples=5_000), progress=False)
    found = {str(k): (v.mean(("chain", "draw")).values, v.std(("chain", "draw")).values) for k, v in fit.posterior.data_vars.items()}
    return found, "long NUTS" if fit.certificate.ok else ""


def one(name, method):
    """A row, as JSON on stdout."""
    import numpy as np

    pattern = importlib.import_module(f"vipatterns.patterns.{name}")
    data = pattern.data()
    run = {"NumPyro NUTS": nuts, "NumPyro SVI": svi}.get(method, ours)
    seconds, draws, ok, by = run(method, pattern.model, data)
    row = {"pattern": name, "method": method, "seconds": seconds, "ok": ok, "by": by, "mean_error": None, "sd_error": None}
    found, row["reference"] = reference(pattern, pattern.model, data)
    errors = []
    for site in set(found) & set(draws) if row["reference"] else ():
        mean, sd = (np.asarray(part, float) for part in found[site])
        varies = np.broadcast_to(sd > 1e-12 * (1 + np.abs(mean)), mean.shape)
        x = np.asarray(draws[site], float)[:, varies] if mean.shape else np.asarray(draws[site], float)
        m, s = (mean[varies], sd[varies]) if mean.shape else (mean, sd)
        errors.append((np.abs(x.mean(0) - m) / s, np.abs(x.std(0) / s - 1)))
    if errors:
        row["mean_error"], row["sd_error"] = (float(max(np.max(e[i]) for e in errors)) for i in range(2))
    print(json.dumps(row))


def line(row):
    if "seconds" not in row:
        return f"| {row['pattern']} | {row['method']} | {row['why']} | | | | |"
    certified = row["ok"] + (f" ({row['by']})" if row["method"] == "Ladder" else "")
    errors = [f"{row[k]:.3f}" if row[k] is not None else "" for k in ("mean_error", "sd_error")]
    return f"| {row['pattern']} | {row['method']} | {row['seconds']:.1f} | {certified} | {errors[0]} | {errors[1]} | {row['reference']} |"


def summary(rows):
    """Geometric means of our seconds over NUTS's, on the patterns where both ended."""
    import numpy as np

    seconds = {(r["pattern"], r["method"]): r["seconds"] for r in rows if "seconds" in r}
    names = sorted({r["pattern"] for r in rows})
    for method in ("DADVI", "Ladder", "NumPyro SVI"):
        both = [n for n in names if {(n, method), (n, "NumPyro NUTS")} <= set(seconds)]
        if both:
            ratio = np.exp(np.mean([np.log(seconds[n, method] / seconds[n, "NumPyro NUTS"]) for n in both]))
            yield f"- {method}: {ratio:.2f} of NumPyro NUTS's seconds, geometric mean over {len(both)} patterns"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.method:
        return one(asked.patterns[0], asked.method)
    from vipatterns import catalogue

    names = asked.patterns or [p.name for p in catalogue.patterns()]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    head = ["| pattern | method | seconds | certified | mean error (sd) | sd error | reference |", "|---|---|--:|---|--:|--:|---|"]
    print("\n".join(head), flush=True)
    rows, loads = [], []
    for name in names:
        for method in METHODS:
            argv = [sys.executable, __file__, name, "--method", method]
            try:
                done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                rows.append({"pattern": name, "method": method, "why": f"not within {TIMEOUT} s"})
            else:
                said = done.stderr.strip().splitlines()[-1:] or ["no message"]
                failed = {"pattern": name, "method": method, "why": f"failed: {said[0][:80]}"}
                rows.append(json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else failed)
            loads.append(os.getloadavg()[0])
            print(line(rows[-1]), flush=True)
    end = [
        "",
        *summary(rows),
        "",
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, numpyro {version('numpyro')}, "
        f"jax {version('jax')}; load average {min(loads):.1f} to {max(loads):.1f} meanwhile.",
        "Certified is the method's own check; the errors know the reference.",
        "",
    ]
    print("\n".join(end))
    if not asked.patterns:
        RESULT.write_text("\n".join([*head, *map(line, rows), *end]), encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
