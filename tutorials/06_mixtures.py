# %% [markdown]
# # Mixtures: label switching, EM, CAVI and their kinship
#
# The components of a mixture have no names. Swap two of them and the data are explained just as well, so the posterior has $K!$ copies
# of everything. **What does VI make of that, what does it lose, and is EM, the classic for mixtures, a rival of VI or a relative?**

# %% tags=["figure"]
import itertools
import math

import jax
import numpy as np
import pandas as pd
from figures import BLUE, GREEN, GREY, ORANGE, moving, plt, show
from scipy.special import logsumexp, softmax, xlogy

import vipatterns as vip
from vipatterns.patterns import (
    gaussian_mixture,
    gaussian_mixture_cavi,
    gaussian_mixture_em,
    gaussian_mixture_mcmc,
    linkage_em,
)

y = gaussian_mixture.data()["y"]
log_joint, means, variances = gaussian_mixture.assignments(y, 3)  # of all 3^10 ways to assign ten rows to three components
log_evidence = logsumexp(log_joint)
posterior = np.exp(log_joint - log_evidence)


def bell(x, m, s2):
    return np.exp(-0.5 * (x - m) ** 2 / s2) / np.sqrt(2 * np.pi * s2)


grid = np.linspace(-7.5, 7.5, 120)
likely = np.argsort(posterior)[-2_000:]  # the others' share is far below what can be seen
exact_density = bell(grid[:, None], means[likely, 0], variances[likely, 0]) @ posterior[likely]
fig, ax = plt.subplots()
ax.fill_between(grid, exact_density, color=GREY, alpha=0.35, lw=0, label=r"exact posterior of $\mu_1$")
ax.plot(y, np.full(10, -0.02), "|", color=GREY, ms=9)
best_m, best_s = gaussian_mixture.documented_bias(y)["mu"]
ax.plot(grid, bell(grid, best_m[0], best_s[0] ** 2), color=ORANGE, label=r"VI's $q(\mu_1)$")
ax.set(xlabel=r"$\mu_1$, the mean of component 1", ylabel="density")
ax.legend(fontsize=8)
show(
    fig,
    alt="The exact posterior of the first component's mean has three bumps of equal mass, one over each group of the ten data points. "
    "VI's q is a single bell, three times as high, over one of them.",
)

# %% [markdown]
# Ten numbers (the ticks), three groups. The exact posterior says that component 1 may be any of the three. VI says that it is the left
# one, for sure.
#
# ## Ten numbers, every answer
#
# The model is $\mu_k \sim \mathcal N(0, 25)$ (variance), each row's label $z_i$ uniform on three components, and $y_i \mid z_i \sim
# \mathcal N(\mu_{z_i}, 1)$. Given all labels, everything is Gaussian. So the evidence is a sum over all assignments, and here they can be
# listed: `{python} f"{len(log_joint):,}"` of them.

# %%
labels = np.array(list(itertools.product(range(3), repeat=10)))
distinct = set()
for row in labels.tolist():
    names = {}  # in the order in which they appear
    distinct.add(tuple(names.setdefault(k, len(names)) for k in row))
posterior_means = posterior @ means
print(f"log p(y) = {log_evidence:.6f}")
print(f"E[mu_k | y] = {posterior_means.round(6)}")
print(f"{len(labels):,} assignments, but {len(distinct):,} partitions: names aside, that is all that differs")

# %% [markdown]
# The posterior mean of every component is the same number, `{python} f"{posterior_means[0]:.3f}"`: the average over the three groups.
# (That one group lies near it is chance.) It is right, and useless. "Where is component 1?" has no answer, since nobody said which one is
# the first.
#
# ## What coordinate ascent makes of it
#
# Mean-field with labels: $q(\mu)\, q(z) = \prod_k \mathcal N(\mu_k; m_k, s_k^2) \prod_i r_{i z_i}$. Hold one factor fixed and the best
# other one has a closed form. Taking turns is coordinate ascent VI, CAVI:
#
# $$r_{ik} \propto e^{-\frac12 [(y_i - m_k)^2 + s_k^2]}, \qquad s_k^{-2} = \sum_i r_{ik} + \tfrac1{25}, \qquad
# m_k = s_k^2 \sum_i r_{ik}\, y_i.$$


# %%
def elbo(y, r, m, s2, prior=25.0):
    """In nats, in closed form: E log p(y, z, mu) and the entropies of q(z) and q(mu)."""
    log_rows = np.sum(r * (-0.5 * np.log(2 * np.pi) - 0.5 * ((y[:, None] - m) ** 2 + s2) - np.log(len(m))))
    log_prior = np.sum(-0.5 * np.log(2 * np.pi * prior) - 0.5 * (m**2 + s2) / prior)
    return log_rows + log_prior - np.sum(xlogy(r, r)) + 0.5 * np.sum(np.log(2 * np.pi * np.e * s2))


def cavi(y, m, *, num_sweeps=100, points=False, prior=25.0):
    """Returns m, s^2 and the ELBO after each sweep. With `points` the means are taken as known at m: that is EM."""
    s2, elbos = np.full(len(m), 0.5), []
    for _ in range(num_sweeps):
        r = softmax(-0.5 * ((y[:, None] - m) ** 2 + (0 if points else s2)), axis=1)
        s2 = 1 / (r.sum(0) + 1 / prior)
        m = s2 * (r.T @ y)
        elbos.append(elbo(y, r, m, s2, prior))
    return m, s2, np.array(elbos)


runs = {order: cavi(y, np.array(order)) for order in itertools.permutations([-1.0, 0.0, 1.0])}
columns = ["m1", "m2", "m3", "ELBO, sweep 1", "sweep 2", "sweep 5"]
pd.DataFrame([[*m, *elbos[[0, 1, 4]]] for m, _, elbos in runs.values()], columns=columns, index=map(str, runs)).rename_axis("start").round(
    3
)

# %% [markdown]
# Six starts, six answers, one ELBO: `{python} f"{runs[-1.0, 0.0, 1.0][2][-1]:.6f}"`. It falls short of the log evidence by

# %%
m, s2, elbos = runs[-1.0, 0.0, 1.0]
gap = log_evidence - elbos[-1]
print(f"log p(y) - ELBO = {gap:.6f} = log 3! + {gap - math.log(6):.6f}")

# %% [markdown]
# and so label switching is the whole of it. Why $\log 3!$? The gap is $\mathrm{KL}(q \,\|\, p)$. Where $q$ sits on one copy and is right
# there, $p$ is a sixth of $q$ all over it: $\mathbb E_q \log (q / p) = \log 6$. What remains, `{python} f"{gap - math.log(6):.6f}"` nats,
# is all that mean-field gets wrong *inside* its copy. A $q$ that covered all six copies would win the rest back, but no product of single
# Gaussians can.
#
# ## What is lost, and what is not
#
# Lost: everything that depends on names. Kept: everything that does not. Two examples, exact against $q$: the means in increasing order,
# and whether two rows share a component.

# %%
exact_draws = np.sort(gaussian_mixture.exact_posterior(y)["mu"], axis=1)
order = np.argsort(m)
together = np.stack([[posterior @ (labels[:, i] == labels[:, j]) for j in range(10)] for i in range(10)])
r = softmax(-0.5 * ((y[:, None] - m) ** 2 + s2), axis=1)
under_q = r @ r.T
np.fill_diagonal(under_q, 1)
error = np.abs(together - under_q).max()
print(f"P(rows i and j share a component): the largest error of q over all pairs is {error:.5f}")
pd.DataFrame(
    {"exact mean": exact_draws.mean(0), "q's": m[order], "exact sd": exact_draws.std(0), "q's sd": np.sqrt(s2[order])},
    index=["lowest", "middle", "highest"],
).round(3)

# %% [markdown]
# This is why a verdict on a mixture can be "safe". `vip.fit` finds out that the labels may be exchanged, says so, and adds $\log 3!$ to
# the evidence:

# %%
fit = vip.fit(jax.random.key(0), gaussian_mixture.model, gaussian_mixture.data())
print(fit.certificate.verdict)
print(f"log evidence: {fit.certificate.log_evidence:.3f} ± {fit.certificate.log_evidence_mcse:.3f}, exact {log_evidence:.3f}")

# %% [markdown]
# Note what the weights did *not* do: k-hat is low, and had the labels not been looked for, nothing in the draws would have told of the
# other five copies.
#
# A sampler has the same trouble in another form. The pattern [gaussian mixture, MCMC](patterns/gaussian_mixture_mcmc.md) renames the
# components at random in each sweep, which costs nothing and visits all six copies. Draws must then be sorted to be read:

# %%
gibbs = np.asarray(gaussian_mixture_mcmc.fit(jax.random.key(1), y, num_steps=10_000)[0]["mu"])
visited = len(np.unique(np.argsort(gibbs, axis=1), axis=0))
print(f"{visited} of 6 orders visited")
ordered = np.sort(gibbs, axis=1)
pd.DataFrame({"as drawn": gibbs.mean(0), "sorted": ordered.mean(0), "sorted, sd": ordered.std(0)}).round(3)

# %% [markdown]
# ## EM is coordinate ascent on the ELBO
#
# EM predates VI, looks for one best value $\theta$ instead of a distribution, and is often taught as a thing apart. Write the ELBO with
# $q(z)$ for the latents and $\theta$ as a parameter:
#
# $$F(q, \theta) = \mathbb E_{q(z)}\big[\log p(y, z \mid \theta) - \log q(z)\big] = \log p(y \mid \theta) - \mathrm{KL}\big(q(z)
# \,\|\, p(z \mid y, \theta)\big).$$
#
# - **E-step:** the best $q$ for this $\theta$ is $p(z \mid y, \theta)$. The KL is then zero, and $F$ *equals* the log likelihood.
# - **M-step:** the best $\theta$ for this $q$. $F$ rises, and $\log p(y \mid \theta)$, which touched $F$ before, now lies on it or above.
#
# That is all of EM (Neal and Hinton, 1998). On its first example (Dempster, Laird and Rubin, 1977; pattern
# [linkage](patterns/linkage_em.md)): 197 animals, one parameter $\theta$, and a count that lumps two genotypes together.

# %%
n = linkage_em.counts(linkage_em.data()["y"])


def log_likelihood(t):
    return n[0] * np.log(0.5 + t / 4) + (n[1] + n[2]) * np.log((1 - t) / 4) + n[3] * np.log(t / 4)


def bound(share, t):
    """F, if each animal of the first phenotype is of the second genotype with probability `share` under q."""
    entropy = -xlogy(share, share) - xlogy(1 - share, 1 - share)
    lumped = n[0] * ((1 - share) * np.log(0.5) + share * np.log(t / 4) + entropy)
    return lumped + (n[1] + n[2]) * np.log((1 - t) / 4) + n[3] * np.log(t / 4)


theta, limit, rows, shares = 0.5, linkage_em.documented_bias(linkage_em.data()["y"])["theta"][0], [], []
for _ in range(8):
    shares.append(theta / (2 + theta))  # E-step
    rows.append([theta, bound(shares[-1], theta), log_likelihood(theta)])
    theta = linkage_em.maximise(linkage_em.expect(theta, n), n)  # M-step
    rows[-1] += [theta, bound(shares[-1], theta), (theta - limit) / (rows[-1][0] - limit)]
columns = ["theta", "F after E", "log p(y | theta)", "theta after M", "F after M", "error / last error"]
steps = pd.DataFrame(rows, columns=columns, index=pd.Index(range(1, 9), name="round"))
steps.round(6)

# %% tags=["figure"]
fig, ax = plt.subplots()
t = np.linspace(0.12, 0.9, 100)
ax.plot(t, log_likelihood(t), color=GREY, lw=2, label=r"$\log p(y \mid \theta)$")
early = linkage_em.maximise(linkage_em.expect(0.2, n), n)
for start, color in ((0.2, BLUE), (early, ORANGE)):
    after = linkage_em.maximise(linkage_em.expect(start, n), n)
    ax.plot(t, bound(start / (2 + start), t), color=color, label=rf"$F$ after the E-step at {start:.3f}")
    ax.plot(start, log_likelihood(start), "o", color=color)
    ax.plot(after, bound(start / (2 + start), after), "^", color=color)
ax.set(xlabel=r"$\theta$", ylabel="nats", ylim=(-275, -203))
ax.legend(fontsize=8, loc="lower center")
show(
    fig,
    alt="The log likelihood of theta and two lower bounds. Each bound touches the curve where its E-step was made, a dot; "
    "the top of the first bound, a triangle, is where the next one touches.",
)

# %% [markdown]
# Read the two columns "F after E" and "log p": they are the same number. The bound touches the curve at the dot, the M-step climbs to the
# bound's top (triangle), and there the next bound touches. The error shrinks by `{python} f"{rows[5][5]:.4f}"` a round: the share of the
# information about $\theta$ that is missing because a count was lumped.
#
# ## EM is CAVI with points
#
# Look again at `cavi` above, and at its argument `points`. EM for the mixture is the same two lines with one term dropped: where CAVI
# has $\mathbb E_q (y_i - \mu_k)^2 = (y_i - m_k)^2 + s_k^2$, EM has $(y_i - m_k)^2$. It takes the means as known. (The update of $m_k$
# is the same: a Gaussian's mode is its mean.) The fewer rows a component has, the more the term matters. Here the groups are pushed
# together until they overlap, then every row stands there 1, 10 and 100 fold:

# %%
kinship = {}
for copies in (1, 10, 100):
    rows_now = np.repeat(0.4 * y, copies)
    with_sds, with_points = (cavi(rows_now, np.array([-2.0, 0.0, 2.0]), num_sweeps=1_000, points=points) for points in (False, True))
    kinship[copies] = {
        "CAVI's m1": with_sds[0][0],
        "EM's m1": with_points[0][0],
        "largest difference": np.abs(with_sds[0] - with_points[0]).max(),
        "CAVI's sd of m1": math.sqrt(with_sds[1][0]),
    }
pd.DataFrame(kinship).T.rename_axis("copies of each row").round(6)

# %% [markdown]
# The difference falls like $1/n$, the sd like $1/\sqrt n$. Both find the same place. CAVI also says how sure it is, at the same cost.
#
# ## Eighty-two galaxies
#
# A real mixture, with weights, means and precisions all unknown: the speeds at which 82 galaxies recede, in 1000 km/s. Clumps in
# speed are clumps in space. Below is EM, step by step, from three galaxies taken as starting means (pattern
# [gaussian mixture, EM](patterns/gaussian_mixture_em.md)). The bars are coloured by responsibilities $r_{ik}$: how much of each bar
# is whose.

# %% tags=["figure"]
galaxies = gaussian_mixture_em.data()
speed, units = galaxies["y"], galaxies["units"]


def log_posterior(point):
    """log p(y, point) in nats."""
    w, mu, tau = (np.asarray(point[site], float) for site in ("weights", "mu", "tau"))
    log_rows = logsumexp(np.log(w) + 0.5 * np.log(tau / (2 * np.pi)) - 0.5 * tau * (speed[:, None] - mu) ** 2, axis=1).sum()
    a, b, kappa = gaussian_mixture_em.A0, gaussian_mixture_em.B0 * units[1] ** 2, gaussian_mixture_em.KAPPA0
    log_tau = a * np.log(b) - math.lgamma(a) + (a - 1) * np.log(tau) - b * tau
    log_mu = 0.5 * np.log(kappa * tau / (2 * np.pi)) - 0.5 * kappa * tau * (mu - units[0]) ** 2
    return log_rows + math.lgamma(3) + np.sum(log_tau + log_mu)


def climb(rows, num_steps):
    """EM from means on three rows: the points and the responsibilities, step by step."""
    point = {"weights": np.full(3, 1 / 3), "mu": speed[rows], "tau": np.full(3, 4 / units[1] ** 2)}
    path = []
    with jax.enable_x64(True):
        for _ in range(num_steps):
            r = np.asarray(gaussian_mixture_em.expect(point, speed))
            path.append((point, r, log_posterior(point)))
            point = {site: np.asarray(v) for site, v in gaussian_mixture_em.maximise(r, speed, units).items()}
    return path


path = climb([15, 35, 79], num_steps=25)
fig, ax = plt.subplots(figsize=(7, 3.6))
edges, x = np.arange(8, 36, 1.0), np.linspace(7, 37, 76)
ax.set(xlim=(7, 37), ylim=(0, 24), xlabel="speed, 1000 km/s", ylabel="galaxies")
frames, captions = [], []
for step, (point, r, height) in enumerate(path):
    seen, base = [], np.zeros(len(edges) - 1)
    for k, color in enumerate((BLUE, ORANGE, GREEN)):
        top = base + np.histogram(speed, edges, weights=r[:, k])[0]
        seen.append(ax.stairs(top, edges, baseline=base, fill=True, color=color, alpha=0.35))
        curve = len(speed) * point["weights"][k] * bell(x, point["mu"][k], 1 / point["tau"][k])
        seen += ax.plot(x, curve, color=color)
        base = top
    frames.append(seen)
    captions.append(f"step {step}: log p(y, point) {height:.2f}; weights {', '.join(f'{w:.2f}' for w in point['weights'])}")
moving(
    fig,
    frames,
    captions,
    alt="A histogram of 82 galaxies' speeds, its bars split among three components, and the components' densities. Over the steps of EM "
    "two components that share the main clump part: one keeps the middle, the other spreads wide and then draws together on the few "
    "slow galaxies on the left; the third has the fast ones.",
    label="step of EM",
    start=24,
)

# %% [markdown]
# The height hardly rises from step 4 to step 14, by `{python} f"{path[14][2] - path[4][2]:.1f}"` nats in all. Then a component lets go of
# the main clump and drops onto the slow galaxies, `{python} f"{path[20][2] - path[14][2]:.1f}"` nats in six steps. EM never goes down,
# but it may dwell, and a rule that stops at small steps would have stopped. It may also stay for good. From three starts in the main
# clump it ends in a lesser mode, and no renaming of components turns that one into the other:

# %%
ends = {f"galaxies {rows}": climb(list(rows), num_steps=80)[-1] for rows in ((15, 35, 79), (35, 40, 45))}
pd.DataFrame({name: [*np.sort(point["mu"]), height] for name, (point, _, height) in ends.items()}, ["mu", "mu", "mu", "log p"]).T.round(2)

# %% [markdown]
# So the patterns start many times and keep the best. Label switching costs VI nothing but names; *other* modes are the real danger.
#
# And now with distributions for points: [gaussian mixture, CAVI](patterns/gaussian_mixture_cavi.md), the same model, the same data.

# %%
em_q, em_losses = gaussian_mixture_em.fit(jax.random.key(2), num_steps=200, **galaxies)
cavi_q, cavi_losses = gaussian_mixture_cavi.fit(jax.random.key(3), num_steps=200, **galaxies)
galaxy_table = pd.DataFrame(
    {
        "EM: weight": em_q["weights"].mean,
        "EM: mean": em_q["mu"].mean,
        "CAVI: weight": cavi_q["weights"].mean,
        "its sd": np.sqrt(cavi_q["weights"].variance),
        "CAVI: mean": cavi_q["mu"].mean,
        "sd of the mean": np.sqrt(cavi_q["mu"].variance),
    }
)
galaxy_table.astype(float).round(3)

# %% [markdown]
# Three galaxies make the last group, and its mean is uncertain by `{python} f"{galaxy_table.iloc[2, 5]:.2f}"` thousand km/s. EM gives the
# same mean without a word about it. Both patterns return exact losses, not noisy estimates: but for rounding, neither ever rises.
#
# ## For a model of your own: sum the labels out
#
# CAVI and EM need updates derived by hand. For a new model you need neither. A discrete label has no gradient, and needs none: write its
# sum into the likelihood, and any method for smooth densities applies. In NumPyro:
#
# ```python
# mixture = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(mu, sd))
# numpyro.sample("y", mixture, obs=y)
# ```
#
# That is the model of [gaussian mixture](patterns/gaussian_mixture.md), which `vip.fit` had above. Its bound is even a little higher than
# CAVI's, since the labels are summed exactly and only $q(\mu)$ is approximate: `{python} f"{fit.elbo:.4f}"` against
# `{python} f"{elbos[-1]:.4f}"`. Where you want the labels in the model, [enumeration](patterns/gaussian_mixture_enumerated.md) sums them
# for you. What does not work is `Trace_ELBO` on a model with a discrete site: it warns, then trains on a wrong gradient.
#
# ## What the documents said
#
# **EM "doesn't rely on variational methods directly", and "shares the spirit"** (the note on the design pattern). It shares the
# objective: each step maximises the ELBO over one of its two arguments, and the table above has both columns.
#
# **"increasing the lower bound does not necessarily mean also increase the loglikelihood [...], but if some conditions are satisfied,
# then it does"** (the blog post on the magic of VI, which stops before it names them). Here is one: if the bound is *tight* where you
# start, as after an E-step, the log likelihood rises at least as much as the bound.
#
# **"For each of these 59,049 combinations, we need to compute an integral"** (the same post), three-dimensional ones. Given an assignment
# the means are independent, the integral is three closed forms, and assignments that differ by names alone are equal:
# `{python} f"{len(distinct):,}"` are left. That is still exponential in the number of rows. A sweep of CAVI costs ten rows times three
# components.
#
# ## What to copy
#
# - groups of unknown sizes and spreads, an answer with sds at once: [gaussian mixture, CAVI](patterns/gaussian_mixture_cavi.md);
# - a point is enough: [gaussian mixture, EM](patterns/gaussian_mixture_em.md), and keep its prior (exercise 2);
# - any new model: sum the labels out, then `vip.fit(key, model, data)`; read the verdict for the words "one labelling among".
#
# Report what does not depend on names: sorted means, who is with whom, the predictive density.
#
# ## Exercises
#
# ### Equal starts
#
# Start CAVI with all three means at 0. Where does it go, and why does it not leave? What is its ELBO?

# %% tags=["answer"]
stuck_m, _, stuck_elbos = cavi(y, np.zeros(3))
print(f"m = {stuck_m.round(4)}, ELBO {stuck_elbos[-1]:.2f} after {len(stuck_elbos)} sweeps")
print("every row is shared in equal parts, so every component gets the same update: a saddle, which only a push leaves")
_, _, pushed = cavi(y, np.array([-1e-6, 0.0, 1e-6]))
print(f"pushed by a millionth: ELBO {pushed[-1]:.4f}")
assert np.ptp(stuck_m) < 1e-12
assert abs(pushed[-1] - elbos[-1]) < 1e-6

# %% [markdown]
# ### A likelihood without a maximum
#
# EM for weights, means and sds by maximum likelihood alone has a hole: put one component on one galaxy and shrink its sd. Show that the
# log likelihood passes that of the pattern's answer. Which line of the pattern's model prevents it?

# %% tags=["answer"]
point, _, _ = ends["galaxies (15, 35, 79)"]


def plain(w, mu, sd):
    return logsumexp(np.log(w) - 0.5 * np.log(2 * np.pi) - np.log(sd) - 0.5 * ((speed[:, None] - mu) / sd) ** 2, axis=1).sum()


honest = plain(point["weights"], point["mu"], point["tau"] ** -0.5)
broad = [0.02, 0.98], [speed[40], units[0]], units[1]
for sd in (1e-2, 1e-10, 1e-20, 1e-40):
    print(f"sd {sd:.0e}: log likelihood {plain(broad[0], broad[1], np.array([sd, broad[2]])):.2f}; the pattern's point {honest:.2f}")
assert plain(broad[0], broad[1], np.array([1e-40, broad[2]])) > honest
print("tau ~ Gamma(a0, b0 s_y^2): its density falls as exp(-b tau), faster than the square root of tau rises")

# %% [markdown]
# ### When the gap is not log K!
#
# Multiply the ten numbers by $0.5$, then by $0.1$, and compare the gap of the best of several CAVI runs with $\log 3!$. Explain both.

# %% tags=["answer"]
gaps = {}
for scale in (1.0, 0.5, 0.1):
    rows_now, starts = scale * y, ([-5 * scale, 0, 5 * scale], [0, 0, 0], [-1, 0, 1], [-1, -0.1, 1])
    best_elbo = max(cavi(rows_now, np.array(start, float))[2][-1] for start in starts)
    gaps[scale] = logsumexp(gaussian_mixture.assignments(rows_now, 3)[0]) - best_elbo
    print(f"scale {scale}: gap {gaps[scale]:.3f}, log 3! {math.log(6):.3f}")
print("0.5: the groups overlap, labels and means depend on each other, and q holds them independent")
print("0.1: one clump; the copies overlap too, so a q over one is over parts of all, and less than log 3! is lost")
assert abs(gaps[1.0] - math.log(6)) < 0.002
assert gaps[0.5] > math.log(6) + 0.5
assert gaps[0.1] < 1

# %% [markdown]
# ## The page checks itself
#
# Everything on this page has an exact answer to be held against: sums over all assignments, closed forms, published iterates.

# %%
assert abs(log_evidence + 26.362466087635834) < 1e-9
assert np.allclose(posterior_means, 0.038396267, atol=1e-9)
assert len(distinct) == 9_842
for found, spread, values in runs.values():
    assert abs(values[-1] + 28.155474993858) < 1e-9
    assert np.all(np.diff(values) > -1e-9)
    assert np.allclose(np.sort(found), [-4.96707, 0.04951, 5.03284], atol=2e-5)
    assert np.allclose(spread[np.argsort(found)], [0.32895, 0.24753, 0.32895], atol=2e-5)
assert abs(gap - math.log(6) - 0.001249) < 1e-6
assert error < 0.002
assert np.allclose(m[order], exact_draws.mean(0), atol=0.008)  # 100,000 draws, 4 standard errors
assert np.allclose(ordered.mean(0), exact_draws.mean(0), atol=0.03)  # 9,000 draws
assert np.allclose(gibbs.mean(0), posterior_means, atol=4 * gibbs[:, 0].std() / math.sqrt(9_000))  # renamed at random: independent
assert visited == 6
assert fit.certificate.ok
assert abs(fit.certificate.log_evidence - log_evidence) < 4 * fit.certificate.log_evidence_mcse
assert elbos[-1] < fit.elbo < log_evidence - math.log(6) + 4 * fit.elbo_mcse
iterates = [0.608247423, 0.624321050, 0.626488879, 0.626777322, 0.626815632, 0.626820719, 0.626821394, 0.626821484]
assert np.allclose(steps["theta after M"], iterates, atol=1e-9)  # Dempster, Laird and Rubin
assert np.allclose(steps["F after E"], steps["log p(y | theta)"], atol=1e-10)
assert np.all(np.diff(steps[["F after E", "F after M"]].to_numpy().ravel()) > -1e-9)
assert abs(rows[5][5] - 0.132779) < 1e-4
differences = [row["largest difference"] for row in kinship.values()]
assert 5 < differences[0] / differences[1] < 20
assert 5 < differences[1] / differences[2] < 20
heights = np.array([height for _, _, height in path])
assert np.all(np.diff(heights) > -1e-9)
assert abs(em_losses[-1] + ends["galaxies (15, 35, 79)"][2]) < 1e-3
mode, top = gaussian_mixture_em.documented_bias(**galaxies), gaussian_mixture_cavi.documented_bias(**galaxies)  # by BFGS
assert np.allclose(em_q["mu"].mean, mode["mu"][0], atol=0.01)
assert np.allclose(cavi_q["mu"].mean, top["mu"][0], atol=0.01)
assert np.allclose(np.sqrt(cavi_q["mu"].variance), top["mu"][1], rtol=0.01)
