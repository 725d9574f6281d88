# %% [markdown]
# # Amortisation and the VAE
#
# You have a million images, and behind each a few hidden numbers that you would like to know. Must you fit a million posteriors, one by
# one? Or can one network look at an image and *say* its posterior? That shortcut is called amortisation, and it is half of the variational
# auto-encoder (VAE). This page asks what it costs, who pays, and how you would notice.
#
# We start where every answer is known: $z \sim \mathcal N(0, 1)$ and $x \mid z \sim \mathcal N(z, 1)$. The posterior of each $z$ is
# $\mathcal N(x / 2,\ \sqrt{1/2})$ (second argument: the sd), and $\log p(x) = \log \mathcal N(x;\ 0, \sqrt 2)$.

# %%
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
from figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, moving, plt, show
from flax import nnx
from jax import grad, jit, lax, random
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpyro import handlers
from numpyro.contrib.module import nnx_module
from numpyro.infer import SVI
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.datasets import load_digits

import vipatterns as vip
from vipatterns.patterns import vae, vae_linear

positive = dist.constraints.positive
key_data, key_encoder, key_own, key_train, key_weigh, key_gaps, key_units, key_linear, *key_exercises = random.split(random.key(0), 12)
z_true, noise = random.normal(key_data, (2, 200))
x = z_true + noise


def model(x):
    with numpyro.plate("datum", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def encoder(x):
    slope, offset = numpyro.param("slope", -0.5), numpyro.param("offset", 1.0)
    s = numpyro.param("s", 2.0, constraint=positive)
    with numpyro.plate("datum", len(x)):
        numpyro.sample("z", dist.Normal(slope * x + offset, s))


def path(rng_key, guide, x, num_steps=1_000):
    """Parameters of a guide at every step of its training, {name: (num_steps, ...)}."""
    optimizer = numpyro.optim.Adam(lambda step: 0.05 * 0.01 ** (step / num_steps))
    svi = SVI(model, guide, optimizer, vip.objectives.StickingTheLanding())

    def step(state, _):
        return svi.update(state, x)[0], svi.get_params(state)

    return jit(lambda state: lax.scan(step, state, None, length=num_steps))(svi.init(rng_key, x))[1]


trained = path(key_encoder, encoder, x)
slope, offset, s = (float(trained[name][-1]) for name in ("slope", "offset", "s"))

# %% [markdown]
# The encoder is the guide: it reads $x$ and answers with a mean and an sd. Three parameters serve all data. Move the slider: the blue
# band is what the encoder says, the grey one is the truth.

# %% tags=["figure"]
fig, ax = plt.subplots()
reach = np.linspace(-5, 5, 41)
ax.scatter(x, z_true, s=6, color=GREY, alpha=0.5, rasterized=True)
ax.fill_between(reach, reach / 2 - 2**0.5, reach / 2 + 2**0.5, color=GREY, alpha=0.3, linewidth=0, label="exact posterior, mean ± 2 sd")
frames, captions = [], []
for t in [*np.unique(np.geomspace(1, 160, 20).astype(int)) - 1, len(trained["s"]) - 1]:
    a, b, sd = (float(trained[name][t]) for name in ("slope", "offset", "s"))
    (line,) = ax.plot(reach, a * reach + b, color=BLUE)
    edges = ax.plot(reach, a * reach + b - 2 * sd, "--", reach, a * reach + b + 2 * sd, "--", color=BLUE, linewidth=1)
    lost = abs(np.mean((a * x + b - x / 2) ** 2) + sd**2 - 0.5 - np.log(sd) + 0.5 * np.log(0.5))
    frames.append([line, *edges])
    captions.append(f"step {t}: mean {a:.2f} x {b:+.2f}, sd {sd:.3f}; the ELBO lacks {lost:.3f} nats a datum")
line.set_label("encoder, mean ± 2 sd")
ax.set(xlim=(-5, 5), ylim=(-4, 4), xlabel="x, observed", ylabel="z, latent")
ax.legend(loc="upper left")
moving(
    fig,
    frames,
    captions,
    alt=f"A band of exact posteriors, and the encoder's band that turns until it lies on it; {captions[-1]}.",
    label="step",
)

# %% [markdown]
# ## One set of parameters a datum, or one for all
#
# The ELBO of the whole table is a sum. Each datum brings its own bound, and in it a $q$ of its own:
#
# $$\mathcal L = \sum_{i=1}^N \mathcal L_i(q_i), \qquad
# \mathcal L_i(q_i) = \mathbb E_{q_i(z)}\big[\log p(x_i, z) - \log q_i(z)\big] \le \log p(x_i).$$
#
# Either every $q_i$ has a mean and an sd of its own, $2N$ numbers to fit, and two more for whoever comes next. Or all of them come
# from one function, $q_i = q_\phi(\cdot \mid x_i)$, and $\phi$ is fitted once. We fit both to the same data, and write the bound in closed
# form to see exactly where they end.


# %%
def own(x):
    m = numpyro.param("m", jnp.zeros(len(x)))
    s = numpyro.param("s", jnp.ones(len(x)), constraint=positive)
    with numpyro.plate("datum", len(x)):
        numpyro.sample("z", dist.Normal(m, s))


def bound(x, m, s):
    """The ELBO of q = N(m, s) for a datum x, in nats."""
    return -jnp.log(2 * jnp.pi) - 0.5 * (m**2 + (x - m) ** 2 + 2 * s**2) + 0.5 * jnp.log(2 * jnp.pi * jnp.e * s**2)


one_each = path(key_own, own, x)
log_p = norm.logpdf(x, 0, 2**0.5)
elbo_own = bound(x, one_each["m"][-1], one_each["s"][-1])
elbo_encoder = bound(x, slope * x + offset, s)
assert np.allclose([slope, offset, s], [0.5, 0.0, 0.5**0.5], atol=1e-3)
assert np.abs(elbo_own - log_p).max() < 1e-4
assert np.abs(elbo_encoder - log_p).max() < 1e-4
pd.DataFrame(
    {"parameters": [2 * len(x), 3], "ELBO a datum": [float(elbo_own.mean()), float(elbo_encoder.mean())], "log p(x) a datum": log_p.mean()},
    index=["a q of its own for each datum", "one encoder"],
).round(4)

# %% [markdown]
# Both reach $\log p(x)$ for *every* datum. The encoder found slope `{python} f"{slope:.4f}"`, offset `{python} f"{offset:.4f}"` and sd
# `{python} f"{s:.4f}"`, where the exact answer is $1/2$, $0$ and $\sqrt{1/2}$. Here amortisation costs nothing, since the map from $x$ to
# its posterior is a straight line, and a straight line is what our encoder can draw.
#
# ## The amortisation gap
#
# In general it cannot. Split what the bound lacks in two (Cremer, Li and Duvenaud 2018, arXiv 1801.03558):
#
# $$\log p(x) - \mathcal L(q_\phi) = \underbrace{\max_{q} \mathcal L(q) - \mathcal L(q_\phi)}_{\text{amortisation gap}}
# + \underbrace{\log p(x) - \max_{q} \mathcal L(q)}_{\text{approximation gap}},$$
#
# the maximum being over the encoder's family. Neither is ever negative: no encoder can give a datum a better $q$ than the
# best of the family. So a $q$ of its own is never worse for a datum. It is only dearer.
#
# ## A VAE of digits
#
# Now a model whose posteriors are in no book: 8 × 8 pixels of ink or paper, a code $z$ of two numbers, so that it can be drawn, and
# a decoder network whose weights $\theta$ are learned together with the encoder's $\phi$:
#
# $$z \sim \mathcal N(0, I), \qquad x_d \mid z \sim \mathrm{Bernoulli}\big(\mathrm{logit}^{-1} f_\theta(z)_d\big), \qquad
# q_\phi(z \mid x) = \mathcal N\big(m_\phi(x),\ s_\phi(x)\big).$$
#
# Each network has one hidden layer (the pattern [vae](patterns/vae.md) has two, and more latents); 300 digits are set aside and never
# touched by training.


# %%
class Network(nnx.Module):
    """One hidden layer, and two outputs."""

    def __init__(self, num_in, num_out, *, rngs):
        self.hidden = nnx.Linear(num_in, 200, rngs=rngs)
        self.first, self.second = nnx.Linear(200, num_out, rngs=rngs), nnx.Linear(200, num_out, rngs=rngs)

    def __call__(self, v):
        h = nnx.relu(self.hidden(v))
        return self.first(h), self.second(h)


def network(name, num_in, num_out):
    return nnx_module(name, Network(num_in, num_out, rngs=nnx.Rngs(numpyro.prng_key())))


def digit_model(x=None, num_images=1):
    decoder = network("decoder", 2, 64)
    with numpyro.plate("image", num_images if x is None else len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        logits, _ = decoder(z)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def digit_guide(x=None, num_images=1):
    encoder = network("encoder", 64, 2)
    with numpyro.plate("image", len(x)):
        m, log_s = encoder(x)
        numpyro.sample("z", dist.Normal(m, jnp.exp(log_s)).to_event(1))


images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
images, labels = (images[order] > 8).astype(float), labels[order]
new, old = images[:300], images[300:]
fitted = vip.train(key_train, digit_model, digit_guide, {"x": old}, num_epochs=400, patience=15, optimizer=optax.adam(3e-3), progress=False)
print(fitted)


# %%
def read(function, name, values, **arguments):
    """The distribution at a site of the trained model or guide, other sites held at `values`."""
    held = handlers.substitute(function, {**fitted.params, **values})
    return handlers.trace(handlers.seed(held, random.key(0))).get_trace(**arguments)[name]["fn"].base_dist


def decode(z):
    """Logits of ink, (N, 64), of codes (N, 2)."""
    return np.asarray(read(digit_model, "x", {"z": jnp.asarray(z, jnp.float32)}, num_images=len(z)).logits, float)


q = read(digit_guide, "z", {}, x=jnp.asarray(new, jnp.float32))
m_new, s_new = np.asarray(q.loc, float), np.asarray(q.scale, float)

# %% [markdown]
# Left, the new digits where the encoder puts them, each shown as its own label, which nobody told the model. Right, what the decoder makes
# of the point marked on the left. Walk around.


# %% tags=["figure"]
def ink(ax, share, at=(0.0, 0.0), size=1.0, color=INK):
    """An image drawn as 64 squares whose areas are the shares of ink."""
    corners, codes = [], []
    for (r, c), p in np.ndenumerate(np.reshape(share, (8, 8))):
        if p > 0.04:
            h, cx, cy = 0.5 * np.sqrt(p) * size / 8, at[0] + (c + 0.5) * size / 8, at[1] + (7.5 - r) * size / 8
            corners += [(cx - h, cy - h), (cx + h, cy - h), (cx + h, cy + h), (cx - h, cy + h), (cx - h, cy - h)]
            codes += [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY]
    return ax.add_patch(PathPatch(Path(corners, codes), facecolor=color, linewidth=0))


fig, (ax, picture) = plt.subplots(1, 2, figsize=(8, 4), width_ratios=(3, 2))
for digit in range(10):
    here = m_new[labels[:300] == digit]
    colour = (BLUE, ORANGE, GREEN, PURPLE, GREY)[digit % 5]
    ax.scatter(here[:, 0], here[:, 1], s=22, marker=f"${digit}$", color=colour, linewidth=0.3)
turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
walk = m_new.std(0) * 1.25 * np.stack([np.cos(turn), np.sin(turn)], 1) + m_new.mean(0)
shares = 1 / (1 + np.exp(-decode(walk)))
frames, captions = [], []
for point, share in zip(walk, shares, strict=True):
    (dot,) = ax.plot(*point, "o", markersize=11, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=2)
    near = labels[np.argsort(((m_new - point) ** 2).sum(1))[:5]]
    frames.append([dot, ink(picture, share)])
    captions.append(f"z = ({point[0]:.2f}, {point[1]:.2f}); the five nearest new digits are {', '.join(map(str, near))}")
ax.set(xlabel=r"$z_1$", ylabel=r"$z_2$", title="where the encoder puts new digits")
picture.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal", title="what the decoder draws there")
picture.axis("off")
moving(
    fig,
    frames,
    captions,
    alt="A map of two latent coordinates on which equal digits lie together, with a ring that walks around; beside it the image decoded at "
    f"the ring, which turns from one digit into another. Shown first: {captions[7]}.",
    label="walk",
    start=7,
)

# %% tags=["figure"]
drawn = 1 / (1 + np.exp(-decode(random.normal(key_exercises[0], (10, 2)))))
again = 1 / (1 + np.exp(-decode(m_new[:10])))
fig, ax = plt.subplots(figsize=(5.6, 2.4))
for row, (name, pictures) in enumerate((("new", new[:10]), ("decoded", again), ("drawn", drawn))):
    for i, picture in enumerate(pictures):
        ink(ax, picture, at=(1.2 * i, -1.25 * row))
    ax.text(-0.3, 0.5 - 1.25 * row, name, ha="right", va="center")
ax.set(xlim=(-2.2, 12), ylim=(-2.6, 1.1), aspect="equal")
ax.axis("off")
share_right = np.mean((again > 0.5) == (new[:10] > 0.5))
show(
    fig,
    alt=f"Ten new digits; below each what the decoder makes of the mean of its code, {share_right:.0%} of the pixels right; below those "
    "ten digits decoded from draws of the prior.",
)

# %% [markdown]
# ## How much does it know? Ask digits that it has not seen
#
# Weights $w_k = p_\theta(x, z_k) / q_\phi(z_k \mid x)$ at draws of the encoder estimate $p_\theta(x)$. The log of the mean of $K$ of them
# is a bound that rises with $K$ and tends to $\log p_\theta(x)$ (Burda, Grosse and Salakhutdinov 2015, arXiv 1509.00519); with $K = 1$ it
# is the ELBO. Whether a given $K$ is enough for *this* datum is what Pareto $\hat k$ judges, as in [when mean-field
# lies](05_when_mean_field_lies.md).
#
# With two latents we need not take its word: $p_\theta(x) = \int p_\theta(x \mid z)\, p(z)\, dz$ is a sum over a grid.

# %%
estimate = vip.amortized.log_likelihood(key_weigh, fitted, {"x": new}, num_samples=1_000, bounds=(1, 50), progress=False)

axis = np.linspace(-6, 6, 201)
grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
logits = decode(grid)
paper = np.logaddexp(0, logits).sum(1)
prior = norm.logpdf(grid).sum(1) + 2 * np.log(axis[1] - axis[0])


def exact(images):
    """log p(x) by quadrature over the two latents, nats, (N,)."""
    return np.array([logsumexp(logits @ image - paper + prior) for image in images])


log_p_new = exact(new)
figures = {"ELBO, K = 1": estimate.bounds[1], "K = 50": estimate.bounds[50], "K = 1,000": estimate.log_p, "exact": log_p_new}
pd.DataFrame(
    {"nats a datum": {k: v.mean() for k, v in figures.items()}, "largest lack": {k: (log_p_new - v).max() for k, v in figures.items()}}
).round(2)

# %% [markdown]
# The mean looks fine from $K = 50$ on. But for `{python} estimate.unreliable` of the 300 digits $\hat k$ says that the weights are not
# to be trusted, and for one of them the ELBO lacks `{python} f"{(log_p_new - estimate.bounds[1]).max():.0f}"` nats. What happens there?

# %% tags=["figure"]
worst = int(np.argmax(log_p_new - estimate.bounds[1]))
typical = int(np.argsort(log_p_new - estimate.bounds[1])[150])
fig, axes = plt.subplots(1, 2, figsize=(8, 3.6))
for ax, i, name in ((axes[0], typical, "a typical digit"), (axes[1], worst, "the worst")):
    density = np.exp(logits @ new[i] - paper + prior - log_p_new[i])
    ordered = np.sort(density)[::-1]
    levels = [ordered[np.searchsorted(np.cumsum(ordered), mass)] for mass in (0.95, 0.5)]
    ax.contour(axis, axis, density.reshape(201, 201), levels=levels, colors=GREY, linewidths=(1.2, 2.4))
    for radius, width in ((2.45, 1.2), (1.18, 2.4)):
        ring = m_new[i] + radius * s_new[i] * np.stack([np.cos(np.linspace(0, 2 * np.pi, 60)), np.sin(np.linspace(0, 2 * np.pi, 60))], 1)
        ax.plot(*ring.T, color=BLUE, linewidth=width)
    seen = grid[density > levels[0]]
    low, high = np.minimum(seen.min(0), m_new[i] - 3 * s_new[i]), np.maximum(seen.max(0), m_new[i] + 3 * s_new[i])
    middle, half = (low + high) / 2, 0.62 * (high - low).max()
    ax.set(
        xlim=(middle[0] - half, middle[0] + half),
        ylim=(middle[1] - half, middle[1] + half),
        aspect="equal",
        xlabel=r"$z_1$",
        ylabel=r"$z_2$",
    )
    ax.set_title(f"{name}, k-hat {estimate.khat[i]:.2f}")
    inset = ax.inset_axes((0.78, 0.74, 0.24, 0.24))
    ink(inset, new[i])
    inset.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    inset.axis("off")
axes[0].plot([], [], color=GREY, label="exact")
axes[0].plot([], [], color=BLUE, label="encoder")
axes[0].legend(loc="lower left")
lacks = [float((log_p_new - estimate.bounds[1])[i]) for i in (typical, worst)]
show(
    fig,
    alt=f"Exact posteriors of two codes by quadrature, with the encoder's ellipses. Typical digit: they overlap, the ELBO lacks "
    f"{lacks[0]:.2f} nats. Worst digit: the encoder's ellipse lies away from the exact posterior, and the ELBO lacks {lacks[1]:.1f} nats.",
)

# %% [markdown]
# The exact posterior of the worst digit is no odder than the others. The encoder looks in the wrong place: it has not seen such a digit.
# A $q$ of its own would find it. `vip.amortized.gaps` does just that: it gives each datum its own mean and sds, starts them where the
# encoder put them, and climbs. We ask it about 50 digits that the networks were trained on, and 50 new ones.

# %%
kept_out = (old[:, None] == fitted.held_out["x"]).all(-1).any(1)  # by vip.train itself, to know when to stop
seen = old[~kept_out]
both = np.concatenate([seen[:50], new[:50]])
gaps = vip.amortized.gaps(key_gaps, fitted, {"x": both}, num_samples=500, progress=False).table
gaps["log_p"] = exact(both)  # by quadrature, better than the estimate
gaps["approximation_gap"] = gaps.log_p - gaps.best_elbo
gaps["digits"] = np.repeat(["trained on", "new"], 50)
columns = ["elbo", "best_elbo", "log_p", "amortisation_gap", "approximation_gap"]
mean, error = (getattr(gaps.groupby("digits", sort=False)[columns], name)() for name in ("mean", "sem"))
mean.round(2)

# %% [markdown]
# Look where the networks' memory sits. The *amortisation* gap is `{python} f"{mean.amortisation_gap['trained on']:.2f}"` nats on digits
# that the encoder was trained on, and `{python} f"{mean.amortisation_gap['new']:.2f} ± {error.amortisation_gap['new']:.2f}"` on new ones:
# it is the *encoder* that overfits. A $q$ of a new digit's own comes within `{python} f"{mean.approximation_gap['new']:.2f}"` nats of $\log
# p(x)$, the *approximation* gap, and cannot pass it: there is nothing in it to overfit. (The decoder overfits too: $\log p$ itself is
# higher on digits that it knows. That comes of learning weights by maximum likelihood, amortised or not.)
#
# ## Does the code say anything? Posterior collapse
#
# A latent of which the encoder says the same for every image is idle: it *collapsed* onto the prior. Always look, since neither the loss
# nor the reconstructions cry out.

# %%
print(vip.amortized.active_units(key_units, fitted, {"x": new}))

# %% [markdown]
# Both numbers are in use. More latents often are not, and need not be: with a linear decoder, an idle unit is one whose direction in the
# data varies less than the noise (exercise 3; Lucas et al. 2019, arXiv 1911.02469).
#
# ## A VAE with a known end
#
# How do we know that such a training loop ends where it should? By one case that can be solved: a linear decoder with noise of one sd. Its
# likelihood is largest at the principal components (Tipping and Bishop 1999), and the best linear encoder is the exact posterior.
# The pattern [vae_linear](patterns/vae_linear.md) trains one by minibatches and is held to that.

# %%
pixels = vae_linear.data()
learned, _ = vae_linear.learn(key_linear, num_steps=2_000, **pixels)
learned = [np.asarray(learned[name], float) for name in ("offset", "loadings", "noise")]
best = vae_linear.maximum_likelihood(pixels["x"])
linear = pd.DataFrame(
    {
        "log p(x), nats a datum": [vae_linear.log_likelihood(pixels["x"], *p).mean() for p in (learned, best)],
        "noise sd": [float(learned[2]), best[2]],
        "first singular value of W": [np.linalg.svd(p[1])[1][0] for p in (learned, best)],
        "second": [np.linalg.svd(p[1])[1][1] for p in (learned, best)],
    },
    index=["trained", "closed form"],
).T
linear.round(4)

# %% [markdown]
# ## What the documents said
#
# **The VI note, on one parameter set per observation: "This is not scalable and will lead to over fitting."** The first half holds: the
# parameters grow with the data. The second does not. For given weights, $q_i$ only closes the gap between a bound and
# $\log p(x_i)$, which no $q$ can pass; the tighter, the better. Above, `{python} 2 * len(x)` free parameters reached
# $\log p$ exactly, and on digits it was the encoder that had learned its data by heart.
#
# **The note's amortised gradient** is printed for one $x$. The encoder must serve all of them, so the objective is a mean over $x$, and its
# gradient too. For one $x$ alone it vanishes at every encoder that happens to be right there:


# %%
def encoder_bound(phi, x):
    return jnp.mean(bound(x, phi[0] * x + phi[1], jnp.exp(phi[2])))


right_at_one = jnp.array([0.0, x[0] / 2, 0.5 * jnp.log(0.5)])
one_datum, all_data = grad(encoder_bound)(right_at_one, x[:1]), grad(encoder_bound)(right_at_one, x)
pd.DataFrame({"for this x": one_datum, "mean over x": all_data}, index=["slope", "offset", "log sd"]).round(3)

# %% [markdown]
# On a minibatch of $B$ rows the sum over them is scaled by $N / B$, or a mean is taken; `vip.train` does the latter.
#
# **The note's VAE loss** is $C \|x - f(z)\|^2 + \mathrm{KL}(q \,\|\, p)$, with $C$ left open. It is $-\mathrm{ELBO}$ plus a constant for
# *one* value, $C = 1 / (2 \sigma_x^2)$, where $\sigma_x$ is the sd of the pixels' noise. Any other $C$ is another model, of another noise:
# set the derivatives in our first model to zero, and the encoder ends at slope $2C / (1 + 2C)$ and variance $1 / (1 + 2C)$.


# %%
def note_loss(v, x, C):
    """The note's loss for f(z) = z, its mean over z in closed form."""
    m, log_s = v
    return C * ((x - m) ** 2 + jnp.exp(2 * log_s)) + 0.5 * (m**2 + jnp.exp(2 * log_s) - 1 - 2 * log_s)


def minus_elbo(v, x):
    return -bound(x, v[0], jnp.exp(v[1]))


rows, point = {}, jnp.array([0.3, -0.2])
for C in (0.5, 1.0, 5.0):
    ends = jnp.array([2 * C * 1.3 / (1 + 2 * C), -0.5 * jnp.log(1 + 2 * C)])
    assert np.abs(grad(note_loss)(ends, 1.3, C)).max() < 1e-5
    apart = np.abs(grad(note_loss)(point, 1.3, C) - grad(minus_elbo)(point, 1.3)).max()
    sd = (1 + 2 * C) ** -0.5
    lost = np.mean((2 * C * x / (1 + 2 * C) - x / 2) ** 2) + sd**2 - 0.5 - np.log(sd) + 0.5 * np.log(0.5)
    rows[C] = {"stands for a noise sd of": (2 * C) ** -0.5, "sd of q": sd, "gradients differ by": apart, "nats lost a datum": float(lost)}
constants = pd.DataFrame(rows).T.rename_axis("C")
constants.round(3)

# %% [markdown]
# The noise here is 1, so $C = 1/2$ is right; there the gradients agree and $q$ is exact. $C = 1$, the plain sum of squares, as many codes
# have it, gives a $q$ that is too narrow. And where $\sigma_x$ is learned, the "constant" $\tfrac D2 \log 2\pi\sigma_x^2$ is none.
#
# **"The latent representation will have linearly independent dimensions"**, says the note, because $q$'s covariance is diagonal. That makes
# them independent *given $x$*, in $q$. It is a limit of $q$, and the true posteriors do not follow it:


# %%
def correlation(image):
    """Of the two latents, in the exact posterior of an image."""
    weight = np.exp(logits @ image - paper + prior)
    return np.cov(grid.T, aweights=weight / weight.sum())[0, 1] / np.sqrt(np.prod(np.diag(np.cov(grid.T, aweights=weight / weight.sum()))))


correlations = np.array([correlation(image) for image in new[:60]])
print(
    f"|correlation| in the exact posteriors: median {np.median(np.abs(correlations)):.2f}, largest {np.abs(correlations).max():.2f}; in q 0"
)

# %% [markdown]
# ## What to copy
#
# ```python
# trained = vip.train(key, model, guide, {"x": x}, checkpoint="run.safetensors")
# print(vip.amortized.log_likelihood(key, trained))     # held-out log p(x), with errors and a k-hat a datum
# print(vip.amortized.gaps(key, trained))               # encoder or family: who loses the nats
# print(vip.amortized.active_units(key, trained))       # collapse
# ```
#
# or `vipatterns fit vae --out digits` for all that as one report. Start from [vae](patterns/vae.md); grey or coloured images:
# [vae_convolutional](patterns/vae_convolutional.md); labels or other inputs: [vae_conditional](patterns/vae_conditional.md); a family that
# loses too much: [vae_flow_posterior](patterns/vae_flow_posterior.md), [vae_importance_weighted](patterns/vae_importance_weighted.md);
# a linear map is enough: [vae_linear](patterns/vae_linear.md). Cluster models amortise as well:
# [gaussian_mixture_amortized](patterns/gaussian_mixture_amortized.md). Is amortisation worth it at all?
# [SVI or NUTS?](10_svi_or_nuts.md) looks at cost.
#
# ## Exercises
#
# ### 1. An encoder that is blind
#
# In the first model, fit a guide that gives every datum the same $q$. Where does it end, and how large is its amortisation gap? (Predict
# it: the KL of two Gaussians with equal sds is the squared distance of their means over twice the variance.)


# %% tags=["answer"]
def blind(x):
    m, s = numpyro.param("m", 1.0), numpyro.param("s", 2.0, constraint=positive)
    with numpyro.plate("datum", len(x)):
        numpyro.sample("z", dist.Normal(m, s))


found = {name: float(values[-1]) for name, values in path(key_exercises[1], blind, x, num_steps=2_000).items()}
gap = float(np.mean(log_p - bound(x, found["m"], found["s"])))
print(f"mean {found['m']:.3f}, sd {found['s']:.3f}; gap {gap:.4f}, predicted {np.var(x / 2):.4f} nats a datum")
assert abs(found["m"] - np.mean(x) / 2) < 0.02
assert abs(gap - np.var(x / 2)) < 2e-3

# %% [markdown]
# ### 2. More weights, a tighter bound
#
# For $x = 2$ take the prior itself as $q$. Estimate the bounds $L_1$, $L_{10}$ and $L_{100}$ by many groups of weights, and compare with
# $\log p(2)$ and with $L_1$ in closed form, $\mathbb E \log \mathcal N(2;\ z, 1)$.

# %% tags=["answer"]
log_w = norm.logpdf(2, random.normal(key_exercises[2], (4_000, 100)), 1)
bounds = {}
for K in (1, 10, 100):
    groups = logsumexp(log_w.reshape(-1, K), axis=1) - np.log(K)
    bounds[K] = groups.mean(), groups.std() / len(groups) ** 0.5
    print(f"L_{K:<4}{bounds[K][0]:8.4f} ± {bounds[K][1]:.4f}")
exact_l1 = -0.5 * np.log(2 * np.pi) - 0.5 * (2**2 + 1)
print(f"exact: L_1 {exact_l1:.4f}, log p(2) {norm.logpdf(2, 0, 2**0.5):.4f}")
assert abs(bounds[1][0] - exact_l1) < 4 * bounds[1][1]
assert bounds[1][0] < bounds[10][0] < bounds[100][0] < norm.logpdf(2, 0, 2**0.5)

# %% [markdown]
# ### 3. A unit that the data have no use for
#
# Data of three columns with variances $4$, $1.5$ and $0.25$; a linear decoder of three latents with noise of sd 1, *fixed*. The
# likelihood is largest where a unit's squared loading is the variance less the noise's, and zero where that is negative. How many units
# will be active? Train it and ask.

# %% tags=["answer"]
key_columns, key_fit, key_active = random.split(key_exercises[3], 3)
columns, others = np.asarray(random.normal(key_columns, (2, 2_000, 3)) * jnp.sqrt(jnp.array([4.0, 1.5, 0.25])))


def linear_model(y=None, num=1):
    W = numpyro.param("W", 0.3 * jnp.ones((3, 3)) + jnp.eye(3))
    with numpyro.plate("row", num if y is None else len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(z @ W, 1.0).to_event(1), obs=y)


def linear_guide(y=None, num=1):
    V, s = numpyro.param("V", jnp.zeros((3, 3))), numpyro.param("s", jnp.ones(3), constraint=positive)
    with numpyro.plate("row", len(y)):
        numpyro.sample("z", dist.Normal(y @ V, s).to_event(1))


rate = optax.adam(optax.cosine_decay_schedule(0.02, 40 * 15))
lin = vip.train(
    key_fit, linear_model, linear_guide, {"y": columns}, held_out={"y": others}, num_epochs=40, patience=40, optimizer=rate, progress=False
)
units = vip.amortized.active_units(key_active, lin)
squared = np.sort((np.asarray(lin.params["W"]) ** 2).sum(1))[::-1]
predicted = np.maximum(np.sort(np.linalg.eigvalsh(np.cov(columns.T)))[::-1] - 1, 0)
print(f"{units.sentence}\nsquared loadings {squared.round(2)}, predicted {predicted.round(2)}")
assert units.number == 2
assert np.abs(squared - predicted).max() < 0.3

# %% [markdown]
# ## The check
#
# The page checks itself: the linear VAE ends at its maximum likelihood, the estimates of $\log p(x)$ agree with quadrature within their
# Monte Carlo error, no bound passes it, no datum's own $q$ is worse than the encoder's, and a decoder that ignores its code is beaten.

# %%
short = linear["closed form"].iloc[0] - linear["trained"].iloc[0]
assert 0 <= short < 1e-3
assert np.abs(linear["trained"] / linear["closed form"] - 1).iloc[1:].max() < 0.01

assert fitted.stopped_because.startswith("converged")
assert abs(np.exp(prior).sum() - 1) < 1e-6
sure = estimate.khat < 0.5
assert sure.sum() > 50
assert np.abs((estimate.log_p - log_p_new) / estimate.mcse)[sure].max() < 5
assert (np.diff([estimate.bounds[1], estimate.bounds[50], estimate.log_p], axis=0) > -1e-6).all()
assert (estimate.log_p - log_p_new < 5 * estimate.mcse).all()

assert (gaps.amortisation_gap > -5 * gaps.amortisation_gap_mcse).all()
assert (gaps.approximation_gap > -5 * gaps.best_elbo_mcse).all()
assert mean.amortisation_gap["new"] - mean.amortisation_gap["trained on"] > 2 * error.amortisation_gap.max()

rival = log_p_new - np.asarray(vae.independent(old, new))
assert rival.mean() > 10 * rival.std() / len(rival) ** 0.5

assert np.abs(one_datum).max() < 1e-5 < 0.1 < np.abs(all_data).max()
assert constants["gradients differ by"][0.5] < 1e-5 < 0.1 < constants["gradients differ by"].drop(0.5).min()
assert constants["nats lost a datum"][0.5] < 1e-6 < 0.01 < constants["nats lost a datum"].drop(0.5).min()
