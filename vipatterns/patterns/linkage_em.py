# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scipy"]
# ///
"""Linkage: the EM algorithm on its first example, a point estimate of how often two genes cross over.

**Technique** point mass, expectation maximisation (EM).
**Use when** counts are sums of counts that were not told apart, a best value is enough, and both steps have closed forms.
**Avoid when** you report an uncertainty: a point has none, and here the posterior is a sum of beta densities.
**Cost** under a second; the error shrinks by the share of information that is missing, at every step.
**Bias to expect** q is the posterior's mode: no sd at all, and off its mean wherever the posterior is skewed.
**Source** Dempster, Laird and Rubin 1977, doi 10.1111/j.2517-6161.1977.tb01600.x; Neal and Hinton 1998, doi 10.1007/978-94-011-5014-9_12.
"""

# %%
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro import handlers
from scipy.special import betaln, gammaln, logsumexp

# %% [markdown]
# # Linkage
#
# Animals of four phenotypes, 0 to 3. How often depends on the linkage $\theta$ of two genes:
#
# $$\theta \sim \mathrm{Uniform}(0, 1), \qquad y_i \mid \theta \sim \mathrm{Categorical}\Big(\frac12 + \frac\theta4,\
# \frac{1 - \theta}4,\ \frac{1 - \theta}4,\ \frac\theta4\Big).$$
#
# Phenotype 0 lumps together two genotypes, of probabilities $\frac12$ and $\frac\theta4$. Had the second been counted
# ($z$ animals), $\theta$ would have a beta posterior, and its mode would be a ratio of counts. The model below has $z$ summed out.


# %%
def data(frame=None):
    """Phenotype of each animal, `y`, (N,), a code in 0, 1, 2, 3, and `num_observations`, N.

    `y` is a table's column of that name; without a table, the 197 animals of Rao (1965), as Dempster et al. give them.
    """
    y = np.repeat([0, 1, 2, 3], [125, 18, 20, 34]) if frame is None else np.asarray(frame["y"])
    if not np.isin(y, [0, 1, 2, 3]).all():
        raise ValueError("y is expected to hold the codes 0, 1, 2 and 3 of the four phenotypes, and holds others")
    return {"y": y.astype(int), "num_observations": len(y)}


def model(y=None, num_observations=1):
    """`num_observations` is read only where `y` is None: that many are then predicted."""
    theta = numpyro.sample("theta", dist.Uniform(0.0, 1.0))
    probs = jnp.stack([0.5 + theta / 4, (1 - theta) / 4, (1 - theta) / 4, theta / 4], axis=-1)
    with numpyro.plate("animal", num_observations if y is None else len(y)):
        numpyro.sample("y", dist.Categorical(probs), obs=y)


# %% [markdown]
# ## The guide
#
# EM is coordinate ascent on the ELBO of $q(\theta)\, q(z)$ with $q(\theta)$ a point. The entropy of a point is minus infinity at
# any place alike, and left out:
#
# $$F(\theta, q(z)) = \mathbb E_{q(z)}[\log p(y, z, \theta) - \log q(z)]
# = \log p(y, \theta) - \mathrm{KL}\big(q(z) \,\|\, p(z \mid y, \theta)\big).$$
#
# - **E-step** $q(z) = p(z \mid y, \theta)$, a binomial: of $n_0$ animals each is of the second genotype with probability
#   $\frac\theta4 / (\frac12 + \frac\theta4)$. The KL is then 0, and $F$ touches $\log p(y, \theta)$.
# - **M-step** $\theta = (\mathbb E z + n_3) / (\mathbb E z + n_1 + n_2 + n_3)$, as if $\mathbb E z$ had been counted.
#
# Neither can lower $F$, so no round can lower $\log p(y, \theta)$.


# %%
def guide(y=None, num_observations=1):
    theta = numpyro.param("theta_value", jnp.array(0.5), constraint=dist.constraints.unit_interval)
    numpyro.sample("theta", dist.Delta(theta))


def counts(y, xp=np):
    """How many animals have each phenotype, (4,)."""
    return xp.sum(xp.asarray(y)[:, None] == xp.arange(4), axis=0)


def expect(theta, n):
    """E-step: how many of the n[0] animals are of the second genotype."""
    return n[0] * theta / (2 + theta)


def maximise(z, n):
    """M-step: the best theta, had z been counted."""
    return (z + n[3]) / (z + n[1] + n[2] + n[3])


def log_joint(theta, n):
    """log p(y, theta) in nats; the prior's density is 1."""
    return n[0] * jnp.log(0.5 + theta / 4) + (n[1] + n[2]) * jnp.log((1 - theta) / 4) + n[3] * jnp.log(theta / 4)


def fit(rng_key, y, num_observations=1, *, num_steps=30):
    """Alternate both steps, from a start that the key decides.

    Returns:
        q: dict, `theta` -> a Delta, the point.
        losses: (num_steps,), minus log p(y, theta) in nats after each round, exact.
    """
    n = counts(y, jnp)

    def step(theta, _):
        theta = maximise(expect(theta, n), n)
        return theta, -log_joint(theta, n)

    theta, losses = lax.scan(step, random.uniform(rng_key, minval=0.1, maxval=0.9), length=num_steps)
    sites = handlers.trace(handlers.seed(handlers.substitute(guide, {"theta_value": theta}), rng_key)).get_trace(y)
    return {"theta": sites["theta"]["fn"]}, losses


# %% [markdown]
# ## The exact answer
#
# The point is a root of a quadratic, $N \theta^2 - (n_0 - 2 n_1 - 2 n_2 - n_3)\, \theta - 2 n_3 = 0$. What it leaves out can be
# written down too. Expanding the power of phenotype 0 gives one beta density for each value that $z$ may have had:
#
# $$p(\theta \mid y) \propto (2 + \theta)^{n_0} (1 - \theta)^{n_1 + n_2}\, \theta^{n_3}
# = \sum_{z=0}^{n_0} \binom{n_0}{z} 2^{n_0 - z}\ \theta^{n_3 + z} (1 - \theta)^{n_1 + n_2}.$$


# %%
def documented_bias(y, num_observations=1):
    """The posterior's mode, and no sd."""
    n = counts(y)
    b = n[0] - 2 * n[1] - 2 * n[2] - n[3]
    return {"theta": ((b + math.sqrt(b**2 + 8 * n.sum() * n[3])) / (2 * n.sum()), 0.0)}


def exact_posterior(y, num_observations=1):
    """Site `theta` -> its posterior, a mixture of Betas, one for every z."""
    n = counts(y)
    z = np.arange(n[0] + 1)
    choose = gammaln(n[0] + 1) - gammaln(z + 1) - gammaln(n[0] - z + 1)
    log_w = choose + (n[0] - z) * math.log(2) + betaln(n[3] + z + 1, n[1] + n[2] + 1)
    betas = dist.Beta(n[3] + z + 1.0, n[1] + n[2] + 1.0)
    return {"theta": dist.MixtureSameFamily(dist.Categorical(logits=log_w - logsumexp(log_w)), betas)}


# %%
def main():
    d = data()
    n, (mode, _), exact = counts(d["y"]), documented_bias(**d)["theta"], exact_posterior(**d)["theta"]
    theta, error = 0.5, 0.5 - mode
    print(f"{'round':<8}{'theta':>12}{'log p':>14}{'error / last error':>20}")
    for step in range(1, 9):
        theta, last = maximise(expect(theta, n), n), error
        error = theta - mode
        print(f"{step:<8}{theta:12.9f}{log_joint(theta, n):14.6f}{error / last:20.6f}")
    q, _ = fit(random.key(0), **d)
    print(f"fit {q['theta'].mean:.6f}, mode {mode:.6f}; posterior mean {exact.mean:.6f}, sd {exact.variance**0.5:.6f}")


if __name__ == "__main__":
    main()
