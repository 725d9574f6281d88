# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "flax", "scikit-learn"]
# ///
"""Variational auto-encoder: handwritten digits from a few numbers each, by two networks that are trained together.

**Technique** amortised mean-field: an encoder network gives q of every latent; minibatches.
**Use when** rows are many and alike (images, spectra, profiles), and a density of them, new rows, or a short code of each is wanted.
**Avoid when** the latents must mean something: the networks may turn and bend them as they like; or a linear map is enough (vae_linear).
**Cost** seconds on small images; a step costs the rows of a minibatch times the weights of the networks.
**Bias to expect** the ELBO is short of log p(x) by KL(q(z | x) || p(z | x)), which `main` measures; rows held out fare worse than others.
**Source** Kingma and Welling 2014, arXiv 1312.6114; Rezende, Mohamed and Wierstra 2014, arXiv 1401.4082; weights: arXiv 1509.00519.
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
from numpyro.infer import SVI, Trace_ELBO
from sklearn.datasets import load_digits

# %% [markdown]
# # Variational auto-encoder
#
# An image $x_i$ of $D$ pixels comes from a code $z_i$ of $L$ numbers, through a network whose weights $\theta$ are learned:
#
# $$z_i \sim \mathcal N(0, I_L), \qquad x_{id} \mid z_i \sim \mathrm{Bernoulli}\big(\mathrm{logit}^{-1} f_\theta(z_i)_d\big)
# \quad\text{or}\quad \mathcal N\big(f_\theta(z_i)_d,\ s_\theta(z_i)_d\big).$$
#
# The first is for pixels that are ink or paper. The second is for grey levels, which are whole numbers: a density may pile up on
# those without bound, and its likelihood would mean nothing. A uniform draw added to each makes them continuous (*dequantised*); then
# the mean log density is a lower bound of the log probability of the levels (Theis et al. 2016, arXiv 1511.01844).

# %%
LATENTS, HIDDEN = 8, 200
LEAST_SD = 12**-0.5 / 16
"""Of a grey pixel: the sd of the uniform draw in it, which no decoder can foretell."""


def data(frame=None):
    """Images `x`, (N, D), in units of ink (0 or 1), `num_pixels`, D, and `likelihood`, the name of the decoder's.

    With a table, its numeric columns are the pixels; where they are not all 0 or 1 the likelihood is "gaussian", and wants them between
    0 and 1 or so. Without, 1,797 digits of 8 x 8 pixels, ink where the grey level is above 8 of 16.
    """
    if frame is None:
        frame = {"x": load_digits(return_X_y=True)[0] > 8}
    columns = {name: np.asarray(frame[name]) for name in frame}
    x = columns["x"] if "x" in columns else np.stack([c for c in columns.values() if c.dtype.kind in "biuf"], axis=1)
    binary = np.isin(x, (0, 1)).all()
    return {"x": x.astype(float), "num_pixels": x.shape[1], "likelihood": "bernoulli" if binary else "gaussian"}


def labels(x, **_):
    """The digit that each of the built-in images shows, (N,), for pictures; None of other images."""
    pixels, digit = load_digits(return_X_y=True)
    return digit if np.array_equal(x, pixels > 8) else None


def dequantised(seed=0):
    """As `data`, grey: (level + uniform) / 16, of the pixels that are not the same in all digits."""
    levels = load_digits(return_X_y=True)[0]
    levels = levels[:, levels.std(0) > 0]
    return data({"x": (levels + np.random.default_rng(seed).uniform(size=levels.shape)) / 16})


class Network(nnx.Module):
    """Two hidden layers, and two outputs."""

    def __init__(self, num_in, num_out, *, rngs):
        self.hidden = nnx.Sequential(nnx.Linear(num_in, HIDDEN, rngs=rngs), nnx.gelu, nnx.Linear(HIDDEN, HIDDEN, rngs=rngs), nnx.gelu)
        self.first, self.second = nnx.Linear(HIDDEN, num_out, rngs=rngs), nnx.Linear(HIDDEN, num_out, rngs=rngs)

    def __call__(self, v):
        h = self.hidden(v)
        return self.first(h), self.second(h)


def network(name, num_in, num_out):
    """A network whose weights are a numpyro.param, so that SVI learns them."""
    return nnx_module(name, Network(num_in, num_out, rngs=nnx.Rngs(numpyro.prng_key())))


def model(x=None, num_images=1, num_pixels=64, likelihood="bernoulli"):
    """`num_images` is read only where `x` is None: that many are then drawn."""
    decoder = network("decoder", LATENTS, num_pixels)
    with numpyro.plate("image", num_images if x is None else len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([LATENTS]).to_event(1))
        out, noise = decoder(z)
        pixels = dist.Bernoulli(logits=out) if likelihood == "bernoulli" else dist.Normal(out, LEAST_SD + nnx.softplus(noise))
        numpyro.sample("x", pixels.to_event(1), obs=x)


# %% [markdown]
# ## The guide
#
# A second network reads the image and gives mean and sd of its code, $q_\phi(z_i \mid x_i) = \mathcal N(m_\phi(x_i), s_\phi(x_i))$.
# No row has parameters of its own: a new image takes one pass through the network. Both learn from
#
# $$\mathrm{ELBO}(x) = \mathbb E_{q_\phi(z \mid x)}\big[\log p_\theta(x, z) - \log q_\phi(z \mid x)\big] \le \log p_\theta(x).$$


# %%
def guide(x=None, num_images=1, num_pixels=64, likelihood="bernoulli"):
    encoder = network("encoder", num_pixels, LATENTS)
    with numpyro.plate("image", len(x)):
        m, log_s = encoder(x)
        numpyro.sample("z", dist.Normal(m, jnp.exp(log_s)).to_event(1))


def learn(rng_key, x, *, num_steps, batch_size=128, **settings):
    """Weights of both networks, and the losses (num_steps,) in nats a datum; Adam, minibatches without replacement."""
    key_init, key_order = random.split(rng_key)
    x, size = jnp.asarray(x, jnp.float32), min(batch_size, len(x))
    svi = SVI(model, guide, numpyro.optim.Adam(lambda step: 0.002 * 0.05 ** (step / num_steps)), Trace_ELBO())
    per_epoch = len(x) // size
    shuffled = jax.vmap(lambda key: random.permutation(key, len(x)))(random.split(key_order, -(-num_steps // per_epoch)))
    batches = shuffled[:, : per_epoch * size].reshape(-1, size)[:num_steps]

    @jax.jit
    def run(state):
        return lax.scan(lambda state, rows: svi.update(state, x[rows], **settings), state, batches)

    state, losses = run(svi.init(key_init, x[:size], **settings))
    return svi.get_params(state), losses / size


def fit(rng_key, x, num_images=1, num_pixels=64, likelihood="bernoulli", *, num_steps=2000):
    """Train both networks, and encode the images.

    Returns:
        q: dict, `z` -> fitted Normals, (N, L).
        losses: (num_steps,), the negative ELBO in nats a datum, noisy.
    """
    settings = {"num_pixels": num_pixels, "likelihood": likelihood}
    params, losses = learn(rng_key, x, num_steps=num_steps, **settings)
    encoded = handlers.seed(handlers.substitute(guide, params), rng_key)
    return {"z": handlers.trace(encoded).get_trace(jnp.asarray(x, jnp.float32), **settings)["z"]["fn"]}, losses


def training():
    """Settings of vip.train."""
    return {"batch_size": 128, "num_epochs": 300, "patience": 20}


# %% [markdown]
# ## How good is it?
#
# No closed form says, but images that were held out do. Draws $z_k$ from the encoder give weights, whose mean has the expectation $p(x)$:
#
# $$w_k = \frac{p_\theta(x, z_k)}{q_\phi(z_k \mid x)}, \qquad \log p_\theta(x) \approx \log \tfrac1K \sum_k w_k.$$
#
# The mean of $\log w_k$ is the ELBO, and the difference is what the guide loses. The rival knows each pixel's share of ink (or its
# mean and sd) and thinks them independent: a decoder that ignores its code does as well.


# %%
def log_weights(rng_key, params, x, num_samples, **settings):
    """log p(x, z) - log q(z | x) at draws of z, (num_samples, N), in nats."""

    def sites(function, key, **values):
        seeded = handlers.seed(handlers.substitute(function, {**params, **values}), key)
        return handlers.trace(seeded).get_trace(x, **settings)

    def one(key):
        q = sites(guide, key)["z"]
        p = sites(model, key, z=q["value"])
        return p["z"]["fn"].log_prob(q["value"]) + p["x"]["fn"].log_prob(x) - q["fn"].log_prob(q["value"])

    return lax.map(jax.jit(one), random.split(rng_key, num_samples))


def independent(x, new, likelihood="bernoulli"):
    """log p of new images, (M,), by the shares of ink, or means and sds, of the pixels of x, each thought independent."""
    share = (x.sum(0) + 0.5) / (len(x) + 1)
    pixels = dist.Bernoulli(share) if likelihood == "bernoulli" else dist.Normal(x.mean(0), x.std(0) + 0.01)
    return pixels.to_event(1).log_prob(new)


def main():
    key_fit, key_weights, key_split = random.split(random.key(0), 3)
    print(f"{'nats a datum, held out':<24}{'ELBO':>10}{'log p(x)':>10}{'error':>8}{'independent':>13}{'error':>8}")
    for d in (data(), dequantised()):
        x = random.permutation(key_split, d.pop("x"))
        params, _ = learn(key_fit, x[180:], num_steps=2000, **d)
        log_w = log_weights(key_weights, params, x[:180], 500, **d)
        log_p, rival = logsumexp(log_w, axis=0) - jnp.log(len(log_w)), independent(x[180:], x[:180], d["likelihood"])
        row = [log_w.mean(), log_p.mean(), log_p.std() / 180**0.5, jnp.mean(rival), jnp.std(rival) / 180**0.5]
        print(f"{d['likelihood']:<24}" + "".join(f"{v:{w}.2f}" for v, w in zip(row, (10, 10, 8, 13, 8), strict=True)))


if __name__ == "__main__":
    main()
