"""Where the seconds go from a cold start: the main job and one MeanField fit, beside NumPyro's bare SVI loop on the same model.

    uv run python benchmarks/cold.py | tee benchmarks/results/cold.md

Every row runs in a process of its own without a cache of compiled programs, the rows in turn and in several rounds; medians are
printed. NumPyro's loop is a compiled lax.scan over svi.update, nothing else: as many steps and particles as MeanField took, one restart,
no mode to start from, no check of convergence, no draws, no weights.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

ROUNDS = 3
NUM_PARTICLES = 32
"""MeanField's default."""
NUM_STEPS = 2_000
"""Of NumPyro's loop until MeanField has told how many it took."""
# loop: the optimiser, its judging of convergence and its changes of coordinates; steps alone: its compiled chunks of steps
COLUMNS = ["import", "compile", "run", "rest", "total", "CPU", "steps", "restarts", "loop", "steps alone", "µs a restart and step"]


class Watch:
    """Seconds of named phases since the process began."""

    def __init__(self):
        self.last = float(os.environ["BEGAN"])
        self.record: dict[str, float] = {}

    def lap(self, phase):
        now = time.time()
        self.record[phase], self.last = now - self.last, now


def compare(watch):
    """`vipatterns compare gaussian_mean`, report in the terminal included."""
    import vipatterns as vip
    from vipatterns import cli, report  # noqa: F401  what the command imports late
    from vipatterns.comparison import compare

    watch.lap("import")
    kept = []
    vip.compare = lambda *args, **options: kept.append(compare(*args, **options)) or kept[0]
    with contextlib.redirect_stdout(sys.stderr):
        cli.app(["compare", "gaussian_mean"], standalone_mode=False)
    watch.lap("rest")
    split(watch, kept[0].finished.values())


def mean_field(watch):
    """`vip.MeanField().fit(...)`, certificate and draws included."""
    import jax

    import vipatterns as vip
    from vipatterns import density, gaussian
    from vipatterns.patterns import gaussian_mean

    method, optimise, spent = vip.MeanField(), gaussian.svi.optimise, {"loop": 0.0, "steps alone": 0.0}

    class Clock(density.Clock):
        """Also times what it compiled, where that is a chunk of steps."""

        def compile(self, function, *args):
            program = super().compile(function, *args)
            return timed(program, "steps alone") if function.__name__ == "chunk" else program

    def timed(function, name):
        def run(*args, **options):
            began, compiled = time.time(), clock.compile_seconds
            result = jax.block_until_ready(function(*args, **options))
            spent[name] += time.time() - began - (clock.compile_seconds - compiled)
            return result

        return run

    clock = Clock()
    gaussian.Clock, gaussian.svi.optimise = lambda: clock, timed(optimise, "loop")
    watch.lap("import")
    clock.began = time.perf_counter()
    fit = method.fit(jax.random.key(0), gaussian_mean.model, gaussian_mean.data())
    watch.lap("rest")
    split(watch, [fit])
    watch.record |= {"steps": fit.num_steps, "restarts": method.num_restarts, **spent}


def split(watch, fits):
    """The phase `rest` into what the fits say they compiled and ran, and what is left."""
    seconds = {"compile": sum(f.compile_seconds for f in fits), "run": sum(f.run_seconds for f in fits)}
    watch.record |= {**seconds, "rest": watch.record["rest"] - sum(seconds.values())}


def numpyro_loop(watch):
    """jit(scan(svi.update)) of the pattern's own guide, in double precision as MeanField is."""
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO

    from vipatterns.patterns import gaussian_mean

    num_steps = int(os.environ["STEPS"])
    jax.config.update("jax_enable_x64", True)
    watch.lap("import")
    data = {"y": gaussian_mean.data()["y"]}
    svi = SVI(gaussian_mean.model, gaussian_mean.guide, numpyro.optim.Adam(0.01), Trace_ELBO(num_particles=NUM_PARTICLES))

    def whole(key, data):
        return jax.lax.scan(lambda state, _: svi.update(state, **data), svi.init(key, **data), length=num_steps)

    program = jax.jit(whole).lower(jax.random.key(0), data).compile()
    watch.lap("compile")
    jax.block_until_ready(program(jax.random.key(0), data))
    watch.lap("run")
    watch.record |= {"steps": num_steps, "restarts": 1, "loop": watch.record["run"], "steps alone": watch.record["run"]}


def numpyro_run(watch):
    """`SVI.run(..., progress_bar=False)`, as tutorials do; it compiles at each call."""
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO

    from vipatterns.patterns import gaussian_mean

    num_steps = int(os.environ["STEPS"])
    jax.config.update("jax_enable_x64", True)
    watch.lap("import")
    svi = SVI(gaussian_mean.model, gaussian_mean.guide, numpyro.optim.Adam(0.01), Trace_ELBO(num_particles=NUM_PARTICLES))
    svi.run(jax.random.key(0), num_steps, gaussian_mean.data()["y"], progress_bar=False)
    watch.lap("rest")
    watch.record |= {"steps": num_steps, "restarts": 1}


ROWS = {
    "vipatterns compare gaussian_mean": compare,
    "MeanField().fit": mean_field,
    "NumPyro, scan of svi.update": numpyro_loop,
    "NumPyro, SVI.run": numpyro_run,
}


def measure(row, steps):
    """One row in a process of its own."""
    cold = {
        "BEGAN": str(time.time()),
        "STEPS": str(steps),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "MPLBACKEND": "Agg",
    }
    done = subprocess.run([sys.executable, __file__, "--row", row], env=os.environ | cold, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def table(results):
    """Markdown, medians over the rounds."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" + "|--:" * len(COLUMNS) + "|"]
    for row, rounds in results.items():
        median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        if "steps alone" in median:
            median["µs a restart and step"] = 1e6 * median["steps alone"] / (median["steps"] * median["restarts"])
        shown = {name: f"{value:.0f}" if name in ("steps", "restarts") else f"{value:.2f}" for name, value in median.items()}
        cells = [shown.get(name, "") for name in COLUMNS]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        watch = Watch()
        ROWS[asked.row](watch)
        watch.record["total"] = time.time() - float(os.environ["BEGAN"])
        used = resource.getrusage(resource.RUSAGE_SELF)
        watch.record["CPU"] = used.ru_utime + used.ru_stime
        print(json.dumps(watch.record))
        return
    results, steps = {row: [] for row in ROWS}, NUM_STEPS
    load = []
    for _ in range(asked.rounds):
        for row in ROWS:
            load.append(os.getloadavg()[0])
            results[row].append(measure(row, steps))
            steps = int(results[row][-1].get("steps", steps))
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpyro", "jax", "arviz"))
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}"
    print(f"Seconds, median of {asked.rounds} rounds; {machine}.")
    print(f"Load average {min(load):.1f} to {max(load):.1f} meanwhile: above the number of cores, wall times exceed CPU times.\n")
    print(table(results))


if __name__ == "__main__":
    main()
