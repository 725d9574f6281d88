"""Normalizing flows side by side on the banana and the funnel: ELBO, k-hat, steps, seconds.

    uv run python benchmarks/flows.py --dims 2 --steps 10000 --limit 150 | tee benchmarks/results/flows.md
    uv run python benchmarks/flows.py --dims 10 --targets funnel --steps 4000 --limit 170 --only "coupling, flowjax, affine" \\
        | tee -a benchmarks/results/flows.md

Both targets are normalised: the best ELBO is 0. `Flow` takes the winner by the lower of both ELBOs, and by time.
NumPyro's inverse autoregressive flow runs twice: as the AutoGuide that it ships (by `vip.Guide`, in the latents' own units), and as a
bijection in `Flow`'s coordinates, loop and gradient estimator. That needs an inverse at each draw, for which an autoregressive flow takes
as many passes as there are latents. Each row runs in a process of its own without a cache of compiled programs.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version

import equinox as eqx
import flowjax.bijections
import flowjax.flows
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flowjax.distributions import StandardNormal
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal, AutoIAFNormal
from numpyro.nn import AutoregressiveNN

import vipatterns as vip


def banana(dim):
    """Haario, Saksman and Tamminen 1999, doi 10.1007/s001800050022: a Gaussian bent along a parabola; the rest independent."""
    x = numpyro.sample("x", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(0.03 * (x**2 - 100), 1.0))
    if dim > 2:
        numpyro.sample("rest", dist.Normal(0.0, 1.0).expand([dim - 2]).to_event(1))


def funnel(dim):
    """Neal 2003, doi 10.1214/aos/1056562461, section 8."""
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)).expand([dim - 1]).to_event(1))


class NumpyroIAF(flowjax.bijections.AbstractBijection):
    """AutoIAFNormal's layers, as a flowjax bijection."""

    weights: list
    apply: object = eqx.field(static=True)
    shape: tuple = eqx.field(static=True)
    cond_shape: None = None

    def __init__(self, rng_key, dim, num_flows=3, width=32):
        init, self.apply = AutoregressiveNN(dim, [width, width], permutation=jnp.arange(dim))
        self.weights = [init(key, (dim,))[1] for key in jax.random.split(rng_key, num_flows)]
        self.shape = (dim,)

    def _layers(self):
        return [InverseAutoregressiveTransform(lambda x, w=w: self.apply(w, x)) for w in self.weights]

    def transform_and_log_det(self, x, condition=None):
        total = 0.0
        for layer in self._layers():
            y, log_scale = layer.call_with_intermediates(x)
            x, total = y[::-1], total + log_scale.sum()
        return x, total

    def inverse_and_log_det(self, y, condition=None):
        total = 0.0
        for layer in reversed(self._layers()):
            y = y[::-1]
            x = layer._inverse(y)
            y, total = x, total - layer.log_abs_det_jacobian(x, y)
        return y, total


def flow(make, budget, **settings):
    """A `Flow` with one of flowjax's premade flows."""

    def bijection(key, dim):
        return make(key, base_dist=StandardNormal((dim,)), invert=False, **settings).bijection

    return vip.Flow(bijection=bijection, **budget)


def spline():
    return flowjax.bijections.RationalQuadraticSpline(knots=8, interval=6)


SMOOTH = {"nn_width": 32, "nn_activation": jax.nn.silu}
NUMPYRO = {"objective": Trace_ELBO(num_particles=32)}
METHODS = {
    "full rank": vip.FullRank,
    "iaf, NumPyro's AutoIAFNormal": lambda **budget: vip.Guide(AutoIAFNormal, **NUMPYRO, **budget),
    "bnaf, NumPyro's AutoBNAFNormal": lambda **budget: vip.Guide(AutoBNAFNormal, **NUMPYRO, **budget),
    "iaf, NumPyro's layers in Flow": lambda **budget: vip.Flow(bijection=NumpyroIAF, **budget),
    "coupling, flowjax, affine, relu": vip.Flow,
    "coupling, flowjax, affine, silu": lambda **budget: flow(flowjax.flows.coupling_flow, budget, **SMOOTH),
    "coupling, flowjax, splines": lambda **budget: flow(flowjax.flows.coupling_flow, budget, flow_layers=4, transformer=spline(), **SMOOTH),
    "autoregressive, flowjax": lambda **budget: flow(flowjax.flows.masked_autoregressive_flow, budget, flow_layers=4, **SMOOTH),
    "triangular splines, flowjax": lambda **budget: flow(flowjax.flows.triangular_spline_flow, budget),
}
TARGETS = {"banana": banana, "funnel": funnel}
COLUMNS = ["target", "D", "flow", "ELBO", "mcse", "k-hat", "safe", "steps", "compile", "run", "CPU"]


def fitted(target, dim, name, num_steps):
    """One row's cells, from the number of latents on."""
    f = vip.fit(jax.random.key(0), TARGETS[target], {"dim": dim}, method=METHODS[name](num_steps=num_steps), progress=False)
    c = f.certificate
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = [f"{x:.1f}" for x in (f.compile_seconds, f.run_seconds, used.ru_utime + used.ru_stime)]
    return [f"{f.elbo:.4f}", f"{f.elbo_mcse:.4f}", f"{c.khat:.2f}", "yes" if c.ok else "no", str(f.num_steps), *seconds]


def measure(target, dim, name, num_steps, limit):
    """The same in a process of its own, which is ended after `limit` seconds."""
    row = [target, str(dim), name, str(num_steps)]
    cold = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--row", *row], env=os.environ | cold, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return [f"not within {limit} s"]
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10], help="numbers of latents")
    parser.add_argument("--targets", choices=TARGETS, nargs="+", default=list(TARGETS))
    parser.add_argument("--only", nargs="+", default=[""], help="flows whose names start so")
    parser.add_argument("--steps", type=int, default=3_000, help="budget of each restart")
    parser.add_argument("--limit", type=int, default=240, help="seconds for a row")
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        target, dim, name, num_steps = asked.row
        print(json.dumps(fitted(target, int(dim), name, int(num_steps))))
        return
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpyro", "flowjax", "jax"))
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}"
    print(f"Log Z = 0 in every row. At most {asked.steps} steps, 4 restarts, 32 draws a gradient. {machine}.")
    print("Compile and run in wall seconds; CPU in seconds of the whole process, imports and certificate included.\n")
    print("| " + " | ".join(COLUMNS) + " |\n|---|--:|---" + "|--:" * (len(COLUMNS) - 3) + "|")
    load = []
    for dim in asked.dims:
        for target in asked.targets:
            for name in METHODS:
                if name.startswith(tuple(asked.only)):
                    load.append(os.getloadavg()[0])
                    cells = measure(target, dim, name, asked.steps, asked.limit)
                    cells += [""] * (len(COLUMNS) - 3 - len(cells))
                    print("| " + " | ".join([target, str(dim), name, *cells]) + " |", flush=True)
    print(f"\nLoad average {min(load):.1f} to {max(load):.1f} meanwhile: above the number of cores, wall times exceed CPU times.")


if __name__ == "__main__":
    main()
