"""The example of both programs: w ~ N(0, 1), x_i | w ~ N(w, 1), a hundred x_i from N(2, 1); everything about it in closed form."""

import numpy as np
from scipy.stats import norm

N = 100
DATA = np.random.RandomState(42).normal(2.0, 1.0, N)
MEAN, SD = DATA.sum() / (N + 1), (N + 1) ** -0.5
LOG_EVIDENCE = -0.5 * (N * np.log(2 * np.pi) + np.log(N + 1) + (DATA**2).sum() - DATA.sum() ** 2 / (N + 1))


def exact(a, b, atol=1e-10):
    np.testing.assert_allclose(*np.broadcast_arrays(a, b), rtol=0, atol=atol)


def log_joint(w):
    """log p(w, x), of the shape of w."""
    return norm.logpdf(w) + norm.logpdf(DATA[:, None], np.ravel(w)).sum(0).reshape(np.shape(w))


def elbo(m, s, x=DATA):
    """Of q = N(m, s^2)."""
    likelihood = -0.5 * N * np.log(2 * np.pi) - 0.5 * (((x - m) ** 2).sum() + N * s**2)
    return likelihood - 0.5 * (m**2 + s**2) + np.log(s) + 0.5


def kl(m, s, mean=MEAN, sd=SD):
    """Of N(m, s^2) from N(mean, sd^2)."""
    return np.log(sd / s) + (s**2 + (m - mean) ** 2) / (2 * sd**2) - 0.5


def metropolis(log_p, rng, start, step, num_steps):
    """Random walks side by side: (step, chain, D), one value of log_p a step."""
    w, log_p_w, chain = start, log_p(start), []
    for _ in range(num_steps):
        proposal = w + step * rng.normal(size=w.shape)
        log_p_new = log_p(proposal)
        accept = np.log(rng.uniform(size=len(w))) < log_p_new - log_p_w
        w, log_p_w = np.where(accept[:, None], proposal, w), np.where(accept, log_p_new, log_p_w)
        chain.append(w)
    return np.array(chain)
