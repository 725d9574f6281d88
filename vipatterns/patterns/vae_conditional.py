# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "flax", "scikit-learn"]
# ///
"""Conditional variational auto-encoder: what is known of a row is given to both networks, and the code keeps the rest.

**Technique** amortised mean-field: encoder and decoder that are told a label; minibatches.
**Use when** rows of a chosen kind are to be drawn, or the code should hold what the label leaves open, such as the hand that wrote a digit.
**Avoid when** labels are missing for some rows (then the label is a latent itself), or the label is what is to be predicted.
**Cost** seconds; a step costs the rows of a minibatch x weights.
**Bias to expect** the ELBO is below log p(x | label) by KL(q || posterior) a row, which main() measures; nothing forces the code to know
nothing of the label: the prior only makes it dear.
**Source** Sohn, Lee and Yan 2015, Advances in Neural Information Processing Systems 28; Kingma, Rezende, Mohamed and Welling 2014,
arXiv 1406.5298, whose prior, the same for all labels, is taken here.
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
# # Conditional variational auto-encoder
#
# Every image $x_n$ of black and white pixels comes with a label $c_n$. Its code $z_n$ is drawn whatever the label is, and a network $f$
# that sees both turns them into the log odds of the pixels:
#
# $$z_n \sim \mathcal N(0, I_8), \qquad x_{nj} \mid z_n, c_n \sim \mathrm{Bernoulli}\big(\mathrm{logit}^{-1} f_j(z_n, c_n)\big).$$

# %%
LATENTS, HIDDEN, BATCH = 8, 128, 128


def data(frame=None):
    """Images `x`, (N, D), in units of black: 0 or 1; `label`, (N,), integers from 0; `num_labels`, 1 + the largest; `num_pixels`, D.

    `label` is a table's column of that name and x its other numeric columns; without a table, scikit-learn's 1,797 handwritten digits of
    8 x 8 pixels, black where ink covers more than half of the pixel, and which digit each is.
    """
    if frame is None:
        pixels, label = load_digits(return_X_y=True)
        frame = {"x": np.asarray(pixels) > 8, "label": label}
    columns = {name: np.asarray(frame[name]) for name in frame}
    if "label" not in columns:
        raise ValueError(
            f"The table needs a column label, an integer from 0 for every row; its columns are {', '.join(map(str, columns))}."
        )
    label = np.asarray(columns.pop("label"), float)
    if not np.all(whole := (label >= 0) & (label == np.floor(label))):
        raise ValueError(
            f"Labels are integers from 0 for every row, and {np.sum(~whole)} are missing or something else, the first in row "
            f"{np.argmin(whole)}: drop those rows."
        )
    x = columns["x"] if "x" in columns else np.stack([c for c in columns.values() if c.dtype.kind in "biuf"], axis=1)
    return {"x": x.astype(float), "label": label.astype(int), "num_labels": 1 + int(label.max()), "num_pixels": x.shape[1]}


# %% [markdown]
# ## The model
#
# The label enters as one column for each of its values, 1 in its own and 0 in the others, beside the code.


# %%
def network(name, *inputs, num_out):
    """Inputs side by side -> (N, num_out), through a layer of HIDDEN units."""
    rngs, h = nnx.Rngs(numpyro.prng_key()), jnp.concatenate(inputs, axis=-1)
    layers = nnx.Sequential(nnx.Linear(h.shape[-1], HIDDEN, rngs=rngs), nn.relu, nnx.Linear(HIDDEN, num_out, rngs=rngs))
    return nnx_module(name, layers)(h)


def model(label, x=None, num_labels=10, num_pixels=64):
    """`num_pixels` is read only where `x` is None: an image is then drawn for every label."""
    with numpyro.plate("image", len(label)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([LATENTS]).to_event(1))
        logits = network("decoder", z, nn.one_hot(label, num_labels), num_out=num_pixels if x is None else x.shape[1])
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


# %% [markdown]
# ## The guide
#
# The encoder sees the label too, for the posterior does: $q(z_n \mid x_n, c_n) = \mathcal N(m(x_n, c_n), s(x_n, c_n))$.


# %%
def guide(label, x=None, num_labels=10, num_pixels=64):
    mean, log_sd = jnp.split(network("encoder", x, nn.one_hot(label, num_labels), num_out=2 * LATENTS), 2, axis=-1)
    with numpyro.plate("image", len(label)):
        numpyro.sample("z", dist.Normal(mean, jnp.exp(log_sd)).to_event(1))


# %% [markdown]
# ## The fit
#
# The ELBO is a sum over images, $\sum_n \mathbb E_q[\log p(x_n \mid z_n, c_n)] - \mathrm{KL}(q(z_n \mid x_n, c_n) \,\|\, p(z_n))$, and
# bounds $\sum_n \log p(x_n \mid c_n)$; a minibatch of images, drawn afresh at every step, gives its gradient without bias.


# %%
def learn(rng_key, label, x, num_labels, num_steps):
    """Parameters of both networks, and the losses, (num_steps,)."""
    svi, size = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO()), min(BATCH, len(x))
    key_init, key_rows = random.split(rng_key)
    label, x = jnp.asarray(label), jnp.asarray(x, float)

    def step(state, key):
        rows = random.choice(key, len(x), (size,))
        state, loss = svi.update(state, label[rows], x[rows], num_labels)
        return state, loss * len(x) / size

    state = jax.jit(lambda key: svi.init(key, label[:size], x[:size], num_labels))(key_init)
    state, losses = lax.scan(step, state, random.split(key_rows, num_steps))
    return svi.get_params(state), losses


def traced(function, rng_key, params, *args):
    return handlers.trace(handlers.seed(handlers.substitute(function, params), rng_key)).get_trace(*args)


def fit(rng_key, label, x, num_labels=10, num_pixels=64, *, num_steps=3000):
    """Fit both networks by Adam at a rate of 0.001.

    Returns:
        q: dict, `z` -> Normals of the codes, (N, LATENTS).
        losses: (num_steps,), the negative ELBO of all rows in nats, noisy.
    """
    key_learn, key_trace = random.split(rng_key)
    params, losses = learn(key_learn, label, x, num_labels, num_steps)
    return {"z": traced(guide, key_trace, params, jnp.asarray(label), jnp.asarray(x, float), num_labels)["z"]["fn"]}, losses


def training():
    """Settings of `vip.train`, which stops when the held-out ELBO no longer rises."""
    return {"batch_size": BATCH, "num_epochs": 300, "patience": 20}


# %% [markdown]
# ## What it is worth
#
# Of draws $z_k \sim q$ the weights $w_k = p(x, z_k \mid c) / q(z_k \mid x, c)$ average to $p(x \mid c)$: the mean of $\log w_k$ is the
# ELBO, and $\log \frac1K \sum_k w_k$ is nearer to $\log p(x \mid c)$, still below it on average. Beside them, for the same held-out images,
# stand pixels that know the label and nothing of each other.


# %%
def log_weights(rng_key, params, label, x, num_labels=10, num_draws=500):
    """log p(x, z | label) - log q(z | x, label) at draws of q, (num_draws, N), in nats."""

    def one(key):
        key_q, key_p = random.split(key)
        drawn = traced(guide, key_q, params, label, x, num_labels)
        joint = traced(handlers.replay(model, drawn), key_p, params, label, x, num_labels)
        log_q, log_p = (sum(s["fn"].log_prob(s["value"]) for s in t.values() if s["type"] == "sample") for t in (drawn, joint))
        return log_p - log_q

    return lax.map(one, random.split(rng_key, num_draws))


def independent_pixels(label, x, of, held_out):
    """log p of held-out rows with labels `of`, (M,), in nats, by each label's own frequencies in x (Laplace's rule of succession)."""
    mine = np.arange(1 + max(label.max(), of.max()))[:, None] == label
    p = ((mine @ x + 1) / (mine.sum(1, keepdims=True) + 2))[of]
    return np.sum(held_out * np.log(p) + (1 - held_out) * np.log1p(-p), axis=1)


# %%
def main():
    d, order = data(), np.random.default_rng(0).permutation(1797)
    seen, kept = ({"label": d["label"][rows], "x": d["x"][rows]} for rows in np.split(order, [len(order) * 9 // 10]))
    key_learn, key_weigh = random.split(random.key(0))
    params, losses = learn(key_learn, **seen, num_labels=d["num_labels"], num_steps=3000)
    weights = log_weights(key_weigh, params, **kept, num_labels=d["num_labels"])
    log_p = nn.logsumexp(weights, axis=0) - math.log(len(weights))
    print(f"elbo {-losses[-300:].mean() / len(seen['x']):.3f} nats an image, {len(seen['x'])} trained on")
    rival = independent_pixels(*seen.values(), *kept.values())
    for name, value in (("elbo", weights.mean(0)), ("log p(x | label)", log_p), ("independent pixels", rival)):
        print(f"{name:<20}{value.mean():8.3f} ± {value.std() / math.sqrt(len(value)):.3f} nats an image, {len(value)} held out")


if __name__ == "__main__":
    main()
