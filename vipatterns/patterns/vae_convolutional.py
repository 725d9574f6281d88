# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "flax", "scikit-learn"]
# ///
"""Convolutional variational auto-encoder: both networks look at neighbouring pixels with the same weights everywhere.

**Technique** amortised mean-field: convolutional encoder and decoder; minibatches.
**Use when** rows are images, and what a stroke looks like does not depend on where it is.
**Avoid when** columns have no neighbours (a table), or images are so small and so centred that a dense layer learns as much.
**Cost** seconds; a step costs the rows of a minibatch x pixels x channels squared; weights grow with the image only at its waist.
**Bias to expect** the ELBO is below log p(x) by KL(q || posterior) a row, which main() estimates.
**Source** Kingma and Welling 2014, arXiv 1312.6114; LeCun et al. 1989, doi 10.1162/neco.1989.1.4.541; Burda et al. 2016, arXiv 1509.00519.
"""

# %%
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax import lax, nn, random
from numpyro import handlers
from numpyro.contrib.module import nnx_module
from numpyro.infer import SVI, Trace_ELBO
from sklearn.datasets import load_digits

# %% [markdown]
# # Convolutional variational auto-encoder
#
# Every image $x_n$ of black and white pixels has a code $z_n$; a network $f$ turns the code into the log odds of its pixels:
#
# $$z_n \sim \mathcal N(0, I_8), \qquad x_{nj} \mid z_n \sim \mathrm{Bernoulli}\big(\mathrm{logit}^{-1} f_j(z_n)\big).$$

# %%
LATENTS, CHANNELS, BATCH = 8, (16, 32), 128


def data(frame=None):
    """Images `x`, (N, D), a row an image, in units of black: 0 or 1; and `image_shape`, their (height, width), D = height x width.

    `x` is the numeric columns of a table, square images in reading order; without a table, scikit-learn's 1,797 handwritten digits of
    8 x 8 pixels, black where ink covers more than half of the pixel.
    """
    if frame is None:
        x = np.asarray(load_digits(return_X_y=True)[0]) > 8
    else:
        columns = {name: np.asarray(frame[name]) for name in frame}
        x = columns["x"] if "x" in columns else np.stack([c for c in columns.values() if c.dtype.kind in "biuf"], axis=1)
    side = math.isqrt(x.shape[1])
    return {"x": x.astype(float), "image_shape": (side, side)}


# %% [markdown]
# ## The decoder
#
# The code is laid out as a small picture of many channels; each of two transposed convolutions doubles its height and width. A size
# that is no multiple of four is rounded up, and cut at the end.


# %%
def waist(image_shape, num_pixels):
    """Height, width and channels where the picture is smallest."""
    if len(image_shape) != 2 or math.prod(image_shape) != num_pixels:
        raise ValueError(f"Rows of {num_pixels} pixels are no grey images of image_shape {image_shape}: state height and width of such.")
    return (*(math.ceil(side / 4) for side in image_shape), CHANNELS[1])


def decoder(small, image_shape, rngs):
    """(N, LATENTS) -> log odds of the pixels, (N, D)."""
    height, width = image_shape
    return nnx.Sequential(
        nnx.Linear(LATENTS, math.prod(small), rngs=rngs),
        lambda h: nn.relu(h).reshape(-1, *small),
        nnx.ConvTranspose(CHANNELS[1], CHANNELS[0], (3, 3), strides=(2, 2), rngs=rngs),
        nn.relu,
        nnx.ConvTranspose(CHANNELS[0], 1, (3, 3), strides=(2, 2), rngs=rngs),
        lambda h: h[:, :height, :width, 0].reshape(-1, height * width),
    )


def model(x=None, image_shape=(8, 8), num_images=1):
    """`num_images` is read only where `x` is None: that many are then drawn."""
    small = waist(image_shape, math.prod(image_shape) if x is None else x.shape[1])
    logits = nnx_module("decoder", decoder(small, image_shape, nnx.Rngs(numpyro.prng_key())))
    with numpyro.plate("image", num_images if x is None else len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([LATENTS]).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=logits(z)).to_event(1), obs=x)


# %% [markdown]
# ## The guide
#
# The encoder goes the same way back, and says where the code is and how surely: $q(z_n \mid x_n) = \mathcal N(m(x_n), s(x_n))$.


# %%
def encoder(small, image_shape, rngs):
    """(N, D) -> means and log sds of the codes, (N, 2 LATENTS)."""
    return nnx.Sequential(
        lambda x: x.reshape(-1, *image_shape, 1),
        nnx.Conv(1, CHANNELS[0], (3, 3), strides=(2, 2), rngs=rngs),
        nn.relu,
        nnx.Conv(CHANNELS[0], CHANNELS[1], (3, 3), strides=(2, 2), rngs=rngs),
        lambda h: nn.relu(h).reshape(len(h), -1),
        nnx.Linear(math.prod(small), 2 * LATENTS, rngs=rngs),
    )


def guide(x=None, image_shape=(8, 8), num_images=1):
    encode = nnx_module("encoder", encoder(waist(image_shape, jnp.shape(x)[1]), image_shape, nnx.Rngs(numpyro.prng_key())))
    mean, log_sd = jnp.split(encode(x), 2, axis=-1)
    with numpyro.plate("image", len(x)):
        numpyro.sample("z", dist.Normal(mean, jnp.exp(log_sd)).to_event(1))


# %% [markdown]
# ## The fit
#
# The ELBO is a sum over images, $\sum_n \mathbb E_q[\log p(x_n \mid z_n)] - \mathrm{KL}(q(z_n \mid x_n) \,\|\, p(z_n))$, so a minibatch
# of them, drawn afresh at every step, gives its gradient without bias, and $z = m + s\,\epsilon$ carries it to both networks.


# %%
def learn(rng_key, x, image_shape, num_steps):
    """Parameters of both networks, and the losses, (num_steps,)."""
    svi, x, size = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO()), jnp.asarray(x, float), min(BATCH, len(x))
    key_init, key_rows = random.split(rng_key)

    def step(state, key):
        state, loss = svi.update(state, x[random.choice(key, len(x), (size,))], image_shape)
        return state, loss * len(x) / size

    state = jax.jit(lambda key: svi.init(key, x[:size], image_shape))(key_init)
    state, losses = lax.scan(step, state, random.split(key_rows, num_steps))
    return svi.get_params(state), losses


def traced(function, rng_key, params, *args):
    return handlers.trace(handlers.seed(handlers.substitute(function, params), rng_key)).get_trace(*args)


def fit(rng_key, x, image_shape=(8, 8), num_images=1, *, num_steps=3000):
    """Fit both networks by Adam at a rate of 0.001.

    Returns:
        q: dict, `z` -> Normals of the codes, (N, LATENTS).
        losses: (num_steps,), the negative ELBO of all rows in nats, noisy.
    """
    key_learn, key_trace = random.split(rng_key)
    params, losses = learn(key_learn, x, image_shape, num_steps)
    return {"z": traced(guide, key_trace, params, jnp.asarray(x, float), image_shape)["z"]["fn"]}, losses


def training():
    """Settings of `vip.train`."""
    return {"batch_size": BATCH, "num_epochs": 300, "patience": 20}


# %% [markdown]
# ## What it is worth
#
# Of draws $z_k \sim q(z \mid x)$ the weights $w_k = p(x, z_k) / q(z_k \mid x)$ average to $p(x)$: the mean of $\log w_k$ is the ELBO, and
# $\log \frac1K \sum_k w_k$ is nearer to $\log p(x)$, still below it on average. The least to beat: pixels that know nothing of each other.


# %%
def log_weights(rng_key, params, x, image_shape=(8, 8), num_draws=200):
    """log p(x, z) - log q(z | x) at draws of q, (num_draws, N), in nats."""

    def one(key):
        key_q, key_p = random.split(key)
        drawn = traced(guide, key_q, params, x, image_shape)
        joint = traced(handlers.replay(model, drawn), key_p, params, x, image_shape)
        log_q, log_p = (sum(s["fn"].log_prob(s["value"]) for s in t.values() if s["type"] == "sample") for t in (drawn, joint))
        return log_p - log_q

    return lax.map(one, random.split(rng_key, num_draws))


def main():
    d, rng = data(), np.random.default_rng(0)
    x, held_out = np.split(rng.permutation(d["x"]), [len(d["x"]) * 9 // 10])
    key_learn, key_weigh = random.split(random.key(0))
    params, losses = learn(key_learn, x, d["image_shape"], 1500)
    weights = log_weights(key_weigh, params, held_out, d["image_shape"])
    log_p = nn.logsumexp(weights, axis=0) - math.log(len(weights))
    p = (x.sum(0) + 1) / (len(x) + 2)
    rival = held_out @ np.log(p) + (1 - held_out) @ np.log1p(-p)
    print(f"{'elbo':<20}{-losses[-300:].mean() / len(x):8.3f} nats an image, {len(x)} trained on")
    for name, value in (("elbo", weights.mean(0)), ("log p(x)", log_p), ("independent pixels", rival)):
        print(f"{name:<20}{value.mean():8.3f} ± {value.std() / math.sqrt(len(value)):.3f} nats an image, {len(value)} held out")


if __name__ == "__main__":
    main()
