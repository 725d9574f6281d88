"""A Bernoulli decoder with two latents, which has no closed form, against quadrature on a grid."""

import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from exact_vae import trained
from scipy.optimize import minimize
from scipy.special import log_expit, logsumexp
from scipy.stats import norm, t

import vipatterns as vip
from vipatterns.amortized.gaps import SETTLED

RNG = np.random.default_rng(5)
HIDDEN, OUT = RNG.normal(0, 1.5, (2, 6)), RNG.normal(0, 1.5, (6, 8))
NUM_ROWS = 12
AXIS = np.linspace(-7, 7, 281)
GRID = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1).reshape(-1, 2)


def logits(z, xp=np):
    return xp.tanh(z @ HIDDEN) @ OUT


def model(x):
    with numpyro.plate("row", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=logits(z, jnp)).to_event(1), obs=x)


def guide(x):
    """Little better than the prior, so that no weight is large."""
    with numpyro.plate("row", len(x)):
        numpyro.sample("z", dist.Normal((x[:, :2] - 0.5) * 0.2, 1.0).to_event(1))


def log_joint(z, x):
    """(..., 2), (8,) -> (...)."""
    signed = (2 * x - 1) * logits(z)
    return norm.logpdf(z).sum(-1) + log_expit(signed).sum(-1)


@pytest.fixture(scope="module")
def x():
    z = RNG.standard_normal((NUM_ROWS, 2))
    return (RNG.random((NUM_ROWS, 8)) < 1 / (1 + np.exp(-logits(z)))).astype(float)


@pytest.fixture(scope="module")
def exact(x):
    """log p(x), (N,), by the trapezium rule, whose error falls exponentially for a density that vanishes at the edges."""
    return np.array([logsumexp(log_joint(GRID, row)) for row in x]) + 2 * math.log(AXIS[1] - AXIS[0])


def test_importance_sampling(x, exact, rng_key, z_bound):
    found = vip.amortized.log_likelihood(rng_key, trained(model, guide, {"x": x}))
    assert (np.abs(found.log_p - exact) < z_bound(NUM_ROWS) * found.mcse).all()
    assert found.num_dims == 8


def test_annealing_from_the_prior(x, exact, rng_key, false_alarm):
    found = vip.amortized.annealed_log_likelihood(
        rng_key, trained(model, guide, {"x": x}), start="prior", num_chains=32, num_temperatures=60, num_leapfrog=5
    )
    ratio = np.exp(found.log_p - exact)
    assert abs(ratio.mean() - 1) < t.isf(false_alarm / 2, NUM_ROWS - 1) * ratio.std(ddof=1) / math.sqrt(NUM_ROWS)
    error = np.sqrt(((found.log_p - exact) ** 2).mean())
    assert error < 3 * np.sqrt((found.mcse**2).mean()) < 0.6


def test_the_best_q_of_a_datum(x, exact, rng_key, z_bound):
    """Its ELBO, maximised by BFGS on Gauss-Hermite quadrature of 40 x 40 nodes, from the same start."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(40)
    noise = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    shares = np.outer(shares, shares).ravel() / shares.sum() ** 2

    def loss(parameters, row):
        z = parameters[:2] + np.exp(parameters[2:]) * noise
        return -shares @ log_joint(z, row) - parameters[2:].sum() - 1 - math.log(2 * math.pi)

    few = 4
    best = np.array([-minimize(loss, np.concatenate([(row[:2] - 0.5) * 0.2, np.zeros(2)]), (row,)).fun for row in x[:few]])
    found = vip.amortized.gaps(rng_key, trained(model, guide, {"x": x[:few]}))
    assert (np.abs(found.table.best_elbo - best) < z_bound(2 * few) * found.table.best_elbo_mcse + SETTLED).all()
    assert (np.abs(found.table.log_p - exact[:few]) < z_bound(2 * few) * found.table.log_p_mcse).all()
    assert (best < exact[:few]).all()
