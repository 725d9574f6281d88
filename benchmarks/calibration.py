"""False certificates and coverage on data that the patterns' models make of parameters from their own priors.

    uv run python benchmarks/calibration.py                  # DADVI; writes benchmarks/results/calibration.md
    uv run python benchmarks/calibration.py eight_schools    # one of them, printed only

A certificate is false where a mean is off by more than .15 sd or an sd by more than 15 %, beyond four Monte Carlo errors, of the exact
posterior of the data set that it was given for. Refused fits are counted, and not judged.
"""

import argparse
import os
import platform
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import jax

import vipatterns as vip
from vipatterns.calibration import LEVELS, Rate

RESULT = Path(__file__).parent / "results" / "calibration.md"
PATTERNS = ("gaussian_mean", "gaussian_mean_precision", "linear_regression", "logistic_regression", "eight_schools")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", help="some of them; by default all")
    parser.add_argument("--number", type=int, default=300, help="data sets a pattern")
    asked = parser.parse_args()
    covers = " | ".join(f"{level:.0%} covers" for level in LEVELS)
    lines = [
        f"| pattern | certified | false certificates | below, 95 % confidence | {covers} | smallest p (uniform) | seconds |",
        "|---|--:|--:|--:|" + "--:|" * (len(LEVELS) + 2),
    ]
    print("\n".join(lines), flush=True)
    false, judged = 0, 0
    for i, name in enumerate(asked.patterns or PATTERNS):
        pattern = import_module(f"vipatterns.patterns.{name}")
        found = vip.calibrate(
            jax.random.key(i), pattern.model, pattern.data(), num_datasets=asked.number, reference=pattern.exact_posterior, progress=False
        )
        rate, table = found.false_certificates, found.table
        false, judged = false + rate.count, judged + rate.number
        shares = " | ".join(f"{table[f'covers_{level:.0%}'].mean():.1%}" for level in LEVELS)
        lines.append(
            f"| {name} | {found.certified.count} of {found.certified.number} | {rate.count} of {rate.number} | {rate.upper():.2%} | "
            f"{shares} | {table.uniform_p.min():.2g} of {len(table)} | {found.seconds:.0f} |"
        )
        print(lines[-1], flush=True)
    end = [
        "",
        f"All together: {Rate(false, judged)}. Coverage is the mean over scalars, of certified posteriors; DADVI's defaults.",
        "",
        f"{os.cpu_count()} cores ({platform.machine()}), load average {os.getloadavg()[1]:.1f}, Python {platform.python_version()}, "
        f"numpyro {version('numpyro')}, jax {version('jax')}.",
        "",
    ]
    print("\n".join(end))
    if not asked.patterns:
        RESULT.write_text("\n".join([*lines, *end]), encoding="utf-8")


if __name__ == "__main__":
    main()
