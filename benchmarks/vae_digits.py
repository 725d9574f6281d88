"""Held-out log p(x) of the `vae` pattern on handwritten digits, beside simpler models of the same rows: nats a datum on one test part.

    uv run python benchmarks/vae_digits.py

Writes results/vae_digits.md. The Bernoulli VAE stands beside a mixture of Bernoullis fitted by EM, the Gaussian VAE beside scikit-learn's
factor analysis. All is done three times, on three test parts that share no row. Each time parameters come from the training part, and
whatever is chosen (the epoch of a VAE; components, pseudo-count and restart of the mixture; number of factors) is chosen on the
validation part; the test part is looked at once, by the models that were chosen.

What was seen when: the VAE's layers, its weight decay and both grids were settled on one split (`settled`), of whose test part figures
had been seen too. The test parts here are of rows that were in that split's training part: none of them had been measured before.
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

NUM_PARTS, NUM_TEST, NUM_VALIDATION = 3, 360, 180
NUM_WEIGHTS = 5_000
"""Importance weights for each test datum."""
FEW_WEIGHTS = 500
"""For each validation datum."""
DECAY = 0.3
"""Of the VAE's weights, a step and unit of learning rate."""
COMPONENTS = (60, 80, 120, 160)
PSEUDO_COUNTS = (0.03, 0.1)
RESTARTS = 5
FACTORS = (40, 48, 56)

WHAT = """\
log p(x) on scikit-learn's {all:,} digits, nats a datum, beside models of the same rows: three test parts of {test} that share no row,
and for each the models are fitted to {rest:,} of the other rows and chosen on {validation} others. ± is the standard error over the
rows of a test part; that of all leaves out that the three fits share most of their rows. Binary: ink where the level is above 8 of 16.
Grey: (level + uniform) / 16, without the pixels that are the same in all digits.
The VAE's figures are logs of means of {weights:,} importance weights, which lie
below log p(x) in expectation, most where k-hat is high; the others are exact.
The VAE's layers, its weight decay and the rivals' grids were settled on another split; none of these test rows was in its validation or its
test part, and each part was looked at once."""


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
    fits = {num: factors(x, num) for num in FACTORS}
    scores = {num: fit.score(validation) for num, fit in fits.items()}
    num = max(scores, key=scores.__getitem__)
    return scores[num], f"factor analysis, {num} factors", fits[num].score_samples


def factors(x, num):
    """scikit-learn's factor analysis, fitted to 2 D rows with the mean and the covariance of x, on which alone it depends: far faster.

    It stops by the gain of the sum over rows: here as scikit-learn would by itself, 0.01 for all rows of x.
    """
    half = math.sqrt(x.shape[1]) * np.linalg.cholesky(np.cov(x.T, bias=True)).T
    tol = 0.01 * 2 * len(half) / len(x)
    return FactorAnalysis(num, tol=tol, max_iter=5_000, svd_method="lapack").fit(x.mean(0) + np.concatenate([half, -half]))


def trained_vae(x, validation, settings):
    """The same of the pattern's VAE at its best epoch, as a function of rows that returns a `LogLikelihood`."""
    trained = train(
        jax.random.key(0),
        vae.model,
        vae.guide,
        {"x": x, **settings},
        held_out={"x": validation},
        optimizer=optax.adamw(1e-3, weight_decay=DECAY),
        batch_size=128,
        num_epochs=400,
        patience=40,
        progress=False,
    )
    score = log_likelihood(jax.random.key(1), trained, num_samples=FEW_WEIGHTS, progress=False).mean
    said = f"VAE, epoch {trained.best_epoch + 1}"
    return score, said, lambda rows: log_likelihood(jax.random.key(2), trained, {"x": rows}, num_samples=NUM_WEIGHTS, progress=False)


def settled(num):
    """Indices of the rows to train on, to choose by and to test on, of the split on which all that is fixed here was settled."""
    order = np.random.default_rng(0).permutation(num)
    ends = NUM_TEST, NUM_TEST + NUM_VALIDATION
    return order[ends[1] :], order[ends[0] : ends[1]], order[: ends[0]]


def parts(x, part):
    """Rows to train on, to choose by and to test on, the last from what was the training part of `settled`."""
    rng = np.random.default_rng(1)
    fresh = rng.permutation(settled(len(x))[0])[: NUM_PARTS * NUM_TEST].reshape(NUM_PARTS, NUM_TEST)
    rest = rng.permutation(np.setdiff1d(np.arange(len(x)), fresh[part]))
    return x[rest[NUM_VALIDATION:]], x[rest[:NUM_VALIDATION]], x[fresh[part]]


def measured(name, settings, rival):
    """Lines of the table, and what they say."""
    settings = dict(settings)
    images, others, own = settings.pop("x"), [], []
    bits = images.shape[1] * math.log(2)

    def line(part, what, chosen, values):
        return f"| {name} | {part} | {what} | {chosen} | {values.mean():.2f} | {error(values):.2f} | {-values.mean() / bits:.3f} |"

    def difference(part, values):
        return f"| {name} | {part} | VAE less its rival | | {values.mean():+.2f} | {error(values):.2f} | |"

    lines = []
    for part in range(NUM_PARTS):
        x, validation, test = parts(images, part)
        score, said, log_p = rival(x, validation)
        others.append(log_p(test))
        own_score, own_said, weigh = trained_vae(x, validation, settings)
        own.append(weigh(test))
        lines.append(line(part + 1, said, f"{score:.2f}", others[-1]))
        lines.append(line(part + 1, own_said, f"{own_score:.2f}", own[-1].log_p))
        lines.append(difference(part + 1, own[-1].log_p - others[-1]))
        print(*lines[-3:], sep="\n", flush=True)
    log_p, exact = np.concatenate([part.log_p for part in own]), np.concatenate(others)
    gain = log_p - exact
    lines += [line("all", said.split(",")[0], "", exact), line("all", "VAE", "", log_p), difference("all", gain)]
    verdict = "wins by more than two errors" if gain.mean() > 2 * error(gain) else "does not win by two errors"
    each = ", ".join("yes" if g.mean() > 2 * error(g) else "no" for g in gain.reshape(NUM_PARTS, -1))
    mcse = math.sqrt(sum(part.mean_mcse**2 for part in own)) / NUM_PARTS
    above = f"k-hat above its limit for {sum(part.unreliable for part in own)} of {len(gain)}"
    return (
        lines,
        f"{name}: the VAE {verdict} of the paired difference ({each} in each part alone); Monte Carlo error {mcse:.3f} nats, {above}.",
    )


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
        "| data | part | model | validation | test | ± | bits per dimension |",
        "|---|---|---|--:|--:|--:|--:|",
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
