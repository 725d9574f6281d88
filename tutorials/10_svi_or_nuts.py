# %% [markdown]
# # SVI or NUTS? Cost against size, and what the certificate promises
#
# You have a model and a table. NUTS, the sampler, is right in the long run, and the run may be long. Variational inference is quick, and
# may be wrong. Which of them for *this* table? And when a fit comes back with a certificate, what exactly has been promised to you, and
# what has not?
#
# We measure first. Logistic regression with eight correlated features, on tables of three sizes, by `vip.DADVI`, the first rung of
# `vip.fit`, and by NUTS. Every second on this page was measured in the build that you are reading, compiling and running apart.

# %%
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from figures import BLUE, GREY, ORANGE, PURPLE, moving, plt, show
from jax import jit, random, vmap
from jax.scipy.stats import norm as jax_norm
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.util import log_density
from scipy.stats import norm

import vipatterns as vip
from vipatterns import diagnosis
from vipatterns.patterns import funnel, gaussian_mean, logistic_regression, two_modes_kl_direction

rng = np.random.default_rng(0)
key_cost, key_batch, key_rows, key_modes, key_needle, key_funnel, key_compare, key_calibrate = random.split(random.key(0), 8)
TRUE = np.array([0.8, -0.5, 0.3, 0.0, 0.6, -0.2, 0.1, -0.7])


def table(num_rows):
    x = rng.normal(size=(num_rows, 8))
    x[:, 1:] += x[:, :1]  # correlated
    return {"x": x, "y": (rng.uniform(size=num_rows) < 1 / (1 + np.exp(-x @ TRUE))).astype(float)}


def model(x, y=None, batch_size=None):
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.0).expand([8]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=batch_size):
        x_batch = numpyro.subsample(jnp.asarray(x), event_dim=1)
        y_batch = None if y is None else numpyro.subsample(jnp.asarray(y), event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=x_batch @ slopes), obs=y_batch)


tables = {n: table(n) for n in (1_000, 2_000, 4_000)}
methods = {"DADVI": vip.DADVI(num_samples=250), "NUTS": vip.NUTS(num_warmup=150, num_samples=250, num_chains=1)}
fits, rows = {}, []
for n, key in zip(tables, random.split(key_cost, 3), strict=True):
    for name, method in methods.items():
        fit = fits[name, n] = vip.fit(key, model, tables[n], method=method, progress=False)
        draws = min(fit.certificate.ess, fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"])
        rows.append({"rows": n, "method": name, "compile s": fit.compile_seconds, "run s": fit.run_seconds, "effective draws": draws})
costs = pd.DataFrame(rows)
costs["s for 1,000 effective draws"] = 1_000 * costs["run s"] / costs["effective draws"]
costs.round(2)

# %% tags=["figure"]
fig, ax = plt.subplots()
far = np.geomspace(4_000, 1_000_000, 12)
for name, colour in (("DADVI", BLUE), ("NUTS", ORANGE)):
    c = costs[costs.method == name]
    ax.loglog(c["rows"], c["s for 1,000 effective draws"], "o-", color=colour, label=f"{name}, running")
    ax.loglog(c["rows"], c["compile s"], "s:", markersize=4, markerfacecolor="none", color=colour, label=f"{name}, compiling, once")
    ax.loglog(far, c["s for 1,000 effective draws"].iloc[-1] * far / 4_000, "--", color=colour)
ax.loglog([], [], "--", color=GREY, label="extrapolated: time in proportion to rows")
ax.set(xlabel="rows of the table", ylabel="seconds, 1,000 effective draws")
ax.legend(fontsize=8)
last = costs.set_index(["rows", "method"])["s for 1,000 effective draws"][4_000]
show(
    fig,
    alt=f"Seconds for 1,000 effective draws against rows. At 4,000 rows DADVI took {last['DADVI']:.1f} s and NUTS {last['NUTS']:.1f} s; "
    "dashed lines carry both on to a million rows in proportion to the rows.",
)

# %% [markdown]
# Seconds depend on the machine and on what else it was doing, so read orders of size. **Compiling** hardly depends on the table. On small
# ones it is a large part of the wait; there the choice of method matters little, and NUTS, whose output needs the least explaining, is a
# fine first choice. **Running** grows with the rows once they outweigh the overhead. The dashed lines assume just that, from the last
# point: nothing was run there. And the **distance** between the curves is a count:
#
# $$\begin{aligned}
# \text{NUTS: } & \text{draws} \times \text{leapfrog steps a draw} \times \text{gradient of all rows}, \\
# \text{DADVI: } & \text{fixed draws} \times \text{Newton steps} \times \text{derivatives of all rows},
# \end{aligned}$$
#
# and, for DADVI, one $\log p$ of all rows for each draw that is weighed, ten for each that it hands out.
#
# NUTS took `{python} f"{fits['NUTS', 4_000].idata['sample_stats']['n_steps'].values.mean():.0f}"` leapfrog steps a draw here, and
# consecutive draws resemble each other. DADVI ended after `{python} fits['DADVI', 4_000].num_steps` Newton steps, and its draws are
# independent; what it pays for is the certificate. (The NUTS runs are short, one chain each, to measure speed. Their own certificates
# refuse them: too few draws.)
#
# Do the two agree? Where both are right they must, within their Monte Carlo errors:

# %%
apart = {}
for n in tables:
    one, other = (fits[name, n].posterior["slopes"].values.reshape(-1, 8) for name in methods)
    error = one.std(0) * np.sqrt(sum(1 / costs.set_index(["rows", "method"])["effective draws"][n]))
    apart[n] = np.abs((one.mean(0) - other.mean(0)) / error).max()
sds = {n: fits["DADVI", n].posterior["slopes"].values.reshape(-1, 8).std(0) for n in tables}
assert all(fits["DADVI", n].certificate.ok for n in tables)
assert max(apart.values()) < 4.5
print({n: f"largest of 8 differences of means: {v:.1f} standard errors" for n, v in apart.items()})

# %% [markdown]
# ## Minibatches: paying for a few rows at a time
#
# A gradient need not read the whole table. Take $B$ of $N$ rows at random, and count each $N / B$ times:
#
# $$\log p(y, \beta) \approx \log p(\beta) + \frac NB \sum_{i \in \text{batch}} \log p(y_i \mid \beta),$$
#
# which is right on average. In NumPyro the plate does the counting: `subsample_size` on the plate, `numpyro.subsample` for the arrays, as
# in the model above. (Careful with `TraceGraph_ELBO`: in today's NumPyro it counts twice at sites that are not reparameterised.)

# %%
small = tables[2_000]
at = {"slopes": jnp.asarray(TRUE, jnp.float32)}
whole = float(log_density(model, (small["x"], small["y"]), {}, at)[0])


@jit
@vmap
def estimate(key):
    return log_density(handlers.seed(model, key), (small["x"], small["y"]), {"batch_size": 200}, at)[0]


estimates = np.asarray(estimate(random.split(key_rows, 500)), float)
spread = estimates.std()
assert abs(estimates.mean() - whole) < 4 * spread / 500**0.5

auto = AutoMultivariateNormal(model, init_scale=0.1)
optimizer = numpyro.optim.Adam(lambda step: 0.03 * 0.003 ** (step / 6_000))
trained = SVI(model, auto, optimizer, Trace_ELBO(num_particles=4)).run(key_batch, 6_000, small["x"], small["y"], 200, progress_bar=False)
q = auto.get_posterior(trained.params)
full = fits["DADVI", 2_000].posterior["slopes"].values.reshape(-1, 8)
off = np.abs(np.asarray(q.mean) - full.mean(0)) / full.std(0)
ratio_sd = np.sqrt(np.asarray(q.variance)) / full.std(0)
assert off.max() < 0.3
assert np.abs(ratio_sd - 1).max() < 0.2
print(f"log p from all rows {whole:.1f}, from 200 of 2,000: mean {estimates.mean():.1f}, sd {spread:.1f} nats")
print(
    f"full-rank q by minibatches, against DADVI: means within {off.max():.2f} sds, sd ratios {ratio_sd.min():.2f} to {ratio_sd.max():.2f}"
)

# %% [markdown]
# Each estimate is off by `{python} f"{spread:.0f}"` nats or so; Adam averages that away over `{python} f"{len(trained.losses):,}"` small
# steps, which together read the table `{python} f"{len(trained.losses) * 200 / 2_000:.0f}"` times. DADVI read it once for each draw that it
# weighed, and a handful of times more. Minibatches win where one pass is dear (hundreds of thousands of rows, or more than memory holds),
# or where every row brings latents of its own, and then [amortisation](09_amortisation.md) helps too. `vip.MeanField(batch_size=...)` and
# `vip.FullRank(batch_size=...)` do the same with restarts and a measured end. They begin at the mode of all rows, and what a batch makes of
# the slope there is taken off its estimate, the slope of all rows put in its place (Baker et al. 2019, arXiv 1706.05439): near the mode a
# batch then says almost what the whole table says. Their certificates still read every row. A judge who sees a fifteenth of the evidence is
# no judge.
#
# ## What k-hat can see, and with how many draws
#
# Draws of $q$ have weights $p / q$. Their largest ones follow a Pareto law, whose shape $k$ says how far averages over them can be trusted:
# up to about $0.7$ (Vehtari et al. 2024, arXiv 1507.02646). But $\hat k$ is itself an estimate. Here $q = \mathcal N(0, s)$ and $p =
# \mathcal N(0, 1)$, where $k = 1 - s^2$ exactly; and, on the right, the best mean-field $q$ of Neal's [funnel](patterns/funnel.md) in two
# dimensions. Move the slider to draw more.


# %%
def gaussian_khat(generator, k, num_draws):
    s = np.sqrt(1 - k)
    z = generator.normal(0, s, num_draws)
    return diagnosis.smooth(norm.logpdf(z), norm.logpdf(z, 0, s)).khat


best_q = funnel.documented_bias(2)


def funnel_khat(generator, num_draws):
    s_v, s_x = best_q["v"][1], best_q["x"][1][0]
    v, x = generator.normal(0, s_v, num_draws), generator.normal(0, s_x, num_draws)
    log_p = norm.logpdf(v, 0, 3) + norm.logpdf(x, 0, np.exp(v / 2))
    return diagnosis.smooth(log_p, norm.logpdf(v, 0, s_v) + norm.logpdf(x, 0, s_x)).khat


SIZES, KS = (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000), (0.1, 0.3, 0.5, 0.7, 0.9)
khats = {n: {k: np.array([gaussian_khat(rng, k, n) for _ in range(20)]) for k in KS} for n in SIZES}
funnel_khats = {n: np.array([funnel_khat(rng, n) for _ in range(20)]) for n in SIZES}

# %% tags=["figure"]
fig, ax = plt.subplots()
ax.plot([0, 1], [0, 1], color=GREY, linewidth=1)
ax.text(1.0, 1.06, r"$\hat k = k$", color=GREY, ha="center")
frames, captions = [], []
jitter = np.linspace(-0.025, 0.025, 20)
for n in SIZES:
    artists = [ax.scatter(k + jitter, khats[n][k], s=9, color=BLUE, linewidth=0) for k in KS]
    artists.append(ax.scatter(1.15 + 1.5 * jitter, funnel_khats[n], s=9, color=ORANGE, linewidth=0))
    artists.append(ax.axhline(diagnosis.khat_threshold(n), color=PURPLE, linestyle="--", linewidth=1))
    frames.append(artists)
    wide = np.ptp(np.quantile(khats[n][0.7], [0.1, 0.9]))
    captions.append(
        f"{n:,} draws: accepted below {diagnosis.khat_threshold(n):.2f}; at k = 0.7 eight estimates in ten lie within {wide:.2f}; "
        f"the funnel's q passes {(funnel_khats[n] < diagnosis.khat_threshold(n)).sum()} times in 20"
    )
ax.set(
    xlim=(0, 1.3), ylim=(-0.6, 1.4), xlabel="true k", ylabel=r"estimate $\hat k$", xticks=[*KS, 1.15], xticklabels=[*map(str, KS), "funnel"]
)
moving(
    fig,
    frames,
    captions,
    alt=f"Estimates of k against the true k for Gaussians, and for the funnel, 20 each; they draw together as draws grow. {captions[4]}.",
    label="draws",
    start=4,
)

# %% [markdown]
# Look at the funnel with 4,000 draws. That $q$ gives $v$ an sd of `{python} f"{best_q['v'][1]:.2f}"` where the truth is 3, and still a
# check that looks once at 4,000 weights lets it through `{python} (funnel_khats[4_000] < 0.7).sum()` times in 20; with 64,000 draws,
# `{python} (funnel_khats[64_000] < 0.7).sum()` times. Among few draws the rare one that would give it away has not come yet. So `vip.DADVI`
# weighs ten times as many draws as it hands out, from a wider distribution than mean-field, and looks at more than one number. Eight times
# the funnel:

# %%
judged = list(vip.DADVI().fit_many(key_funnel, funnel.model, [{"num_dimensions": 2}] * 8))
print(f"certified {sum(f.certificate.ok for f in judged)} of {len(judged)}; k-hat {min(f.certificate.khat for f in judged):.2f} or more")
print(judged[0].certificate.verdict)
assert not any(f.certificate.ok for f in judged)

# %% [markdown]
# ## What no certificate can see
#
# Weights are known where draws went. Two modes, at $-4$ and $4$, with shares of three and seven tenths; $q$ is the right-hand mode,
# exactly. A bare check of the weights, then our own:

# %%
two = {"modes": np.array([-4.0, 4.0]), "shares": np.array([0.3, 0.7])}
z = np.random.default_rng(3).normal(4, 1, 4_000)
log_w = two_modes_kl_direction.log_density(z, **two) - norm.logpdf(z, 4)
bare_khat, bare_evidence = diagnosis.smooth(log_w, np.zeros(4_000)).khat, np.log(np.exp(log_w).mean())
looked = vip.fit(key_modes, two_modes_kl_direction.model, two, method=vip.DADVI(num_samples=250), progress=False)
print(f"bare check: k-hat {bare_khat:.2f}, log evidence {bare_evidence:.4f}; the truth is 0, log 0.7 is {np.log(0.7):.4f}")
print(f"DADVI: certified {looked.certificate.ok}. {looked.certificate.verdict}")

# %% [markdown]
# The bare check sees weights that are nearly all equal, and gives the evidence of one mode. `vip.DADVI` begins with a search from many
# starts and weighs more draws. But a search is no proof. Here is a model whose second half is a needle, six sds out and a thousandth wide:


# %%
def needle():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("needle", jnp.logaddexp(0.0, jax_norm.logpdf(x, 6.0, 1e-3) - jax_norm.logpdf(x)))


fooled = vip.fit(key_needle, needle, {}, method=vip.DADVI(num_samples=250), progress=False)
print(f"certified {fooled.certificate.ok}, log evidence {fooled.certificate.log_evidence:.3f}; the truth is log 2 = {np.log(2):.3f}")
print(fooled.certificate.verdict)

# %% [markdown]
# Certified, and half of the posterior is missing. A chain of NUTS has nothing to lead it there either. Read the last clause of that
# verdict: it is the border of the promise. More starts look at more places, never at all of them. Likewise no certificate knows whether the
# *model* suits the data, or what another table would give.
#
# | the certificate promises | it does not promise |
# |---|---|
# | the draws in `fit.posterior`, smoothed and resampled | the raw draws of $q$, in the group `proposal`, judged apart |
# | means and sds within the Monte Carlo errors that it names | tails beyond where draws went |
# | that no weight too heavy was met, in so many draws | modes that no start met |
# | this model, on this table | that the model is a good one; any other table |
#
# ## With a reference: how to read `vip.compare`
#
# Where something is at stake, put VI beside NUTS or an exact answer once. Four groups of five animals, and a posterior that is skewed; its
# exact answer is a grid, in the pattern [logistic_regression](patterns/logistic_regression.md):

# %%
bioassay = logistic_regression.data()
exact = logistic_regression.exact_posterior(**bioassay)
comparison = vip.compare(
    key_compare,
    logistic_regression.model,
    bioassay,
    methods=[vip.MeanField(num_restarts=2, num_samples=500), vip.DADVI(num_samples=500)],
    reference=exact,
    progress=False,
)
for name, verdict in comparison.verdicts.items():
    print(f"{name}, {verdict.standing}: {verdict.sentence}")
comparison.table[["method", "log_evidence", "khat", "mean_error", "sd_ratio_min", "sd_ratio_max"]].round(3)

# %% [markdown]
# `mean_error` is the largest error of a mean, in posterior sds; the two ratios are the smallest and largest sd over the reference's. A
# method is *safe* for a use where its errors are small beyond doubt **and** its own check holds. Mean-field's weighted draws may even agree
# here: yet its k-hat refuses them, and without a reference nothing would tell you that this time was lucky. That is why the verdict names
# both.
#
# ## Is the certificate itself honest? Calibration
#
# Draw parameters from the prior, data from the model, fit, and ask where the true parameter ranks among the draws. If posteriors are right,
# ranks are uniform (Talts et al. 2018, arXiv 1804.06788). Thirty tables of the [Gaussian mean](patterns/gaussian_mean.md):

# %%
calibration = vip.calibrate(key_calibrate, gaussian_mean.model, gaussian_mean.data(), num_datasets=30, progress=False)
print(calibration.sentence)
ranks = np.concatenate([v.values.ravel() for v in calibration.idata["prior_sbc"].to_dataset().data_vars.values()])

# %% tags=["figure"]
fig, ax = plt.subplots(figsize=(5.6, 2.6))
counts, edges = np.histogram(ranks, bins=6, range=(0, 1))
ax.bar(edges[:-1], counts, width=1 / 6, align="edge", color=BLUE, edgecolor="none", alpha=0.8)
low, high = np.quantile(np.random.default_rng(1).binomial(30, 1 / 6, 20_000), [0.025, 0.975])
ax.axhspan(low, high, color=GREY, alpha=0.3, linewidth=0, zorder=0)
ax.axhline(5, color=GREY, linewidth=1)
ax.set(xlim=(0, 1), xlabel="share of draws below the true parameter", ylabel="tables")
show(
    fig,
    alt=f"Histogram of 30 ranks in six bins, counts {', '.join(map(str, counts))}; under right posteriors a bin mostly has "
    f"{low:.0f} to {high:.0f}.",
)

# %% [markdown]
# A bowl would say that the draws are too narrow, a hill that they are too wide, a slope that they are shifted. Thirty tables rule out the
# gross, no more: to put false certificates below one in a hundred takes three hundred tables without one, and a reference for each
# (`reference=` of `vip.calibrate`).
#
# ## Which method when
#
# | you have | start with | because | see |
# |---|---|---|---|
# | a small table, a quick model | `vip.NUTS()` | waits mostly for its compiler | [eight schools](patterns/eight_schools.md) |
# | any model, no opinion | `vip.fit`, the ladder | ends at NUTS if need be | [regression](07_regression.md) |
# | much data, few latents | `vip.DADVI()`, `vip.Laplace()` | nearly Gaussian posterior | [logistic](patterns/logistic_regression.md) |
# | too many rows for a gradient | `vip.MeanField(batch_size=...)` | few rows a step | [mixture](patterns/gaussian_mixture_stochastic.md) |
# | a latent for each of many rows | `vip.train` | one network for all | [VAE](patterns/vae.md), [amortisation](09_amortisation.md) |
# | a funnel, a bend, a skew | non-centred; `vip.IMIS()`, `vip.Flow()` | no Gaussian fits | [hierarchical models](08_hierarchical.md) |
# | several modes | enumerate, relabel | one Gaussian sees one mode | [mixtures](06_mixtures.md) |
# | sds or tails that matter | NUTS, or VI once compared | measured, not hoped | this page |
#
# ## What the documents said
#
# **The note on the design pattern: "Each method has its trade-offs in terms of computational efficiency and accuracy."** True, and now with
# figures. It also calls MCMC "computationally expensive" without saying when. On a thousand rows NUTS ran for
# `{python} f"{costs.set_index(['rows', 'method'])['run s'][1_000]['NUTS']:.1f}"` seconds after its compiler.
#
# **The same note: maximising the ELBO finds "the best approximation within the chosen family".** It does, if the optimiser gets there. Best
# is not good: the funnel's $q$ above *is* the best of its family, and has less than half of the sd.
#
# **The VI note: "Variational Inference is still not scalable. We still have to fit the variational parameter for each observations".** Only
# where each observation has a latent. The slopes above are eight numbers for any table, and a minibatch reads a part of it (Hoffman et al.
# 2013).
#
# **The blog post on the magic of VI** trades "annoying integral operations" for "the optimization process". Not quite a trade: the
# certificate is an integral again, by weighted draws. It is what lets you believe the optimisation.
#
# ## What to copy
#
# ```python
# fit = vip.fit(key, model, data)                       # climbs from DADVI to NUTS until a certificate holds
# print(fit.certificate.verdict)                        # read it before any number
# comparison = vip.compare(key, model, data, methods=[vip.DADVI(), vip.MeanField(), vip.NUTS()])
# print(comparison.table)                               # once for a kind of model, before you rely on VI
# ```
#
# ## Exercises
#
# ### 1. Forget the count
#
# What would a minibatch's log likelihood be without the factor $N / B$, and what posterior would a fit to it give? Predict the sds of the
# slopes relative to those of the whole table, then check by the curvature.


# %% tags=["answer"]
def precision(share):
    """Of the slopes at the true ones, a share of the likelihood counted."""
    p = 1 / (1 + np.exp(-small["x"] @ TRUE))
    return share * (small["x"].T * (p * (1 - p))) @ small["x"] + np.eye(8) / 4


ratio = np.sqrt(np.diag(np.linalg.inv(precision(200 / 2_000))) / np.diag(np.linalg.inv(precision(1.0))))
print(f"sds too large by {ratio.min():.2f} to {ratio.max():.2f}; predicted sqrt(N / B) = {np.sqrt(2_000 / 200):.2f}, less the prior")
assert (ratio < np.sqrt(2_000 / 200)).all()
assert (ratio > 0.9 * np.sqrt(2_000 / 200)).all()

# %% [markdown]
# ### 2. How far apart is too far?
#
# For two modes at $\pm a$ with equal shares, and $q$ the right-hand mode itself, how many of 4,000 draws should fall nearer to the other
# mode? From which $a$ on will $\hat k$ most likely not notice that mode at all?

# %% tags=["answer"]
expected = {a: 4_000 * norm.cdf(-a) for a in (2.0, 3.0, 4.0, 5.0)}
for a, number in expected.items():
    z = rng.normal(a, 1, 4_000)
    log_p = np.logaddexp(norm.logpdf(z, a), norm.logpdf(z, -a)) - np.log(2)
    khat = diagnosis.smooth(log_p, norm.logpdf(z, a)).khat
    print(f"a = {a:.0f}: {number:.4f} draws expected beyond the middle, {(z < 0).sum()} came; k-hat {khat:.2f}")
assert expected[3.0] > 1 > expected[4.0]

# %% [markdown]
# ### 3. More rows, smaller sds
#
# By how much should the slopes' sds shrink from the smallest to the largest table above? Compare with what DADVI found.

# %% tags=["answer"]
shrunk = sds[1_000] / sds[4_000]
print(f"shrunk by {shrunk.min():.2f} to {shrunk.max():.2f}, predicted about sqrt(4) = {4**0.5:.0f}")
assert np.abs(shrunk / 2 - 1).max() < 0.25

# %% [markdown]
# ## The check
#
# The page checks itself: $\hat k$ finds the $k$ of known Gaussians, a $q$ in one mode finds the share of that mode, DADVI has the exact
# evidence and sds of the bioassay, mean-field's bound is the best of its family, the funnel is refused, and calibrated ranks are uniform.
# No second is asserted.

# %%
for k in (0.1, 0.3, 0.5):
    assert abs(np.median(khats[64_000][k]) - k) < 0.08
assert np.ptp(khats[64_000][0.5]) < np.ptp(khats[500][0.5])
assert (funnel_khats[4_000] < 0.7).any()
assert (funnel_khats[64_000] < 0.7).sum() < (funnel_khats[4_000] < 0.7).sum()

assert abs(bare_evidence - np.log(0.7)) < 1e-3
assert not looked.certificate.ok
assert fooled.certificate.ok
assert abs(fooled.certificate.log_evidence) < 5 * fooled.certificate.log_evidence_mcse + 1e-3

dadvi, meanfield = (comparison.fits[name] for name in ("DADVI", "MeanField"))
assert comparison.verdicts["DADVI"].standing == "safe"
assert comparison.verdicts["MeanField"].standing != "safe"
truth = logistic_regression.log_evidence(**bioassay)
assert abs(dadvi.certificate.log_evidence - truth) < 4 * dadvi.certificate.log_evidence_mcse + 1e-3
assert abs(meanfield.elbo - -4.695424) < 5 * meanfield.elbo_mcse
assert calibration.certified.count == 30
assert calibration.table.uniform_p.min() > 1e-3
