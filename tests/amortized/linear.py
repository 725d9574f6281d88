"""A linear-Gaussian model with its guide: training has a closed-form end, probabilistic PCA's maximum likelihood."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

NUM_COLUMNS = 4


def rows(num=400, seed=0):
    """One latent dimension behind four columns, with noise of sd 0.5."""
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(num, 1)) @ np.array([[1.0, -0.5, 0.8, 0.3]]) + 0.5 * rng.normal(size=(num, NUM_COLUMNS))}


def model(x=None, num_rows=1, kl_weight=1.0):
    loadings = numpyro.param("loadings", 0.5 * jnp.ones(NUM_COLUMNS))
    noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("row", num_rows if x is None else len(x)):
        with numpyro.handlers.scale(scale=kl_weight):
            z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(z[:, None] * loadings, noise).to_event(1), obs=x)


def guide(x=None, num_rows=1, kl_weight=1.0):
    weights = numpyro.param("weights", jnp.zeros(NUM_COLUMNS))
    sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("row", len(x)), numpyro.handlers.scale(scale=kl_weight):
        numpyro.sample("z", dist.Normal(x @ weights, sd))


def best_loglik(x):
    """Nats a row at the maximum of the likelihood over loadings and noise (Tipping and Bishop 1999, doi 10.1111/1467-9868.00196)."""
    values = np.linalg.eigvalsh(x.T @ x / len(x))[::-1]
    noise = values[1:].mean()
    return -0.5 * (len(values) * np.log(2 * np.pi) + np.log(values[0]) + (len(values) - 1) * np.log(noise) + len(values))


def loglik(params, x):
    """Nats a row of these parameters, (N,)."""
    loadings, noise = np.asarray(params["loadings"], float), float(params["noise"])
    cov = np.outer(loadings, loadings) + noise**2 * np.eye(len(loadings))
    return -0.5 * (len(loadings) * np.log(2 * np.pi) + np.linalg.slogdet(cov)[1] + np.einsum("ni,ij,nj->n", x, np.linalg.inv(cov), x))
