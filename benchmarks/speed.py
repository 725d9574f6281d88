"""Wall time of one posterior, cold and warm: ours beside NumPyro's NUTS and SVI, BlackJAX's Pathfinder and PyMC's ADVI, on every pattern.

    uv run python benchmarks/speed.py                             # all patterns; writes benchmarks/results/speed.md
    uv run python benchmarks/speed.py eight_schools               # of these only, printed only
    uv run python benchmarks/speed.py --rounds 3                  # medians

Cold: the first fit in a process without a cache of compiled programs; compiling counts, imports do not. Warm: the same process fits the
same model to other data of the same shape. These are rows drawn from the pattern's own with replacement, the same for all methods; where a
pattern has no rows, its own data again with another key.

Errors are those of the cold fit: the largest of a mean, in posterior sds, and of an sd, as a share, over the scalars that both have,
against the exact posterior where the pattern has one, else against a long run of NUTS. A method is accurate within the limits of
`vip.compare`.

The others, as their documentation has them, all in double precision:
NumPyro NUTS: one chain, 500 of warm-up and 1,000 draws. Warm by `jit_model_args=True`, which is made for it; its first run is not counted.
NumPyro SVI: AutoNormal, Adam(0.01), 5,000 steps, 4,000 draws; SVI.run compiles anew at each call.
BlackJAX Pathfinder: one path from where NumPyro's NUTS starts, its defaults, 4,000 draws; the data are arguments of the compiled program.
PyMC ADVI: see pymc_advi.py; on five patterns, in an environment of its own that `uv` makes.
"""

import argparse
import functools
import importlib
import json
import math
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import rows

PYMC = ["eight_schools", "linear_regression", "logistic_regression", "poisson_regression", "robust_regression"]
"""The models that pymc_advi.py has."""
UNORDERED = {"gaussian_mixture", "gaussian_mixture_enumerated"}
"""Their labels can be permuted: every draw's `mu` is sorted, here and in the reference."""
NUM_DRAWS = 4_000
TARGETS = {"cold": 0.35, "warm": 0.05}
"""Shares of NUTS's seconds, geometric means, that DADVI is meant to keep to."""


def other(data):
    """Data of the same shape: the rows drawn anew with replacement."""
    values = {k: np.asarray(v) for k, v in data.items()}
    lengths = [len(values[k]) for k in ("y", "x") if k in values and values[k].ndim]
    if not lengths:
        return data
    chosen = np.random.default_rng(0).integers(lengths[0], size=lengths[0])
    return {k: values[k][chosen] if values[k].ndim and len(values[k]) == lengths[0] else v for k, v in data.items()}


def twice(run, data):
    """Seconds of run(seed, data), cold, and on other data; what the first returned."""
    import jax

    began, used = time.perf_counter(), time.process_time()
    first = jax.block_until_ready(run(0, data))
    cold, cpu = time.perf_counter() - began, time.process_time() - used
    second = other(data)
    began = time.perf_counter()
    jax.block_until_ready(run(1, second))
    return {"cold": cold, "warm": time.perf_counter() - began, "cpu": cpu}, first


def ours(name, pattern, data):
    import jax

    import vipatterns as vip

    method, fits = getattr(vip, name)(), []

    def run(seed, data):
        fit = method.fit(jax.random.key(seed), pattern.model, data, progress=False)
        fits.append(fit)
        posterior = fit.posterior.transpose("chain", "draw", ...)
        return {str(k): v.values.reshape(-1, *v.shape[2:]) for k, v in posterior.data_vars.items()}

    seconds, draws = twice(run, data)
    oks = ["yes" if fit.certificate.ok else "no" for fit in fits]
    return {**seconds, "ok": oks[0] + (f" ({fits[0].name})" if name == "Ladder" else ""), "ok_warm": oks[1]}, draws


def numpyro_nuts(name, pattern, data):
    import jax
    from numpyro.infer import MCMC, NUTS

    static = {k: v for k, v in data.items() if not isinstance(v, np.ndarray)}
    arrays = {k: v for k, v in data.items() if k not in static}

    def sampler(**options):
        return MCMC(NUTS(functools.partial(pattern.model, **static)), num_warmup=500, num_samples=1_000, progress_bar=False, **options)

    def run(seed, arrays, mcmc):
        mcmc.run(jax.random.key(seed), **arrays)
        return mcmc.get_samples()

    began, used = time.perf_counter(), time.process_time()
    draws = jax.block_until_ready(run(0, arrays, sampler()))
    cold, cpu = time.perf_counter() - began, time.process_time() - used
    seconds, _ = twice(functools.partial(run, mcmc=sampler(jit_model_args=True)), arrays)
    return {"cold": cold, "warm": seconds["warm"], "cpu": cpu}, draws


def numpyro_svi(name, pattern, data):
    import jax
    import numpyro
    from numpyro.infer import SVI, Predictive, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    def run(seed, data):
        guide = AutoNormal(pattern.model)
        svi = SVI(pattern.model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        result = svi.run(jax.random.key(seed), 5_000, **data, progress_bar=False)
        latents = guide.sample_posterior(jax.random.key(100 + seed), result.params, sample_shape=(NUM_DRAWS,))
        given = {k: v for k, v in data.items() if k not in latents}
        return {**latents, **Predictive(pattern.model, latents)(jax.random.key(200 + seed), **given)}

    return twice(run, data)


def blackjax_pathfinder(name, pattern, data):
    import blackjax
    import jax
    from numpyro.infer.util import initialize_model

    static = {k: v for k, v in data.items() if not isinstance(v, np.ndarray)}
    arrays = {k: v for k, v in data.items() if k not in static}
    model = functools.partial(pattern.model, **static)

    @jax.jit
    def path(key, arrays):
        key_start, key_path, key_draws = jax.random.split(key, 3)
        start = initialize_model(key_start, model, model_kwargs=arrays, dynamic_args=True, validate_grad=False)
        log_p = start.potential_fn
        state, _ = blackjax.vi.pathfinder.approximate(key_path, lambda z: -log_p(**arrays)(z), start.param_info.z)
        z, _ = blackjax.vi.pathfinder.sample(key_draws, state, NUM_DRAWS)
        return jax.vmap(start.postprocess_fn(**arrays))(z)

    return twice(lambda seed, arrays: path(jax.random.key(seed), arrays), arrays)


def pymc_advi(name, pattern, data):
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise RuntimeError("uv is not on the PATH, and makes PyMC's environment")
    with tempfile.TemporaryDirectory() as folder:
        for which, values in (("first", data), ("second", other(data))):
            np.savez(f"{folder}/{which}.npz", **values)
        argv = [uv, "run", "--quiet", "--script", str(Path(__file__).parent / "pymc_advi.py"), pattern.__name__.split(".")[-1], folder]
        environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
        with np.load(f"{folder}/draws.npz") as draws:
            return json.loads(Path(folder, "times.json").read_text()), dict(draws)


def reference(name, pattern, data):
    """Means and sds, exact where there is a formula."""
    import jax
    from numpyro.distributions import Distribution

    import vipatterns as vip

    if hasattr(pattern, "exact_posterior"):
        found = pattern.exact_posterior(**data)
        known = {k: (q.mean, q.variance**0.5) for k, q in found.items() if isinstance(q, Distribution)}
        drawn = {k: q for k, q in found.items() if k not in known}
        return {"by": "exact", "moments": {**plain(known), **moments_of(pattern, drawn)}}
    fit = vip.NUTS(num_warmup=1_000, num_samples=5_000).fit(jax.random.key(7), pattern.model, data, progress=False)
    if not fit.certificate.ok:
        return {"why": f"the long run of NUTS is no reference: {fit.certificate.verdict}"}
    posterior = fit.posterior.transpose("chain", "draw", ...)
    draws = {str(k): v.values.reshape(-1, *v.shape[2:]) for k, v in posterior.items()}
    return {"by": "long NUTS", "moments": moments_of(pattern, draws)}


METHODS = {
    "DADVI": ours,
    "Ladder": ours,
    "NumPyro NUTS": numpyro_nuts,
    "NumPyro SVI": numpyro_svi,
    "BlackJAX Pathfinder": blackjax_pathfinder,
    "PyMC ADVI": pymc_advi,
}


def moments_of(pattern, draws):
    """Site -> mean and sd over draws (S, ...)."""
    unordered = pattern.__name__.split(".")[-1] in UNORDERED
    values = {k: np.sort(v, axis=-1) if unordered and k == "mu" else np.asarray(v, float) for k, v in draws.items()}
    return plain({k: (v.mean(0), v.std(0)) for k, v in values.items()})


def plain(moments):
    """Site -> mean and sd, flat lists for JSON."""
    return {k: [np.ravel(np.asarray(part, float)).tolist() for part in pair] for k, pair in moments.items()}


def one(name, method, _round):
    """A row."""
    pattern = importlib.import_module(f"vipatterns.patterns.{name}")
    data = pattern.data()
    if method == "reference":
        return reference(method, pattern, data)
    if METHODS[method] is not ours:  # ours has its own way to double precision
        import jax

        jax.config.update("jax_enable_x64", True)
    measured, draws = METHODS[method](method, pattern, data)
    return {**measured, "moments": moments_of(pattern, draws)}


def errors(moments, exact):
    """The largest error of a mean, in sds, and of an sd, as a share; None where no scalar is common."""
    found = []
    for site in set(moments) & set(exact):
        mean, sd = (np.array(part) for part in exact[site])
        m, s = (np.array(part) for part in moments[site])
        varies = sd > 1e-12 * (1 + np.abs(mean))
        if m.shape == mean.shape and varies.any():
            found.append((np.abs((m - mean) / sd)[varies].max(), np.abs(s[varies] / sd[varies] - 1).max()))
    if not found:
        return None
    worst = [max(part) if all(map(math.isfinite, part)) else math.inf for part in zip(*found, strict=True)]
    return float(worst[0]), float(worst[1])


def judged(name, method, rounds, truth):
    """One line of the table: the median seconds of the rounds, the errors of the first."""
    line = {"pattern": name, "method": method, "why": next((row["why"] for row in rounds if "why" in row), "")}
    if line["why"]:
        return line
    from vipatterns.verdict import MEAN_LIMIT, SD_LIMIT

    line |= {k: statistics.median(row[k] for row in rounds) for k in ("cold", "warm", "cpu")}
    line |= {k: rounds[0].get(k, "") for k in ("ok", "ok_warm")}
    line["errors"] = None if "why" in truth else errors(rounds[0]["moments"], truth["moments"])
    line["reference"] = truth.get("by", "none")
    line["accurate"] = line["errors"] and ("yes" if line["errors"][0] < MEAN_LIMIT and line["errors"][1] < SD_LIMIT else "no")
    return line


def shown(line, nuts):
    if line["why"]:
        return f"| {line['pattern']} | {line['method']} | {line['why']} | | | | | | | |"
    ratios = [f"{line[k] / nuts[k]:.2g}" if nuts and not nuts["why"] else "" for k in ("cold", "warm")]
    off = [f"{e:.3f}" for e in line["errors"]] if line["errors"] else ["", ""]
    cells = [line["pattern"], line["method"], f"{line['cold']:.2f}", ratios[0], f"{line['warm']:.2f}", ratios[1]]
    return "| " + " | ".join([*cells, line["ok"], *off, f"{line['accurate'] or ''} ({line['reference']})"]) + " |"


def summary(table):
    """Geometric means of seconds over NUTS's, on the patterns where both ended, and on those where both are accurate besides."""
    ended = {(line["pattern"], line["method"]): line for line in table if not line["why"]}
    names = sorted({line["pattern"] for line in table})
    for method in METHODS:
        mine = {n: ended[n, method] for n in names if (n, method) in ended}
        nuts = {n: ended[n, "NumPyro NUTS"] for n in mine if (n, "NumPyro NUTS") in ended}
        known = [line for line in mine.values() if line["errors"]]
        accurate = sum(line["accurate"] == "yes" for line in known)
        certified = [line for line in known if line["ok"].startswith("yes")]
        wrong = sum(line["accurate"] == "no" for line in certified)
        said = f"; certified {len(certified)}, of them {wrong} not accurate" if METHODS[method] is ours else ""
        yield f"- **{method}**: accurate on {accurate} of {len(known)}{said}."
        if method == "NumPyro NUTS":
            continue
        both = [n for n in nuts if mine[n]["accurate"] == nuts[n]["accurate"] == "yes"]
        for which, chosen in (("", list(nuts)), (" and both were accurate", both)):
            if chosen:
                cold, warm, warm_warm, cpu = (
                    math.exp(statistics.fmean(math.log(mine[n][a] / nuts[n][b]) for n in chosen))
                    for a, b in (("cold", "cold"), ("warm", "cold"), ("warm", "warm"), ("cpu", "cpu"))
                )
                target = f" (targets {TARGETS['cold']} and {TARGETS['warm']})" if method == "DADVI" and not which else ""
                yield (
                    f"  - Cold {cold:.2f} of NUTS's cold seconds (of CPU seconds {cpu:.2f}); warm {warm:.3f} of NUTS's cold, "
                    f"{warm_warm:.2g} of its warm{target}: geometric means over the {len(chosen)} patterns where both ended{which}."
                )


def main():
    parser = rows.options(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--rounds", type=int, default=1, help="measure every row so many times; medians are shown")
    asked = parser.parse_args()
    if asked.row:
        return rows.tell(one, asked.row)
    from vipatterns import catalogue

    names = asked.patterns or [p.name for p in catalogue.patterns()]
    measured = rows.Rows(__file__, fresh=asked.fresh)
    truths = {name: measured.measure(name, "reference", "0") for name in names}
    pairs = [(name, method) for name in names for method in METHODS if method != "PyMC ADVI" or name in PYMC]
    kept = {pair: [] for pair in pairs}
    for i in range(asked.rounds):
        for name, method in pairs:
            kept[name, method].append(row := measured.measure(name, method, str(i)))
            print(f"{name}, {method}: {row.get('why') or '{cold:.2f} s, warm {warm:.2f} s'.format(**row)}", flush=True)
    table = [judged(name, method, kept[name, method], truths[name]) for name, method in pairs]
    nuts = {line["pattern"]: line for line in table if line["method"] == "NumPyro NUTS"}
    pymc = next((row["version"] for row in measured.taken if "version" in row), "")
    lines = [
        "Seconds"
        + (f", medians of {asked.rounds} rounds" if asked.rounds > 1 else "")
        + "; / NUTS: share of NumPyro NUTS's of the same kind. ",
        "Certified is the method's own check, which knows no reference; accurate and the errors know it.",
        "",
        "| pattern | method | cold | / NUTS | warm | / NUTS | certified | mean error (sd) | sd error | accurate |",
        "|---|---|--:|--:|--:|--:|---|--:|--:|---|",
        *(shown(line, nuts.get(line["pattern"])) for line in table),
        "",
        *(f"- No reference for {name}: {truth['why']}" for name, truth in truths.items() if "why" in truth),
        *summary(table),
        "",
        measured.machine() + (f" PyMC {pymc}." if pymc else ""),
    ]
    print("\n".join(["", *lines]))
    if not asked.patterns:
        rows.write("speed.md", lines)
    return None


if __name__ == "__main__":
    main()
