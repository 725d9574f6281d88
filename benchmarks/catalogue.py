"""Every pattern by every method: how far off, how sure of itself, how long.

    uv run python benchmarks/catalogue.py

writes benchmarks/results/catalogue.csv and catalogue.md, a pattern at a time, each in a process of its own; what the CSV holds already is
not run again (--force runs it). Errors are the largest over a pattern's scalars, against its exact posterior where it has one, else
against NUTS. `certified` is the method's own check, which knows no reference; `verdict` is what `vipatterns compare` says.
"""

import argparse
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import pandas as pd

import vipatterns as vip
from vipatterns import catalogue, job
from vipatterns.verdict import MEAN_LIMIT, SD_LIMIT

RESULTS = Path(__file__).parent / "results"
NOT_COMPARED = {"Ladder", "Guide"}
"""The ladder climbs the others; a guide of one's own is one's own."""
METHODS = [name for name in job.method_names() if name not in NOT_COMPARED]
SHOWN = {
    "pattern": "pattern",
    "method": "method",
    "reference": "reference",
    "mean_error": "mean error (sd)",
    "sd_ratio": "sd ratio",
    "khat": "k-hat",
    "certified": "certified",
    "verdict": "verdict",
    "seconds": "seconds",
}


def rows(name, methods, seed):
    """A row a method, of one pattern."""
    asked = job.read(name, None, job.Columns(), [])
    reference = asked.answer("exact_posterior")
    wanted = methods if reference is not None or "NUTS" in methods else [*methods, "NUTS"]
    compared = vip.compare(
        jax.random.key(seed),
        asked.model,
        asked.data,
        methods=[getattr(vip, method)() for method in wanted],
        reference=reference,
        log_evidence=asked.answer("log_evidence"),
    )
    for method, row in compared.table.set_index("method").iterrows():
        fit, verdict = compared.fits[method], compared.verdicts[method]
        certified = isinstance(fit, vip.Fit) and fit.certificate.ok
        sd_error = max(1 - row.sd_ratio_min, row.sd_ratio_max - 1)
        wrong = {"means": row.mean_error > MEAN_LIMIT, "sds": sd_error > SD_LIMIT}
        yield {
            "pattern": name,
            "method": method,
            "reference": compared.reference.kind if compared.reference.ok else "none",
            "mean_error": row.mean_error,
            "mean_error_mcse": row.mean_error_mcse,
            "sd_ratio_min": row.sd_ratio_min,
            "sd_ratio_max": row.sd_ratio_max,
            "sd_ratio_mcse": max(row.sd_ratio_min_mcse, row.sd_ratio_max_mcse),
            "khat": row.khat,
            "ess": row.ess,
            "certified": certified,
            "verdict": verdict.standing,
            "safe_for": " ".join(verdict.safe),
            # What must not be: called safe, by the reference or by its own check, and wrong.
            "safe_but_wrong": any(wrong[use] for use in verdict.safe if use in wrong),
            "certified_but_wrong": certified and any(wrong.values()),
            "seconds": row.compile_seconds + row.run_seconds,
            "sentence": verdict.sentence,
        }


def markdown(table):
    """The table for people."""
    shown = table.copy()
    shown["mean_error"] = [
        f"{e:.3f} ± {m:.3f}" if pd.notna(e) else "" for e, m in zip(table.mean_error, table.mean_error_mcse, strict=True)
    ]
    ratios = zip(table.sd_ratio_min, table.sd_ratio_max, strict=True)
    shown["sd_ratio"] = [f"{low:.2f} to {high:.2f}" if pd.notna(low) else "" for low, high in ratios]
    shown["khat"] = [f"{k:.2f}" if pd.notna(k) else "" for k in table.khat]
    shown["certified"] = ["yes" if c else "no" for c in table.certified]
    shown["verdict"] = [f"{v} ({uses})" if v == "partly" else v for v, uses in zip(table.verdict, table.safe_for, strict=True)]
    shown["seconds"] = [f"{s:.0f}" if pd.notna(s) else "" for s in table.seconds]
    lines = [f"| {' | '.join(SHOWN.values())} |", "|" + "---|" * len(SHOWN)]
    lines += [f"| {' | '.join(map(str, row))} |" for row in shown[list(SHOWN)].itertuples(index=False)]
    wrong = table[table.safe_but_wrong | table.certified_but_wrong]
    faults = [
        f"- {r.pattern}, {r.method}: {'called safe' if r.safe_but_wrong else 'certified'}, "
        f"mean error {r.mean_error:.3f} ± {r.mean_error_mcse:.3f} sd, "
        f"sd ratio {r.sd_ratio_min:.2f} to {r.sd_ratio_max:.2f} (± {r.sd_ratio_mcse:.2f})"
        for r in wrong.itertuples()
    ]
    head = machine()
    limits = f"Safe or certified, and off by more than {MEAN_LIMIT} sd in a mean or {SD_LIMIT:.0%} in an sd:"
    return "\n".join([head, "", *lines, "", limits, "", *(faults or ["- none"]), "", *unfinished(table)])


def machine():
    """On what a table was measured."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("numpyro", "jax", "arviz"))
    machine = f"{os.cpu_count()} cores ({platform.machine()}), 5-minute load average {os.getloadavg()[1]:.0f} when this was written"
    return f"{machine}, Python {platform.python_version()}, {versions}; seconds with compiling."


def unfinished(table):
    """Lines that say what the table does not hold yet."""
    there, missing = set(zip(table.pattern, table.method, strict=True)), {}
    for pattern in catalogue.patterns():
        if methods := tuple(method for method in METHODS if (pattern.name, method) not in there):
            missing.setdefault(methods, []).append(pattern.name)
    if not missing:
        return []
    return ["Not run yet:", "", *(f"- {', '.join(methods)} on {', '.join(names)}" for methods, names in missing.items()), ""]


def write(table):
    """Both files, the patterns and methods in their own order."""
    order = {name: i for i, name in enumerate(METHODS)}
    table = table.sort_values(["pattern", "method"], key=lambda column: column.map(order) if column.name == "method" else column)
    table.to_csv(RESULTS / "catalogue.csv", index=False, float_format="%.5g")
    (RESULTS / "catalogue.md").write_text(markdown(table), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", help="some of them; by default all")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="run again what is there")
    parser.add_argument("--into", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    names, methods = asked.patterns or [p.name for p in catalogue.patterns()], asked.methods.split(",")
    if asked.into:
        pd.DataFrame(rows(names[0], methods, asked.seed)).to_csv(asked.into, index=False)
        return
    RESULTS.mkdir(exist_ok=True)
    path, part = RESULTS / "catalogue.csv", RESULTS / "part.csv"
    for name in names:
        table = pd.read_csv(path) if path.exists() else pd.DataFrame({"pattern": [], "method": []})
        there = set() if asked.force else set(table[table.pattern == name].method)
        if not (missing := [method for method in methods if method not in there]):
            continue
        print(f"{name}: {', '.join(missing)}", flush=True)
        argv = [sys.executable, __file__, name, "--methods", ",".join(missing), "--seed", str(asked.seed), "--into", str(part)]
        if subprocess.run(argv).returncode:
            print(f"{name}: failed, the others go on", flush=True)
            continue
        new = pd.read_csv(part)
        part.unlink()
        write(pd.concat([table[~((table.pattern == name) & table.method.isin(new.method))], new], ignore_index=True))


if __name__ == "__main__":
    main()
