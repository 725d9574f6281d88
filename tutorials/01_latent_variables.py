# %% [markdown]
# # Latent variables and why the posterior is hard
#
# **Ten numbers lie on a line, in what looks like three heaps. Where are the centres of the heaps, and how sure can we be?**
# Bayes' rule answers in one line. So why is there a whole field that only approximates the answer? This page works the exact
# answer out, by brute force, and watches the force run out.

# %% tags=["figure"]
import itertools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from figures import BLUE, GREY, ORANGE, moving, plt, show
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy.integrate import cumulative_trapezoid, quad
from scipy.special import logsumexp
from scipy.stats import kstest, norm

x = np.array([-5.1, -4.7, -5.3, -0.2, 0.1, 0.4, -0.1, 4.8, 5.0, 5.5])
fig, ax = plt.subplots()
at = np.linspace(-9, 9, 119)
for guess, colour in (((-5.0, 0.0, 5.0), BLUE), ((-2.0, 1.0, 6.0), ORANGE)):
    ax.plot(at, norm.pdf(at[:, None], guess).mean(1), color=colour, label=f"centres {guess[0]:.0f}, {guess[1]:.0f}, {guess[2]:.0f}")
ax.plot(x, np.full(len(x), -0.01), "|", color=GREY, ms=14, mew=2)
ax.set(xlabel="x", ylabel="density", yticks=[], ylim=(-0.03, 0.19))
ax.legend(loc="upper right", fontsize=9)
show(fig, alt="Ten ticks in three heaps, and the densities of two guesses of three centres: one has a hump at each heap, the other misses.")

# %% [markdown]
# The blue guess suits the ticks better than the orange one. "How much better", asked of all possible guesses at once, is the posterior.
#
# ## A story with something hidden
#
# A model of data is a story of how they came about. Ours has three steps. Nature places three centres. Each number then picks one of
# them, all equally likely. It lands near that centre, one unit away or so:
#
# $$\begin{aligned}
# \mu_k &\sim \mathcal N(0, 25), & k &= 1, 2, 3, \\
# z_i &\sim \mathrm{Uniform}\{1, 2, 3\}, & i &= 1, \dots, 10, \\
# x_i \mid z_i, \mu &\sim \mathcal N(\mu_{z_i}, 1).
# \end{aligned}$$
#
# (The second argument of $\mathcal N$ is a variance here: the centres have sd 5.) Only $x$ is seen. The labels $z$ and the centres $\mu$
# are **latent**: part of the story, absent from the table. In NumPyro the story is a program, and running it tells one:

# %%
K, PRIOR_VARIANCE = 3, 25.0


def model(x=None, num_observations=10):
    with numpyro.plate("component", K):
        mu = numpyro.sample("mu", dist.Normal(0.0, math.sqrt(PRIOR_VARIANCE)))  # NumPyro takes the sd
    with numpyro.plate("observation", num_observations):
        z = numpyro.sample("z", dist.Categorical(probs=jnp.full(K, 1 / K)))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


key_story, key_more = jax.random.split(jax.random.key(0))
told = handlers.trace(handlers.seed(model, key_story)).get_trace()
mu, labels, numbers = (told[site]["value"] for site in ("mu", "z", "x"))
print("mu", *(f"{m:.1f}" for m in mu), "\nz ", *(labels + 1), "\nx ", *(f"{n:.1f}" for n in numbers))

# %% [markdown]
# Inference runs the story backwards. From $x$ we ask for what was hidden, $h = (z, \mu)$:
#
# $$\begin{aligned}
# p(h \mid x) &= \frac{p(x \mid h)\, p(h)}{p(x)}, \\
# p(x) &= \sum_z \int p(x \mid z, \mu)\, p(z)\, p(\mu)\, \mathrm d\mu.
# \end{aligned}$$
#
# The numerator is one run of the program, its densities multiplied. The denominator, the **evidence**, adds this up over everything that
# could have been hidden.
#
# ## One latent: a small integral, and a surprise
#
# Start with less: one number $x$, one latent $z$, and a curve between them,
#
# $$z \sim \mathcal N(0, 1), \quad \varepsilon \sim \mathcal N(0, 1), \quad x = 5 \tanh(10 z) + 0.5\, \varepsilon.$$
#
# Every ingredient is a Gaussian with a single hump. The evidence $p(x) = \int p(x \mid z)\, p(z)\, \mathrm d z$ averages the Gaussians
# $p(x \mid z)$ over $z$. It is a **mixture**, with a continuum of components, and a fine grid of $z$ does the integral:


# %%
def decoder(z):
    return 5 * np.tanh(10 * z)


z, h = np.linspace(-6, 6, 12_001, retstep=True)
values = np.linspace(-8, 8, 161)
joint = norm.pdf(values[:, None], decoder(z), 0.5) * norm.pdf(z)  # (x, z)
evidence = joint.sum(1) * h
posterior_mean = joint @ z / joint.sum(1)
posterior_sd = np.sqrt(joint @ z**2 / joint.sum(1) - posterior_mean**2)


def humps(density):
    return int(np.sum((density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])))


linear = (norm.pdf(values[:, None], 5 * z, 0.5) * norm.pdf(z)).sum(1) * h
print(f"humps of p(z): {humps(norm.pdf(z))}, of p(x): {humps(evidence)}, of p(x) when the curve is the line 5 z: {humps(linear)}")

# %% [markdown]
# One hump went in, and `{python} humps(evidence)` came out. The curve did it: it sends nearly all $z$ to one of its two ends. Move the
# slider to see the way back. For each $x$ the lower panel shows the posterior of $z$, each curve scaled to its peak.

# %% tags=["figure"]
seen = np.arange(10, 151, 7)  # indices of x
fine = 0.01 * np.sinh(np.linspace(-6.4, 6.4, 110))
fig, (above, below) = plt.subplots(2, 1, figsize=(5.6, 4.6))
above.plot(values[::2], evidence[::2], color=GREY)
above.set(xlabel="x", title="evidence p(x)", yticks=[], ylim=(0, 0.5))
below.plot(fine, np.exp(-0.5 * fine**2), color=GREY, ls=":")
below.set(xlabel="z", title="prior (dotted) and posterior p(z | x)", yticks=[], xlim=(-3, 3), ylim=(0, 1.08))
frames, captions = [], []
for i in seen:
    log_p = norm.logpdf(values[i], decoder(fine), 0.5) + norm.logpdf(fine)
    (mark,) = above.plot(values[[i, i]], [0, evidence[i]], color=ORANGE, lw=3)
    (curve,) = below.plot(fine, np.exp(log_p - log_p.max()), color=BLUE)
    frames.append([mark, curve])
    captions.append(f"x = {values[i]:.1f}: z has posterior mean {posterior_mean[i]:.2f} and sd {posterior_sd[i]:.3f}")
alt = "Above the density of x, two humps; below the posterior of z: at either end half a bell cut off at zero, between the humps a needle."
moving(fig, frames, captions, alt=alt, label="x", start=-4)

# %% [markdown]
# At the ends the posterior is half a bell: "$z$ is positive", and hardly more is learned. In the gap it is a needle. No Gaussian
# has the first shape. Already here a posterior can look like nothing that went into it.
#
# But it was *easy*: one integral over one variable. A thousand numbers with a latent each, and nothing shared, are a thousand
# such integrals. What makes inference hard is latents that are **tied together**.
#
# ## Ten numbers: every assignment, one by one
#
# In the mixture they are tied. Which heap $x_1$ belongs to depends on the centres, and these on all the other labels. There are
# $3^{10}$ assignments of ten numbers to three centres. Ten is few enough to try them all.
#
# For one given assignment the story falls apart into three stories that do not touch. With $n_k$ numbers of sum $t_k$ at
# centre $k$, and $v = 25$, the integral over its $\mu_k$ has a closed form:
#
# $$\begin{aligned}
# &\int \mathcal N(\mu_k; 0, v) \prod_{i: z_i = k} \mathcal N(x_i; \mu_k, 1)\, \mathrm d\mu_k \\
# &\quad = \frac{1}{\sqrt{1 + v n_k}} \exp\Big(\frac{t_k^2}{2 (n_k + 1/v)}\Big) \prod_{i: z_i = k} \mathcal N(x_i; 0, 1).
# \end{aligned}$$


# %%
def clusters(z, x):
    """Counts n_k and sums t_k of each assignment, (ways, K)."""
    member = z[:, :, None] == np.arange(K)
    return member.sum(1), (member * x[:, None]).sum(1)


def log_joint(z, x):
    """log p(x, z) of each assignment, (ways,): the centres are integrated out."""
    count, total = clusters(z, x)
    centres = -0.5 * np.log(1 + PRIOR_VARIANCE * count) + 0.5 * total**2 / (count + 1 / PRIOR_VARIANCE)
    return centres.sum(1) + norm.logpdf(x).sum() - len(x) * math.log(K)


start = time.perf_counter()
assignments = np.array(list(itertools.product(range(K), repeat=len(x))))
log_p = log_joint(assignments, x)
log_evidence = logsumexp(log_p)
seconds = time.perf_counter() - start
share = np.exp(log_p - log_evidence)  # p(z | x), exactly
print(f"{len(assignments):,} assignments, log p(x) = {log_evidence:.6f}")

# %% [markdown]
# That is the exact evidence, and `share` the exact posterior of all labels. The names of the heaps carry no meaning, so that much of
# this is the same thing said $3! = 6$ times. What matters is which numbers are *together*. There are far fewer such partitions:

# %%
partitions = [(0,)]
for _ in x[1:]:  # each number joins a heap that is open, or opens the next one
    partitions = [(*p, k) for p in partitions for k in range(min(max(p) + 2, K))]
partitions = np.array(partitions)
names = np.array([math.perm(K, p.max() + 1) for p in partitions])  # in how many ways its heaps can be named
by_partition = log_joint(partitions, x) + np.log(names)
best = np.argsort(-by_partition)[:4]
print(f"{len(partitions):,} partitions, log p(x) = {logsumexp(by_partition):.6f}")
pd.DataFrame({
    "partition": ["".join("ABC"[k] for k in partitions[b]) for b in best],
    "posterior probability": np.exp(by_partition[best] - log_evidence).round(6),
}).set_index("partition").rename_axis(index=None, columns="partition")  # fmt: skip

# %% [markdown]
# Of `{python} f"{len(partitions):,}"` partitions one has nearly all the probability: the heaps that the eye saw. And the centres? Given an
# assignment each is Gaussian; over all assignments it is a mixture of `{python} f"{len(assignments):,}"` Gaussians:

# %%
count, total = clusters(assignments, x)
sd = (count + 1 / PRIOR_VARIANCE) ** -0.5
centre = total * sd**2  # posterior means of the centres, given the assignment
exact_mean = share @ centre
print("exact posterior means of mu_1, mu_2, mu_3:", exact_mean.round(6))

# %% tags=["figure"]
matter = share > 1e-9
density = norm.pdf(at[:, None], centre[matter, 0], sd[matter, 0]) @ share[matter]
fig, ax = plt.subplots()
ax.plot(at, norm.pdf(at, 0, math.sqrt(PRIOR_VARIANCE)), color=GREY, ls=":", label="prior")
ax.plot(at, density, color=BLUE, label="posterior of the first centre")
ax.plot(x, np.full(len(x), -0.015), "|", color=GREY, ms=12, mew=2)
ax.axvline(exact_mean[0], color=ORANGE, lw=1.2, label="its mean")
ax.set(xlabel="centre", yticks=[], ylim=(-0.04, 0.42))
ax.legend(loc="upper right", fontsize=9)
show(fig, alt=f"The posterior of the first centre has {humps(density)} humps, one over each heap; its mean lies in the middle one.")

# %% [markdown]
# The posterior of $\mu_1$ has a hump over *each* heap, with a third of the probability, because nothing in the story says which centre is
# called the first. (The middle heap has four numbers: its hump is narrower and so higher.) $\mu_2$ and $\mu_3$ have the same. The mean,
# `{python} f"{exact_mean[0]:.4f}"` for every $k$, is right and useless. This is **label switching**;
# [tutorial 6](06_mixtures.md) lives with it.
#
# ## The force runs out
#
# Those ten numbers took `{python} f"{seconds:.1f}"` seconds. Each further number triples the assignments. At that pace:


# %%
def duration(seconds):
    unit, name = next((u, name) for u, name in ((3.15e7, "years"), (3_600, "hours"), (1, "seconds")) if seconds > u or u == 1)
    return f"{seconds / unit:,.0f} {name}" if 1 < seconds / unit < 1e6 else f"{seconds / unit:.1g} {name}"


n = [10, 20, 30, 100]
pd.DataFrame({
    "numbers": n, "assignments": [f"{3.0**k:.2g}" for k in n], "partitions": [f"{(3.0 ** (k - 1) + 1) / 2:.2g}" for k in n],
    "all assignments take": [duration(seconds * 3.0 ** (k - 10)) for k in n],
}).set_index("numbers").rename_axis(index=None, columns="numbers")  # fmt: skip

# %% [markdown]
# Can we be cleverer? Swap the order. *Given the centres* the numbers are independent, so that the labels can be summed one number at a
# time, ten sums of three terms:
#
# $$p(x) = \int p(\mu) \prod_{i=1}^{n} \Big[ \tfrac13 \sum_{k=1}^{3} \mathcal N(x_i; \mu_k, 1) \Big] \mathrm d\mu.$$
#
# Now the cost grows with $n$ and no faster. What is left is an integral over as many dimensions as there are centres. A grid with $g$
# places on each axis has $g^K$ points:


# %%
def log_evidence_on_grid(g, K):
    """log p(x) with K centres, each at g places from -20 to 20; and the seconds it took."""
    start = time.perf_counter()
    mu, h = np.linspace(-20, 20, g, retstep=True)
    axes = [np.arange(K) == k for k in range(K)]  # the k-th centre varies along the k-th axis
    spread = [lambda a, k=k: a.reshape(np.where(axes[k], g, 1)) for k in range(K)]
    log_p = sum(spread[k](norm.logpdf(mu, 0, math.sqrt(PRIOR_VARIANCE))) for k in range(K))
    for row in norm.pdf(x[:, None], mu):
        log_p = log_p + np.log(sum(spread[k](row) for k in range(K)) / K + 1e-300)
    return logsumexp(log_p) + K * math.log(h), time.perf_counter() - start


on_grid = {(g, K): log_evidence_on_grid(g, K) for g, K in [(11, 3), (21, 3), (41, 3), (81, 3), (41, 1), (41, 2), (41, 4)]}
pd.DataFrame([
    {"centres": K, "places each": g, "points": f"{g**K:,}", "log p(x)": round(on_grid[g, K][0], 6)}
    for g, K in sorted(on_grid, key=lambda how: how[::-1])
]).set_index("centres").rename_axis(index=None, columns="centres")  # fmt: skip

# %% [markdown]
# With three centres, `{python} max(on_grid)[0]` places each give the number of the enumeration, to all digits shown. (And the evidence
# says something by itself: of these it is highest with three centres.) But each centre more multiplies the work by the number of
# places. At the pace of four centres, ten would take `{python} duration(on_grid[41, 4][1] * 41.0**6)`.
#
# Turn it round: give a grid 100,000 points, and see what precision they buy. The test integral has a closed form in any
# dimension $D$: $z \sim \mathcal N(0, I_D)$, one number $x = 0$ seen with $x \mid z \sim \mathcal N(\sum_j z_j, \tfrac14)$, so that
# $p(x) = \mathcal N(0; 0, D + \tfrac14)$. Beside it, the average of $p(x \mid z)$ over as many draws of the prior.

# %%
BUDGET = 100_000
dims, grid_ratio, draw_error = range(1, 9), [], []
draws = np.asarray(jax.random.normal(key_more, (BUDGET, max(dims))), float)
for dim in dims:
    axis, step = np.linspace(-5, 5, int(BUDGET ** (1 / dim) + 1e-9), retstep=True)
    sums, weights = np.zeros(1), np.ones(1)
    for _ in range(dim):
        sums, weights = np.add.outer(sums, axis).ravel(), np.multiply.outer(weights, norm.pdf(axis) * step).ravel()
    truth = norm.pdf(0, 0, math.sqrt(dim + 0.25))
    grid_ratio.append(weights @ norm.pdf(sums, 0, 0.5) / truth)
    draw_error.append(norm.pdf(draws[:, :dim].sum(1), 0, 0.5).std() / math.sqrt(BUDGET) / truth)
grid_error = np.abs(np.array(grid_ratio) - 1)

# %% tags=["figure"]
fig, ax = plt.subplots()
ax.semilogy(dims, np.maximum(grid_error, 1e-7), "o-", color=ORANGE, label="grid")
ax.semilogy(dims, draw_error, "s-", color=BLUE, label="draws of the prior (standard error)")
ax.set(xlabel="dimension of z", ylabel="relative error", ylim=(5e-8, 50))
ax.legend(loc="upper left", fontsize=9)
few = (grid_error < 1e-6).sum()
alt = f"The grid's relative error is tiny up to {few} dimensions, then climbs to {grid_error[-1]:.1g} in {dims[-1]}; that of draws hardly."
show(fig, alt=alt)

# %% [markdown]
# (Errors below $10^{-7}$ are drawn there.) In up to `{python} (grid_error < 1e-6).sum()` dimensions nothing beats the grid. In
# `{python} dims[-1]` it has `{python} int(BUDGET ** (1 / dims[-1]) + 1e-9)` places left to each axis, and its answer is
# `{python} f"{grid_ratio[-1]:.2f}"` times the true one. Random draws do not mind the dimension *here*, where one direction alone is
# informed by the data. Where all are, they die as well: that is the third exercise.
#
# ## What is left to do
#
# The numerator $p(x, h)$ is cheap for any $h$. Only the sum over all $h$ is dear. Three ways round it are well trodden.
# **Sampling** (MCMC) walks among the $h$ in proportion to the numerator, and never needs the denominator. The **Laplace** method
# fits a Gaussian at a peak. **Variational inference** takes a family of easy distributions and looks for its member nearest to the
# posterior: an integral becomes an optimisation. How can one be near to what one cannot compute? That is
# [tutorial 2](02_elbo.md).
#
# ## What the documents said
#
# The blog post on the magic of VI tells this story too, and most of it holds. Five places need a correction.
#
# - It approximates $p(x)$ "through multiplication of two simple distributions". The formula beside these words is right, and it is a
#   sum of products: a **mixture**. A product of two Gaussian densities is one Gaussian again, with one hump (below).
# - It says of a unimodal prior, used directly, that the "approximation result will be not good". The tanh curve made
#   `{python} humps(evidence)` humps of one. A plain prior is no obstacle if the curve is free.
# - It calls $\mathcal N(0, \Sigma^2)$ a "standard gaussian". *Standard* means the identity as covariance. Nothing is lost: a linear map
#   in the decoder makes any other of it.
# - "For each of these 59,049 combinations, we need to compute an integral", a $K$-dimensional one. Given the assignment it is a product
#   of $K$ closed forms, as above, and `{python} f"{len(partitions):,}"` partitions are enough. Their *number* defeats us, as $n$ grows,
#   not their integrals.
# - The "complexity will arise rapidly as the dimensionality of $z$ grows". A grid's does. The posterior's need not: where all is linear
#   and Gaussian, a thousand dimensions are one determinant.

# %%
product = norm.pdf(at, -5, 1) * norm.pdf(at, 5, 1)
mixture = norm.pdf(at, -5, 1) / 2 + norm.pdf(at, 5, 1) / 2
assert (humps(product), humps(mixture)) == (1, 2)

D = 1_000  # z ~ N(0, I), one number seen around the sum of all z: E exp(-(sum z)^2 / 2) is a determinant
assert abs(-0.5 * np.linalg.slogdet(np.eye(D) + 1)[1] + 0.5 * math.log(D + 1)) < 1e-8

# %% [markdown]
# ## What to copy
#
# Sum a label out where it stands, number by number, on the log scale:


# %%
def log_likelihood(mu, x):
    """log p(x | mu) with the labels summed out: (K,), (n,) -> a number."""
    return logsumexp(norm.logpdf(x[:, None], mu) - math.log(len(mu)), axis=1).sum()


print(log_likelihood(np.array([-5.0, 0.0, 5.0]), x))

# %% [markdown]
# The pattern [gaussian mixture](patterns/gaussian_mixture.md) fits this very model that way;
# [gaussian mixture enumerated](patterns/gaussian_mixture_enumerated.md) leaves the labels in the program and lets NumPyro sum them.
#
# ## Exercises
#
# ### 1. Who is with whom?
#
# What is the exact posterior probability that the fourth and the fifth number share a centre? And the first and the fifth? Why can
# such questions be answered although no centre has a name?


# %% tags=["answer"]
def together(i, j):
    """Names do not enter: whether z_i equals z_j is the same under every renaming."""
    return share[assignments[:, i] == assignments[:, j]].sum()


print(f"fourth and fifth: {together(3, 4):.6f}; first and fifth: {together(0, 4):.2g}")
assert together(3, 4) > 0.999
assert together(0, 4) < 0.001

# %% [markdown]
# ### 2. An eleventh number
#
# The predictive density $p(x_{11} \mid x)$ at $x_{11} = 2.5$, between two heaps, is a ratio of two evidences. Compute it that way. Then
# compute it as a mixture over the assignments of the first ten, and see that the two agree.

# %% tags=["answer"]
new = 2.5
eleven = np.array(list(itertools.product(range(K), repeat=11)))
ratio = np.exp(logsumexp(log_joint(eleven, np.append(x, new))) - log_evidence)
as_mixture = share @ norm.pdf(new, centre, np.sqrt(1 + sd**2)).mean(1)  # a centre's own uncertainty adds to the noise
print(f"{ratio:.8f} {as_mixture:.8f}")
assert abs(ratio / as_mixture - 1) < 1e-9

# %% [markdown]
# ### 3. When averages over the prior die
#
# Let $z \sim \mathcal N(0, I_D)$, $x \mid z \sim \mathcal N(z, I_D)$ and $x = (2, \dots, 2)$: now every direction is informed. The average
# of $p(x \mid z)$ over draws of the prior is unbiased for $p(x)$. How many draws give a relative standard error of a tenth if $D$ is 1, 10
# or 50? (Find the relative variance of one draw in one dimension; it is a ratio of integrals, and dimensions multiply.)

# %% tags=["answer"]
second, _ = quad(lambda z: norm.pdf(2, z) ** 2 * norm.pdf(z), -10, 12)
relative = second / norm.pdf(2, 0, math.sqrt(2)) ** 2  # E[w^2] / E[w]^2 in one dimension
for dim in (1, 10, 50):
    print(f"D = {dim:<3} draws needed: {(relative**dim - 1) / 0.1**2:.2g}")
w = norm.pdf(2, draws[:, :3]).prod(1)  # three dimensions, by simulation
excess = w**2 / norm.pdf(2, 0, math.sqrt(2)) ** 6
assert abs(excess.mean() - relative**3) < 4 * excess.std() / math.sqrt(BUDGET)

# %% [markdown]
# ## The page's own check
#
# The page checks itself: the program against the formulas, the closed form against quadrature, the sum over assignments against the sum
# over partitions, the grid over the centres and the value that this project holds as exact, the tanh model against its own draws.

# %%
chosen = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
with jax.enable_x64(True):  # the program's density at one place, against the same place of the formulas
    place = {"mu": jnp.array([-4.0, 0.5, 6.0]), "z": jnp.array(chosen)}
    program = float(log_density(model, (jnp.array(x),), {}, place)[0])
by_hand = norm.logpdf(place["mu"], 0, 5).sum() - 10 * math.log(3) + norm.logpdf(x, np.asarray(place["mu"])[chosen]).sum()
assert abs(program - by_hand) < 1e-9
heaps = [quad(lambda m, h=h: norm.pdf(m, 0, 5) * norm.pdf(x[chosen == h], m).prod(), -20, 20, points=[-5, 0, 5])[0] for h in range(3)]
assert abs(log_joint(chosen[None], x)[0] - np.log(heaps).sum() + 10 * math.log(3)) < 1e-8

assert len(assignments) == 59_049
assert len(partitions) == 9_842 == (3**9 + 1) // 2
assert names.sum() == len(assignments)
assert abs(log_evidence - -26.362466087635834) < 1e-10
assert abs(logsumexp(by_partition) - log_evidence) < 1e-10
assert abs(on_grid[81, 3][0] - log_evidence) < 1e-7
assert max((value, K) for (g, K), (value, _) in on_grid.items() if g == 41)[1] == 3
assert np.abs(exact_mean - 0.038396267).max() < 1e-8
assert humps(density) == 3
assert abs(share @ norm.cdf((2.5 - centre[:, 0]) / sd[:, 0]) - share @ norm.cdf((-2.5 - centre[:, 0]) / sd[:, 0]) - 1 / 3) < 1e-3

assert (humps(norm.pdf(z)), humps(evidence), humps(linear)) == (1, 2, 1)
assert abs(evidence.sum() * (values[1] - values[0]) - 1) < 1e-6
key_z, key_noise = jax.random.split(jax.random.key(1))
simulated = decoder(np.asarray(jax.random.normal(key_z, (20_000,)), float)) + 0.5 * np.asarray(jax.random.normal(key_noise, (20_000,)))
cdf = cumulative_trapezoid(evidence, values, initial=0)
assert kstest(simulated, lambda s: np.interp(s, values, cdf)).pvalue > 1e-3
back = evidence / evidence.sum() @ (posterior_sd**2 + posterior_mean**2)  # E[z^2], by way of x
assert abs(back - 1) < 1e-6
assert grid_error[1] < 1e-6
assert grid_error[-1] > 0.5 > 100 * draw_error[-1] / 2
