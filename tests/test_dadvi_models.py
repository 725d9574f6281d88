"""DADVI on what NumPyro's models are made of: simplexes, Cholesky factors, counts, masks, scans, factors and subsampled plates.

Each has an exact answer, by conjugacy, Gaussian algebra or quadrature.
"""

import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.special import digamma, gammaln, polygamma
from scipy.stats import beta, betabinom, dirichlet_multinomial, multivariate_normal, nbinom
from scipy.stats import dirichlet as dirichlet_distribution

import vipatterns as vip

# A row a measurement: counts, successes, or reals.
RNG = np.random.default_rng(3)
Y = RNG.normal(1, 1.5, 12)
SEEN = np.arange(12) % 3 > 0
PAIRS = RNG.normal(size=(15, 2)) @ np.linalg.cholesky([[1, 1.2], [1.2, 4]]).T
WALK = RNG.normal(size=15).cumsum() / 2
EVENTS = RNG.poisson(3, 30)
PSEUDO = np.array([1.5, 1.0, 2.0, 0.5])


def simplex(counts, total):
    shares = numpyro.sample("shares", dist.Dirichlet(PSEUDO))
    numpyro.sample("counts", dist.Multinomial(total, shares), obs=counts)


def simplex_exact(counts, total):
    q = dirichlet_distribution(PSEUDO + counts)
    return {"shares": (q.mean(), q.var() ** 0.5)}, dirichlet_multinomial.logpmf(counts, PSEUDO, total)


def binomial(trials, y):
    with numpyro.plate("group", len(y)):
        p = numpyro.sample("p", dist.Beta(2.0, 3.0))
        numpyro.sample("y", dist.Binomial(trials, p), obs=y)


def binomial_exact(trials, y):
    q = beta(2 + y, 3 + trials - y)
    return {"p": (q.mean(), q.std())}, betabinom.logpmf(y, trials, 2, 3).sum()


def cholesky(y):
    factor = numpyro.sample("factor", dist.LKJCholesky(2, 1.5))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.MultivariateNormal(0.0, scale_tril=jnp.array([[1.0], [2.0]]) * factor), obs=y)


def cholesky_exact(y):
    """Quadrature over the correlation r, whose prior is (1 - r^2)^(1/2) normalised, by r = tanh(t)."""
    t = np.linspace(-8, 8, 4001)
    r = np.tanh(t)
    inside = np.log1p(-(r**2))
    a, b = y[:, 0], y[:, 1] / 2
    squares = (a @ a + b @ b - 2 * r * (a @ b)) / (1 - r**2)
    log_p = (
        0.5 * inside - math.log(math.pi / 2) - len(y) * (math.log(2 * math.pi) + math.log(2)) - len(y) / 2 * inside - squares / 2 + inside
    )
    total = np.exp(log_p - log_p.max()).sum()
    weight = np.exp(log_p - log_p.max()) / total
    values = np.zeros((t.size, 2, 2))
    values[:, 0, 0], values[:, 1, 0], values[:, 1, 1] = 1, r, np.sqrt(1 - r**2)
    mean = np.tensordot(weight, values, 1)
    sd = np.tensordot(weight, (values - mean) ** 2, 1) ** 0.5
    return {"factor": (mean, sd)}, log_p.max() + math.log(total * (t[1] - t[0]))


def correlations():
    numpyro.sample("factor", dist.LKJCholesky(3, 2.0))


def normal_exact(y, seen):
    """mu ~ N(0, 2^2), rows N(mu, 1.5^2) where they were seen; the rows themselves where they were not."""
    kept = y[seen]
    precision = 1 / 4 + len(kept) / 2.25
    mean = kept.sum() / 2.25 / precision
    return mean, precision**-0.5, multivariate_normal.logpdf(kept, cov=2.25 * np.eye(len(kept)) + 4)


def masked_by_handler(y, seen):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", len(y)), numpyro.handlers.mask(mask=seen):
        numpyro.sample("y", dist.Normal(mu, 1.5), obs=y)


def masked_by_distribution(y, seen):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.5).mask(seen), obs=y)


def masked_exact(y, seen):
    mean, sd, log_evidence = normal_exact(y, seen)
    return {"mu": (mean, sd)}, log_evidence


def partly_observed(y, seen):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.5), obs=y, obs_mask=seen)


def partly_observed_exact(y, seen):
    mean, sd, log_evidence = normal_exact(y, seen)
    rows = np.where(seen, y, mean), np.where(seen, 0, math.hypot(sd, 1.5))
    return {"mu": (mean, sd), "y": rows}, log_evidence


def state_space(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 0.5))
        numpyro.sample("y", dist.Normal(x, 0.8), obs=y)
        return x, None

    scan(step, 0.0, y)


def state_space_exact(y):
    """x = root e with e standard normal, y = x + noise: the Kalman smoother's answer, by Gaussian algebra."""
    lag = np.subtract.outer(np.arange(len(y)), np.arange(len(y)))
    root = 0.5 * np.where(lag >= 0, 0.9 ** np.abs(lag), 0)
    prior = root @ root.T
    marginal = prior + 0.64 * np.eye(len(y))
    gain = prior @ np.linalg.inv(marginal)
    covariance = prior - gain @ prior
    return {"x": (gain @ y, np.diag(covariance) ** 0.5)}, multivariate_normal.logpdf(y, cov=marginal)


def factor(shape):
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.factor("log gamma", shape * x - jnp.exp(x))


def factor_exact(shape):
    """The log of a Gamma(shape) variable, and the gamma function for a normalising constant."""
    return {"x": (digamma(shape), polygamma(1, shape) ** 0.5)}, gammaln(shape)


def subsampled(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("row", len(y), subsample_size=5):
        numpyro.sample("y", dist.Poisson(rate), obs=numpyro.subsample(y, 0))


def subsampled_exact(y):
    """Gamma and Poisson; the evidence row by row, each given those before it."""
    a, b = 2 + np.cumsum(y) - y, 1 + np.arange(len(y))
    shape, rate = 2 + y.sum(), 1 + len(y)
    return {"rate": (shape / rate, shape**0.5 / rate)}, nbinom.logpmf(y, a, b / (b + 1)).sum()


CASES = {
    "simplex": (simplex, {"counts": np.array([9, 1, 7, 3]), "total": 20}, simplex_exact),
    "simplex with empty cells": (simplex, {"counts": np.array([13, 0, 7, 0]), "total": 20}, simplex_exact),
    "binomial": (binomial, {"trials": np.array([5, 12, 40, 3]), "y": np.array([0, 7, 31, 3])}, binomial_exact),
    "Cholesky": (cholesky, {"y": PAIRS}, cholesky_exact),
    "mask handler": (masked_by_handler, {"y": np.where(SEEN, Y, np.nan), "seen": SEEN}, masked_exact),
    "mask": (masked_by_distribution, {"y": np.where(SEEN, Y, np.nan), "seen": SEEN}, masked_exact),
    "obs_mask": (partly_observed, {"y": Y, "seen": SEEN}, partly_observed_exact),
    "scan": (state_space, {"y": WALK}, state_space_exact),
    "factor": (factor, {"shape": np.asarray(2.5)}, factor_exact),
    "subsampled": (subsampled, {"y": EVENTS}, subsampled_exact),
}


ALIKE = {"simplex", "mask"}  # each like another case that the default run has


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow) if case in ALIKE else case for case in CASES])
def test_certified_and_exact(case, rng_key, z_bound):
    model, data, exact_answer = CASES[case]
    fit = vip.fit(rng_key, model, data, method=vip.DADVI(num_samples=10_000))
    assert fit.certificate.ok, fit.certificate.verdict
    sites, log_evidence = exact_answer(**data)
    allowed = z_bound(1 + sum(2 * np.size(mean) for mean, _ in sites.values())) * fit.certificate.mcse
    rounding = 1e-9  # where an entry is fixed
    for site, (mean, sd) in sites.items():
        draws = fit.posterior[site].values
        assert np.all(np.abs(draws.mean((0, 1)) - mean) <= allowed * sd + rounding), site
        assert np.all(np.abs(draws.std((0, 1)) - sd) <= allowed * sd + rounding), site
    error = allowed / fit.certificate.mcse * fit.certificate.log_evidence_mcse
    assert abs(fit.certificate.log_evidence - log_evidence) < error


def test_correlations_of_three_by_their_prior(rng_key, z_bound):
    """(1 + r) / 2 ~ Beta(c, c) with c = eta - 1 + d / 2, for each correlation r (Lewandowski, Kurowicka and Joe 2009)."""
    fit = vip.fit(rng_key, correlations, {}, method=vip.DADVI(num_samples=10_000))
    assert fit.certificate.ok, fit.certificate.verdict
    factors = fit.posterior["factor"].values.reshape(-1, 3, 3)
    r = (factors @ factors.transpose(0, 2, 1))[:, [1, 2, 2], [0, 0, 1]]
    sd = 2 * beta(2.5, 2.5).std()
    # The certificate's error is the largest of the factor's entries; a correlation that is a sum of two products is no worse known.
    allowed = z_bound(7) * fit.certificate.mcse
    assert (np.abs(r.mean(0)) < allowed * sd).all()
    assert (np.abs(r.std(0) / sd - 1) < allowed).all()
    assert abs(fit.certificate.log_evidence) < z_bound(7) * fit.certificate.log_evidence_mcse
