"""One latent, three points, four q: z ~ N(0, 1), x_i | z ~ N(2 tanh(z), 1), and Gaussian q_i(z).

Points are on the first axis, the q on the second, and on the last a grid of z whose sums are exact to rounding.
"""

import numpy as np
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm

H = 0.005
Z = np.arange(-14, 14, H)
X = np.array([-2.1, 0.3, 1.3])[:, None, None]
LOC, SCALE = np.array([[0.4], [-0.7], [0.0], [1.1]]), np.array([[0.8], [0.5], [1.0], [1.4]])
LOG_Q = norm.logpdf(Z, LOC, SCALE)
LOG_PRIOR = norm.logpdf(Z)


def log_lik(x, z):
    return norm.logpdf(x, 2 * np.tanh(z), 1.0)


LOG_LIK = log_lik(X, Z)
LOG_EVIDENCE = logsumexp(LOG_LIK + LOG_PRIOR + np.log(H), axis=-1)
LOG_POSTERIOR = LOG_LIK + LOG_PRIOR - LOG_EVIDENCE[..., None]


def expect(f, log_q=LOG_Q):
    """E_q[f(z)], (point, q), for f on the grid."""
    return (np.exp(log_q) * f).sum(-1) * H


def bound():
    """The ELBO by Gauss-Hermite quadrature, its entropy in closed form: nothing of the grid is in it. (point, q)"""
    t, w = np.polynomial.hermite_e.hermegauss(250)
    z = LOC + SCALE * t
    return ((log_lik(X, z) + norm.logpdf(z)) * w).sum(-1) / w.sum() + 0.5 * np.log(2 * np.pi * np.e * SCALE[:, 0] ** 2)


def kl():
    return expect(LOG_Q - LOG_POSTERIOR)


def exact(a, b, atol=1e-10):
    np.testing.assert_allclose(*np.broadcast_arrays(a, b), rtol=0, atol=atol)


def areas():
    """log p(x) of every point by adaptive quadrature, (point, 1)."""
    return np.log([[quad(lambda z, x=x: np.exp(log_lik(x, z)) * norm.pdf(z), -12, 12, epsabs=1e-13)[0]] for x in X.ravel()])


def num_modes(density):
    return ((density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])).sum()
