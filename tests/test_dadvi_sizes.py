"""DADVI on one latent, on as many as have a dense Hessian, and on as many as it takes: correlated, skewed, and known exactly."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import digamma, gammaln, polygamma

import vipatterns as vip

CORRELATION = 0.8


def skewed(num, shape):
    """An autoregression of order 1 whose steps are logs of Gamma(shape) variables, of about unit sd."""
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), event_shape=(num,)))
    step = x - CORRELATION * jnp.concatenate([jnp.zeros(1), x[:-1]])
    numpyro.factor("steps", (shape**0.5 * step - shape * jnp.exp(step / shape**0.5)).sum())


def exact(num, shape):
    """Means and sds of x, and the log of the integral; the steps' Jacobian is 1."""
    lag = np.subtract.outer(np.arange(num), np.arange(num))
    root = np.where(lag >= 0, CORRELATION ** np.abs(lag), 0)
    mean = root @ np.full(num, shape**0.5 * (digamma(shape) - np.log(shape)))
    sd = (root**2 @ np.full(num, shape * polygamma(1, shape))) ** 0.5
    return mean, sd, num * (gammaln(shape) - shape * np.log(shape) + np.log(shape) / 2)


@pytest.mark.parametrize(
    ("num", "shape"), [(1, 3.0), pytest.param(200, 200.0, marks=pytest.mark.slow), pytest.param(1_000, 1_000.0, marks=pytest.mark.slow)]
)
def test_exact_at_any_size(num, shape, rng_key, z_bound):
    fit = vip.fit(rng_key, skewed, {"num": num, "shape": np.asarray(shape)}, method=vip.DADVI())
    assert fit.certificate.ok, fit.certificate.verdict
    assert fit.target.dim == num
    mean, sd, log_evidence = exact(num, shape)
    draws = fit.posterior["x"].values.reshape(-1, num)
    bound = z_bound(2 * num + 1)
    assert np.abs((draws.mean(0) - mean) / sd).max() < bound * fit.certificate.mcse
    assert np.abs(draws.std(0) / sd - 1).max() < bound * fit.certificate.mcse
    assert abs(fit.certificate.log_evidence - log_evidence) < bound * fit.certificate.log_evidence_mcse
    # Neighbours are correlated, which mean-field's q is not: linear response and the weights see it.
    if num > 1:
        expected = np.array([CORRELATION * sd[i - 1] / sd[i] for i in range(1, num)])
        found = np.array([np.corrcoef(draws[:, i - 1], draws[:, i])[0, 1] for i in range(1, num)])
        assert np.abs(found - expected).max() < bound * fit.certificate.mcse
