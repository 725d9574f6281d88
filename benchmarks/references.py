"""References of the benchmark's posteriors: made once, kept in results/references.csv, and fits held against them."""

from pathlib import Path

import jax
import numpy as np
import pandas as pd
from posteriors import ALL

import vipatterns as vip
from vipatterns.marginals import of_draws, read_draws, scalar_labels
from vipatterns.verdict import MEAN_LIMIT, SD_LIMIT

PATH = Path(__file__).parent / "results" / "references.csv"
RUN = {"num_warmup": 1_000, "num_samples": 5_000, "num_chains": 4, "target_accept_prob": 0.95}
"""Of NUTS, where a posterior does not say otherwise."""
SHARP = 0.025
"""A reference counts if NUTS's own check passed and no mean's and no sd's Monte Carlo error is above this share of its sd."""
BEYOND = 4
"""Monte Carlo errors, of both sides together, that an error has to lie beyond its limit by."""
RULE = (
    f"Wrong is a mean off by more than {MEAN_LIMIT} reference sds, or an sd off by more than {SD_LIMIT:.0%}, where {BEYOND} Monte Carlo "
    "errors of fit and reference together do not explain the excess; any scalar of any site counts, and one that is not a number is wrong."
)
SUMMARY = ["mean_error", "mean_error_mcse", "mean_error_at", "sd_error", "sd_error_mcse", "sd_error_at"]
SUMMARY += ["sd_ratio_min", "sd_ratio_max", "scalars_wrong"]


def make(name):
    """A row a scalar: its mean and sd with their Monte Carlo errors, and whether the reference counts."""
    posterior = ALL[name]
    if posterior.exact:
        for site, (means, sds) in posterior.exact(**posterior.data()).items():
            for at in np.ndindex(np.shape(means)):
                label = f"{site}[{', '.join(map(str, at))}]" if at else site
                mean, sd = np.asarray(means)[at], np.asarray(sds)[at]
                known = {"posterior": name, "kind": "exact", "counts": True, "scalar": label, "mean": mean, "sd": sd}
                yield (
                    known | dict.fromkeys(["mean_mcse", "sd_mcse"], 0.0) | dict.fromkeys(["rhat", "ess", "divergences", "draws", "seconds"])
                )
        return
    method = vip.NUTS(**RUN | posterior.reference_settings)
    fit = method.fit(jax.random.key(2_026), posterior.model, posterior.data(), progress=False)
    found = table(fit)
    found = found[(found.sd != 0) & [label.partition("[")[0] not in posterior.without for label in found.index]]
    certificate = fit.certificate
    facts = {
        "posterior": name,
        "kind": "NUTS",
        "counts": certificate.ok and bool((found[["mean_mcse", "sd_mcse"]].max(axis=1) <= SHARP * found.sd).all()),
        "rhat": certificate.rhat,
        "ess": certificate.ess,
        "divergences": int(fit.idata["sample_stats"]["diverging"].sum()),
        "draws": fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"],
        "seconds": fit.compile_seconds + fit.run_seconds,
    }
    for row in found.reset_index().to_dict("records"):
        yield facts | row


def table(fit):
    """A row a scalar, its label the index: mean, sd, mean_mcse, sd_mcse."""
    draws, effective = read_draws(fit)
    parts = []
    for values in draws.data_vars.values():
        m = of_draws(values.values, effective)
        columns = {"mean": m.mean, "sd": m.sd, "mean_mcse": m.mean_mcse, "sd_mcse": m.sd_mcse}
        parts.append(pd.DataFrame(columns, index=pd.Index(scalar_labels(values), name="scalar")))
    return pd.concat(parts)


def read(name):
    """The reference of a posterior, a row a scalar; None where there is none that counts."""
    if not PATH.exists():
        return None
    rows = pd.read_csv(PATH)
    rows = rows[(rows.posterior == name) & rows.counts].set_index("scalar")
    return rows if len(rows) else None


def against(fit, reference):
    """A row a scalar: mean_error in reference sds, sd_ratio, their Monte Carlo errors, and whether the rule calls it wrong."""
    mine = table(fit)
    if missing := set(reference.index) - set(mine.index):
        raise ValueError(f"The fit lacks {', '.join(sorted(missing))}, which the reference has: make the reference again.")
    mine = mine.loc[reference.index]
    error, ratio = (mine["mean"] - reference["mean"]) / reference.sd, mine.sd / reference.sd
    unit = reference.sd_mcse / reference.sd  # an error of the unit scales every error that is measured in it
    mean_mcse = np.hypot(np.hypot(mine.mean_mcse, reference.mean_mcse) / reference.sd, error * unit)
    ratio_mcse = ratio * np.hypot(mine.sd_mcse / mine.sd, unit)
    right = (error.abs() - BEYOND * mean_mcse <= MEAN_LIMIT) & ((ratio - 1).abs() - BEYOND * ratio_mcse <= SD_LIMIT)
    columns = {"mean_error": error, "mean_error_mcse": mean_mcse, "sd_ratio": ratio, "sd_ratio_mcse": ratio_mcse, "wrong": ~right}
    return pd.DataFrame(columns)


def summary(scalars):
    """The largest errors, where they stand, and how many scalars are wrong: a value for each of SUMMARY."""
    mean, sd = scalars.mean_error.abs().idxmax(), (scalars.sd_ratio - 1).abs().idxmax()
    means = abs(scalars.mean_error[mean]), scalars.mean_error_mcse[mean], mean
    sds = abs(scalars.sd_ratio[sd] - 1), scalars.sd_ratio_mcse[sd], sd
    return dict(zip(SUMMARY, (*means, *sds, scalars.sd_ratio.min(), scalars.sd_ratio.max(), int(scalars.wrong.sum())), strict=True))
