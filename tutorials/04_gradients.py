# %% [markdown]
# # Gradients: score function, reparameterisation and their variance
#
# To climb the ELBO you need its gradient, and the ELBO is an average over draws of a guide that the climb itself moves. How do you
# differentiate an average with respect to what it is averaged over? There are two ways. Both are right on average, and one can need
# twenty times as many draws as the other. **Which one, when, and why?**

# %%
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from figures import BLUE, GREEN, GREY, ORANGE, PURPLE, moving, plt, show
from jax import random
from numpyro.infer import Trace_ELBO
from scipy import stats
from scipy.special import digamma, expit, gammainc, polygamma

from vipatterns.objectives import ScoreFunction, StickingTheLanding
from vipatterns.patterns import gamma_poisson_implicit, gaussian_mean, gaussian_mean_control_variate
from vipatterns.patterns import gaussian_mean_sticking_the_landing as landing

# %% tags=["figure"]


def variance_of_score(mu, a=0.0):
    """Of (z^2 - a) (z - mu), z from N(mu, 1)."""
    return mu**4 + 14 * mu**2 + 15 - 2 * a * (mu**2 + 3) + a**2


variance_of_slope = 4.0  # of 2 z, at every mu
fig, ax = plt.subplots()
noise = np.random.default_rng(0).normal(size=50_000)
mus, frames, captions = np.linspace(-3, 3, 13), [], []
bins = np.linspace(-40, 40, 81)
for mu in mus:
    z = mu + noise
    frame = [ax.axvline(2 * mu, color=GREY, linestyle=":")]
    for estimates, colour in [(z**2 * (z - mu), ORANGE), (2 * z, BLUE)]:
        height, _ = np.histogram(estimates, bins)
        frame.append(ax.stairs(height / len(z), bins, color=colour, linewidth=1.5))
    frames.append(frame)
    by = f"score function {variance_of_score(mu):.0f}, reparameterised {variance_of_slope:.0f}"
    captions.append(f"μ = {mu:.1f}: both average to {2 * mu:.0f} (dotted). Variance of one draw: {by}.")
ax.plot([], color=ORANGE, label="score function")
ax.plot([], color=BLUE, label="reparameterised")
ax.set(xlabel="one draw's estimate of the gradient", ylabel="share of draws", xlim=(-40, 40), ylim=(0, 0.35))
ax.legend(loc="upper left")
moving(
    fig,
    frames,
    captions,
    label="μ",
    start=10,
    alt=f"Histograms of two estimators of one gradient, for {len(mus)} values of mu. The reparameterised one is a narrow bell about the "
    "true value wherever mu is. The score function's has a spike near zero and long tails, which grow as mu moves away from zero.",
)

# %% [markdown]
# Each draw of $z$ gives one estimate of the gradient of $\mathbb E[z^2]$, $z \sim \mathcal N(\mu, 1)$, which is $2 \mu$. Move $\mu$: the
# same draws feed both histograms.
#
# ## Two ways to differentiate an average
#
# We want $\nabla_\mu \mathbb E_{q_\mu}[f(z)]$, where $\mu$ is in the *distribution*, and not in $f$.
#
# **Score function.** Differentiate the density, and use $\nabla q = q \, \nabla \log q$:
#
# $$\nabla_\mu \int q_\mu(z) f(z)\, dz = \mathbb E_{q_\mu}\big[f(z)\, \nabla_\mu \log q_\mu(z)\big].$$
#
# It needs the *values* of $f$ alone. $f$ may be a black box, $z$ may be discrete.
#
# **Reparameterisation.** Write the draw as a function of noise that knows nothing of $\mu$, here $z = \mu + \varepsilon$ with
# $\varepsilon \sim \mathcal N(0, 1)$. Now $\mu$ is inside, and the chain rule does the rest:
#
# $$\nabla_\mu \mathbb E_\varepsilon\big[f(\mu + \varepsilon)\big] = \mathbb E_\varepsilon\big[f'(\mu + \varepsilon)\big].$$
#
# It needs the *slope* of $f$. In code each is one line; the mean and variance of both are known in closed form for $f(z) = z^2$:

# %%
mu = 2.0
z = mu + np.random.default_rng(1).normal(size=200_000)
score = z - mu  # d/dmu log N(z; mu, 1)
estimators = {
    "score function": (z**2 * score, variance_of_score(mu)),
    "with the mean of f taken off": ((z**2 - (mu**2 + 1)) * score, variance_of_score(mu, mu**2 + 1)),
    "with the best number taken off": ((z**2 - (mu**2 + 3)) * score, 8 * mu**2 + 6),
    "reparameterised": (2 * z, variance_of_slope),
}


def far(draws, exact):
    """How far the mean of the draws is from the exact value, in its standard errors."""
    return np.max(np.abs(np.mean(draws, 0) - exact) / (np.std(draws, 0) / np.sqrt(len(draws))))


print(f"{'':32}{'mean':>8}{'exact':>7}{'variance':>12}{'exact':>7}")
for name, (g, variance) in estimators.items():
    print(f"{name:32}{g.mean():8.3f}{2 * mu:7.0f}{g.var():12.2f}{variance:7.0f}")
    assert far(g, 2 * mu) < 4.5
    assert far((g - g.mean()) ** 2, variance) < 4.5

# %% [markdown]
# At $\mu = 2$ the score function's variance is $\mu^4 + 14\mu^2 + 15 = 87$, the reparameterised gradient's is
# `{python} f"{variance_of_slope:.0f}"`, at every $\mu$. Variance divides by the number of draws, so the first needs
# `{python} f"{variance_of_score(2.0) / variance_of_slope:.0f}"` times as many draws as the second for the same error.
#
# ## Baselines: a number that changes nothing but the noise
#
# Why is the score function so noisy? It multiplies every score by the *value* of $f$, wherever its zero happens to lie. Add a thousand to
# $f$: the gradient is the same, the noise immense. So take a number off. The score has mean zero, hence for any $a$ that does not depend
# on the draw
#
# $$\mathbb E\big[(f(z) - a)\, \nabla \log q(z)\big] = \mathbb E\big[f(z)\, \nabla \log q(z)\big],$$
#
# and the variance is a parabola in $a$, lowest at $a^* = \mathbb E[f\, s^2] / \mathbb E[s^2]$, where $s$ is the score. Here
# $a^* = \mu^2 + 3$, which leaves $8\mu^2 + 6$.

# %% tags=["figure"]
fig, ax = plt.subplots()
a = np.linspace(-2, 17, 100)
ax.plot(a, variance_of_score(2.0, a), color=ORANGE)
ax.axhline(variance_of_slope, color=BLUE)
ax.text(16.9, 6, "reparameterised", color=BLUE, ha="right")
for at, label, offset in [(0.0, "nothing", (5, 7)), (5.0, "mean of f", (-4, 9)), (7.0, "a*", (-8, -16))]:
    ax.plot(at, variance_of_score(2.0, at), "o", color=ORANGE)
    ax.annotate(f"{label}: {variance_of_score(2.0, at):.0f}", (at, variance_of_score(2.0, at)), offset, textcoords="offset points")
ax.set(xlabel="number taken off f", ylabel="variance of one draw", ylim=(0, 150))
lows = [f"{variance_of_score(2.0, at):.0f}" for at in (0.0, 5.0, 7.0)]
alt = (
    f"The variance of the score function against the number that is taken off: a parabola through {lows[0]} at nothing, {lows[1]} at the "
    f"mean of f and {lows[2]} at its lowest. The reparameterised gradient is a flat line at {variance_of_slope:.0f}."
)
show(fig, alt=alt)

# %% [markdown]
# In the ELBO $f = \log p(y, z) - \log q(z)$, which changes from step to step, and so must $a$. The usual choices: the average $f$ of the
# steps before; of the *other* draws of this step (leave one out); or $a^*$, estimated from the other draws. What each is worth for the
# mean of a hundred measurements (the pattern [gaussian mean](patterns/gaussian_mean.md)), as the exact variance of the gradient in $m$
# with 32 draws of $q = \mathcal N(m, s^2)$:

# %%
y = gaussian_mean.data()["y"]
posterior_mean, precision = y.sum() / 101, 101
places = {
    "prior": {"m": 0.0, "log_s": 0.0},
    "halfway": {"m": posterior_mean / 2, "log_s": -0.25 * math.log(precision)},
    "posterior": {"m": posterior_mean, "log_s": -0.5 * math.log(precision)},
}
print(f"{'taken off':16}" + "".join(f"{name:>14}" for name in places))
for kind in gaussian_mean_control_variate.KINDS:
    of = [gaussian_mean_control_variate.variance(kind, params, y)["m"] for params in places.values()]
    print(f"{kind:16}" + "".join(f"{v:14.2f}" for v in of))

# %% [markdown]
# Without a baseline the noise never ends, not even on the posterior: there $f$ is $\log p(y)$ at every draw,
# `{python} f"{gaussian_mean.log_evidence(y):.0f}"` nats, and each score is multiplied by it. With one it ends here, where the guide can
# be the posterior. `vip.objectives.ScoreFunction` has all four; leave one out is its default.
#
# ## Rao-Blackwell: leave out what does not depend on the draw
#
# A model of many rows has many draws, and most terms of $f$ have nothing to do with most of them. Row $i$'s draw changes row $i$'s terms
# alone, so its score should be multiplied by those, and the other rows' terms, independent of it, only add noise. Here are rows with a
# hidden bit each, $x_i \sim \mathcal N(2 z_i, 1)$:


# %%
def bits(x):
    with numpyro.plate("row", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)


def bits_guide(x):
    logits = numpyro.param("logits", jnp.zeros(len(x)))
    with numpyro.plate("row", len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=logits))


def exact_variance(x, logits, alone):
    """Of one draw's gradient in the first row's logit, its score multiplied by that row's terms `alone` or by all; sums over 0 and 1."""
    p = np.stack([1 - expit(logits), expit(logits)])  # (bit, row)
    bit = np.array([[0.0], [1.0]])
    cost = stats.norm.logpdf(x, 2 * bit) + math.log(0.5) - np.log(p)
    mean, spread = (p * cost).sum(0), (p * (cost - (p * cost).sum(0)) ** 2).sum(0)
    others = 0.0 if alone else mean[1:].sum()
    square = 0.0 if alone else others**2 + spread[1:].sum()
    s, c, w = bit[:, 0] - p[1, 0], cost[:, 0], p[:, 0]
    return w @ (s**2 * (c**2 + 2 * c * others + square)) - (w @ (s * c)) ** 2


def gradients(rng_key, objective, model, guide, params, num_draws):
    """Independent estimates of the ELBO's gradient: parameter -> (num_draws, ...), in float64."""
    with jax.enable_x64(True):
        params = {name: jnp.asarray(value, float) for name, value in params.items()}

        def one(key):
            return jax.grad(lambda p: -objective.loss(key, p, model, guide))(params)

        return {k: np.asarray(g) for k, g in jax.jit(jax.vmap(one))(random.split(rng_key, num_draws)).items()}


x, logits = np.array([0.2, 1.7, -0.9, 2.4]), np.array([0.3, -0.8, 0.5, 1.0])
key_all, key_own, key_trace, key_path = random.split(random.key(0), 4)
lines = []
for key, alone, name in [(key_all, False, "all terms"), (key_own, True, "own terms")]:
    objective = ScoreFunction(1, control_variate="none", rao_blackwellize=alone)
    g = gradients(key, objective, lambda: bits(x), lambda: bits_guide(x), {"logits": logits}, 20_000)["logits"][:, 0]
    lines.append(f"{name}: variance {g.var():.3f}, exact {exact_variance(x, logits, alone):.3f}; mean {g.mean():.3f}")
    assert far((g - g.mean()) ** 2, exact_variance(x, logits, alone)) < 4.5
print("\n".join(lines))

# %% tags=["figure"]
fig, ax = plt.subplots()
rows = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
by_rows = {alone: [exact_variance(np.resize(x, n), np.resize(logits, n), alone) for n in rows] for alone in (False, True)}
ax.plot(rows, by_rows[False], "o-", color=ORANGE, label="all terms")
ax.plot(rows, by_rows[True], "o-", color=GREEN, label="own terms")
ax.set(xscale="log", yscale="log", xlabel="rows", ylabel="variance, first row's logit")
ax.legend()
alt = (
    "On logarithmic axes, the variance of one row's gradient against the number of rows. With its own terms alone it stays at "
    f"{by_rows[True][0]:.2g}; with all terms it grows as the square of the rows, to {by_rows[False][-1]:.2g} at {rows[-1]} rows."
)
show(fig, alt=alt)

# %% [markdown]
# With all terms the noise grows as the square of the number of rows; with its own it does not grow at all. `ScoreFunction` reads off the
# program which terms depend on which draw, plate or no plate. It is the first thing to do, before any baseline. Reparameterised gradients
# need none of this: the slope of a term that does not depend on $z$ is zero already.
#
# ## Sticking the landing
#
# In the ELBO the parameters $v$ stand in two places: in the draw, and in $\log q_v$ itself. With $z = t(\varepsilon, v)$,
#
# $$\begin{aligned}
# & \frac{\mathrm d}{\mathrm d v}\big[\log p(y, z) - \log q_v(z)\big] \\
# & \quad = \underbrace{\nabla_v t \; \nabla_z \big[\log p(y, z) - \log q_v(z)\big]}_{\text{path}} \\
# & \qquad - \underbrace{\nabla_v \log q_v(z)}_{\text{score}}.
# \end{aligned}$$
#
# The left side is what automatic differentiation gives, the *total* derivative. The score has mean zero: leave it out, and the rest is
# still unbiased. At the posterior $\log p(y, z) - \log q(z)$ is flat, so the path term vanishes *for every draw*, and the score is all
# the noise there is.


# %%
def measurements():
    gaussian_mean.model(y)


def measurements_guide():
    numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), jnp.exp(numpyro.param("log_s", 0.0))))


def at_posterior(key, objective):
    found = gradients(key, objective, measurements, measurements_guide, places["posterior"], 20_000)
    return np.stack([found["m"], found["log_s"]], 1)


total = at_posterior(key_trace, Trace_ELBO())
path = at_posterior(key_path, StickingTheLanding())
print(f"total derivative (Trace_ELBO): variance {total[:, 0].var():.1f} for m, {total[:, 1].var():.2f} for log s; exact 101 and 2")
print(f"path (StickingTheLanding): the largest of {len(path):,} gradients is {np.abs(path).max():.0e}")
assert far((total - total.mean(0)) ** 2, [101, 2]) < 4.5
assert np.abs(path).max() < 1e-9

# %% [markdown]
# That is worth seeing. Here three climbers set out from the same guide, with the same noise, two draws a step, and the same fixed step
# length, which should never come to rest:


# %%
def climb(kind, num_steps=1_500, rate=0.005, num_draws=2):
    """(num_steps + 1, 2): m and log s on the way; all gradients in closed form."""
    rng, v, trail = np.random.default_rng(2), np.array([1.5, math.log(0.3)]), []
    for _ in range(num_steps + 1):
        trail.append(v)
        eps, s = rng.normal(size=num_draws), math.exp(v[1])
        r, c = precision * s**2, precision * s * (posterior_mean - v[0])
        if kind == "path":
            g = np.stack([(c + (1 - r) * eps) / s, c * eps + (1 - r) * eps**2])
        elif kind == "total":
            g = np.stack([(c - r * eps) / s, c * eps - r * eps**2 + 1])
        else:  # score function, its mean taken off
            g = np.stack([eps / s, eps**2 - 1]) * (c * eps + (1 - r) / 2 * (eps**2 - 1))
        v = v + rate * g.mean(1)
    return np.array(trail)


def divergence(v):
    """KL(q || posterior), nats: what the ELBO lacks of log p(y)."""
    r = precision * np.exp(2 * v[..., 1])
    return 0.5 * (r - 1 - np.log(r) + precision * (v[..., 0] - posterior_mean) ** 2)


climbers = {kind: climb(kind) for kind in ("score", "total", "path")}
for kind, trail in climbers.items():
    print(f"{kind:6} KL after 100 steps {divergence(trail[100]):.2g}, mean of the last 100 {divergence(trail[-100:]).mean():.2g}")
farthest = {kind: np.abs(trail[:, 0] - posterior_mean).max() for kind, trail in climbers.items()}
landed = {kind: divergence(trail[-100:]).mean() for kind, trail in climbers.items()}
assert max(landed["path"], landed["score"]) < 1e-10
assert max(farthest, key=farthest.get) == "score"
assert 0.01 < landed["total"] < 1

# %% tags=["figure"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
colours = {"score": ORANGE, "total": PURPLE, "path": BLUE}
stops = [2, 5, 10, 20, 30, 50, 80, 120, 200, 300, 450, 700, 1_000, 1_500]
shown = np.unique(np.append(np.geomspace(1, 1_500, 50).astype(int), stops))
walked = np.unique(np.append(np.arange(40), shown))
frames, captions = [], []
for stop in stops:
    frame = []
    for kind, trail in climbers.items():
        frame += left.plot(*trail[walked[walked <= stop]].T, color=colours[kind], linewidth=1)
        frame += left.plot(*trail[stop], "o", color=colours[kind], markersize=4)
        upto = shown[shown <= stop]
        frame += right.plot(upto, np.maximum(divergence(trail[upto]), 1e-12), color=colours[kind], linewidth=1)
    frames.append(frame)
    captions.append(
        f"Step {stop}. KL: " + ", ".join(f"{kind} {divergence(trail[stop]):.1g}" for kind, trail in climbers.items()) + " nats."
    )
left.plot(posterior_mean, -0.5 * math.log(precision), "+", color=GREY, markersize=16, zorder=10)
left.set(xlabel="m", ylabel="log s", xlim=(1.4, 2.55), ylim=(-2.6, -1.1))
for kind, colour in colours.items():
    right.plot([], color=colour, label=kind)
right.set(xscale="log", yscale="log", xlabel="step", ylabel="KL to the posterior, nats", xlim=(1, 1_500), ylim=(1e-12, 30))
right.legend()
alt = (
    "Left, the ways of three climbers in the plane of m and log s, from one start to the posterior, a cross. Right, their KL to the "
    "posterior on logarithmic axes. The total derivative's stays level after the first few hundred steps; those of the path derivative and "
    "of the score function with its mean taken off fall on and on."
)
moving(fig, frames, captions, alt=alt, label="step")

# %% [markdown]
# All three wander at first, the score function the farthest. Then the total derivative trembles about the posterior for as long as you
# let it, while the path derivative lands. So does the score function here: with its mean taken off, its noise ends too where $f$ is flat.
# Both need a guide that *can* be the posterior; most cannot, and then some noise stays, as a rule less of it. And the path is not always
# the quieter one. With $r$ the guide's variance in units of the posterior's, the variances for $m$ are $(1 - r)^2 / s^2$ and $r^2 / s^2$:
# for $r < \tfrac12$, a guide that is far too narrow, the total derivative wins.
#
# ## When there is no formula for the draw
#
# A normal draw is $m + s\varepsilon$. A gamma draw comes out of a rejection sampler, and no formula leads from noise to draw. Yet every
# draw has a quantile. Change the shape $\alpha$, and the draw that *keeps its quantile* moves: from $F(z; \alpha) = u$ with $u$ fixed,
#
# $$\frac{\mathrm d z}{\mathrm d \alpha} = - \frac{\partial F(z; \alpha) / \partial \alpha}{q(z; \alpha)}.$$
#
# These are *implicit* gradients. No inverse of $F$ is needed, only its slope, and whatever sampler made the draw will do.

# %% tags=["figure"]
fig, ax = plt.subplots()
shapes, quantiles = np.linspace(1.2, 6.4, 14), np.linspace(0.1, 0.9, 9)
at = np.linspace(0.02, 12, 120)
frames, captions = [], []
for shape in shapes:
    q = stats.gamma(shape)
    dots = q.ppf(quantiles)
    speed = -(gammainc(shape + 1e-5, dots) - gammainc(shape - 1e-5, dots)) / 2e-5 / q.pdf(dots)
    frame = ax.plot(at, q.pdf(at), color=GREY) + ax.plot(dots, q.pdf(dots), "o", color=BLUE, markersize=4)
    frame.append(ax.quiver(dots, q.pdf(dots), speed, 0 * speed, angles="xy", scale_units="xy", scale=1.5, color=BLUE, width=0.004))
    frames.append(frame)
    captions.append(f"Shape {shape:.1f}. The draw at the median is {dots[4]:.2f}, and moves by {speed[4]:.2f} for each unit of shape.")
ax.set(xlabel="z", ylabel="density", xlim=(0, 12), ylim=(0, 0.8))
alt = (
    f"The density of a gamma distribution at {len(shapes)} shapes, and on it {len(quantiles)} dots that keep their quantiles, each with an "
    "arrow: where it goes as the shape grows. All arrows point right, those of large draws are longer."
)
moving(fig, frames, captions, alt=alt, label="shape α", start=6)

# %% [markdown]
# JAX has this built in: `jax.random.gamma` can be differentiated in its shape, and so can what is built on it (beta, Dirichlet, Student
# t). Against the definition, and against $\nabla_\alpha \mathbb E[z^2] = 2\alpha + 1$:

# %%
with jax.enable_x64(True):
    shape = 2.5
    z_gamma, moves = jax.jvp(lambda shape: random.gamma(random.key(1), shape, (50_000,)), (shape,), (1.0,))
z_gamma, moves = np.asarray(z_gamma), np.asarray(moves)
by_definition = -(gammainc(shape + 1e-5, z_gamma) - gammainc(shape - 1e-5, z_gamma)) / 2e-5 / stats.gamma.pdf(z_gamma, shape)
implicit, scored = 2 * z_gamma * moves, z_gamma**2 * (np.log(z_gamma) - digamma(shape))
print(f"exact gradient {2 * shape + 1:.2f}")
for name, g in [("implicit", implicit), ("score", scored)]:
    print(f"{name:14} {g.mean():.2f}, variance of one draw {g.var():.1f}")
np.testing.assert_allclose(moves, by_definition, rtol=1e-3)
assert far(implicit, 2 * shape + 1) < 4.5
assert far(scored, 2 * shape + 1) < 4.5

# %% [markdown]
# And in an ELBO, exactly (by quadrature): deaths by horse kick, a Poisson rate with a gamma guide, from the pattern
# [gamma poisson implicit](patterns/gamma_poisson_implicit.md). Variances of one draw's gradient:

# %%
kicks = gamma_poisson_implicit.data()["y"]
a_posterior, b_posterior = gamma_poisson_implicit.conjugate(kicks)
guides = {
    "prior": {"log_mean": 0.0, "log_shape": 0.0},
    "posterior": {"log_mean": math.log(a_posterior / b_posterior), "log_shape": math.log(a_posterior)},
}
by_quadrature = {}
with jax.enable_x64(True):
    for kind in gamma_poisson_implicit.KINDS:
        measure = jax.jit(lambda params, kind=kind: gamma_poisson_implicit.moments(kind, params, kicks))
        by_quadrature[kind] = {name: {k: float(v) for k, (_, v) in measure(params).items()} for name, params in guides.items()}
print(f"{'':10}" + "".join(f"{f'{name}, {k}':>23}" for name, params in guides.items() for k in params))
for kind, found in by_quadrature.items():
    print(f"{kind:10}" + "".join(f"{v:23.2f}" for params in found.values() for v in params.values()))

# %% [markdown]
# ## What the documents said
#
# The VI note has a section on each gradient.
#
# **"The approximation of the gradient has high variance"**, of the score function: it holds, as you saw, and so does that it asks for
# nothing but values of the model.
#
# **"We have a simpler gradient"**: $\mathbb E_{s(\varepsilon)}[\nabla_z [\log p(x, z) - \log q_v(z)]\, \nabla_v t(\varepsilon, v)]$, it
# says of reparameterisation. That is the *path* derivative of the last section but one. It is correct on average, and, as the note does
# not tell, it is no longer the derivative of the ELBO that was estimated: $-\nabla_v \log q_v(z)$ was left out, whose mean is zero. Draw
# by draw:

# %%
with jax.enable_x64(True):

    def log_weight(v, of_q, eps):
        z = v[0] + jnp.exp(v[1]) * eps
        log_p = dist.Normal(0, 1).log_prob(z) + dist.Normal(z, 1).log_prob(y).sum()
        return log_p - dist.Normal(of_q[0], jnp.exp(of_q[1])).log_prob(z)

    v, eps = jnp.array([1.5, -1.0]), np.random.default_rng(3).normal(size=20_000)
    whole = jax.vmap(jax.grad(lambda v, eps: log_weight(v, v, eps)), (None, 0))(v, eps)
    printed = jax.vmap(jax.grad(log_weight), (None, None, 0))(v, v, eps)
    whole, printed = np.asarray(whole), np.asarray(printed)
left_out = np.stack([eps / math.exp(-1.0), eps**2 - 1], 1)
np.testing.assert_allclose(whole, printed - left_out, rtol=1e-8, atol=1e-8)
exact = np.array([y.sum() - precision * 1.5, 1 - precision * math.exp(-2.0)])
print("exact gradient   ", exact.round(2))
print("printed gradient ", printed.mean(0).round(2), " left out ", left_out.mean(0).round(3))
assert far(printed, exact) < 4.5
assert far(left_out, 0) < 4.5

# %% [markdown]
# **"See Ruiz et al. (2016) for more discussion on reparameterisation gradient."** Theirs is the *generalised* reparameterisation
# gradient, for when the noise cannot be made free of $v$: then the change of the noise's own density must be added. (The plain trick is
# due to Kingma and Welling, and to Rezende, Mohamed and Wierstra.) For a gamma, standardise $\log z$:
# $\varepsilon = (\log z - \psi(\alpha)) / \sqrt{\psi'(\alpha)}$ has mean 0 and variance 1, and still depends on $\alpha$ in its shape. By
# quadrature, for $\mathbb E[z^2]$ again:

# %%
log_z = np.linspace(-30, 5, 20_001)
zs = np.exp(log_z)
mass = np.exp(shape * log_z - zs - math.lgamma(shape)) * (log_z[1] - log_z[0])
one, two = polygamma(1, shape), polygamma(2, shape)
moved = zs * ((log_z - digamma(shape)) * two / (2 * one) + one)  # dz / dshape, eps held
correction = ((shape - 1) / zs - 1) * moved + log_z - digamma(shape) + moved / zs + two / (2 * one)
uncorrected, corrected = mass @ (2 * zs * moved), mass @ (2 * zs * moved + zs**2 * correction)
print(f"exact {2 * shape + 1:.4f}; noise held, nothing added {uncorrected:.4f}; with the correction {corrected:.4f}")
assert abs(corrected - (2 * shape + 1)) < 1e-6 < abs(uncorrected - (2 * shape + 1))

# %% [markdown]
# Uncorrected it would be biased. For a Gaussian the noise is free of $v$, the correction is zero, and the plain trick is back. (The
# note's sign, $\log p(x) = L - D_{KL}$, is put right [two pages back](02_elbo.md).)
#
# ## What to copy
#
# - **Draws that can be reparameterised** (normal, gamma, beta, Dirichlet, Student t ...): do nothing. NumPyro's `Trace_ELBO` takes that
#   gradient. Given a discrete draw it only warns, and then trains on a biased one.
# - **The last digits matter**: `vip.fit(key, model, data, method=vip.Guide(guide, objective=vip.objectives.StickingTheLanding(8)))`; the
#   pattern [sticking the landing](patterns/gaussian_mean_sticking_the_landing.md) writes it out.
# - **Discrete draws, or a model that has no slope**: `vip.objectives.ScoreFunction(8)`, which leaves out what does not depend on a draw,
#   takes the mean of the other draws off, and stays unbiased when a plate is subsampled (NumPyro's own `TraceGraph_ELBO` counts the
#   plate's scale twice there). Written out: [score function](patterns/gaussian_mean_score_function.md) and
#   [its control variates](patterns/gaussian_mean_control_variate.md).
# - **A gamma guide**: [gamma poisson implicit](patterns/gamma_poisson_implicit.md).
#
# ## Exercises
#
# ### A baseline that peeks
#
# Take off each draw's $f$ the mean of *all* $K$ draws of the step, its own among them, where leave one out takes the others' alone. Is
# the estimate still right? By what factor is it off? Work it out, then measure it at $\mu = 2$ with $K = 4$.

# %% tags=["answer"]
noise = np.random.default_rng(4).normal(size=(50_000, 4))
f = (2.0 + noise) ** 2
peeking = ((f - f.mean(1, keepdims=True)) * noise).mean(1)
others = (f.sum(1, keepdims=True) - f) / 3
leaving = ((f - others) * noise).mean(1)
print(f"exact 4; leave one out {leaving.mean():.3f}; all four {peeking.mean():.3f}, that is 3/4 of it")
# Of the mean, 1/K is the draw's own f: the estimate is short by the factor (K - 1) / K. Adam would never notice; the ELBO's scale would.
assert far(leaving, 4.0) < 4.5
assert far(peeking, 3.0) < 4.5

# %% [markdown]
# ### No slope to follow
#
# Let $f(z) = 1$ where $z > 0$ and 0 elsewhere, $z \sim \mathcal N(\mu, 1)$. What is the gradient of $\mathbb E f$ in $\mu$? What do the
# two estimators say?

# %% tags=["answer"]
z_step = 0.5 + np.random.default_rng(5).normal(size=200_000)
by_score = (z_step > 0) * (z_step - 0.5)
by_slope = jax.vmap(jax.grad(lambda z: jnp.where(z > 0, 1.0, 0.0)))(jnp.asarray(z_step))
print(f"exact {stats.norm.pdf(0.5):.4f}; score function {by_score.mean():.4f}; reparameterised {float(by_slope.mean()):.4f}")
# E f = P(z > 0) = Phi(mu): its slope is phi(mu). The slope of f is 0 wherever there is one: reparameterisation needs f to be continuous.
assert far(by_score, stats.norm.pdf(0.5)) < 4.5
assert float(jnp.abs(by_slope).max()) == 0

# %% [markdown]
# ### When the score function wins
#
# Let $f(z) = \sin(k z)$, $z \sim \mathcal N(0, 1)$. For which $k$ is the score function the quieter one? (As $k$ grows $f$ stays between
# -1 and 1, its slope does not.)


# %% tags=["answer"]
def variances(k):
    """Of one draw: score function z sin(kz), reparameterised k cos(kz)."""
    mean = k * math.exp(-(k**2) / 2)
    return (1 - (1 - 4 * k**2) * math.exp(-2 * k**2)) / 2 - mean**2, k**2 * (1 + math.exp(-2 * k**2)) / 2 - mean**2


z_wave = np.random.default_rng(6).normal(size=200_000)
for k in (0.5, 1.0, 2.0, 5.0):
    by_score, by_slope = variances(k)
    print(f"k = {k}: score function {by_score:.3f}, reparameterised {by_slope:.3f}")
    assert far((z_wave * np.sin(k * z_wave) - k * math.exp(-(k**2) / 2)) ** 2, by_score) < 4.5
    assert far((k * np.cos(k * z_wave) - k * math.exp(-(k**2) / 2)) ** 2, by_slope) < 4.5
# A function that is bounded and steep has values that say more than its slopes. A log density is seldom like that.
assert variances(0.5)[0] > variances(0.5)[1]
assert variances(5.0)[0] < variances(5.0)[1] / 20

# %% [markdown]
# ## The check
#
# The page checks itself: every estimate above was held to its exact mean or variance within Monte Carlo error where it was made, and the
# closed forms are held here to integrals.

# %%
node, weight = np.polynomial.hermite_e.hermegauss(40)
weight = weight / weight.sum()


def variance_by_quadrature(estimate):
    return weight @ estimate**2 - (weight @ estimate) ** 2


values = (2.0 + node) ** 2
found = [variance_by_quadrature(g) for g in (values * node, (values - 7) * node, 2 * (2 + node))]
np.testing.assert_allclose(found, [87, 38, 4], rtol=1e-10)
assert found[0] / found[2] > 20  # the page's first lines
np.testing.assert_allclose([estimators[k][1] for k in ("score function", "with the best number taken off", "reparameterised")], found)
for params in places.values():
    s, c = math.exp(params["log_s"]), precision * math.exp(params["log_s"]) * (posterior_mean - params["m"])
    r = precision * s**2
    for is_path, of_m in [(True, (c + (1 - r) * node) / s), (False, (c - r * node) / s)]:
        np.testing.assert_allclose(landing.variance(params, y, is_path)["m"], variance_by_quadrature(of_m), rtol=1e-6, atol=1e-9)
narrow = {"m": posterior_mean, "log_s": -0.5 * math.log(4 * precision)}  # r = 1/4
assert landing.variance(narrow, y, False)["m"] < landing.variance(narrow, y, True)["m"]
assert by_quadrature["path"]["posterior"]["log_mean"] < 1e-6
np.testing.assert_allclose(by_quadrature["implicit"]["posterior"]["log_mean"], a_posterior, rtol=1e-4)
assert by_quadrature["score"]["posterior"]["log_mean"] > 100 * by_quadrature["implicit"]["posterior"]["log_mean"]
