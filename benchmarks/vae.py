"""Training steps a second of `vip.train` beside NumPyro's own VAE example and beside bare flax + optax, as ratios in one run.

    uv run python benchmarks/vae.py

Writes results/vae.md. One model, one encoder, one hidden layer each, float32, Adam, the same rows in the same minibatches; every
contestant ends an epoch with the ELBO of the rows held out, as NumPyro's example does.

- `vip.train`: the public function, with all that it does between steps.
- NumPyro: as numpyro/examples/vae.py is written: stax networks, SVI, an epoch as one `lax.fori_loop`.
- flax + optax, step: a loop in Python over one jitted step, weights and optimiser state as plain pytrees.
- flax + optax, scan: the same step under one jitted `lax.scan` an epoch.

The contestants take turns, an epoch each, so that other work on the machine meets all of them: `vip.train` asks for its rows at the
start of an epoch, and the others run before it gets them. A ratio is the median over turns of two times of one turn.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import nnx
from jax.example_libraries import stax
from numpyro.contrib.module import nnx_module
from numpyro.infer import SVI, Trace_ELBO
from rows import Rows, options, tell, write
from sklearn.datasets import load_digits

import vipatterns as vip
from vipatterns.amortized.stream import Memory

BATCH = 128
SIZES = {"digits": (64, 200, 8), "images": (784, 400, 20)}
"""Pixels, hidden units, latents."""
TURNS = {"digits": 60, "images": 14}
WARM = 2
"""Turns that are not counted: they hold the compiling."""
OURS, NUMPYRO, STEP, SCAN = "vip.train", "NumPyro's example", "flax + optax, step", "flax + optax, scan"


def images(name):
    """Binary rows (N, D): scikit-learn's digits, or drawings of 28 x 28 pixels: a disc and a bar at random places."""
    if name == "digits":
        return (load_digits().data > 8).astype(np.float32)
    rng = np.random.default_rng(0)
    across, down = np.meshgrid(np.arange(28), np.arange(28))
    centre, radius = rng.uniform(6, 22, size=(2, 4_608, 1, 1)), rng.uniform(2, 6, size=(4_608, 1, 1))
    disc = (across - centre[0]) ** 2 + (down - centre[1]) ** 2 < radius**2
    slope, offset = rng.normal(size=(4_608, 1, 1)), rng.uniform(4, 24, size=(4_608, 1, 1))
    bar = np.abs(down - offset - slope * (across - 14)) < 1.5
    return (disc | bar).reshape(4_608, -1).astype(np.float32)


class Encoder(nnx.Module):
    def __init__(self, num_pixels, hidden, num_latents, *, rngs):
        self.hidden = nnx.Linear(num_pixels, hidden, rngs=rngs)
        self.loc, self.log_scale = nnx.Linear(hidden, num_latents, rngs=rngs), nnx.Linear(hidden, num_latents, rngs=rngs)

    def __call__(self, x):
        h = nnx.softplus(self.hidden(x))
        return self.loc(h), jnp.exp(self.log_scale(h))


class Decoder(nnx.Module):
    def __init__(self, num_latents, hidden, num_pixels, *, rngs):
        self.hidden, self.out = nnx.Linear(num_latents, hidden, rngs=rngs), nnx.Linear(hidden, num_pixels, rngs=rngs)

    def __call__(self, z):
        return self.out(nnx.softplus(self.hidden(z)))


def ours(name):
    """Model and guide for vip.train."""
    num_pixels, hidden, num_latents = SIZES[name]

    def model(x=None):
        decoder = nnx_module("decoder", Decoder(num_latents, hidden, num_pixels, rngs=nnx.Rngs(numpyro.prng_key())))
        with numpyro.plate("image", len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([num_latents]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x=None):
        encoder = nnx_module("encoder", Encoder(num_pixels, hidden, num_latents, rngs=nnx.Rngs(numpyro.prng_key())))
        with numpyro.plate("image", len(x)):
            loc, scale = encoder(x)
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


def numpyros(name, x, held_out):
    """epoch(order): numpyro/examples/vae.py, without its download and its binarising."""
    num_pixels, hidden, num_latents = SIZES[name]
    encoder_nn = stax.serial(
        stax.Dense(hidden, W_init=stax.randn()),
        stax.Softplus,
        stax.FanOut(2),
        stax.parallel(
            stax.Dense(num_latents, W_init=stax.randn()),
            stax.serial(stax.Dense(num_latents, W_init=stax.randn()), stax.Exp),
        ),
    )
    decoder_nn = stax.serial(
        stax.Dense(hidden, W_init=stax.randn()), stax.Softplus, stax.Dense(num_pixels, W_init=stax.randn()), stax.Sigmoid
    )

    def model(batch):
        decode = numpyro.module("decoder", decoder_nn, (len(batch), num_latents))
        with numpyro.plate("batch", len(batch)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([num_latents]).to_event(1))
            return numpyro.sample("obs", dist.Bernoulli(decode(z)).to_event(1), obs=batch)

    def guide(batch):
        encode = numpyro.module("encoder", encoder_nn, (len(batch), num_pixels))
        loc, scale = encode(batch)
        with numpyro.plate("batch", len(batch)):
            return numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    state = svi.init(jax.random.key(0), x[:BATCH])

    @jax.jit
    def epoch_train(state, order):
        def body(i, val):
            total, state = val
            state, loss = svi.update(state, x[order[i]])
            return total + loss, state

        return jax.lax.fori_loop(0, len(order), body, (0.0, state))

    evaluate = jax.jit(lambda state: svi.evaluate(state, held_out))

    def epoch(order):
        nonlocal state
        loss, state = epoch_train(state, order)
        return float(loss) / order.size, float(evaluate(state)) / len(held_out)

    return epoch


def bare(name, x, held_out, scanned):
    """epoch(order): the networks of `ours` by hand."""
    num_pixels, hidden, num_latents = SIZES[name]
    rngs = nnx.Rngs(0)
    graph, params = nnx.split((Encoder(num_pixels, hidden, num_latents, rngs=rngs), Decoder(num_latents, hidden, num_pixels, rngs=rngs)))
    optimizer = optax.adam(1e-3)
    carry = params, optimizer.init(params), jax.random.key(0)

    def loss_of(params, key, batch):
        encoder, decoder = nnx.merge(graph, params)
        loc, scale = encoder(batch)
        logits = decoder(loc + scale * jax.random.normal(key, loc.shape))
        kl = 0.5 * (loc**2 + scale**2 - 1).sum() - jnp.log(scale).sum()
        return (optax.sigmoid_binary_cross_entropy(logits, batch).sum() + kl) / len(batch)

    def step(carry, rows):
        params, state, key = carry
        key, now = jax.random.split(key)
        loss, grads = jax.value_and_grad(loss_of)(params, now, x[rows])
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state, key), loss

    many, one = jax.jit(lambda carry, order: jax.lax.scan(step, carry, order)), jax.jit(step)
    evaluate = jax.jit(lambda carry: loss_of(carry[0], carry[2], held_out))

    def epoch(order):
        nonlocal carry
        if scanned:
            carry, losses = many(carry, order)
            return float(losses.mean()), float(evaluate(carry))
        losses = []
        for rows in order:
            carry, loss = one(carry, rows)
            losses.append(loss)
        return float(jnp.stack(losses).mean()), float(evaluate(carry))

    return epoch


class Turns(Memory):
    """Rows in memory for vip.train, which lets the others have their turn before it gives them.

    Args:
        x: rows, (N, D).
        others: contestant -> epoch(order).
    """

    def __init__(self, x, others):
        super().__init__({"x": x})
        self.others = others
        self.seconds = {OURS: [], **{label: [] for label in others}}
        self.ends = {}
        self.begun = None

    def chunks(self, rng):
        now = time.perf_counter()
        if self.begun is not None:
            self.seconds[OURS].append(now - self.begun)
            order = rng.permutation(self.num_rows)[: self.num_rows // BATCH * BATCH].reshape(-1, BATCH)
            labels = list(self.others)
            for i in rng.permutation(len(labels)):
                now = time.perf_counter()
                self.ends[labels[i]] = self.others[labels[i]](order)[1]
                self.seconds[labels[i]].append(time.perf_counter() - now)
        self.begun = time.perf_counter()
        yield self.arrays


def measured(name):
    """Seconds an epoch of each contestant, and where its held-out loss ended."""
    rows = images(name)
    held_out, x = rows[:256], rows[256:]
    on_device, kept = jnp.asarray(x), jnp.asarray(held_out)
    others = {
        NUMPYRO: numpyros(name, on_device, kept),
        STEP: bare(name, on_device, kept, scanned=False),
        SCAN: bare(name, on_device, kept, scanned=True),
    }
    turns = Turns(x, others)
    # One epoch more: the last has no turn of the others after it.
    num = TURNS[name] + WARM + 1
    # The call before the first epoch shows train the shapes; no epoch of its own ends there.
    trained = vip.train(
        jax.random.key(0), *ours(name), turns, held_out={"x": held_out}, num_epochs=num, patience=num, batch_size=BATCH, progress=False
    )
    seconds = {label: values[-TURNS[name] :] for label, values in turns.seconds.items()}
    return {"seconds": seconds, "ends": {OURS: -trained.held_out_elbos[-1], **turns.ends}, "steps": len(x) // BATCH}


def lines_of(name, row):
    """Rows of the table."""
    if "why" in row:
        return [f"| {name} | {row['why']} | | | | | |"]
    own = np.array(row["seconds"][OURS])
    lines = []
    for label, values in row["seconds"].items():
        values = np.array(values)
        low, middle, high = np.quantile(values / own, [0.25, 0.5, 0.75])
        ratio = "1" if label == OURS else f"{middle:.2f}"
        spread = "" if label == OURS else f"{low:.2f} to {high:.2f}"
        lines.append(
            f"| {name} | {label} | {row['steps'] / np.median(values):.0f} | {row['steps'] / values.min():.0f} | {ratio} | {spread} | "
            f"{row['ends'][label]:.1f} |"
        )
    return lines


def main():
    asked = options(argparse.ArgumentParser(description=__doc__.splitlines()[0])).parse_args()
    if asked.row:
        return tell(measured, asked.row)
    rows = Rows(__file__, fresh=asked.fresh)
    found = {name: rows.measure(name) for name in SIZES}
    sizes = "; ".join(f"{name} {p} pixels, {h} hidden, {k} latents" for name, (p, h, k) in SIZES.items())
    lines = [
        f"Training steps a second, minibatches of {BATCH}, float32, the ELBO of 256 rows held out after each epoch ({sizes}).",
        "Ratio: how many times as fast vip.train is, the median over turns in which each contestant ran one epoch; quartiles beside it.",
        "",
        "| data | by | steps/s, median | best | vip.train's speed over its | quartiles | held-out loss at the end |",
        "|---|---|--:|--:|--:|--:|--:|",
        *(line for name, row in found.items() for line in lines_of(name, row)),
        "",
        rows.machine(),
    ]
    write("vae.md", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
