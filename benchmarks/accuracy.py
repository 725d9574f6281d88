"""How far off each method's posterior is on models written for this, and whether its certificate knows.

    uv run python benchmarks/accuracy.py --references   # once: exact moments, or long runs of NUTS
    uv run python benchmarks/accuracy.py                # every method under key 0
    uv run python benchmarks/accuracy.py --seeds 20     # the ladder under 20 keys

A posterior at a time, each in a process of its own; what the files in benchmarks/results/ hold already is not run again (--force runs
it). The references go to references.csv, the methods to accuracy.csv, the ladder's keys to accuracy_seeds.csv, all of it to accuracy.md.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import jax
import pandas as pd
import references
from catalogue import machine
from posteriors import ALL

import vipatterns as vip

RESULTS = Path(__file__).parent / "results"
COLUMNS = ["latents", "answered", "khat", "ess", *references.SUMMARY]
METHODS = ["DADVI", "IMIS", "Laplace", "Pathfinder", "MeanField", "NUTS", "Ladder"]
FILES = {"references": references.PATH, "methods": RESULTS / "accuracy.csv", "seeds": RESULTS / "accuracy_seeds.csv"}


def row(name, method, seed, reference):
    """One fit, held against the reference."""
    posterior = ALL[name]
    began, unknown = time.perf_counter(), dict.fromkeys(COLUMNS)
    try:
        fit = vip.fit(jax.random.key(seed), posterior.model, posterior.data(), method=method, progress=False)
    except (vip.InputError, FloatingPointError) as error:
        facts = {"posterior": name, "seed": seed, "seconds": time.perf_counter() - began, "certified": False, "sentence": str(error)}
        return unknown | facts
    certificate = fit.certificate
    facts = {
        "posterior": name,
        "seed": seed,
        "latents": fit.target.dim,
        "answered": fit.name,
        "seconds": time.perf_counter() - began,
        "khat": certificate.khat,
        "ess": certificate.ess,
        "certified": certificate.ok,
        "sentence": certificate.verdict,
    }
    return unknown | facts | references.summary(references.against(fit, reference))


def rows(name, asked):
    """The part that one process has to make."""
    if asked.references:
        yield from references.make(name)
        return
    reference = references.read(name)
    if asked.seeds:
        for seed in range(asked.seeds):
            climbs = seed < asked.nuts_seeds
            method = vip.Ladder() if climbs else vip.Ladder(rungs=(vip.DADVI(), vip.IMIS()))
            yield {"climbs": climbs, **row(name, method, seed, reference)}
        return
    for method in asked.methods.split(","):
        yield {"method": method, **row(name, getattr(vip, method)(), 0, reference)}


def certified_and_wrong(table):
    """Rows that must not be."""
    return table[table.certified & (table.scalars_wrong > 0)]


def number(value, digits=2):
    return f"{value:.{digits}f}" if pd.notna(value) else ""


def markdown_table(columns, lines):
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {' | '.join(map(str, cells))} |" for cells in lines), ""]


def faults(table):
    lines = [
        f"- {r.posterior}, {r.answered}, key {r.seed}: {r.scalars_wrong:.0f} wrong; mean of {r.mean_error_at} off by {r.mean_error:.3f} ± "
        f"{r.mean_error_mcse:.3f} sd, sd of {r.sd_error_at} by {r.sd_error:.0%} ± {r.sd_error_mcse:.0%}"
        for r in certified_and_wrong(table).itertuples()
    ]
    return ["Certified and wrong:", "", *(lines or ["- none"]), ""]


def references_section(table):
    kinds = table.groupby("posterior", sort=False).first()
    lines = [
        (name, ALL[name].about, r.kind, *(number(r[k], 0) for k in ("draws", "ess")), number(r.rhat, 4), number(r.divergences, 0), r.counts)
        for name, r in kinds.iterrows()
    ]
    lines = [(*cells, "yes" if counts else "no") for *cells, counts in lines]
    head = "Long runs of NUTS in {num_chains} chains, except where an exact answer exists."
    counts = f"One counts if NUTS's own check passes and it knows every mean and sd to {references.SHARP} sd."
    return [
        "## References",
        "",
        f"{head.format(**references.RUN)} {counts}",
        "",
        *markdown_table(["posterior", "what it is", "reference", "draws", "smallest ess", "R-hat", "divergences", "counts"], lines),
    ]


def methods_section(table):
    lines = [
        (
            r.posterior,
            r.method + (f" ({r.answered})" if r.method == "Ladder" else ""),
            f"{r.mean_error:.3g} ± {r.mean_error_mcse:.2g}" if pd.notna(r.mean_error) else "",
            f"{r.sd_ratio_min:.2f} to {r.sd_ratio_max:.2f}" if pd.notna(r.sd_ratio_min) else "",
            number(r.khat),
            number(r.ess, 0),
            "yes" if r.certified else "no",
            number(r.seconds, 0),
        )
        for r in table.itertuples()
    ]
    columns = ["posterior", "method", "mean error (sd)", "sd ratio", "k-hat", "ess", "certified", "seconds"]
    return ["## Every method, key 0", "", *markdown_table(columns, lines), *faults(table)]


def seeds_section(table):
    lines, without = [], 0
    for name, part in table.groupby("posterior", sort=False):
        dadvi = part.certified & (part.answered == "DADVI")
        imis = part.certified & (part.answered == "IMIS")
        nuts = part.certified & (part.answered == "NUTS")
        untried = ~part.certified & ~part.climbs
        good = part[part.certified]
        without += bool((dadvi | imis).mean() > 0.5)
        wrong, latents = len(certified_and_wrong(part)), int(part.latents.max())
        counts = (dadvi.sum(), imis.sum(), nuts.sum(), (~part.certified & part.climbs).sum(), untried.sum(), wrong)
        errors = (number(good.mean_error.max(), 3), number(good.sd_error.max(), 3))
        khats = f"{part.khat.min():.2f} to {part.khat.max():.2f}" if part.khat.notna().any() else ""
        lines.append((name, latents, *counts, *errors, khats, number(part.seconds.iloc[0], 1), number(part.seconds.median(), 1)))
    columns = ["posterior", "latents", "DADVI", "IMIS", "NUTS", "neither", "NUTS not tried", "certified and wrong"]
    columns += ["mean error (sd)", "sd error", "k-hat", "first (s)", "median (s)"]
    keys, climbs = table.seed.nunique(), table[table.climbs].seed.nunique()
    tried = "" if climbs == keys else f" NUTS is tried under the first {climbs} keys only."
    share = f"Certified without NUTS under most keys: {without} of {len(lines)} posteriors."
    head = f"Fits of each posterior under {keys} keys by who certified them.{tried} Errors are the largest of a certified fit."
    return ["## The ladder under many keys", "", f"{head} {share}", "", *markdown_table(columns, lines), *faults(table)]


def write():
    """accuracy.md from whatever files are there."""
    sections = {"references": references_section, "methods": methods_section, "seeds": seeds_section}
    text = [f"{machine()} {references.RULE}", ""]
    for part, path in FILES.items():
        if path.exists():
            table = pd.read_csv(path)
            text += sections[part](table[table.posterior.isin(ALL)])
    (RESULTS / "accuracy.md").write_text("\n".join(text), encoding="utf-8")


def missing(name, asked, table):
    """Whether a process is needed, and the methods it has to run."""
    there = table[table.posterior == name]
    if asked.force:
        there = there[:0]
    if asked.references:
        return "" if len(there) else asked.methods
    if asked.seeds:
        return "" if there.seed.nunique() >= asked.seeds and there.climbs.sum() >= min(asked.seeds, asked.nuts_seeds) else asked.methods
    return ",".join(m for m in asked.methods.split(",") if m not in set(there.method))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("posteriors", nargs="*", help="some of them; by default all")
    parser.add_argument("--references", action="store_true", help="make the references")
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="the ladder under N keys")
    parser.add_argument("--nuts-seeds", type=int, default=10**6, metavar="N", help="of them, those under which it may climb to NUTS")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--force", action="store_true", help="run again what is there")
    parser.add_argument("--into", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.into:
        pd.DataFrame(rows(asked.posteriors[0], asked)).to_csv(asked.into, index=False, float_format="%.9g")
        return
    RESULTS.mkdir(exist_ok=True)
    part = "references" if asked.references else "seeds" if asked.seeds else "methods"
    path, into = FILES[part], RESULTS / f"part_{part}.csv"
    for name in asked.posteriors or ALL:
        table = pd.read_csv(path) if path.exists() else pd.DataFrame({"posterior": [], "method": [], "seed": [], "climbs": []})
        if not (methods := missing(name, asked, table)):
            continue
        if not asked.references and references.read(name) is None:
            print(f"{name}: no reference that counts (--references makes them)", flush=True)
            continue
        print(f"{name}: {part}", flush=True)
        argv = [sys.executable, __file__, name, "--methods", methods, "--seeds", str(asked.seeds), "--nuts-seeds", str(asked.nuts_seeds)]
        argv += ["--into", str(into), *(["--references"] if asked.references else [])]
        if subprocess.run(argv).returncode:
            print(f"{name}: failed, the others go on", flush=True)
            continue
        new = pd.read_csv(into)
        into.unlink()
        stays = table.posterior != name
        if part == "methods":
            stays |= ~table.method.isin(new.method)
        old = table[stays]
        table = pd.concat([old, new], ignore_index=True) if len(old) else new
        order = {known: i for i, known in enumerate([*ALL, *METHODS])}
        by = ["posterior", "method"] if part == "methods" else ["posterior"]
        table.sort_values(by, key=lambda column: column.map(order), kind="stable").to_csv(path, index=False, float_format="%.9g")
        write()
    write()


if __name__ == "__main__":
    main()
