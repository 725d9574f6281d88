"""Cost against size: logistic regression with 20 features, N rows, by DADVI and by NumPyro's NUTS; and a model of 1,000 latents, by DADVI.

    uv run python benchmarks/scaling.py                 # N = 1e3, 1e4, 1e5, 1e6 and the latents; writes benchmarks/results/scaling.md
    uv run python benchmarks/scaling.py 1000 10000      # of these sizes only, printed only
    uv run python benchmarks/scaling.py 1000 --latents  # with the model of many latents

Every row runs in a process of its own without a cache of compiled programs: wall seconds with compiling, without imports and without the
making of the data; peak memory of the process, and in brackets what it held before the fit. Errors are the largest of a mean, in posterior
sds, and of an sd, as a share. The regression's reference is importance sampling from the Gaussian at the mode, in NumPy, with its own Monte
Carlo errors; that of the many latents an integral on a grid.

NUTS: one chain, 500 of warm-up, 1,000 draws. Above a hundred thousand rows it is extrapolated: the seconds of a leapfrog step in a short
run on all rows, times the leapfrog steps of a whole run on the first hundred thousand, whose posterior has nearly the same shape, only
wider; plus the seconds that compiling takes.
"""

import argparse
import time

import numpy as np
import rows

NUM_FEATURES = 20
WARMUP, DRAWS = 500, 1_000
WHOLE = 100_000
"""Rows up to which NUTS runs to its end."""
SIZES = [1_000, 10_000, 100_000, 1_000_000]
NUM_GROUPS, ROWS_EACH = 997, 5
"""Of the hierarchical model: a latent a group and three more."""
TARGETS = {100_000: 1 / 10, 1_000_000: 1 / 30}
"""Shares of NUTS's seconds that DADVI is meant to keep to."""
LATENTS = {"non-centred": "levels as mu + tau z", "centred": "levels themselves (log p then rises to infinity where tau falls to 0)"}
LATENTS_SECONDS, LATENTS_MEGABYTES = 15, 1_000
"""Targets for the 1,000 latents."""


def data_of(num_rows):
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


def groups():
    rng = np.random.default_rng(0)
    levels = 1 + 0.7 * rng.normal(size=NUM_GROUPS)
    return {"y": levels[:, None] + rng.normal(size=(NUM_GROUPS, ROWS_EACH))}


def hierarchical(y, centred):
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with numpyro.plate("group", y.shape[0], dim=-2):
        if centred:
            level = numpyro.sample("level", dist.Normal(mu, tau))
        else:
            level = numpyro.deterministic("level", mu + tau * numpyro.sample("z", dist.Normal(0, 1)))
        with numpyro.plate("row", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(level, sigma), obs=y)


def dadvi(data, what, sites):
    import jax

    import vipatterns as vip

    method, before = vip.DADVI(), rows.megabytes()
    began = time.perf_counter()
    fit = method.fit(jax.random.key(0), what, data, progress=False)
    seconds = time.perf_counter() - began
    posterior = fit.posterior.transpose("chain", "draw", ...)
    draws = np.concatenate([posterior[k].values.reshape(posterior.sizes["chain"] * posterior.sizes["draw"], -1) for k in sites], axis=1)
    certificate = fit.certificate
    told = {
        "seconds": seconds,
        "before": before,
        "ok": bool(certificate.ok),
        "khat": float(certificate.khat),
        "verdict": certificate.verdict,
    }
    return {**told, **moments(draws)}


def nuts(data):
    import jax
    from numpyro.infer import MCMC, NUTS

    jax.config.update("jax_enable_x64", True)

    def run(num_warmup, num_samples, data):
        """Seconds, leapfrog steps with those of the warm-up, draws."""
        began = time.perf_counter()
        mcmc = MCMC(NUTS(model), num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
        mcmc.warmup(jax.random.key(0), extra_fields=("num_steps",), collect_warmup=True, **data)
        steps = int(mcmc.get_extra_fields()["num_steps"].sum())
        mcmc.run(jax.random.key(1), extra_fields=("num_steps",), **data)
        draws = np.asarray(mcmc.get_samples()["slopes"])
        return time.perf_counter() - began, steps + int(mcmc.get_extra_fields()["num_steps"].sum()), draws, mcmc

    before = rows.megabytes()
    if len(data["y"]) > WHOLE:
        _, steps, _, _ = run(WARMUP, DRAWS, {k: v[:WHOLE] for k, v in data.items()})
        first, few, _, mcmc = run(25, 25, data)
        began = time.perf_counter()
        mcmc.post_warmup_state = mcmc.last_state  # goes on, by the program that is compiled
        mcmc.run(jax.random.key(2), extra_fields=("num_steps",), **data)
        more = np.asarray(mcmc.get_extra_fields()["num_steps"])  # its draws are computed by now
        again = time.perf_counter() - began
        each = again / int(more.sum())
        seconds = max(first - each * few, 0.0) + each * steps
        return {"seconds": seconds, "steps": steps, "extrapolated": True, "measured": first + again, "before": before}
    seconds, steps, draws, _ = run(WARMUP, DRAWS, data)
    return {"seconds": seconds, "steps": steps, "before": before, **moments(draws)}


def moments(draws):
    return {"mean": draws.mean(0).tolist(), "sd": draws.std(0).tolist()}


def reference(data):
    """Importance sampling from the Gaussian at the mode, in antithetic pairs; the Gaussian's own moments are control variates."""
    x, y = data["x"], data["y"]

    def rates(slopes):
        return 1 / (1 + np.exp(-(x @ slopes)))

    mode = np.zeros(NUM_FEATURES)
    for _ in range(50):
        p = rates(mode)
        precision = (x * (p * (1 - p))[:, None]).T @ x + np.eye(NUM_FEATURES)
        step = np.linalg.solve(precision, x.T @ (y - p) - mode)
        mode += step
        if np.abs(step).max() < 1e-12:
            break
    root = np.linalg.inv(np.linalg.cholesky(precision)).T
    num_draws = int(np.clip(1e9 / len(y), 2_000, 100_000)) // 2
    half = np.random.default_rng(1).normal(size=(num_draws, NUM_FEATURES))
    noise = np.concatenate([half, -half])
    slopes, log_p = mode + noise @ root.T, np.empty(len(noise))
    block = max(1, int(2e7 / len(y)))
    for i in range(0, len(noise), block):
        eta = x @ slopes[i : i + block].T
        log_p[i : i + block] = y @ eta - np.logaddexp(0, eta).sum(0) - (slopes[i : i + block] ** 2).sum(1) / 2
    ratio = log_p + (noise**2).sum(1) / 2
    w = np.exp(ratio - ratio.max())
    w /= w.mean()
    sds = np.sqrt((root**2).sum(1))
    u = (slopes - mode) / sds
    mean = (w[:, None] * u).mean(0)
    variance = (w[:, None] * (u - mean) ** 2 - u**2).mean(0) + 1

    def error(values):  # of a mean over pairs
        pairs = (values[:num_draws] + values[num_draws:]) / 2
        return float((pairs.std(0) / np.sqrt(num_draws)).max())

    errors = error(w[:, None] * (u - mean)), error(w[:, None] * ((u - mean) ** 2 - variance) - (u**2 - 1)) / 2
    return {"mean": (mode + sds * mean).tolist(), "sd": (sds * np.sqrt(variance)).tolist(), "errors": errors}


def integral(data):
    """Moments of the hierarchical model: given tau and sigma all is Gaussian, and these two are on a grid."""
    y = data["y"]
    num, each = y.shape
    means, within = y.mean(1), ((y - y.mean(1, keepdims=True)) ** 2).sum()
    between = ((means - means.mean()) ** 2).sum()
    centre = np.sqrt(within / (num * (each - 1)))
    log_tau, log_sigma = np.log(means.std()) + np.linspace(-1.5, 0.5, 801), np.log(centre) + np.linspace(-0.15, 0.15, 401)
    tau, sigma = (np.exp(grid) for grid in np.meshgrid(log_tau, log_sigma, indexing="ij"))
    v = tau**2 + sigma**2 / each
    # The means' own mean is N(mu, v / J) and mu is N(0, 5): the rest of the means, and of the rows, tells of v and sigma alone.
    log_p = -(num - 1) / 2 * np.log(v) - between / (2 * v) - num * (each - 1) * np.log(sigma) - within / (2 * sigma**2)
    log_p += -0.5 * np.log(25 + v / num) - means.mean() ** 2 / (2 * (25 + v / num))
    log_p += -(tau**2 + sigma**2) / 8 + np.log(tau) + np.log(sigma)
    w = np.exp(log_p - log_p.max())
    w /= w.sum()
    edge = max(part.sum() for part in (w[0], w[-1], w[:, 0], w[:, -1]))
    if edge > 1e-8:
        raise RuntimeError(f"the grid of the exact answer is too narrow: {edge:.1e} of the mass lies at its edge")
    kept = w > 1e-14
    w, tau, sigma, v = (part[kept] for part in (w, tau, sigma, v))
    var_mu = 1 / (1 / 25 + num / v)
    mean_mu = var_mu * num * means.mean() / v
    pull = sigma**2 / each / v  # towards mu
    first = [w @ mean_mu, w @ tau, w @ sigma]
    second = [w @ (var_mu + mean_mu**2), w @ tau**2, w @ sigma**2]
    for level in means:
        m = pull * mean_mu + (1 - pull) * level
        first.append(w @ m)
        second.append(w @ (m**2 + tau**2 * pull + pull**2 * var_mu))
    first = np.array(first)
    return {"mean": first.tolist(), "sd": np.sqrt(np.array(second) - first**2).tolist(), "errors": (0.0, 0.0)}


def one(kind, size):
    """A row."""
    if kind in LATENTS:
        data = {**groups(), "centred": kind == "centred"}
        return {**dadvi(data, hierarchical, ["mu", "tau", "sigma", "level"]), "megabytes": rows.megabytes()}
    if kind == "integral":
        return integral(groups())
    data = data_of(int(size))
    row = {"DADVI": lambda: dadvi(data, model, ["slopes"]), "NUTS": lambda: nuts(data), "reference": lambda: reference(data)}[kind]()
    return {**row, "megabytes": rows.megabytes()}


def off(row, truth):
    """The largest errors of a mean and of an sd, or why there are none."""
    if "mean" not in row or "why" in truth:
        return "no reference" if "why" in truth else ""
    mean, sd, exact, spread = (np.array(part) for part in (row["mean"], row["sd"], truth["mean"], truth["sd"]))
    return f"{np.abs((mean - exact) / spread).max():.3f}, {np.abs(sd / spread - 1).max():.3f}"


def cells(row, truth):
    if "why" in row:
        return [row["why"], "", ""]
    seconds = f"{row['seconds']:.1f}" + (f" (extrapolated; {row['measured']:.0f} s ran)" if row.get("extrapolated") else "")
    return [seconds, f"{row['megabytes']:.0f} ({row['before']:.0f})", off(row, truth)]


def line(size, ours, theirs, truth):
    failed = "why" in ours or "why" in theirs
    ratio = "" if failed else f"{ours['seconds'] / theirs['seconds']:.3f}"
    target = f" (target {TARGETS[size]:.2g})" if size in TARGETS and not failed else ""
    certified = "" if "why" in ours else f"{'yes' if ours['ok'] else 'no'}, k-hat {ours['khat']:.2f}"
    known = truth.get("why") or "{:.3f}, {:.3f}".format(*truth["errors"])
    steps = str(theirs.get("steps", "")) + ("*" if theirs.get("extrapolated") else "")
    return "| " + " | ".join([str(size), *cells(ours, truth), certified, *cells(theirs, truth), steps, ratio + target, known]) + " |"


def latents_of(measured):
    truth = measured.measure("integral", str(NUM_GROUPS))
    yield (
        f"{NUM_GROUPS + 3:,} latents, a hierarchical model of {NUM_GROUPS} groups with {ROWS_EACH} rows each, by DADVI; targets "
        f"{LATENTS_SECONDS} s and {LATENTS_MEGABYTES} MB, errors against the exact posterior:"
    )
    yield ""
    for kind, how in LATENTS.items():
        row = measured.measure(kind, str(NUM_GROUPS))
        seconds, memory, errors = cells(row, truth)
        yield f"- {how}: {seconds}" + ("." if "why" in row else f" s, {memory} MB, errors {errors}. {row['verdict']}")


def main():
    parser = rows.options(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    parser.add_argument("sizes", nargs="*", type=int)
    parser.add_argument("--latents", action="store_true", help="with sizes given: also the model of 1,000 latents")
    asked = parser.parse_args()
    if asked.row:
        return rows.tell(one, asked.row)
    measured = rows.Rows(__file__, fresh=asked.fresh, timeout=3_600)
    lines = [
        "Logistic regression, 20 features, N rows. Errors: the largest of 20 means, in posterior sds, and of 20 sds, as a share.",
        "",
        "| N | DADVI s | MB (before) | errors | certified | NUTS s | MB (before) | errors | leapfrog steps | DADVI / NUTS "
        "| the reference's own error |",
        "|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    print("\n".join(lines), flush=True)
    for size in asked.sizes or SIZES:
        ours, theirs, truth = (measured.measure(kind, str(size)) for kind in ("DADVI", "NUTS", "reference"))
        lines.append(line(size, ours, theirs, truth))
        print(lines[-1], flush=True)
    end = ["", f"\\* Of a whole run on {WHOLE:,} of the rows; its time is extrapolated from a short run on all of them.", ""]
    if asked.latents or not asked.sizes:
        end += [*latents_of(measured), ""]
    end += [f"NUTS: NumPyro's, one chain, {WARMUP} of warm-up and {DRAWS:,} draws. {measured.machine()}"]
    print("\n".join(end))
    if not asked.sizes:
        rows.write("scaling.md", [*lines, *end])
    return None


if __name__ == "__main__":
    main()
