"""Two latent-variable models and their amortised guides, trained end to end by NumPyro's SVI, and their likelihoods without it."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm


def train(rng_key, model, guide, x, num_steps=2_000):
    """Adam on the ELBO, for so many steps.

    Returns:
        The parameters of model and guide, in float64 NumPy; the ELBO in nats a row, and its standard error.
    """
    svi = SVI(model, guide, numpyro.optim.Adam(lambda step: 0.03 * 0.001 ** (step / num_steps)), Trace_ELBO())
    result = svi.run(rng_key, num_steps, x, progress_bar=False)
    tail = -np.asarray(result.losses[-500:], float) / len(x)
    return {k: np.asarray(v, float) for k, v in result.params.items()}, tail.mean(), tail.std(ddof=1) / len(tail) ** 0.5


def positive(name, start):
    return numpyro.param(name, start, constraint=dist.constraints.positive)


def linear_decoder(x):
    """z ~ N(0, 1), x | z ~ N(w z + b, s^2 I): probabilistic principal components."""
    w, b = numpyro.param("w", jnp.ones(x.shape[1])), numpyro.param("b", jnp.zeros(x.shape[1]))
    s = positive("s", 1.0)
    with numpyro.plate("row", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z[:, None] * w + b, s).to_event(1), obs=x)


def linear_encoder(x):
    """One set of weights for all rows; the posterior is in this family."""
    mean = x @ numpyro.param("a", jnp.zeros(x.shape[1])) + numpyro.param("c", 0.0)
    with numpyro.plate("row", len(x)):
        numpyro.sample("z", dist.Normal(mean, positive("t", 1.0)))


def linear_log_likelihood(params, x):
    """Nats a row: x is N(b, w w' + s^2 I) once z is integrated out."""
    covariance = np.outer(params["w"], params["w"]) + params["s"] ** 2 * np.eye(x.shape[1])
    return multivariate_normal.logpdf(x, params["b"], covariance).mean()


def linear_maximum_likelihood(x):
    """Tipping and Bishop 1999, doi 10.1111/1467-9868.00196: from the eigenvalues of the covariance."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    noise = values[:-1].mean()
    return {"b": x.mean(0), "w": vectors[:, -1] * np.sqrt(values[-1] - noise), "s": noise**0.5}


def tanh_decoder(x):
    """z ~ N(0, 1), x | z ~ N(a tanh(b z + c), s^2)."""
    a, b, c, s = positive("a", 1.0), positive("b", 1.0), numpyro.param("c", 0.0), positive("s", 1.0)
    with numpyro.plate("row", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(a * jnp.tanh(b * z + c), s), obs=x)


def tanh_encoder(x):
    """A Gaussian whose mean and sd a network computes from x."""
    hidden = jnp.tanh(x[:, None] * numpyro.param("v", jnp.linspace(0.5, 2.0, 8)) + numpyro.param("u", jnp.linspace(-2.0, 2.0, 8)))
    mean = hidden @ numpyro.param("m", jnp.zeros(8)) + numpyro.param("m0", 0.0)
    log_sd = hidden @ numpyro.param("r", jnp.zeros(8)) + numpyro.param("r0", 0.0)
    with numpyro.plate("row", len(x)):
        numpyro.sample("z", dist.Normal(mean, jnp.exp(log_sd)))


NODES = np.linspace(-8, 8, 801)
LOG_WEIGHTS = norm.logpdf(NODES) + np.log(NODES[1] - NODES[0])


def tanh_log_density(params, x):
    """log p(x), (N,): z integrated out by the trapezoidal rule."""
    centre = params["a"] * np.tanh(params["b"] * NODES + params["c"])
    return logsumexp(norm.logpdf(np.asarray(x)[:, None], centre, params["s"]) + LOG_WEIGHTS, axis=1)


def tanh_cdf(params, x):
    centre = params["a"] * np.tanh(params["b"] * NODES + params["c"])
    return norm.cdf(np.asarray(x)[:, None], centre, params["s"]) @ np.exp(LOG_WEIGHTS)


def tanh_maximum_likelihood(x, start):
    """The parameters of the decoder with the highest log likelihood, climbed to without any guide."""

    def decoder(v):
        return {"a": np.exp(v[0]), "b": np.exp(v[1]), "c": v[2], "s": np.exp(v[3])}

    v = [np.log(start["a"]), np.log(start["b"]), start["c"], np.log(start["s"])]
    return decoder(minimize(lambda v: -tanh_log_density(decoder(v), x).mean(), v, method="BFGS").x)


def tanh_best_gaussian_bound(params, x):
    """Nats a row: the ELBO where every row has the best Gaussian of its own, searched on a grid of means and sds."""
    t, w = np.polynomial.hermite_e.hermegauss(100)
    m, s = (g.ravel() for g in np.meshgrid(np.linspace(-3, 3, 121), np.geomspace(0.03, 1.5, 60)))
    f = params["a"] * np.tanh(params["b"] * (m[:, None] + s[:, None] * t) + params["c"])
    first, second = f @ w / w.sum(), f**2 @ w / w.sum()
    constant = np.log(s / params["s"]) + 0.5 - 0.5 * (m**2 + s**2) - 0.5 * np.log(2 * np.pi)
    rows = constant - (np.asarray(x)[:, None] ** 2 - 2 * np.outer(x, first) + second) / (2 * params["s"] ** 2)
    return rows.max(1).mean()
