"""k-hat against NumPyro's psis_diagnostic, and of Gaussians that are wrong by a known amount, at the number of draws that is used."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import psis_diagnostic
from numpyro.infer.util import log_density
from scipy.stats import norm

from vipatterns import certification, diagnosis
from vipatterns.certification import Account

NUM_PARTICLES = 10_000
NUM_BATCHES = 20


def model(y):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(level, scale), obs=y)


def guide(y):
    """Narrow in one latent, wide in the other; `scale` on its own support, so that a Jacobian stands in both densities."""
    numpyro.sample("level", dist.Normal(numpyro.param("loc", 0.0), numpyro.param("sd", 1.0)))
    numpyro.sample("scale", dist.LogNormal(0.1, 0.5))


Y = np.array([1.1, -0.3, 0.4, 2.0, -0.9, 0.2], np.float32)


def weights(rng_key, params):
    """log p and log q of the particles that psis_diagnostic draws from this key, by NumPyro's own densities."""

    def particle(key):
        key_guide = jax.random.split(key)[1]
        log_q, trace = log_density(handlers.seed(guide, key_guide), (Y,), {}, params)
        values = {k: site["value"] for k, site in trace.items() if site["type"] == "sample"}
        return log_density(model, (Y,), {}, values)[0], log_q

    return (np.asarray(x) for x in jax.vmap(particle)(jax.random.split(rng_key, NUM_PARTICLES)))


@pytest.mark.parametrize("sd", [0.2, 0.3, 0.6])
def test_numpyros_particles_have_numpyros_khat(sd, rng_key):
    """Particle by particle: log_p - log_q with NumPyro's sign, and its estimator of the tail to float32's rounding."""
    params = {"loc": jnp.asarray(0.3), "sd": jnp.asarray(sd)}
    theirs = psis_diagnostic(rng_key, params, model, guide, Y, num_particles=NUM_PARTICLES)
    log_p, log_q = weights(rng_key, params)
    assert diagnosis.smooth(log_p, log_q).khat == pytest.approx(theirs, abs=2e-3)
    assert abs(diagnosis.smooth(log_q, log_p).khat - theirs) > 0.1, "the other sign would be seen"


def test_other_particles_agree_within_their_scatter(rng_key, z_bound):
    """Batches of their own for each side; the scatter over batches of one side is the tolerance."""
    params = {"loc": jnp.asarray(0.3), "sd": jnp.asarray(0.3)}
    keys = jax.random.split(rng_key, 2 * NUM_BATCHES)
    theirs = [psis_diagnostic(key, params, model, guide, Y, num_particles=NUM_PARTICLES) for key in keys[:NUM_BATCHES]]
    ours = [diagnosis.smooth(*weights(key, params)).khat for key in keys[NUM_BATCHES:]]
    # A k-hat of this many draws is 600 tail draws' shape: about (1 + k) / sqrt(300), so that a scatter far from it is a mistake too.
    expected = (1 + np.mean(ours)) / math.sqrt(3 * math.sqrt(NUM_PARTICLES))
    for khats in (theirs, ours):
        assert 0.4 * expected < np.std(khats, ddof=1) < 2 * expected
    error = math.sqrt((np.var(theirs, ddof=1) + np.var(ours, ddof=1)) / NUM_BATCHES)
    assert abs(np.mean(theirs) - np.mean(ours)) < z_bound() * error


def khats(rng_key, sds, log_p, num_draws, num_batches=NUM_BATCHES):
    """k-hat of batches of draws of q = N(0, diag(sds^2))."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))
    found = []
    for _ in range(num_batches):
        z = rng.normal(0, sds, (num_draws, len(sds)))
        found.append(diagnosis.smooth(log_p(z), norm.logpdf(z, 0, sds).sum(1)).khat)
    return np.array(found)


@pytest.mark.parametrize(("rho", "expected"), [(0.3, 0.28), (0.5, 0.46), (0.7, 0.64), (0.9, 0.82)])
def test_mean_field_on_a_correlated_gaussian(rho, expected, rng_key, z_bound):
    """k = rho in the limit, reached from below: at 1e5 draws .28, .46, .64, .82, each from one batch, so with that batch's scatter."""

    def log_p(z):
        return norm.logpdf(z[:, 0]) + norm.logpdf(z[:, 1], rho * z[:, 0], math.sqrt(1 - rho**2))

    found = khats(rng_key, np.full(2, math.sqrt(1 - rho**2)), log_p, 100_000)
    spread = found.std(ddof=1)
    assert abs(found.mean() - expected) < z_bound(2) * spread * math.sqrt(1 + 1 / NUM_BATCHES)
    assert found.mean() < rho + z_bound(2) * spread / math.sqrt(NUM_BATCHES)
    assert found.mean() > rho - 0.12


@pytest.mark.parametrize(("s", "expected"), [(0.5, 0.9080815512), (0.7, 0.6371459500), (0.9, 0.2749448132)])
def test_a_narrow_gaussian_in_three_dimensions(s, expected, rng_key, z_bound):
    """The fixed batch's k-hat is one of its kind: it lies in the scatter of other batches of as many draws."""
    found = khats(rng_key, np.full(3, s), lambda z: norm.logpdf(z).sum(1), 50_000)
    assert abs(found.mean() - expected) < z_bound() * found.std(ddof=1) * math.sqrt(1 + 1 / NUM_BATCHES)


def test_narrow_is_refused_and_wide_is_not(rng_key, z_bound):
    """k = 1 - s^2: on average over the threshold at s = .3, by more than its error, and no tail in any batch where q is wider than p."""
    narrow, wide = (khats(rng_key, np.full(1, s), lambda z: norm.logpdf(z).sum(1), 40_000) for s in (0.3, 1.5))
    error = narrow.std(ddof=1) / math.sqrt(NUM_BATCHES)
    assert diagnosis.khat_threshold(40_000) < narrow.mean() - z_bound(2) * error
    assert narrow.mean() < 1 - 0.3**2 + z_bound(2) * error
    assert (wide < 0.2).all()


NUM_FEW = 40_000
PEAK, HEIGHT = 0.002, 0.3
"""Of p about q's mean: half width, so narrow that few draws meet it, and how far it rises above q."""
SHARE, FAR = 1e-3, 100.0
"""Of p that lies in a Gaussian of so many of q's sds."""


def certified(log_p, log_q, z):
    """The certificate of these draws, without its search for modes."""
    weights, halves = diagnosis.smooth(log_p, log_q), [diagnosis.smooth(log_p[i::2], log_q[i::2]) for i in range(2)]
    return certification._certificate(weights, halves, ["z"], z[:, None], 4_000, Account("converged"), ""), weights


def tail_of(kind, z):
    """p / q of a q that is N(0, 1): nearly one at all of its draws but a few."""
    if kind == "bounded":
        return 1 + HEIGHT * np.exp(-0.5 * (z / PEAK) ** 2)
    return (1 - SHARE) + SHARE * np.exp(norm.logpdf(z, 0, FAR) - norm.logpdf(z))


@pytest.mark.parametrize("kind", ["bounded", "unbounded"])
def test_even_weights_with_a_few_large_ones_are_refused_without_blaming_q_alone(kind, rng_key):
    """Draws do not tell a bounded peak, where q is nearly right, from tails of p that q lacks, where its sd is off by a factor of three."""
    z = np.random.default_rng(np.asarray(jax.random.key_data(rng_key))).normal(size=NUM_FEW)
    log_q = norm.logpdf(z)
    certificate, weights = certified(log_q + np.log(tail_of(kind, z)), log_q, z)
    assert weights.ess > 0.99 * NUM_FEW
    assert certificate.khat > certificate.khat_threshold
    assert not certificate.ok
    assert "the weights of 40,000 draws are even but for a few, whose tail is too heavy to trust" in certificate.verdict
    assert "or rarely meets where the weights have their bound" in certificate.verdict


def test_more_draws_meet_the_bound_and_pass(rng_key):
    """Of a bounded peak k-hat is negative in the limit; of the other tail it stays what it is."""
    khats = {}
    for kind in ("bounded", "unbounded"):
        z = np.random.default_rng(np.asarray(jax.random.key_data(rng_key))).normal(size=50 * NUM_FEW)
        khats[kind] = diagnosis.smooth(np.log(tail_of(kind, z)), np.zeros(z.size)).khat
    assert khats["bounded"] < diagnosis.khat_threshold(NUM_FEW) < khats["unbounded"]


@pytest.mark.parametrize("num_draws", [1_000, 10_000, 100_000])
def test_weights_that_end_evenly_at_a_bound_have_no_tail(num_draws, rng_key):
    """Uniform log ratios: k = -1, at any number of draws."""
    z = np.random.default_rng(np.asarray(jax.random.key_data(rng_key))).normal(size=num_draws)
    khat = certified(0.3 * norm.cdf(z), np.zeros(num_draws), z)[0].khat
    assert khat < 0


def test_equal_weights_in_the_tail_are_not_said_to_be_infinite(rng_key):
    """Log ratios on a grid, whose largest fall together: finite, though no Pareto tail can be fitted to them."""
    z = np.random.default_rng(np.asarray(jax.random.key_data(rng_key))).normal(size=100_000)
    certificate, weights = certified(np.round(2 * z) / 4, np.zeros(z.size), z)
    assert math.isfinite(weights.log_evidence)
    assert certificate.khat == math.inf
    assert not certificate.ok
    assert "many of the largest are equal" in certificate.verdict
    assert "not finite" not in certificate.verdict
