# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Stein particles: a cloud of points that a kernel keeps apart, on a target with two modes.

**Technique** Stein variational gradient descent.
**Use when** parameters are few, the posterior has several modes, and points that stand in all of them are wanted from one fit.
**Avoid when** dimensions are many: the repulsion then fades and the cloud shrinks. And where modes differ in share: see the bias.
**Cost** seconds; a step costs one gradient for each particle, and the square of their number in kernels.
**Bias to expect** each mode holds the share of particles that started nearer to it; within a mode, sds slightly too small. No ELBO.
**Source** Liu and Wang 2016, arXiv 1608.04471; fixed points: 2018, arXiv 1810.11693; guides as particles: Ronning et al., arXiv 2410.22948.
"""

# %%
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import grad, jacfwd, lax, random, vmap
from numpyro.infer.util import log_density

# %% [markdown]
# # Stein particles
#
# The target is a mixture of two Gaussians with unit sd and equal shares. There are no data; a gradient of $\log p$ is all that is
# asked of it, so an unnormalised posterior would do:
#
# $$p(x) = \tfrac12 \mathcal N(x; a_1, 1) + \tfrac12 \mathcal N(x; a_2, 1).$$

# %%
NUM_PARTICLES = 50


def data(frame=None):
    """Nothing is observed: `modes`, (2,), in units of their sd. A table has no use here."""
    return {"modes": np.array([-2.0, 2.0])}


def model(modes):
    numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(probs=jnp.full(2, 0.5)), dist.Normal(modes, 1.0)))


# %% [markdown]
# ## The guide
#
# $q$ is the cloud itself, $n$ points of equal weight. It starts as draws around the middle of the modes, in mirrored pairs, so that
# each mode gets its half. On a mirrored target the pairs stay pairs, but for rounding errors; these grow, until a particle crosses over.


# %%
def guide(modes):
    """A draw picks one of the particles; `which` is a site of the guide alone."""
    particles = numpyro.param("particles", lambda key: start(key, modes))
    which = numpyro.sample("which", dist.Categorical(probs=jnp.full(NUM_PARTICLES, 1 / NUM_PARTICLES)), infer={"is_auxiliary": True})
    numpyro.sample("x", dist.Delta(particles[which]))


def start(rng_key, modes):
    """The particles before the first step, (n,)."""
    middle, half = jnp.mean(modes), jnp.ptp(jnp.asarray(modes)) / 2
    eps = random.normal(rng_key, (NUM_PARTICLES // 2,))
    return middle + half * jnp.concatenate([eps, -eps])


# %% [markdown]
# ## The update
#
# Of all directions in which a cloud can flow, of one length in the kernel's function space, this one lowers
# $\mathrm{KL}(q \,\|\, p)$ fastest:
#
# $$\phi(y) = \frac1n \sum_j \big[ k(x_j, y)\, \nabla \log p(x_j) + \nabla_{x_j} k(x_j, y) \big].$$
#
# The first term pulls uphill, together with the neighbours; the second pushes neighbours apart. One particle alone has no
# neighbours, and climbs to the mode. The rate at which KL falls is the squared Stein discrepancy of the cloud from $p$,
# $\frac1n \sum_i [\phi(x_i) \cdot \nabla \log p(x_i) + \operatorname{div} \phi(x_i)]$: that is the loss. The kernel is
# $k(x, y) = e^{-|x - y|^2 / h}$, with $h$ the median squared distance over $\log n$, so that the particles' forces are in balance.


# %%
def median_bandwidth(x):
    """h of the kernel for particles x, (n, D), in squared units of x."""
    i, j = np.triu_indices(len(x), 1)
    return jnp.median(jnp.sum((x[i] - x[j]) ** 2, axis=-1)) / np.log(len(x))


def gaussian_kernel(h):
    return lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2) / h)


def direction(x, score, kernel):
    """The function phi, from points (D,) to directions (D,), of particles x with the gradients of log p there, both (n, D)."""

    def phi(y):
        k, push = (vmap(f, (0, None))(x, y) for f in (kernel, grad(kernel)))
        return jnp.mean(k[:, None] * score + push, axis=0)

    return phi


def descend(x, log_p, num_steps, kernel=None, keep=lambda move: move):
    """Move particles x, (n, D), by Adam, its rate decaying from 0.1 to 0.0001; the last x, and the losses.

    `keep` maps the directions, (n, D), to those that keep a symmetry which rounding errors would break.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.1 * 0.001 ** (step / num_steps))

    def step(state, _):
        x = optimizer.get_params(state)
        score = vmap(grad(log_p))(x)
        phi = direction(x, score, kernel or gaussian_kernel(median_bandwidth(x)))
        move = keep(vmap(phi)(x))
        loss = jnp.mean(jnp.sum(move * score, axis=-1) + vmap(lambda y: jnp.trace(jacfwd(phi)(y)))(x))
        return optimizer.update(-move, state, value=loss), loss

    state, losses = lax.scan(step, optimizer.init(x), length=num_steps)
    return optimizer.get_params(state), losses


def in_pairs(move):
    """The directions of mirrored particles, opposite to the last digit."""
    first, second = jnp.split(move, 2)
    return jnp.concatenate([(first - second) / 2, (second - first) / 2])


def fit(rng_key, modes, *, num_steps=1000):
    """Move the particles; nothing is random but their start.

    Returns:
        q: dict, `x` -> the particles, (50,).
        losses: (num_steps,), the squared Stein discrepancy, in inverse squared units of x.
    """
    x = start(rng_key, modes)[:, None]
    x, losses = descend(x, lambda x: log_density(model, (modes,), {}, {"x": x[0]})[0], num_steps, keep=in_pairs)
    return {"x": x[:, 0]}, losses


# %% [markdown]
# ## What is exact
#
# At rest $\frac1n \sum_j [f(x_j) \nabla \log p(x_j) + \nabla f(x_j)] = 0$ for every $f = k(\cdot, x_i)$. So on a Gaussian the kernel
# $x^\top y + 1$, whose functions are the lines, gives exactly the mean and the covariance of $p$ to any $D + 1$ particles or more. And two
# particles of the Gaussian kernel, on a standard normal target, rest at $\pm\sqrt{\log 2}$.


# %%
def exact_posterior(modes):
    """`x`, the mixture itself."""
    return {"x": dist.MixtureSameFamily(dist.Categorical(probs=np.full(2, 0.5)), dist.Normal(modes, 1.0))}


# %%
def main():
    d = data()
    (q, losses), exact = fit(random.key(0), **d), exact_posterior(**d)["x"]
    right = q["x"] > d["modes"].mean()
    print(f"{'':<10}{'mean':>10}{'exact':>10}{'sd':>10}{'exact':>10}")
    print(f"{'x':<10}{q['x'].mean():10.4f}{exact.mean:10.4f}{q['x'].std():10.4f}{exact.variance**0.5:10.4f}")
    print(f"{'one mode':<10}{q['x'][right].mean():10.4f}{d['modes'][1]:10.4f}{q['x'][right].std():10.4f}")
    print(f"share of that mode {right.mean():.2f}, squared Stein discrepancy from {losses[0]:.4f} to {losses[-1]:.2e}")


if __name__ == "__main__":
    main()
