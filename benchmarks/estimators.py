"""Gradient estimators side by side: what a gradient costs and how noisy it is, on three models.

    uv run python benchmarks/estimators.py          # writes benchmarks/results/estimators.md and estimators.svg, in some minutes

Noise is the variance of the gradient summed over parameters, over the squared length of its mean: a scale that estimators of different
objectives share. It is measured half an sd and a factor of 1.5 in the sds away from the best Gaussian guide, for 2, 8 and 32 draws a
gradient. Cost is CPU time, the least of several measurements, of compiled code that takes 250 gradients at once. The point at the lower
left is the better one; an estimator that only averages its draws moves along a line of slope -1.
"""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.ticker import NullFormatter
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal

import vipatterns as vip
from vipatterns.objectives import DoublyReparameterized, ForwardKL, ScoreFunction, StickingTheLanding
from vipatterns.objectives.score_function import STATE
from vipatterns.patterns import gaussian_mean, logistic_regression

RESULTS = Path(__file__).parent / "results"
DRAWS = (2, 8, 32)
REPLICATES = 4_000
ASSIGNED = np.array([-5.1, -4.7, -5.3, -0.2, 0.1, 0.4, -0.1, 4.8, 5.0, 5.5])

ESTIMATORS = {
    "score, no control": lambda k: ScoreFunction(k, control_variate="none"),
    "score, not Rao-Blackwellised": lambda k: ScoreFunction(k, control_variate="none", rao_blackwellize=False),
    "score, running mean": lambda k: ScoreFunction(k, control_variate="running_mean"),
    "score, leave one out": ScoreFunction,
    "score, optimal a*": lambda k: ScoreFunction(k, control_variate="optimal"),
    "score and path, leave one out": lambda k: ScoreFunction(k, reparameterize=True),
    "TraceGraph_ELBO (NumPyro)": TraceGraph_ELBO,
    "Trace_ELBO (NumPyro)": Trace_ELBO,
    "TraceMeanField_ELBO (NumPyro)": TraceMeanField_ELBO,
    "sticking the landing": StickingTheLanding,
    "doubly reparameterised bound": DoublyReparameterized,
    "RenyiELBO, alpha 0 (NumPyro)": lambda k: RenyiELBO(0.0, k),
    "forward KL": ForwardKL,
}
COLOURS = {"score": "#c4622d", "path": "#2b6cb0", "bound": "#2f855a", "forward": "#6b46c1"}
FAMILY = dict(zip(ESTIMATORS, ["score"] * 7 + ["path"] * 3 + ["bound"] * 2 + ["forward"], strict=True))
MARKERS = dict(zip(ESTIMATORS, "ox+s*DvosDosP", strict=True))


def mixture(x):
    """Ten points, three components, assignments drawn: no path leads through them."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0).expand([3]).to_event(1))
    with numpyro.plate("point", len(x)):
        c = numpyro.sample("c", dist.Categorical(logits=jnp.zeros(3)))
        numpyro.sample("x", dist.Normal(mu[c], 1.0), obs=x)


def mixture_guide(x):
    mean, sd, logits = numpyro.param("mean", jnp.zeros(3)), numpyro.param("sd", jnp.ones(3)), numpyro.param("logits", jnp.zeros((10, 3)))
    numpyro.sample("mu", dist.Normal(mean, sd).to_event(1))
    with numpyro.plate("point", len(x)):
        numpyro.sample("c", dist.Categorical(logits=logits))


def of_mixture():
    """Off the best mean-field q by the same measure; its assignments less sure than they should be."""
    mean, sd = np.array([-4.96707, 0.04951, 5.03284]), np.sqrt([0.32895, 0.24753, 0.32895])
    logits = -0.1 * (ASSIGNED[:, None] - mean) ** 2
    params = {"mean": jnp.asarray(mean + 0.5 * sd), "sd": jnp.asarray(1.5 * sd), "logits": jnp.asarray(logits)}
    return mixture, mixture_guide, params, {"x": ASSIGNED}


def of_pattern(pattern):
    """A pattern's model and AutoNormal, off its optimum."""
    data = pattern.data()
    guide = AutoNormal(pattern.model)
    svi = SVI(pattern.model, guide, optax.adam(optax.exponential_decay(0.05, 1_000, 0.3)), StickingTheLanding(8))
    params = svi.run(jax.random.key(0), 5_000, progress_bar=False, **data).params
    scales = {k.removesuffix("_scale"): v for k, v in params.items() if k.endswith("_scale")}
    off = {f"{k}_loc": params[f"{k}_loc"] + 0.5 * v for k, v in scales.items()} | {f"{k}_scale": 1.5 * v for k, v in scales.items()}
    return pattern.model, guide, off, data


MODELS = {
    "gaussian_mean, AutoNormal": lambda: of_pattern(gaussian_mean),
    "logistic_regression, AutoNormal": lambda: of_pattern(logistic_regression),
    "mixture with drawn assignments": of_mixture,
}


def gradients(objective, model, guide, params, data):
    """rng_key -> one gradient of the loss, (P,)."""
    state = {}
    if getattr(objective, "control_variate", "") == "running_mean":  # as it is after 200 steps
        with numpyro.handlers.seed(rng_seed=0):
            trace = numpyro.handlers.trace(objective.remembering(guide)).get_trace(**data)

        def step(state, key):
            return objective.loss_with_mutable_state(key, params | state, model, guide, **data)["mutable_state"], None

        state, _ = jax.lax.scan(step, {STATE: trace[STATE]["value"]}, jax.random.split(jax.random.key(1), 200))

    def gradient(key):
        return ravel_pytree(jax.grad(lambda p: objective.loss(key, p | state, model, guide, **data))(params))[0]

    return gradient


def sample(gradient, repeats=0):
    """Gradients (replicate, P), and the CPU microseconds of one: the least of several measurements."""
    keys = jax.random.split(jax.random.key(0), REPLICATES)
    run = jax.jit(lambda keys: jax.lax.map(gradient, keys, batch_size=250))
    drawn, seconds = np.asarray(run(keys)), []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(run(keys))
        seconds.append((time.process_time() - start) / REPLICATES)
    return drawn, 1e6 * min(seconds, default=0.0)


def quietest(family, k, discrete):
    """An estimator of the same expectation with little noise, for the signal."""
    if family == "forward":
        return ForwardKL(k)
    if family == "bound":
        return DoublyReparameterized(k)
    return ScoreFunction(256, reparameterize=True) if discrete else StickingTheLanding(256)


def measure(objective, signal, setting):
    """Noise over signal, and CPU microseconds a gradient."""
    drawn, cost = sample(gradients(objective, *setting), repeats=7)
    return drawn.var(0).sum() / (signal**2).sum(), cost


def draw(found):
    """The figure: a panel a model, a line an estimator, its points 2, 8 and 32 draws."""
    mpl.rcParams["svg.hashsalt"] = "estimators"
    figure, axes = plt.subplots(1, 3, figsize=(13, 5.2), layout="constrained", sharey=True)
    for axis, model in zip(axes, MODELS, strict=True):
        for name in ESTIMATORS:
            points = found[model].get(name)
            if points:
                noise, cost = zip(*points, strict=True)
                axis.plot(cost, noise, color=COLOURS[FAMILY[name]], marker=MARKERS[name], lw=1, ms=6, alpha=0.85, label=name)
        axis.set(xscale="log", yscale="log", title=model, xlabel="CPU microseconds a gradient")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("variance of the gradient over its squared mean")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    figure.savefig(RESULTS / "estimators.svg", metadata={"Date": None})


def main():
    load, found = [os.getloadavg()[0]], {}
    lines = [
        "| model | estimator | " + " | ".join(f"noise, {k} | us, {k}" for k in DRAWS) + " |",
        "|---|---" + "|--:" * 2 * len(DRAWS) + "|",
    ]
    with jax.enable_x64(True):
        for model, make in MODELS.items():
            setting = make()
            found[model], signals = {}, {}
            for name, estimator in ESTIMATORS.items():
                if setting[0] is mixture and FAMILY[name] in ("path", "bound"):
                    continue  # refused, or biased: a discrete draw has no path
                points = []
                for k in DRAWS:
                    same = (FAMILY[name], k) if FAMILY[name] in ("bound", "forward") else ("elbo", 0)
                    if same not in signals:
                        signals[same] = sample(gradients(quietest(*same, setting[0] is mixture), *setting))[0].mean(0)
                    points.append(measure(estimator(k), signals[same], setting))
                found[model][name] = points
                lines.append(f"| {model} | {name} | " + " | ".join(f"{noise:.3g} | {cost:.3g}" for noise, cost in points) + " |")
                print(lines[-1], flush=True)
            load.append(os.getloadavg()[0])
    draw(found)
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpyro", "jax"))
    about = " ".join(__doc__.split("\n\n")[2].split())
    (RESULTS / "estimators.md").write_text(
        f"{about}\n\nvipatterns {vip.__version__}, {versions}, {os.cpu_count()} cores ({platform.machine()}), float64; load average "
        f"{min(load):.1f} to {max(load):.1f} meanwhile.\n\n![Noise against cost of all estimators on three models](estimators.svg)\n\n"
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
