"""Amortised models with closed forms: z ~ N(0, I), x | z ~ N(W z + b, s^2 I), and encoders that are right or wrong by a known amount."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.stats import multivariate_normal

from vipatterns.amortized.trained import Trained
from vipatterns.amortized.weights import Pair


def trained(model, guide, held_out, params=None, dtype="float64", static=None):
    """What training would have returned."""
    return Trained(
        pair=Pair(model, guide, static or {}),
        params=params or {},
        elbos=np.zeros(1),
        held_out_elbos=np.zeros(1),
        held_out_mcse=0.0,
        held_out={k: np.asarray(v) for k, v in held_out.items()},
        dtype=dtype,
    )


def kl(mean, cov, mean_p, cov_p):
    """KL(N(mean, cov) || N(mean_p, cov_p)), nats."""
    precision, off = np.linalg.inv(cov_p), mean_p - mean
    logdets = np.linalg.slogdet(cov_p)[1] - np.linalg.slogdet(cov)[1]
    return 0.5 * (np.trace(precision @ cov) + off @ precision @ off - len(mean) + logdets)


@dataclass(frozen=True)
class Linear:
    """Weights (D, L), offset (D,), noise sd."""

    weights: np.ndarray
    offset: np.ndarray
    noise: float

    @property
    def num_latents(self):
        return self.weights.shape[1]

    @property
    def precision(self):
        """Of z given x, (L, L): the same for every x."""
        return np.eye(self.num_latents) + self.weights.T @ self.weights / self.noise**2

    @property
    def to_mean(self):
        """(L, D): E[z | x] = to_mean (x - offset)."""
        return np.linalg.solve(self.precision, self.weights.T) / self.noise**2

    def rows(self, rng, num):
        z = rng.standard_normal((num, self.num_latents))
        return z @ self.weights.T + self.offset + self.noise * rng.standard_normal((num, len(self.offset)))

    def log_p(self, x):
        cov = self.weights @ self.weights.T + self.noise**2 * np.eye(len(self.offset))
        return multivariate_normal.logpdf(x, self.offset, cov)

    def posterior(self, x):
        """Means (N, L) and the covariance (L, L)."""
        return (x - self.offset) @ self.to_mean.T, np.linalg.inv(self.precision)

    def model(self, x):
        with numpyro.plate("row", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([self.num_latents]).to_event(1))
            numpyro.sample("x", dist.Normal(z @ jnp.asarray(self.weights).T + self.offset, self.noise).to_event(1), obs=x)

    def encoder(self, shift=0.0, factor=None):
        """A guide with mean E[z | x] + shift and Cholesky factor `factor`, or sds where it is a vector; exact by default."""
        factor = np.linalg.cholesky(np.linalg.inv(self.precision)) if factor is None else np.asarray(factor)

        def guide(x):
            loc = (x - self.offset) @ jnp.asarray(self.to_mean).T + shift
            with numpyro.plate("row", len(x)):
                if factor.ndim == 1:
                    numpyro.sample("z", dist.Normal(loc, jnp.asarray(factor)).to_event(1))
                else:
                    numpyro.sample("z", dist.MultivariateNormal(loc, scale_tril=jnp.asarray(factor)))

        return guide

    def kls(self, x, shift=0.0, factor=None):
        """KL(q(z | x) || p(z | x)) of that encoder, (N,)."""
        means, cov = self.posterior(x)
        factor = np.linalg.cholesky(cov) if factor is None else np.asarray(factor)
        cov_q = np.diag(factor**2) if factor.ndim == 1 else factor @ factor.T
        return np.array([kl(mean + shift, cov_q, mean, cov) for mean in means])

    def trained(self, x, dtype="float64", **encoder):
        return trained(self.model, self.encoder(**encoder), {"x": x}, dtype=dtype)


def orthogonal(num_latents=3, num_dims=6, noise=0.7):
    """Columns of W are orthogonal, so that the latents are independent given x."""
    rng = np.random.default_rng(1)
    columns = np.linalg.qr(rng.standard_normal((num_dims, num_latents)))[0]
    return Linear(columns * np.linspace(0.8, 2.0, num_latents), rng.standard_normal(num_dims), noise)


def correlated():
    """Two latents with a posterior correlation of about -0.6."""
    return Linear(np.array([[1.2, 0.9], [0.3, 1.0], [0.8, 0.1], [0.7, 0.9]]), np.array([0.5, -1.0, 0.0, 2.0]), 0.8)


def correlation(linear):
    cov = np.linalg.inv(linear.precision)
    return cov[0, 1] / math.sqrt(cov[0, 0] * cov[1, 1])


def count_model(x):
    """z ~ Exponential(1), x | z ~ Poisson(z): p(x) = 2^-(x + 1), and z | x ~ Gamma(x + 1, 2)."""
    with numpyro.plate("row", len(x)):
        z = numpyro.sample("z", dist.Exponential(1.0))
        numpyro.sample("x", dist.Poisson(z), obs=x)


def count_guide(rate=2.0):
    """Gamma(x + 1, rate): the posterior where the rate is 2."""

    def guide(x):
        with numpyro.plate("row", len(x)):
            numpyro.sample("z", dist.Gamma(x + 1.0, rate))

    return guide
