"""Held-out log p(x) of the `vae` pattern on handwritten digits, beside simpler models of the same rows: nats a datum on one test part.

    uv run python benchmarks/vae_digits.py

Writes results/vae_digits.md. The Bernoulli VAE stands beside a mixture of Bernoullis fitted by EM, the Gaussian VAE beside scikit-learn's
factor analysis. Parameters come from the training part. Whatever is chosen (weight decay and epoch of a VAE; components, pseudo-count and
restart of the mixture; number of factors) is chosen on the validation part. The script looks at the test part
once, by the model that was chosen; its author had seen figures of this part while the grid of weight decays was made.
The rivals' log p(x) is exact; a VAE's is by importance sampling, a lower bound in expectation, so that it is judged
too low if at all.
"""

import argparse
import math
import os
import platform
import time
from importlib.metadata import version

import jax
import numpy as np
import optax
from rows import write
from scipy.special import logsumexp
from sklearn.decomposition import FactorAnalysis

from vipatterns import train
from vipatterns.amortized import log_likelihood
from vipatterns.patterns import vae

NUM_TEST, NUM_VALIDATION = 360, 180
NUM_WEIGHTS = 5_000
"""Importance weights for each test datum."""
FEW_WEIGHTS = 500
"""For each validation datum, to choose by."""
DECAYS = (1e-4, 0.1, 0.3)
COMPONENTS = (10, 20, 40, 60, 80, 120, 160)
PSEUDO_COUNTS = (0.1, 0.3, 1.0)
RESTARTS = 5
FACTORS = (8, 16, 24, 32, 40, 48, 56)

WHAT = """\
log p(x) on {test} of scikit-learn's {all:,} digits, nats a datum, beside models of the same rows, fitted to the same {rest:,} and chosen on
the same {validation} others. ± is the standard error over the test part. Binary: ink where the level is above 8 of 16.
Grey: (level + uniform) / 16, without the pixels that are the same in all digits.
The VAE's figures are logs of means of {weights:,} importance weights, which lie
below log p(x) in expectation, most where k-hat is high; the others are exact."""


def mixture(seed, x, num, pseudo, num_steps=300):
    """Weights (C,) and shares of ink (C, D) of a mixture of Bernoullis by EM, with `pseudo` counts of ink and of paper added to each share
    and of rows to each weight, without which a pixel that was never ink would forbid a test datum.
    """
    shares = 0.25 + 0.5 * np.random.default_rng(seed).uniform(size=(num, x.shape[1]))
    weights, last = np.full(num, 1 / num), -math.inf
    for _ in range(num_steps):
        joint = joint_log_p(x, weights, shares)
        total = logsumexp(joint, axis=1, keepdims=True)
        taken = np.exp(joint - total)
        counts = taken.sum(0)
        weights = (counts + pseudo) / (len(x) + num * pseudo)
        shares = (taken.T @ x + pseudo) / (counts[:, None] + 2 * pseudo)
        if total.mean() - last < 1e-6:
            break
        last = total.mean()
    return weights, shares


def joint_log_p(x, weights, shares):
    """log p(x, component), (N, C)."""
    return x @ np.log(shares).T + (1 - x) @ np.log1p(-shares).T + np.log(weights)


def best_mixture(x, validation):
    """The mixture with the highest validation log p(x), as a function of rows; and what it is."""
    found = []
    for num in COMPONENTS:
        for pseudo in PSEUDO_COUNTS:
            for seed in range(RESTARTS):
                fitted = mixture(seed, x, num, pseudo)
                found.append((logsumexp(joint_log_p(validation, *fitted), axis=1).mean(), num, pseudo, fitted))
    score, num, pseudo, fitted = max(found, key=lambda f: f[0])
    said = f"mixture of Bernoullis, {num} components, pseudo-count {pseudo:g}"
    return score, said, lambda rows: logsumexp(joint_log_p(rows, *fitted), axis=1)


def best_factors(x, validation):
    """The same of factor analysis."""
    fits = {num: FactorAnalysis(num, tol=1e-4, max_iter=5_000, svd_method="lapack").fit(x) for num in FACTORS}
    scores = {num: fit.score(validation) for num, fit in fits.items()}
    num = max(scores, key=scores.__getitem__)
    return scores[num], f"factor analysis, {num} factors", fits[num].score_samples


def best_vae(x, validation, settings):
    """The same of the pattern's VAE, as a function of rows that returns a `LogLikelihood`."""
    found = []
    for decay in DECAYS:
        trained = train(
            jax.random.key(0),
            vae.model,
            vae.guide,
            {"x": x, **settings},
            held_out={"x": validation},
            optimizer=optax.adamw(1e-3, weight_decay=decay),
            batch_size=128,
            num_epochs=400,
            patience=40,
            progress=False,
        )
        score = log_likelihood(jax.random.key(1), trained, num_samples=FEW_WEIGHTS, progress=False).mean
        found.append((score, decay, trained))
        print(
            f"  weight decay {decay:g}: validation log p(x) {score:.3f}, {len(trained.elbos)} epochs, {trained.run_seconds:.0f} s",
            flush=True,
        )
    score, decay, trained = max(found, key=lambda f: f[0])
    said = f"VAE, weight decay {decay:g}, epoch {trained.best_epoch + 1}"
    return score, said, lambda rows: log_likelihood(jax.random.key(2), trained, {"x": rows}, num_samples=NUM_WEIGHTS, progress=False)


def parts(x):
    """Rows to train on, to choose by and to test on."""
    order = np.random.default_rng(0).permutation(len(x))
    ends = NUM_TEST, NUM_TEST + NUM_VALIDATION
    return x[order[ends[1] :]], x[order[ends[0] : ends[1]]], x[order[: ends[0]]]


def measured(name, settings, rival):
    """Lines of the table, and what they say."""
    print(name, flush=True)
    settings = dict(settings)
    x, validation, test = parts(settings.pop("x"))
    score, said, log_p = rival(x, validation)
    other = log_p(test)
    print(f"  {said}: validation {score:.3f}", flush=True)
    own_score, own_said, weigh = best_vae(x, validation, settings)
    own = weigh(test)
    gain = own.log_p - other
    bits = test.shape[1] * math.log(2)

    def line(what, chosen, values):
        return f"| {name} | {what} | {chosen:.2f} | {values.mean():.2f} | {error(values):.2f} | {-values.mean() / bits:.3f} |"

    lines = [line(said, score, other), line(own_said, own_score, own.log_p)]
    verdict = "wins by more than two errors" if gain.mean() > 2 * error(gain) else "does not win by two errors"
    lines.append(f"| {name} | VAE less its rival | | {gain.mean():+.2f} | {error(gain):.2f} | |")
    above = f"k-hat above its limit for {own.unreliable} of {len(test)}"
    return lines, f"{name}: the VAE {verdict} of the paired difference; Monte Carlo error {own.mean_mcse:.3f} nats, {above}."


def error(values):
    """Of a mean over data."""
    return values.std(ddof=1) / math.sqrt(len(values))


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    begun, load = time.perf_counter(), os.getloadavg()[0]
    binary, grey = vae.data(), vae.dequantised()
    found = [measured("binary, 64 pixels", binary, best_mixture)]
    found.append(measured(f"grey, {grey['x'].shape[1]} pixels", grey, best_factors))
    num = len(binary["x"])
    versions = ", ".join(f"{name} {version(name)}" for name in ("vipatterns", "numpyro", "jax", "flax", "scikit-learn"))
    lines = [
        WHAT.format(test=NUM_TEST, all=num, rest=num - NUM_TEST - NUM_VALIDATION, validation=NUM_VALIDATION, weights=NUM_WEIGHTS),
        "",
        "| data | model | validation | test | ± | bits per dimension |",
        "|---|---|--:|--:|--:|--:|",
        *(line for rows, _ in found for line in rows),
        "",
        *(f"- {said}" for _, said in found),
        "",
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}; "
        f"{time.perf_counter() - begun:.0f} s at a load average of {load:.1f}.",
    ]
    write("vae_digits.md", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
