# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "flax", "scikit-learn"]
# ///
"""Denoising auto-encoder: the encoder sees a spoilt image, and the bound stays a bound.

**Technique** amortised mean-field on corrupted input: q is a mixture over the corruptions.
**Use when** images will come badly spoilt, or a large encoder learns its rows by heart.
**Avoid when** the density of clean images is what is wanted, which suffers, or spoilt ones are rare: the plain one restores light noise.
**Cost** that of the plain auto-encoder.
**Bias to expect** the bound pays for the noise: what z tells of which pixels were flipped, I(z; corruption | x), on top of the usual KL.
**Source** Im, Ahn, Memisevic and Bengio 2017, arXiv 1511.06406; Vincent et al. 2008, doi 10.1145/1390156.1390294.
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
# # Denoising auto-encoder
#
# The model is that of the plain one, ink or paper:
#
# $$z_i \sim \mathcal N(0, I_L), \qquad x_{id} \mid z_i \sim \mathrm{Bernoulli}\big(\mathrm{logit}^{-1} f_\theta(z_i)_d\big).$$

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


def model(x=None, num_images=1, num_pixels=64, corruption=0.1):
    """`num_images` is read only where `x` is None: that many are then drawn."""
    decoder = network("decoder", LATENTS, num_pixels)
    with numpyro.plate("image", num_images if x is None else len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([LATENTS]).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


# %% [markdown]
# ## The guide
#
# The encoder reads $\tilde x_i$, the image with each pixel flipped with probability $c$, and the likelihood is still that of
# $x_i$. So $q$ is a mixture, $\tilde q(z \mid x) = \mathbb E\, q_\phi(z \mid \tilde x)$ over the corruptions, richer than each Gaussian
# in it. The loss takes the density of the Gaussian that $z$ was drawn from, and so maximises
#
# $$\mathcal L_c = \mathbb E_{\tilde x \mid x}\, \mathbb E_{q_\phi(z \mid \tilde x)} \log \frac{p_\theta(x, z)}{q_\phi(z \mid \tilde x)}
# = \mathbb E_{\tilde q} \log \frac{p_\theta(x, z)}{\tilde q(z \mid x)} - I(z; \tilde x \mid x)
# \ \le\ \mathbb E_{\tilde q} \log \frac{p_\theta(x, z)}{\tilde q(z \mid x)} \ \le\ \log p_\theta(x).$$
#
# The information $I = \mathbb E\, \mathrm{KL}(q_\phi(z \mid \tilde x) \,\|\, \tilde q(z \mid x))$ pushes the encoder to forget the noise.
# The corruption is drawn from a key and is no site: as a site its density would count in $\log q$.


# %%
def guide(x=None, num_images=1, num_pixels=64, corruption=0.1):
    encoder = network("encoder", num_pixels, 2 * LATENTS)
    flipped = random.bernoulli(numpyro.prng_key(), corruption, x.shape)
    with numpyro.plate("image", len(x)):
        m, log_s = jnp.split(encoder(jnp.abs(x - flipped)), 2, axis=1)
        numpyro.sample("z", dist.Normal(m, jnp.exp(log_s)).to_event(1))


def learn(rng_key, x, *, num_steps, batch_size=128, **settings):
    """Weights of both networks, and the losses (num_steps,) in nats a datum; Adam, minibatches without replacement."""
    key_init, key_order = random.split(rng_key)
    x, size = jnp.asarray(x, jnp.float32), min(batch_size, len(x))
    svi = SVI(model, guide, numpyro.optim.Adam(lambda step: 0.002 * 0.05 ** (step / num_steps)), Trace_ELBO())
    per_epoch = len(x) // size
    shuffled = jax.vmap(lambda key: random.permutation(key, len(x)))(random.split(key_order, -(-num_steps // per_epoch)))
    batches = shuffled[:, : per_epoch * size].reshape(-1, size)[:num_steps]
    run = jax.jit(lambda state: lax.scan(lambda state, rows: svi.update(state, x[rows], **settings), state, batches))
    state, losses = run(svi.init(key_init, x[:size], **settings))
    return svi.get_params(state), losses / size


def sites(function, rng_key, params, x, **values_and_settings):
    """The sites of the model or the guide at given weights; a value named z is taken for the latent."""
    values = {name: values_and_settings.pop(name) for name in ("z",) if name in values_and_settings}
    return handlers.trace(handlers.seed(handlers.substitute(function, {**params, **values}), rng_key)).get_trace(x, **values_and_settings)


def fit(rng_key, x, num_images=1, num_pixels=64, corruption=0.1, *, num_steps=2000):
    """Train both networks, and encode the images, each under 100 corruptions of its own.

    Returns:
        q: dict, `z` -> draws of the mixture, (100, N, L).
        losses: (num_steps,), the negative bound in nats a datum, noisy.
    """
    key_fit, key_draw = random.split(rng_key)
    x, settings = jnp.asarray(x, jnp.float32), {"num_pixels": num_pixels, "corruption": corruption}
    params, losses = learn(key_fit, x, num_steps=num_steps, **settings)
    return {"z": lax.map(lambda key: sites(guide, key, params, x, **settings)["z"]["value"], random.split(key_draw, 100))}, losses


def training():
    """Settings of vip.train."""
    return {"batch_size": 128, "num_epochs": 300, "patience": 20}


# %% [markdown]
# ## How good is it?
#
# The weights $p_\theta(x, z) / q_\phi(z \mid \tilde x)$, each under a corruption of its own, are unbiased for $p_\theta(x)$, so
# $\log p$ is estimated as for the plain one. And images that were held out are spoilt, encoded, and decoded: how many pixels are then
# wrong?


# %%
def log_weights(rng_key, params, x, num_samples, **settings):
    """log p(x, z) - log q(z | corrupted x), (num_samples, N), in nats."""

    def one(key):
        q = sites(guide, key, params, x, **settings)["z"]
        p = sites(model, key, params, x, z=q["value"], **settings)
        return p["z"]["fn"].log_prob(q["value"]) + p["x"]["fn"].log_prob(x) - q["fn"].log_prob(q["value"])

    return lax.map(jax.jit(one), random.split(rng_key, num_samples))


def restored(params, x, **settings):
    """Ink or paper of every pixel, (N, D), by the decoder at the mean code of images x as they are."""
    settings, key = {**settings, "corruption": 0.0}, random.key(0)  # nothing is drawn that would be used
    code = sites(guide, key, params, x, **settings)["z"]["fn"].mean
    return sites(model, key, params, x, z=code, **settings)["x"]["fn"].mean > 0.5


def main():
    key_fit, key_weights, key_spoil, key_split = random.split(random.key(0), 4)
    x = random.permutation(key_split, data()["x"])
    new, x, noises = x[:180], x[180:], (0.0, 0.1, 0.2, 0.3)
    spoilt = [jnp.abs(new - random.bernoulli(key_spoil, noise, new.shape)) for noise in noises]
    heads = ["bound", "log p(x)", "error", *(f"at {noise}" for noise in noises)]
    print(f"{'held out':<22}" + "".join(f"{head:>10}" for head in heads) + "  share of pixels wrong, restored")
    for c in (0.0, 0.1):
        params, _ = learn(key_fit, x, num_steps=1500, corruption=c)
        log_w = log_weights(key_weights, params, new, 300, corruption=c)
        log_p = logsumexp(log_w, axis=0) - jnp.log(len(log_w))
        wrong = [jnp.mean(jnp.abs(new - restored(params, image))) for image in spoilt]
        print(f"{f'corruption {c}':<22}" + "".join(f"{v:10.3f}" for v in (log_w.mean(), log_p.mean(), log_p.std() / 180**0.5, *wrong)))
    rival = dist.Bernoulli((x.sum(0) + 0.5) / (len(x) + 1)).to_event(1).log_prob(new)
    wrong = [jnp.mean(jnp.abs(new - image)) for image in spoilt]
    print(f"{'independent, untouched':<32}" + "".join(f"{v:10.3f}" for v in (jnp.mean(rival), jnp.std(rival) / 180**0.5, *wrong)))


if __name__ == "__main__":
    main()
