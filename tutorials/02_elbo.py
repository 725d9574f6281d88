# %% [markdown]
# # From KL to the ELBO
#
# **How can one come close to a distribution that one cannot compute?** The posterior needs the evidence, and
# [tutorial 1](01_latent_variables.md) has shown where computing that ends. Variational inference comes close to the posterior all the
# same. This page takes the trick apart, on an example small enough that every number can be checked.

# %% tags=["figure"]
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from figures import BLUE, GREEN, GREY, ORANGE, moving, plt, show
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import norm

import vipatterns as vip
from vipatterns.patterns import gaussian_mean, two_modes_kl_direction

x = gaussian_mean.data()["y"]
N, S = len(x), x.sum()
posterior_mean, posterior_sd = S / (N + 1), (N + 1) ** -0.5
w = np.linspace(1.3, 2.4, 111)
candidates = {"q1": (1.6, 0.1), "q2": (1.9, 0.04), "q3": (1.85, 0.15)}
fig, ax = plt.subplots()
ax.fill_between(w, norm.pdf(w, posterior_mean, posterior_sd), color=GREY, alpha=0.35, lw=0, label="posterior")
for (name, (m, s)), colour in zip(candidates.items(), (BLUE, ORANGE, GREEN), strict=True):
    ax.plot(w, norm.pdf(w, m, s), color=colour, label=name)
ax.set(xlabel="w", yticks=[])
ax.legend(loc="upper left")
show(fig, alt="The posterior as a grey hill, and three Gaussians: q1 lies to its left, q2 is too narrow, q3 too wide.")

# %% [markdown]
# Which of the three curves comes closest to the grey hill? You may look at the hill only through its outline: its height is known up to
# an unknown factor. Soon that will be no handicap.
#
# ## The example
#
# A hundred numbers $x_i$ scatter around an unknown $w$:
#
# $$\begin{aligned}
# w &\sim \mathcal N(0, 1), \\
# x_i \mid w &\sim \mathcal N(w, 1), \quad i = 1, \dots, 100.
# \end{aligned}$$
#
# The joint density is one run of this story, its factors multiplied. It is always cheap:


# %%
def log_joint(w):
    """log p(x, w) in nats, for a w of any shape."""
    return norm.logpdf(w) + norm.logpdf(x[:, None], np.ravel(w)).sum(0).reshape(np.shape(w))


# %% [markdown]
# Here, and seldom elsewhere, the rest is known too. With $N$ numbers of sum $S$ the posterior is ${\mathcal N(S/(N+1),\, 1/(N+1))}$, with
# mean `{python} f"{posterior_mean:.4f}"` and sd `{python} f"{posterior_sd:.4f}"`. The evidence is an integral that we can do twice:

# %%
log_evidence = -0.5 * (N * np.log(2 * np.pi) + np.log(N + 1) + (x**2).sum() - S**2 / (N + 1))
area, _ = quad(lambda w: np.exp(log_joint(w) + 140), 1, 3, epsabs=0)
print(f"log p(x): closed form {log_evidence:.6f}, quadrature {np.log(area) - 140:.6f}")

# %% [markdown]
# ## A distance, of sorts
#
# The Kullback-Leibler divergence of $q$ from the posterior is the mean log ratio of the two, under $q$:
#
# $$\mathrm{KL}(q \,\|\, p) = \mathbb E_{q}\!\left[\log \frac{q(w)}{p(w \mid x)}\right] \ge 0,$$
#
# and it is zero only if the two are the same. To compute it one needs $p(w \mid x)$. But put Bayes' rule in,
# ${p(w \mid x) = p(x, w) / p(x)}$, and the unknown number comes out of the mean, because it does not depend on $w$:
#
# $$\mathrm{KL}(q \,\|\, p) = \mathbb E_q[\log q(w) - \log p(x, w)] + \log p(x).$$
#
# Call the first part, with its sign turned, the **evidence lower bound**:
#
# $$\begin{aligned}
# \mathrm{ELBO}(q) &= \mathbb E_q[\log p(x, w) - \log q(w)], \\
# \log p(x) &= \mathrm{ELBO}(q) + \mathrm{KL}(q \,\|\, p).
# \end{aligned}$$
#
# That is the trick, whole. The left side does not know $q$. So whatever raises the ELBO lowers the KL by as much, and the ELBO needs only
# the joint. As the KL is never negative, the ELBO is never above $\log p(x)$: hence its name. For $q = \mathcal N(m, s^2)$ both have a
# closed form:


# %%
def elbo(m, s):
    """E_q[log p(x, w) - log q(w)] of q = N(m, s^2), in nats."""
    log_likelihood = -0.5 * N * np.log(2 * np.pi) - 0.5 * (((x - m) ** 2).sum() + N * s**2)
    log_prior = -0.5 * np.log(2 * np.pi) - 0.5 * (m**2 + s**2)
    entropy = 0.5 * np.log(2 * np.pi * np.e * s**2)
    return log_likelihood + log_prior + entropy


def gaussian_kl(m, s, mean, sd):
    """KL(N(m, s^2) || N(mean, sd^2)), in nats."""
    return np.log(sd / s) + (s**2 + (m - mean) ** 2) / (2 * sd**2) - 0.5


members = {"the prior": (0.0, 1.0), **candidates, "the posterior": (posterior_mean, posterior_sd)}
table = pd.DataFrame({
    q: {"mean": m, "sd": s, "elbo": elbo(m, s), "kl": gaussian_kl(m, s, posterior_mean, posterior_sd)} for q, (m, s) in members.items()
}).T  # fmt: skip
table["elbo + kl"] = table["elbo"] + table["kl"]
table.round(4)

# %% [markdown]
# The last column is the same for all, and it is $\log p(x)$. So the ELBO ranks the three candidates without having seen the hill:
# `{python} table.loc[list(candidates), "elbo"].idxmax()` is the closest. Only *differences* of ELBOs speak. The prior's,
# `{python} f"{table.elbo.iloc[0]:.0f}"`, means nothing by itself; that it lies `{python} f"{table.kl.iloc[0]:.0f}"` nats below the log
# evidence does.
#
# ## Two forces
#
# Split the ELBO at its minus sign. One part is the entropy of $q$, the other is minus the cross-entropy of $q$ and the **joint**:
#
# $$\mathrm{ELBO}(q) = \underbrace{-\mathbb E_q[\log q(w)]}_{H(q)} \;-\; \underbrace{\mathbb E_q[-\log p(x, w)]}_{H(q,\, p(x, \cdot))}.$$
#
# The entropy wants $q$ wide, without end. The other term wants it as narrow as a point, at the peak of the joint. Here they are over the
# width of $q$, with its mean at the right place:

# %% tags=["figure"]
widths = np.geomspace(0.01, 0.6, 80)
entropy = 0.5 * np.log(2 * np.pi * np.e * widths**2)
lower = elbo(posterior_mean, widths)
top = log_joint(posterior_mean)
fig, ax = plt.subplots()
ax.semilogx(widths, entropy, color=BLUE, label="entropy of q")
ax.semilogx(widths, lower - entropy - top, color=ORANGE, label="- cross-entropy (shifted)")
ax.semilogx(widths, lower - top, color=GREEN, lw=2.5, label="their sum: ELBO (shifted)")
ax.axvline(posterior_sd, color=GREY, ls=":", label="the posterior's sd")
ax.set(xlabel="sd of q", ylabel="nats", ylim=(-7, 2.5))
ax.set_xticks([0.01, 0.03, 0.1, 0.3], ["0.01", "0.03", "0.1", "0.3"])
ax.legend(loc="lower left", fontsize=9)
show(
    fig,
    alt="Over the sd of q the entropy rises, minus the cross-entropy falls ever faster; their sum peaks at the sd of the posterior.",
)

# %% [markdown]
# ## The ELBO from draws
#
# Closed forms are a luxury. All that the ELBO *needs* is draws of $q$, and $\log p(x, w) - \log q(w)$ at each of them; the average
# estimates it without bias. Each term is a log importance weight, and their scatter tells its own story:

# %%
key_draws, key_climb, key_fit = jax.random.split(jax.random.key(0), 3)
eps = np.asarray(jax.random.normal(key_draws, (1_000,)), float)


def from_draws(m, s):
    w = m + s * eps
    terms = log_joint(w) - norm.logpdf(w, m, s)
    return {"estimate": terms.mean(), "standard error": terms.std() / np.sqrt(len(terms)), "closed form": elbo(m, s)}


estimates = pd.DataFrame({q: from_draws(m, s) for q, (m, s) in members.items()}).T
estimates.round(4)

# %% [markdown]
# See the last row. At the posterior the ratio $p(x, w) / q(w)$ is $p(x)$ for *every* $w$: each single draw gives the log evidence, without
# error. Noise in the ELBO is a sign of distance, and it dies as $q$ arrives.
#
# ## The climb
#
# The blog post on the magic of VI stops at this point: the bound is derived, and should now be raised. So let us raise it. A
# draw of $q$ is $w = m + s\,\varepsilon$ with $\varepsilon \sim \mathcal N(0, 1)$. For a given $\varepsilon$ the draw moves smoothly
# with $m$ and $s$, so that JAX can differentiate the average. Adam walks uphill; its rate decays, to make the end quiet.
# ([Tutorial 4](04_gradients.md) looks into this gradient.)

# %%
NUM_STEPS, NUM_DRAWS = 2_000, 32


def loss(v, key):
    """Minus the ELBO, from draws. v = (m, log s): so s stays positive."""
    m, s = v[0], jnp.exp(v[1])
    w = m + s * jax.random.normal(key, (NUM_DRAWS,))
    log_p = jax.scipy.stats.norm.logpdf(w) + jax.scipy.stats.norm.logpdf(x[:, None], w).sum(0)
    return jnp.mean(jax.scipy.stats.norm.logpdf(w, m, s) - log_p)


def climb(key, start):
    adam = optax.adam(optax.exponential_decay(0.1, NUM_STEPS, 0.001))

    def step(carry, key):
        v, state = carry
        updates, state = adam.update(jax.grad(loss)(v, key), state)
        return (optax.apply_updates(v, updates), state), v

    (last, _), path = jax.lax.scan(step, (start, adam.init(start)), jax.random.split(key, NUM_STEPS))
    return np.vstack([path, last])


with jax.enable_x64(True):
    path = climb(key_climb, jnp.array([0.0, 0.0]))  # from the prior
m_path, s_path = path[:, 0], np.exp(path[:, 1])
elbo_path = np.array([elbo(m, s) for m, s in zip(m_path, s_path, strict=True)])
kl_path = gaussian_kl(m_path, s_path, posterior_mean, posterior_sd)
print(f"after {NUM_STEPS} steps: mean {m_path[-1]:.5f}, sd {s_path[-1]:.5f}; KL {kl_path[-1]:.1e} nats")

# %% tags=["figure"]
shown = np.unique(np.round(np.geomspace(1, NUM_STEPS + 1, 22)).astype(int)) - 1
w = np.linspace(-2.5, 3.5, 119)
near = np.linspace(posterior_mean - 0.45, posterior_mean + 0.45, 61)
w = np.sort(np.concatenate([w[(w < near[0]) | (w > near[-1])], near]))
fig, (above, below) = plt.subplots(2, 1, figsize=(5.6, 4.6))
hill = norm.pdf(w, posterior_mean, posterior_sd)
above.fill_between(w, hill, color=GREY, alpha=0.35, lw=0, label="posterior")
above.set(xlabel="w", yticks=[], xlim=(-2.5, 3.5), ylim=(0, 1.12 * hill.max()), title="q (blue) and the posterior (grey)")
below.loglog(np.arange(1, NUM_STEPS + 2), kl_path, color=GREY, lw=1)
below.set(xlabel="step + 1", title="KL(q || posterior), nats")
frames, captions = [], []
for i in shown:
    (curve,) = above.plot(w, norm.pdf(w, m_path[i], s_path[i]), color=BLUE, lw=2)
    (dot,) = below.plot([i + 1], [kl_path[i]], "o", color=BLUE)
    frames.append([curve, dot])
    captions.append(f"step {i}: ELBO {elbo_path[i]:.4f} + KL {kl_path[i]:.4f} = {elbo_path[i] + kl_path[i]:.4f}")
alt = "q starts as the wide prior far left of the posterior's hill, moves under it, narrows and fills it; the KL falls by powers of ten."
moving(fig, frames, captions, alt=alt, label="step", start=9)

# %% [markdown]
# Move the slider. First $q$ is wide, and every $w$ in it must explain a hundred numbers: the mean is pulled across. Then $q$ shrinks into
# the hill. The sum in the caption never moves. It is the log evidence, `{python} f"{log_evidence:.4f}"`, which nobody had to compute.
#
# `vipatterns` does the same climb for a NumPyro model, and looks at its end:

# %%
fit = vip.fit(key_fit, gaussian_mean.model, gaussian_mean.data(), method=vip.MeanField())
print(f"elbo {fit.elbo:.5f}, log evidence {fit.certificate.log_evidence:.5f}")

# %% [markdown]
# > `{python} fit.certificate.verdict`
#
# ## The other direction
#
# KL is no distance in the usual sense: it has a direction. Between $\mathcal N(0, 1)$ and $\mathcal N(0, 4)$, with variance 4:

# %%
print(f"KL(narrow || wide) = {gaussian_kl(0, 1, 0, 2):.6f}   KL(wide || narrow) = {gaussian_kl(0, 2, 0, 1):.6f}")

# %% [markdown]
# The ELBO stands for $\mathrm{KL}(q \,\|\, p)$, the **reverse** direction, a mean over $q$. It asks: where $q$ is, is $p$ there too? The
# **forward** direction, $\mathrm{KL}(p \,\|\, q)$, is a mean over $p$: where $p$ is, has $q$ covered it? For a family that contains the
# posterior both end at the same place. For one that does not, they part. Let $p$ have two modes, half the mass in each, and let $q$ be
# one Gaussian. The forward optimum matches mean and variance. The reverse optimum comes from quadrature and a search from two starts, of
# which the better end counts:

# %%
half_distances = np.linspace(0, 4, 17)
shares = np.array([0.5, 0.5])


def reverse_optimum(modes, shares):
    """Mean, sd and KL(q || p) of the Gaussian with the least KL(q || p)."""
    starts = [[shares @ modes, np.log(2.0)], [modes[1], 0.0]]  # across both modes; in the second
    ends = [minimize(lambda v: -two_modes_kl_direction.elbo(v[0], np.exp(v[1]), modes, shares), v, method="BFGS") for v in starts]
    best = min(ends, key=lambda end: end.fun)
    return best.x[0], np.exp(best.x[1]), best.fun


def forward_kl(m, s, modes, shares):
    """KL(p || q), by the trapezoid rule."""
    at = np.linspace(-15, 15, 3_001)
    log_p = two_modes_kl_direction.log_density(at, modes, shares)
    return np.trapezoid(np.exp(log_p) * (log_p - norm.logpdf(at, m, s)), at)


both = []
for a in half_distances:
    modes = np.array([-a, a])
    both.append((reverse_optimum(modes, shares), two_modes_kl_direction.best_forward(modes, shares)["x"]))
jump = int(np.argmax([abs(m) > 1 for (m, _, _), _ in both]))  # from here on it sits in one mode

# %% tags=["figure"]
at = np.linspace(-8, 8, 107)
fig, ax = plt.subplots()
ax.plot([], [], color=GREY, lw=6, alpha=0.35, label="p")
ax.plot([], [], color=BLUE, label="reverse: seeks a mode")
ax.plot([], [], color=ORANGE, label="forward: covers the mass")
frames, captions = [], []
for a, ((m, s, reverse), (m_forward, s_forward)) in zip(half_distances, both, strict=True):
    modes = np.array([-a, a])
    hill = ax.fill_between(at, np.exp(two_modes_kl_direction.log_density(at, modes, shares)), color=GREY, alpha=0.35, lw=0)
    (seek,) = ax.plot(at, norm.pdf(at, m, s), color=BLUE)
    (cover,) = ax.plot(at, norm.pdf(at, m_forward, s_forward), color=ORANGE)
    frames.append([hill, seek, cover])
    captions.append(
        f"modes {2 * a:.1f} apart. Reverse: mean {m:.2f}, sd {s:.2f}, KL(q || p) {abs(reverse):.3f}. "
        f"Forward: sd {s_forward:.2f}, KL(p || q) {abs(forward_kl(m_forward, s_forward, modes, shares)):.3f}"
    )
ax.set(xlabel="w", yticks=[], xlim=(-8, 8), ylim=(0, 0.52))
ax.legend(loc="upper left", fontsize=9)
alt = "Two modes that part: the forward Gaussian stays in the middle and grows wide; the reverse one widens too, then jumps into a mode."
moving(fig, frames, captions, alt=alt, label="distance of the modes", start=-2)

# %% [markdown]
# As long as the modes are close, the directions nearly agree: both Gaussians widen. The forward one goes on, until much of it lies where
# $p$ has nearly nothing. The reverse one jumps, between distances of `{python} f"{2 * half_distances[jump - 1]:.1f}"` and
# `{python} f"{2 * half_distances[jump]:.1f}"`: it gives one mode up, and describes the other well. Its KL ends at
# `{python} f"{both[-1][0][2]:.4f}"`, and $\log 2$ is `{python} f"{np.log(2):.4f}"`: that is all that it costs to lose half of the mass.
# Nor can the draws of such a $q$ tell of the other mode, as none ever goes there. Keep that in mind when an ELBO looks fine.
#
# ## What the documents said
#
# - The VI note prints $\log p(x) = L(q, p) - D_{KL}(q, p)$. Its own line before that is right, and has minus the integral of
#   ${q \log (p(z \mid x) / q)}$, which is *plus* the KL. With the printed sign the "lower bound" would lie above the evidence.
# - The same note goes on that "a constant is equal to difference between 2 variables". It is their **sum**: what one gains the other loses.
#   Of a constant difference both would rise together.
# - It calls $L$ a bound "on the approximation between $p$ and $q$". It is a bound on the log evidence.
# - It writes $L(q, p) = H(q) - H(q, p)$. That holds with $p$ the *joint*. With the posterior in its place one gets $-\mathrm{KL}$, which
#   is another number: the log evidence is missing.
# - The blog post on the magic of VI writes $D_{KL}(q_i(x_i) \,\|\, p(z \mid x_i))$. The $q_i$ is a density of $z$: $q_i(z)$.
# - The same post: "The above inequality is also called as variational lower bound". The bound is the right-hand *side* of that
#   inequality, a number. And the post stops before any optimisation; the climb above is its missing end.

# %%
m, s = 1.6, 0.1
kl, cross_joint, cross_posterior = (
    gaussian_kl(m, s, posterior_mean, posterior_sd),
    quad(lambda w: -norm.pdf(w, m, s) * log_joint(w), m - 12 * s, m + 12 * s)[0],
    quad(lambda w: -norm.pdf(w, m, s) * norm.logpdf(w, posterior_mean, posterior_sd), m - 12 * s, m + 12 * s)[0],
)
print(f"log p(x) {log_evidence:.4f} = {elbo(m, s):.4f} + {kl:.4f}; with the printed sign {elbo(m, s) - kl:.4f}")
assert abs(norm(m, s).entropy() - cross_joint - elbo(m, s)) < 1e-8  # with the joint: the ELBO
assert abs(norm(m, s).entropy() - cross_posterior + kl) < 1e-8  # with the posterior: minus the KL

# %% [markdown]
# ## What to copy
#
# The estimate of the ELBO, for any model whose joint density you can write and any $q$ that you can draw from:


# %%
def elbo_from_draws(log_joint, q, num_draws, rng):
    """An unbiased estimate, and its standard error; q is a distribution of SciPy."""
    w = q.rvs(num_draws, random_state=rng)
    terms = log_joint(w) - q.logpdf(w)
    return terms.mean(), terms.std() / np.sqrt(num_draws)


value, error = elbo_from_draws(log_joint, norm(1.85, 0.15), 1_000, np.random.default_rng(0))
print(f"{value:.3f} ± {error:.3f}")

# %% [markdown]
# The pattern [gaussian mean](patterns/gaussian_mean.md) is this page's climb as a NumPyro program, and
# [two modes, one Gaussian](patterns/two_modes_kl_direction.md) fits both directions. [Tutorial 3](03_first_guide.md) writes a guide.
#
# ## Exercises
#
# ### 1. Other units
#
# Measure $x$ in hundredths: the numbers become a hundred times larger, and the model is rescaled with them. What happens to the log
# evidence, to the ELBO of a given $q$, and to its KL? What does that say of an ELBO reported without its units?


# %% tags=["answer"]
def log_joint_hundredths(w):
    """w is measured as before; only x, and its density, change units."""
    return norm.logpdf(w) + norm.logpdf(100 * x[:, None], 100 * np.ravel(w), 100.0).sum(0).reshape(np.shape(w))


def quadrature_elbo(log_joint, m, s):
    return quad(lambda w: norm.pdf(w, m, s) * (log_joint(w) - norm.logpdf(w, m, s)), m - 12 * s, m + 12 * s)[0]


shifts = [quadrature_elbo(log_joint_hundredths, m, s) - elbo(m, s) for m, s in candidates.values()]
print("ELBO changes by", np.round(shifts, 4), "= -N log 100")  # every q's by the same, as the log evidence: so no KL changes
assert np.abs(np.array(shifts) + N * np.log(100)).max() < 1e-6

# %% [markdown]
# ### 2. When the model learns too
#
# The note on the design pattern says: "Maximizing the ELBO is equivalent to minimizing the KL divergence". Let the prior mean be a
# parameter $\theta$ of the model, look at the first number alone, and keep $q = \mathcal N(x_1 / 2, \tfrac12)$. Raise $\theta$ from 0 to 1.
# What do ELBO and KL do?


# %% tags=["answer"]
def elbo_and_kl(theta, m, s, x1):
    log_p = -np.log(2 * np.pi) - 0.5 * ((x1 - m) ** 2 + (m - theta) ** 2 + 2 * s**2)
    return log_p + 0.5 * np.log(2 * np.pi * np.e * s**2), gaussian_kl(m, s, (x1 + theta) / 2, np.sqrt(0.5))


before, after = (elbo_and_kl(theta, x[0] / 2, np.sqrt(0.5), x[0]) for theta in (0.0, 1.0))
print(f"theta 0: ELBO {before[0]:.4f}, KL {before[1]:.4f};  theta 1: ELBO {after[0]:.4f}, KL {after[1]:.4f}")
assert after[0] > before[0]
assert after[1] > before[1]  # both rise: the evidence moved. The sum is constant only while the model is.
assert np.allclose([sum(before), sum(after)], norm.logpdf(x[0], [0.0, 1.0], np.sqrt(2)))

# %% [markdown]
# ### 3. Unequal modes
#
# Let the modes stand at $\pm 4$ with shares of nine tenths and one tenth. Before you compute: what is the ELBO of the best Gaussian in the
# small mode, and what in the large one? ($p$ is normalised, so that its log evidence is 0.)

# %% tags=["answer"]
modes, unequal = np.array([-4.0, 4.0]), np.array([0.9, 0.1])
found = {share: two_modes_kl_direction.elbo(mode, 1.0, modes, unequal) for mode, share in zip(modes, unequal, strict=True)}
for share, value in found.items():
    print(f"ELBO in the mode with share {share}: {value:.5f}, log share {np.log(share):.5f}")
    assert abs(value - np.log(share)) < 5e-3  # p is share * N(mode, 1) wherever q looks

# %% [markdown]
# ## The page's own check
#
# The page checks itself: against the exact evidence, posterior and divergences, with tolerances from quadrature, from the standard errors
# of the draws and from how near so many steps should come.

# %%
assert abs(posterior_mean - 1.8773796857484217) < 1e-12
assert abs(log_evidence - -136.80742332823354) < 1e-9
assert abs(np.log(area) - 140 - log_evidence) < 1e-8
assert abs(elbo(0.0, 1.0) - -362.489865) < 1e-6
assert abs(table.kl.iloc[0] - 225.682441) < 1e-6
assert np.abs(table["elbo + kl"] - log_evidence).max() < 1e-9
assert (table.elbo <= log_evidence + 1e-9).all()
assert table.loc[list(candidates), "elbo"].idxmax() == table.loc[list(candidates), "kl"].idxmin()

off = (estimates["estimate"] - estimates["closed form"]).abs()
assert (off < 4 * estimates["standard error"] + 1e-9).all()
assert estimates["standard error"].iloc[-1] < 1e-9 < estimates["standard error"].iloc[:-1].min()
assert abs(widths[lower.argmax()] / posterior_sd - 1) < 0.03  # the grid's own step

assert np.abs(elbo_path + kl_path - log_evidence).max() < 1e-9
assert 0 <= kl_path[-1] < 5e-4  # of 30 other keys the worst ends below 2e-4; with a tenth of the steps the best stays above 0.5
assert abs(m_path[-1] - posterior_mean) < 0.03 * posterior_sd
assert abs(s_path[-1] / posterior_sd - 1) < 0.03
assert abs(fit.elbo - log_evidence) < 1e-3

assert abs(gaussian_kl(0, 1, 0, 2) - 0.3181471806) < 1e-9
assert abs(gaussian_kl(0, 2, 0, 1) - 0.8068528194) < 1e-9
at = np.linspace(-15, 15, 3_001)
for a, ((m, s, reverse), (m_forward, s_forward)) in zip(half_distances, both, strict=True):
    modes = np.array([-a, a])
    log_p, log_q = two_modes_kl_direction.log_density(at, modes, shares), norm.logpdf(at, m, s)
    assert abs(np.trapezoid(np.exp(log_q) * (log_q - log_p), at) - reverse) < 1e-6
    least = minimize(lambda v, modes=modes: forward_kl(v[0], np.exp(v[1]), modes, shares), [0.5, 0.5], method="BFGS").x
    assert np.abs(least - [m_forward, np.log(s_forward)]).max() < 1e-3
assert abs(both[-1][0][2] - np.log(2)) < 1e-4
assert 0 < np.log(2) - both[jump][0][2] < 0.01
