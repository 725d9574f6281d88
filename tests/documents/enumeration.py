"""Ten points in three clusters: every assignment of points to clusters, and every partition, with its exact joint density.

mu_k ~ N(0, 25), z_i uniform on K clusters, y_i | z_i ~ N(mu_{z_i}, 1).
"""

import itertools
import math

import numpy as np

Y = np.array([-5.1, -4.7, -5.3, -0.2, 0.1, 0.4, -0.1, 4.8, 5.0, 5.5])
K = 3
PRIOR_VARIANCE = 25.0


def labelled():
    """All K^n assignments, (K^n, n)."""
    return np.array(list(itertools.product(range(K), repeat=len(Y))))


def partitions():
    """Ways to split the points into at most K unnamed clusters, (ways, n), each a string that opens its clusters in order."""
    strings = [(0,)]
    for _ in Y[1:]:
        strings = [(*s, k) for s in strings for k in range(min(max(s) + 2, K))]
    return np.array(strings)


def names(z):
    """In how many ways the clusters of each partition can be named, (ways,)."""
    blocks = z.max(1) + 1
    return np.array([math.perm(K, b) for b in blocks])


def log_cluster(count, total):
    """log of the integral over one mean of prior and of exp(mu total - count mu^2 / 2): what a cluster adds, in closed form."""
    return -0.5 * np.log1p(PRIOR_VARIANCE * count) + 0.5 * total**2 / (count + 1 / PRIOR_VARIANCE)


def log_joint(z):
    """log p(y, z) of each assignment, (ways,): K one-dimensional closed forms."""
    member = z[:, :, None] == np.arange(K)
    clusters = log_cluster(member.sum(1), np.einsum("aik,i->ak", member, Y)).sum(1)
    return clusters - 0.5 * (Y**2).sum() - 0.5 * len(Y) * math.log(2 * math.pi) - len(Y) * math.log(K)
