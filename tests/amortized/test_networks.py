"""flax networks with one latent against sums over a grid: what is measured of a datum with the networks of the patterns."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_vae import trained
from numpyro import handlers
from scipy.optimize import minimize

import vipatterns as vip
from vipatterns.amortized.gaps import SETTLED
from vipatterns.patterns import vae, vae_convolutional

NUM_ROWS = 3
GRID = np.linspace(-9, 9, 3001)


@pytest.fixture(params=[vae, vae_convolutional], ids=["vae", "vae_convolutional"])
def digits(request, monkeypatch, rng_key):
    """A pattern with one latent and networks as they start, the decoder's weights larger: codes matter; and log p(x, z), (N, grid)."""
    pattern = request.param
    monkeypatch.setattr(pattern, "LATENTS", 1)
    data = pattern.data()
    x = data.pop("x")[:NUM_ROWS]
    params = {}
    for key, function in zip(jax.random.split(rng_key), (pattern.model, pattern.guide), strict=True):
        trace = handlers.trace(handlers.seed(function, key)).get_trace(jnp.asarray(x), **data)
        params |= {name: site["value"] for name, site in trace.items() if site["type"] == "param"}
    params["decoder$params"] = jax.tree.map(lambda leaf: 2 * leaf, params["decoder$params"])
    fitted = trained(pattern.model, pattern.guide, {"x": x}, params, dtype="float32", static=data)
    decoder = handlers.substitute(handlers.seed(pattern.model, 0), {**params, "z": jnp.asarray(GRID[:, None], jnp.float32)})
    sites = handlers.trace(decoder).get_trace(jnp.zeros((len(GRID), 64)), **data)
    logits = np.asarray(sites["x"]["fn"].base_dist.logits, float)
    assert np.ptp(logits, axis=0).max() > 1, "a decoder that ignores the code tests nothing"
    log_joint = x @ logits.T - np.logaddexp(0, logits).sum(1) - 0.5 * (GRID**2 + np.log(2 * np.pi))
    return fitted, log_joint


def moments(log_joint):
    """log p(x), and mean and sd of the posterior of the latent, (N,), by the trapezium rule."""
    log_p = np.logaddexp.reduce(log_joint, axis=1) + np.log(GRID[1] - GRID[0])
    weights = np.exp(log_joint - log_p[:, None]) * (GRID[1] - GRID[0])
    mean = weights @ GRID
    return log_p, mean, np.sqrt(weights @ GRID**2 - mean**2)


@pytest.mark.slow
def test_gaps(digits, rng_key, z_bound):
    """Both gaps add up to KL(q || posterior), neither is negative, and no q of its family does better for a datum."""
    fitted, log_joint = digits
    log_p, *_ = moments(log_joint)
    row = {"x": jnp.asarray(fitted.held_out["x"], jnp.float32)}
    q = fitted.pair.run(fitted.pair.guide, jax.random.key(0), fitted.params, row)["z"]["fn"].base_dist
    loc, scale = (np.asarray(value, float).reshape(-1, 1) for value in (q.loc, q.scale))

    def elbo(loc, scale, log_joint=log_joint):
        noise = (GRID - loc) / scale
        log_q = -0.5 * noise**2 - np.log(scale * np.sqrt(2 * np.pi))
        return (np.exp(log_q) * (log_joint - log_q)).sum(-1) * (GRID[1] - GRID[0])

    def best(joint):
        """From the highest of a lattice, so that no lesser mode is taken."""

        def loss(at):
            return -elbo(at[0], np.exp(at[1]), joint)

        return -minimize(loss, min(product(np.linspace(-4, 4, 41), np.linspace(-3, 0.5, 15)), key=loss), method="Nelder-Mead").fun

    found = vip.amortized.gaps(rng_key, fitted, num_samples=2_000)
    exact = {"elbo": elbo(loc, scale), "log_p": log_p}
    for column, value in exact.items():
        assert (np.abs(found.table[column] - value) < z_bound(4 * NUM_ROWS) * found.table[f"{column}_mcse"] + 1e-3).all(), column
    assert found.family == "diagonal Gaussian"
    assert found.last_gain <= SETTLED
    error, highest = z_bound(4 * NUM_ROWS), np.array([best(joint) for joint in log_joint])
    assert (highest - exact["elbo"]).max() > 0.01, "an encoder that is right everywhere tests nothing"
    assert (np.abs(found.table.best_elbo - highest) < error * found.table.best_elbo_mcse + 2 * SETTLED).all()
    assert (found.table.amortisation_gap > -error * found.table.amortisation_gap_mcse - 1e-3).all()
    assert (found.table.approximation_gap > -error * found.table.approximation_gap_mcse - 1e-3).all()


@pytest.mark.slow
def test_a_reference_by_nuts(digits, rng_key, z_bound):
    fitted, log_joint = digits
    _, mean, sd = moments(log_joint)
    found = vip.amortized.reference(rng_key, fitted, method=vip.NUTS(num_samples=2_000))
    assert list(found.index) == [(i, "z[0]") for i in range(NUM_ROWS)]
    assert found.reference_ok.all(), "R-hat, effective size and divergences"
    assert (np.abs(found.reference_mean - mean) < z_bound(3 * NUM_ROWS) * found.mcse * sd).all()
    assert (np.abs(found.reference_sd / sd - 1) < z_bound(3 * NUM_ROWS) * found.mcse).all()
    error = found.mean_error - (found["mean"] - mean) / sd
    assert (np.abs(error) < z_bound(3 * NUM_ROWS) * 2 * found.mcse).all()
