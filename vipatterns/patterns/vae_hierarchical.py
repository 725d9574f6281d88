# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "flax", "scikit-learn"]
# ///
"""Hierarchical variational auto-encoder: two layers of codes, the KL warmed up so that the upper one is put to use.

**Technique** amortised: an encoder for each layer, the upper one reads the lower; KL warm-up; minibatches.
**Use when** codes themselves have structure, and a prior that is learned fits them better than independent Normals.
**Avoid when** one layer is as good by held-out log p(x), or the decoder is so free that the upper layer has nothing left to say.
**Cost** seconds; a step costs the rows of a minibatch x weights, of four networks.
**Bias to expect** the ELBO is below log p(x) by KL(q || posterior) a row, and by more a layer; the upper layer tells less than it could,
and less still without warm-up: KL there falls before the decoder has learned to read it.
**Source** Sonderby et al. 2016, arXiv 1602.02282, without its ladder; units and weights: Burda et al. 2016, arXiv 1509.00519.
"""

# %%
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
# # Hierarchical variational auto-encoder
#
# Every image $x_n$ of black and white pixels has a code $u_n$ (`z2`), from which comes a code $z_n$ (`z1`), from which come the pixels:
#
# $$u_n \sim \mathcal N(0, I_4), \qquad z_n \mid u_n \sim \mathcal N\big(m(u_n), s(u_n)\big), \qquad
# x_{nj} \mid z_n \sim \mathrm{Bernoulli}\big(\mathrm{logit}^{-1} f_j(z_n)\big).$$

# %%
TOP, LOWER, HIDDEN, BATCH = 4, 8, 128, 128
WARM_UP = 1000  # steps


def data(frame=None):
    """Images `x`, (N, D), a row an image, in units of black: 0 or 1; and `num_pixels`, D.

    `x` is the numeric columns of a table; without a table, scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, black where ink
    covers more than half of the pixel.
    """
    columns = {"x": np.asarray(load_digits(return_X_y=True)[0]) > 8} if frame is None else {name: np.asarray(frame[name]) for name in frame}
    x = columns["x"] if "x" in columns else np.stack([c for c in columns.values() if c.dtype.kind in "biuf"], axis=1)
    return {"x": x.astype(float), "num_pixels": x.shape[1]}


# %% [markdown]
# ## Model and guide
#
# The guide climbs where the model descends: $q(z, u \mid x) = q(z \mid x)\, q(u \mid z)$. In both, `kl_weight` scales what the codes cost,
# and not what the pixels say. The sds are kept from zero: two layers of free log sds can run away from each other.


# %%
def network(name, inputs, num_out):
    """(N, num_in) -> (N, num_out), through a layer of HIDDEN units."""
    rngs = nnx.Rngs(numpyro.prng_key())
    layers = nnx.Linear(inputs.shape[-1], HIDDEN, rngs=rngs), nn.relu, nnx.Linear(HIDDEN, num_out, rngs=rngs)
    return nnx_module(name, nnx.Sequential(*layers))(inputs)


def gaussian(moments):
    """Independent Normals of codes, (N, L), from means and what gives the sds side by side, (N, 2 L)."""
    mean, spread = jnp.split(moments, 2, axis=-1)
    return dist.Normal(mean, nn.softplus(spread + 0.5) + 0.01).to_event(1)


def model(x=None, num_pixels=64, kl_weight=1.0, num_images=1):
    """`num_pixels` and `num_images` are read only where `x` is None: that many are then drawn."""
    with numpyro.plate("image", num_images if x is None else len(x)):
        with handlers.scale(scale=kl_weight):
            z2 = numpyro.sample("z2", dist.Normal(0.0, 1.0).expand([TOP]).to_event(1))
            z1 = numpyro.sample("z1", gaussian(network("prior", z2, 2 * LOWER)))
        logits = network("decoder", z1, num_pixels if x is None else x.shape[1])
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x=None, num_pixels=64, kl_weight=1.0, num_images=1):
    with numpyro.plate("image", len(x)), handlers.scale(scale=kl_weight):
        z1 = numpyro.sample("z1", gaussian(network("lower", x, 2 * LOWER)))
        numpyro.sample("z2", gaussian(network("top", z1, 2 * TOP)))


# %% [markdown]
# ## The fit
#
# While the decoder knows nothing of $u$, whatever $q(u \mid z)$ tells costs KL and gains nothing, so it is unlearned first of all. Warm-up
# climbs $\mathbb E_q \log p(x \mid z) - \beta\, \mathrm{KL}$ with $\beta$ rising to `kl_weight`. Only at $\beta = 1$ is that the ELBO.


# %%
def warmed(step, warm_up=WARM_UP):
    """The weight of the KL: it rises in a straight line over `warm_up` steps, and stays at 1."""
    return jnp.minimum(1.0, (step + 1) / max(warm_up, 1))


def learn(rng_key, x, kl_weight, num_steps, warm_up=WARM_UP):
    """Parameters of the networks, and the losses, (num_steps,): Adam on minibatches, drawn afresh at every step."""
    svi, x, size = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO()), jnp.asarray(x, float), min(BATCH, len(x))
    key_init, key_rows = random.split(rng_key)

    def step(state, now):
        number, key = now
        rows = x[random.choice(key, len(x), (size,))]
        state, loss = svi.update(state, rows, kl_weight=kl_weight * warmed(number, warm_up))
        return state, loss * len(x) / size

    state = jax.jit(lambda key: svi.init(key, x[:size]))(key_init)
    state, losses = lax.scan(step, state, (jnp.arange(num_steps), random.split(key_rows, num_steps)))
    return svi.get_params(state), losses


def traced(function, rng_key, params, x):
    return handlers.trace(handlers.seed(handlers.substitute(function, params), rng_key)).get_trace(x)


def fit(rng_key, x, num_pixels=64, kl_weight=1.0, num_images=1, *, num_steps=4000):
    """Fit all networks by Adam at a rate of 0.001, the KL weighed from nearly 0 up to kl_weight.

    Returns:
        q: dict, `z1` -> Normals of the lower codes, (N, LOWER); `z2` -> 1,000 draws of the upper ones, (1000, N, TOP).
        losses: (num_steps,), the negative ELBO of all rows in nats, noisy, with the KL weighed as that step weighed it.
    """
    key_learn, key_trace, key_draw = random.split(rng_key, 3)
    params, losses = learn(key_learn, x, kl_weight, num_steps)
    draw = jax.vmap(lambda key: traced(guide, key, params, jnp.asarray(x, float))["z2"]["value"])
    z1 = traced(guide, key_trace, params, jnp.asarray(x, float))["z1"]["fn"]
    return {"z1": z1, "z2": draw(random.split(key_draw, 1000))}, losses


def training():
    """Settings of `vip.train`; its patience outlasts the warm-up."""
    return {"batch_size": BATCH, "num_epochs": 300, "patience": 100, "schedules": {"kl_weight": warmed}}


# %% [markdown]
# ## What it is worth
#
# Of draws of $q$ the weights $w_k = p(x, z_k, u_k) / q(z_k, u_k \mid x)$ average to $p(x)$: the mean of $\log w_k$ is the ELBO, its KL
# counted in full. Of that KL, $\mathbb E_q [\log q(u \mid z) - \log p(u)]$ is what the upper layer tells. Both warm-ups begin with
# the same weights and see the same minibatches.


# %%
def log_weights(rng_key, params, x, num_draws=200):
    """log p(x, z) - log q(z | x) at draws of q, and the upper layer's log q(z2 | z1) - log p(z2), each (num_draws, N), in nats."""

    def one(key):
        key_q, key_p = random.split(key)
        drawn = traced(guide, key_q, params, x)
        joint = traced(handlers.replay(model, drawn), key_p, params, x)
        log_q, log_p = ({n: s["fn"].log_prob(s["value"]) for n, s in t.items() if s["type"] == "sample"} for t in (drawn, joint))
        return sum(log_p.values()) - sum(log_q.values()), log_q["z2"] - log_p["z2"]

    return lax.map(one, random.split(rng_key, num_draws))


def main():
    x, rest = np.split(np.random.default_rng(0).permutation(data()["x"]), [-180])
    (key_learn, key_weigh), p = random.split(random.key(0)), (x.sum(0) + 1) / (len(x) + 2)
    rows = {"independent pixels": rest @ np.log(p) + (1 - rest) @ np.log1p(-p)}
    for name, warm_up in (("warm-up", WARM_UP), ("none", 1)):
        params, _ = learn(key_learn, x, 1.0, 3000, warm_up)
        weights, top = log_weights(key_weigh, params, rest)
        rows |= {f"elbo, {name}": weights.mean(0), f"top KL, {name}": top.mean(0)}
        rows |= {f"log p(x), {name}": nn.logsumexp(weights, axis=0) - jnp.log(len(weights))}
    for name, value in rows.items():
        print(f"{name:<20}{value.mean():8.3f} ± {value.std() / np.sqrt(len(value)):.3f} nats an image, {len(value)} held out")


if __name__ == "__main__":
    main()
