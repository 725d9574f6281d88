# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "flax", "scikit-learn"]
# ///
"""Importance-weighted auto-encoder: a bound closer to log p(x) by several draws, and a gradient whose signal does not drown in them.

**Technique** amortised importance weighting: doubly reparameterised gradient.
**Use when** the posterior of z is not the encoder's Gaussian, and the decoder must not be bent until it is.
**Avoid when** q itself is wanted: the bound asks of the encoder good weights, and not a good posterior; its own ELBO is often lower.
**Cost** K times that of the plain auto-encoder's decoder.
**Bias to expect** the bound is below log p(x) by about the relative variance of a weight over 2 K, and so never falls as K grows.
**Source** Burda, Grosse and Salakhutdinov 2016, arXiv 1509.00519; the gradient: Tucker, Lawson, Gu and Maddison 2019, arXiv 1810.04152.
"""

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax import lax, random
from jax.scipy.special import logsumexp
from numpyro import handlers
from numpyro.contrib.module import nnx_module
from numpyro.infer import ELBO, SVI
from sklearn.datasets import load_digits

# %% [markdown]
# # Importance-weighted auto-encoder
#
# The model and the encoder are those of the plain one, ink or paper:
#
# $$z_i \sim \mathcal N(0, I_L), \qquad x_{id} \mid z_i \sim \mathrm{Bernoulli}\big(\mathrm{logit}^{-1} f_\theta(z_i)_d\big), \qquad
# q_\phi(z_i \mid x_i) = \mathcal N(m_\phi(x_i), s_\phi(x_i)).$$

# %%
LATENTS, HIDDEN = 8, 200


def data(frame=None):
    """Images `x`, (N, D), in units of ink (0 or 1), and `num_pixels`, D.

    With a table, its numeric columns are the pixels. Without, 1,797 digits of 8 x 8 pixels, ink where the grey level is above 8 of 16.
    """
    if frame is None:
        frame = {"x": load_digits(return_X_y=True)[0] > 8}
    columns = {name: np.asarray(frame[name]) for name in frame}
    x = columns["x"] if "x" in columns else np.stack([c for c in columns.values() if c.dtype.kind in "biuf"], axis=1)
    return {"x": x.astype(float), "num_pixels": x.shape[1]}


class Network(nnx.Module):
    """One hidden layer."""

    def __init__(self, num_in, num_out, *, rngs):
        self.hidden, self.out = nnx.Linear(num_in, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, num_out, rngs=rngs)

    def __call__(self, v):
        return self.out(nnx.relu(self.hidden(v)))


def network(name, num_in, num_out):
    """A network whose weights are a numpyro.param, so that SVI learns them."""
    return nnx_module(name, Network(num_in, num_out, rngs=nnx.Rngs(numpyro.prng_key())))


def model(x=None, num_images=1, num_pixels=64):
    """`num_images` is read only where `x` is None: that many are then drawn."""
    decoder = network("decoder", LATENTS, num_pixels)
    with numpyro.plate("image", num_images if x is None else len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([LATENTS]).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


def guide(x=None, num_images=1, num_pixels=64):
    encoder = network("encoder", num_pixels, 2 * LATENTS)
    with numpyro.plate("image", len(x)):
        m, log_s = jnp.split(encoder(x), 2, axis=1)
        numpyro.sample("z", dist.Normal(m, jnp.exp(log_s)).to_event(1))


# %% [markdown]
# ## The bound, and its gradient
#
# The mean of $K$ weights is unbiased for $p(x)$; its logarithm is below $\log p(x)$ on average, and less so the larger $K$:
#
# $$w_k = \frac{p_\theta(x, z_k)}{q_\phi(z_k \mid x)}, \quad z_k = m_\phi + s_\phi \epsilon_k, \qquad
# \mathcal L_K = \mathbb E \log \frac1K \sum_k w_k, \qquad \mathrm{ELBO} = \mathcal L_1 \le \mathcal L_K \le \log p_\theta(x).$$
#
# With $\bar w_k = w_k / \sum_j w_j$ the plain gradient is the mean of $\sum_k \bar w_k \nabla \log w_k$. For the encoder its signal
# shrinks with $K$ faster than its noise (Rainforth et al. 2018, arXiv 1802.04537): a part of it, the direct gradient of $\log q_\phi$, is a
# score function. Reparameterised once more, that part becomes a path too, and what is left is
#
# $$\nabla_\theta \mathcal L_K = \mathbb E \sum_k \bar w_k\, \nabla_\theta \log p_\theta(x, z_k), \qquad
# \nabla_\phi \mathcal L_K = \mathbb E \sum_k \bar w_k^2\, \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k.$$


# %%
class DoublyReparameterized(ELBO):
    """Minus L_K in nats, summed over rows, with the gradient above; `num_particles` is K."""

    def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
        key_guide, key_model, key_z = random.split(rng_key, 3)
        encode = handlers.seed(handlers.substitute(guide, param_map), key_guide)
        q = handlers.trace(encode).get_trace(*args, **kwargs)["z"]["fn"]
        z = q.rsample(key_z, (self.num_particles,))  # (K, N, L)
        q = jax.tree.map(lax.stop_gradient, q)  # log q has no direct gradient: z alone carries the encoder's

        def log_w(params, z):
            """log p(x, z) - log q(z | x), (N,)."""
            sites = handlers.trace(handlers.seed(handlers.substitute(model, {**params, "z": z}), key_model)).get_trace(*args, **kwargs)
            return sites["z"]["fn"].log_prob(z) + sites["x"]["fn"].log_prob(sites["x"]["value"]) - q.log_prob(z)

        log_weights = jax.vmap(log_w, (None, 0))
        weights = jax.nn.softmax(lax.stop_gradient(log_weights(param_map, z)), axis=0)  # (K, N)
        # Values stay as they are: z passes back w times its gradient, which is w for the decoder, and so w^2 for the encoder.
        still = lax.stop_gradient(z)
        values = log_weights(param_map, still + weights[:, :, None] * (z - still))
        bound = logsumexp(lax.stop_gradient(values), axis=0) - jnp.log(self.num_particles)
        return -jnp.sum(bound + jnp.sum(weights * (values - lax.stop_gradient(values)), axis=0))


def learn(rng_key, x, *, num_steps, objective, batch_size=128, **settings):
    """Weights of both networks, and the losses (num_steps,) in nats a datum; Adam, minibatches without replacement."""
    key_init, key_order = random.split(rng_key)
    x, size = jnp.asarray(x, jnp.float32), min(batch_size, len(x))
    svi = SVI(model, guide, numpyro.optim.Adam(lambda step: 0.002 * 0.05 ** (step / num_steps)), objective)
    per_epoch = len(x) // size
    shuffled = jax.vmap(lambda key: random.permutation(key, len(x)))(random.split(key_order, -(-num_steps // per_epoch)))
    batches = shuffled[:, : per_epoch * size].reshape(-1, size)[:num_steps]
    run = jax.jit(lambda state: lax.scan(lambda state, rows: svi.update(state, x[rows], **settings), state, batches))
    state, losses = run(svi.init(key_init, x[:size], **settings))
    return svi.get_params(state), losses / size


def fit(rng_key, x, num_images=1, num_pixels=64, *, num_steps=1500):
    """Train both networks on eight draws a row, and encode the images.

    Returns:
        q: dict, `z` -> Normals of the encoder, (N, L): what the weights are drawn from.
        losses: (num_steps,), the negative bound in nats a datum, noisy.
    """
    params, losses = learn(rng_key, x, num_steps=num_steps, objective=DoublyReparameterized(8), num_pixels=num_pixels)
    encoded = handlers.seed(handlers.substitute(guide, params), rng_key)
    return {"z": handlers.trace(encoded).get_trace(jnp.asarray(x, jnp.float32), num_pixels=num_pixels)["z"]["fn"]}, losses


def training():
    """Settings of vip.train."""
    return {"objective": DoublyReparameterized(8), "batch_size": 128, "num_epochs": 200, "patience": 20}


# %% [markdown]
# ## How good is it?
#
# Held-out images, each with many weights: $\mathcal L_1$ is the ELBO, $\mathcal L_K$ of them all is the estimate of $\log p(x)$. For one
# trained pair the bounds rise with $K$. Between two pairs, trained on different bounds, no theorem says which is better: look.


# %%
def log_weights(rng_key, params, x, num_samples, num_pixels=64):
    """log p(x, z) - log q(z | x) at draws of z, (num_samples, N), in nats."""

    def sites(function, key, **values):
        seeded = handlers.seed(handlers.substitute(function, {**params, **values}), key)
        return handlers.trace(seeded).get_trace(x, num_pixels=num_pixels)

    def one(key):
        q = sites(guide, key)["z"]
        p = sites(model, key, z=q["value"])
        return p["z"]["fn"].log_prob(q["value"]) + p["x"]["fn"].log_prob(x) - q["fn"].log_prob(q["value"])

    return lax.map(jax.jit(one), random.split(rng_key, num_samples))


def bound(log_w, size):
    """L_K of every row, (N,), for K = size: the mean over the groups of that many weights."""
    groups = log_w[: len(log_w) // size * size].reshape(-1, size, log_w.shape[1])
    return jnp.mean(logsumexp(groups, axis=1) - jnp.log(size), axis=0)


def main():
    key_fit, key_weights, key_split = random.split(random.key(0), 3)
    x = random.permutation(key_split, data()["x"])
    new, x = x[:180], x[180:]
    print(f"{'nats a datum, held out':<24}" + "".join(f"{name:>9}" for name in ("L_1", "L_8", "L_50", "log p(x)", "error")))
    for k in (1, 8):
        params, _ = learn(key_fit, x, num_steps=1000, objective=DoublyReparameterized(k))
        log_w = log_weights(key_weights, params, new, 500)
        found = [bound(log_w, size) for size in (1, 8, 50, 500)]
        print(f"{f'trained on L_{k}':<24}" + "".join(f"{v:9.3f}" for v in [*(b.mean() for b in found), found[-1].std() / len(new) ** 0.5]))
    rival = dist.Bernoulli((x.sum(0) + 0.5) / (len(x) + 1)).to_event(1).log_prob(new)
    print(f"{'independent pixels':<51}{jnp.mean(rival):9.3f}{jnp.std(rival) / len(new) ** 0.5:9.3f}")


if __name__ == "__main__":
    main()
