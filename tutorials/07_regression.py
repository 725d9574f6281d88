# %% [markdown]
# # Regression in raw units, from a CSV to a verdict
#
# **A question.** A table holds ten measurements of each of 442 patients, in years, kilograms per square metre, millimetres of mercury and
# milligrams per decilitre, and how far their diabetes had come a year later. What does each measurement tell about that score, and how sure
# may we be? Here is the whole way: from the file to a model, to a posterior, to a sentence that says whether variational inference may be
# used for it.

# %%
import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from figures import BLUE, GREY, ORANGE, moving, plt, show
from jax import random
from numpyro.handlers import reparam
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.reparam import LocScaleReparam

import vipatterns as vip
from vipatterns import tables

table = tables.read("../data/diabetes.csv")
table.head(3)

# %% tags=["figure"]
corr = table.corr()
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
left.scatter(table.bmi, table.progression, s=9, color=BLUE, alpha=0.6, linewidth=0, rasterized=True)
left.set(xlabel="bmi, kg / m²", ylabel="score a year later", title="What we want to know")
right.scatter(table.s1, table.s2, s=9, color=ORANGE, alpha=0.6, linewidth=0, rasterized=True)
right.set(xlabel="s1, total cholesterol, mg / dl", ylabel="s2, low density, mg / dl", title="What will cause the trouble")
show(
    fig,
    alt="Two clouds of 442 patients. Left: the score rises with the body mass index, loosely, "
    f"correlation {corr.loc['bmi', 'progression']:.2f}. "
    f"Right: the cholesterols s1 and s2 lie along a line, correlation {corr.loc['s1', 's2']:.2f}.",
)

# %% [markdown]
# The columns are described in the repository's `data/README.md`. Two of the blood measurements, `s1` and `s2`, have a correlation of
# `{python} f"{corr.loc['s1', 's2']:.2f}"`. Remember that picture: it decides who passes below.
#
# ## A model in the table's own units
#
# Let $x_{ij}$ be measurement $j$ of patient $i$, and $t_j$ a typical value of it, a round number that a doctor would name. Then
#
# $$\begin{gathered}
# y_i \sim \mathcal N\Big(\alpha + \sum_j (x_{ij} - t_j)\,\beta_j,\ \sigma\Big), \\
# \alpha \sim \mathcal N(150, 50), \quad \beta_j \sim \mathcal N(0, c_j), \quad \sigma \sim \mathrm{HalfNormal}(100).
# \end{gathered}$$
#
# The level $\alpha$ is the score of the typical patient. A slope $\beta_j$ is in points of the score per unit of the column, and so its
# prior must be too: two points per year of age is already much, two per kg / m² is little. Second arguments are sds throughout. Writing
# priors in raw units is not a chore to be avoided: it is the place where you say what you know, in words that you can discuss with the
# person who took the measurements.


# %%
#                    age  sex  bmi  bp   s1   s2   s3  s4   s5   s6
TYPICAL = np.array([50, 1.5, 26, 95, 190, 115, 50, 4, 4.6, 90])
PRIOR_SD = np.array([2, 50, 10, 3, 2, 2, 3, 30, 80, 3.0])  # points of the score per unit of the column


def model(x, y=None):
    """x: (N, 10), columns in raw units; y: (N,), points of the score."""
    level = numpyro.sample("level", dist.Normal(150.0, 50.0))
    with numpyro.plate("feature", x.shape[1]):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, PRIOR_SD))
    noise = numpyro.sample("noise", dist.HalfNormal(100.0))
    with numpyro.plate("patient", len(x)):
        numpyro.sample("y", dist.Normal(level + (x - TYPICAL) @ slopes, noise), obs=y)


# %% [markdown]
# ## The table becomes the model's arguments
#
# One rule does it, and it is the same in Python and on the command line: a column named as an argument goes to it, the target goes to `y`,
# and if the model has an `x`, the remaining numeric columns are stacked into it, their names kept.

# %%
given = tables.arguments(table, model, target="progression")
data = given.data
print({name: value.shape for name, value in data.items()}, given.coords["feature"].tolist())

# %% [markdown]
# With the two constants and `model` in a file `my_model.py` (and its imports), the same from a terminal, no Python needed:
#
# ```bash
# vipatterns fit my_model.py --data data/diabetes.csv --target progression
# vipatterns compare my_model.py --data data/diabetes.csv --target progression \
#     --methods MeanField,FullRank,DADVI,NUTS --out results
# ```
#
# Groups, and gaps in a table, are the business of `--index` and `--allow-missing`; `examples/heating.py` in the repository has both.
#
# ## A posterior and its certificate

# %%
key_fit, key_compare, key_new, key_check, key_adam, key_student, key_typo = random.split(random.key(0), 7)
labels = {"coords": given.coords, "dims": given.dims}
fit = vip.fit(key_fit, model, data, **labels)
assert fit.certificate.ok
fit

# %% [markdown]
# Nobody chose a method here. `vip.fit` starts with the cheapest and climbs until one earns a certificate: here
# `{python} fit.rungs[-1].method` did. The verdict rests on importance weights: the draws of $q$ are weighed by $p(z, y) / q(z)$, and
# Pareto $\hat k$ = `{python} f"{fit.certificate.khat:.2f}"` says how heavy the tail of those weights is. Below
# `{python} f"{fit.certificate.khat_threshold:.2f}"` they can be trusted. The draws are an ArviZ DataTree, with the columns' names on them:

# %%
az.summary(fit.idata, kind="stats")

# %% tags=["figure"]
slopes = fit.posterior["slopes"].stack(sample=("chain", "draw")).transpose("sample", "feature").to_numpy()
names = given.coords["feature"].tolist()
spread = data["x"].std(0)
low, mid, high = np.quantile(slopes * spread, [0.055, 0.5, 0.945], axis=0)
rows = np.arange(len(names))[::-1]
fig, ax = plt.subplots()
ax.hlines(rows, low, high, color=BLUE, linewidth=2.5)
ax.plot(mid, rows, "o", color=BLUE)
ax.axvline(0, color=GREY, linewidth=0.8)
ax.set(yticks=rows, yticklabels=names, xlabel="points of the score for one sd of the column", title="Medians and 89 % intervals")
widest, above = names[int(np.argmax(high - low))], [name for name, end in zip(names, low, strict=True) if end > 0]
show(
    fig,
    alt=f"A forest plot of the ten slopes, each times the sd of its column. The intervals of {' and '.join(above)} lie above zero. "
    f"The widest is that of {widest}.",
)

# %% [markdown]
# For the picture alone each slope was multiplied by the sd of its column, so that years and millimetres fit on one axis. The two widest
# intervals belong to `s1` and `s2`: since the two columns hardly ever move apart, the sum of their slopes is known well, and the difference
# is not.
#
# ## Is it right? The exact answer
#
# Given $\sigma$ this posterior is Gaussian, with $\Lambda(\sigma) = \mathrm{diag}(c^{-2}) + Z^\top Z / \sigma^2$ for its precision, where
# $Z$ holds a column of ones and the centred columns, and $c$ the prior's sds. And $p(y \mid \sigma)$ has a formula too. One number is left,
# and one number is a grid.


# %%
def exact(x, y):
    """Means and sds of level, slopes and noise, (12,) each; log p(y); and E[1 / noise^2]."""
    log_noise = np.linspace(np.log(40), np.log(75), 300)
    noise = np.exp(log_noise)
    prior_sd, centre = np.append(50.0, PRIOR_SD), np.append(150.0, np.zeros(x.shape[1]))
    z = np.column_stack([np.ones(len(y)), x - TYPICAL])
    r = y - z @ centre
    scaled = z * prior_sd  # in units of the prior's sds, where matrices are well behaved
    precision = np.eye(z.shape[1]) + scaled.T @ scaled / noise[:, None, None] ** 2
    covariance = np.linalg.inv(precision)
    m = covariance @ (scaled.T @ r) / noise[:, None] ** 2
    fitted = np.sum(m * (scaled.T @ r), axis=1) / noise**2
    log_p = -0.5 * (np.linalg.slogdet(precision)[1] + r @ r / noise**2 - fitted) - len(y) * (log_noise + 0.5 * np.log(2 * np.pi))
    log_p += 0.5 * np.log(2 / np.pi) - np.log(100) - noise**2 / (2 * 100**2)  # the prior of noise
    log_p += log_noise  # the Jacobian: the grid is even in log noise
    top = log_p.max()
    weight = np.exp(log_p - top)
    log_evidence = top + np.log(weight.sum() * (log_noise[1] - log_noise[0]))
    weight /= weight.sum()
    first = np.column_stack([centre + prior_sd * m, noise])
    second = np.column_stack([(centre + prior_sd * m) ** 2 + prior_sd**2 * np.diagonal(covariance, axis1=1, axis2=2), noise**2])
    mean = weight @ first
    return mean, np.sqrt(weight @ second - mean**2), log_evidence, weight @ noise**-2


mean, sd, log_evidence, inverse_square = exact(**data)


def moments(draws):
    """Means and sds of level, slopes and noise, (12,) each, over all draws of a Dataset."""
    flat = draws.stack(sample=("chain", "draw"))
    values = np.vstack([flat["level"], flat["slopes"].transpose("feature", "sample"), flat["noise"]])
    return values.mean(1), values.std(1)


fit_mean, fit_sd = moments(fit.posterior)
off_mean, off_sd = np.abs(fit_mean - mean) / sd, np.abs(fit_sd / sd - 1)

# %% [markdown]
# Of the twelve parameters the worst mean is off by `{python} f"{off_mean.max():.3f}"` posterior sds and the worst sd by
# `{python} f"{100 * off_sd.max():.1f}"` %, which is what `{python} f"{fit.posterior.sizes['chain'] * fit.posterior.sizes['draw']:,}"` draws
# leave in any case. The log evidence is `{python} f"{fit.certificate.log_evidence:.3f}"` by the weights and
# `{python} f"{log_evidence:.3f}"` exactly. The page checks itself: should a number drift, it is not built.

# %%
assert abs(fit.certificate.log_evidence - log_evidence) < 4 * fit.certificate.log_evidence_mcse + 1e-3
assert set(np.argsort(high - low)[-2:]) == {names.index("s1"), names.index("s2")}
assert max(off_mean.max(), off_sd.max()) < 4 * fit.certificate.mcse

# %% [markdown]
# ## Four methods, one table
#
# Your model will have no exact answer. So set methods side by side, and let NUTS be the judge, if NUTS passes its own checks:

# %%
methods = [vip.MeanField(num_restarts=2), vip.FullRank(num_restarts=2), vip.DADVI(), vip.NUTS(num_warmup=200, num_samples=500)]
cmp = vip.compare(key_compare, model, data, methods=methods, **labels)
cmp.table[["method", "elbo", "khat", "mean_error", "sd_ratio_min", "sd_ratio_max", "run_seconds"]].round(3)

# %%
print(cmp.summary)
for label, verdict in cmp.verdicts.items():
    print(f"{label}: {verdict.sentence}")

# %% [markdown]
# Read a verdict in this order: *safe for what*, *what is off*, *what to try*. Mean-field's search *converged*, as its restarts agree
# (`{python} f"R-hat {cmp.fits['MeanField'].certificate.rhat:.2f}"`), and its ELBO is only
# `{python} f"{log_evidence - cmp.fits['MeanField'].elbo:.1f}"` nats below the log evidence, on a scale of thousands. Nothing in its loss
# curve would have told you.
#
# ## Why mean-field fails: a number that statisticians know
#
# The best factorised Gaussian has, for each parameter, the sd of the *conditional*: what a slope may still do once all the others are
# pinned. The posterior's sd lets the others move along. For a regression their ratio is an old friend:
#
# $$\frac{s_j^{\text{mean-field}}}{s_j^{\text{exact}}} = \frac{1}{\sqrt{\Lambda_{jj}\,(\Lambda^{-1})_{jj}}} \approx
# \frac{1}{\sqrt{\mathrm{VIF}_j}}, \qquad \mathrm{VIF}_j = \frac{1}{1 - R_j^2},$$
#
# with $R_j^2$ from regressing column $j$ on the other columns. The variance inflation factor that every regression program prints *is*
# mean-field's error. (The sign $\approx$ is there because the priors add a little to $\Lambda$.)

# %%
vif = np.diag(np.linalg.inv(np.corrcoef(data["x"].T)))
z = np.column_stack([np.ones(len(data["y"])), data["x"] - TYPICAL])
conditional_sd = (np.append(50.0, PRIOR_SD) ** -2.0 + inverse_square * np.sum(z**2, axis=0)) ** -0.5
predicted = conditional_sd / sd[:-1]
assert cmp.fits["MeanField"].stopped_because.startswith("converged")
raw_sd = moments(cmp.fits["MeanField"].idata["proposal"].to_dataset())[1]  # q itself, before any weighing
found = raw_sd[:-1] / sd[:-1]
assert np.abs(found / predicted - 1).max() < 0.02  # q's 40,000 draws leave errors of 0.4 % in an sd

# %% tags=["figure"]
fig, ax = plt.subplots()
place = np.arange(len(names))
ax.bar(place, found[1:], color=BLUE, width=0.6, label="mean-field's sd / exact sd")
ax.plot(place, 1 / np.sqrt(vif), "D", color=ORANGE, label="1 / √VIF")
ax.axhline(1, color=GREY, linewidth=0.8)
ax.set(xticks=place, xticklabels=names, ylim=(0, 1.3))
ax.legend(ncols=2, loc="upper right")
worst = int(np.argmin(found[1:]))
show(
    fig,
    alt="Bars of mean-field's sd over the exact sd for the ten slopes, and on each a marker at one over the root of the variance inflation "
    "factor: they agree. "
    f"The lowest bar is {names[worst]}, at {found[1 + worst]:.2f}.",
)

# %% [markdown]
# For `{python} names[worst]` the sd is `{python} f"{1 / found[1 + worst]:.1f}"` times too small. Mean-field would have you report that
# slope as clearly different from zero; the data say no such thing. Full rank, and DADVI with its linear response, keep the correlations,
# and pass.
#
# ## Raw units, and the settings that everybody uses
#
# `vip.MeanField` at least found mean-field's optimum. The recipe of most introductions does not get that far: an `AutoNormal` guide, Adam
# at $0.01$, five thousand steps. Adam moves a parameter by about its learning rate a step, whatever the gradient. So in five thousand steps
# nothing travels further than about fifty. The level has to go to `{python} f"{mean[0]:.0f}"`.
#
# Let us watch it, beside the same run on the same model in other coordinates: `LocScaleReparam(0)` samples each parameter in units of its
# prior's sd and scales it back. The model, its priors and its posterior are unchanged.

# %%
scaled_model = reparam(model, config={"level": LocScaleReparam(0), "slopes": LocScaleReparam(0)})
RATE, STEPS, FRAMES = 0.01, 5_000, 20


def adam(rng_key, program):
    """Means and sds of q for level and slopes at FRAMES + 1 moments of the run, (FRAMES + 1, 11) each, in the program's coordinates."""
    svi = SVI(program, AutoNormal(program), numpyro.optim.Adam(RATE), Trace_ELBO())

    def read(state):
        p = svi.get_params(state)
        level, slope = ("level", "slopes") if "level_auto_loc" in p else ("level_decentered", "slopes_decentered")
        return jnp.stack([jnp.append(p[f"{level}_auto_{what}"], p[f"{slope}_auto_{what}"]) for what in ("loc", "scale")])

    def stretch(state, _):
        after = jax.lax.scan(lambda state, _: (svi.update(state, **data)[0], None), state, length=STEPS // FRAMES)[0]
        return after, read(after)

    @jax.jit
    def run(rng_key):
        state = svi.init(rng_key, **data)
        return jnp.concatenate([read(state)[None], jax.lax.scan(stretch, state, length=FRAMES)[1]])

    return np.asarray(run(rng_key)).swapaxes(0, 1)


raw_loc, raw_scale = adam(key_adam, model)
unit, origin = np.append(50.0, PRIOR_SD), np.append(150.0, np.zeros(10))
loc, scale = adam(key_adam, scaled_model)
scaled_loc, scaled_scale = origin + unit * loc, unit * scale
miss = {"raw": (raw_loc - mean[:-1]) / sd[:-1], "scaled": (scaled_loc - mean[:-1]) / sd[:-1]}

# %% tags=["figure"]
fig, ax = plt.subplots(figsize=(5.6, 3.8))
rows, frames, captions = np.arange(11)[::-1], [], []
for i in range(FRAMES + 1):
    artists = []
    for which, shift, colour, width in (("raw", 0.15, ORANGE, raw_scale[i]), ("scaled", -0.15, BLUE, scaled_scale[i])):
        at, half = miss[which][i], width / sd[:-1]
        artists += [ax.hlines(rows + shift, at - 2 * half, at + 2 * half, color=colour, linewidth=2)]
        artists += ax.plot(at, rows + shift, "o", color=colour, markersize=4)
    frames.append(artists)
    worst_miss = {which: np.abs(value[i]).max() for which, value in miss.items()}
    captions.append(
        f"After {i * STEPS // FRAMES} steps the worst mean is off by {worst_miss['raw']:.1f} posterior sds in raw units (orange), "
        f"by {worst_miss['scaled']:.2f} in units of the priors (blue)."
    )
ax.axvspan(-2, 2, color=GREY, alpha=0.2, linewidth=0)
ax.set_xscale("symlog", linthresh=2)
ax.set(xlim=(-120, 120), yticks=rows, yticklabels=["level", *names], xlabel="distance from the exact mean, in exact sds")
ax.set_xticks([-100, -10, -2, 0, 2, 10, 100], ["-100", "-10", "-2", "0", "2", "10", "100"])
moving(
    fig,
    frames,
    captions,
    alt="Means and two-sd intervals of mean-field's q for eleven parameters while Adam runs, in exact posterior sds from the exact mean, "
    "with a grey band at two sds. In units of the priors all points come into the band; "
    f"in raw units the level is still {np.abs(miss['raw'][-1, 0]):.0f} sds away at the end.",
    label="step",
)

# %% [markdown]
# In raw units the level ends `{python} f"{np.abs(miss['raw'][-1, 0]):.0f}"` posterior sds from where it belongs, and the loss goes down so
# calmly that it looks like convergence. In units of the priors the level is there within a quarter of the run.
#
# **What standardising changes**: the road. Steps of one size suit all parameters. **What it does not change**: the destination. Multiply a
# column by a thousand and mean-field's sd, and the exact one, are divided by a thousand; their ratio stays. Nor does it shorten the last
# stretch: the correlated columns make a narrow valley, along which this run is still `{python} f"{np.abs(miss['scaled'][-1]).max():.1f}"`
# sds from the end for `{python} names[int(np.argmax(np.abs(miss['scaled'][-1, 1:])))]`, and at a fixed rate, with one draw a step, the sds
# never come to rest. *Centring* is another matter again: it changes what the level means, and frees it from the slopes (exercise 1).
# `vip.MeanField` works in coordinates of the curvature, lowers its rate, and stops when its restarts agree. So units do not matter to it,
# and you can leave the columns as they are.

# %%
assert np.abs(miss["raw"][-1, 0]) > 20
assert np.abs(raw_loc[-1, 0] - raw_loc[0, 0]) < 1.5 * RATE * STEPS
assert np.abs(miss["scaled"][FRAMES // 4 :, 0]).max() < 1
assert np.abs(miss["scaled"][-1]).max() < 2

# %% [markdown]
# ## Does the model suit the data?
#
# The certificate vouches for the draws of *this* posterior. A perfect posterior of a wrong model passes. So ask the other question too:
# draw new scores from the fitted model, for the same patients, and look where the table differs from them.

# %%
check = fit.with_posterior_predictive(key_check)
replicated = check.idata["posterior_predictive"]["y"].stack(sample=("chain", "draw")).transpose("sample", "patient").to_numpy()
observed = data["y"]
fitted = mean[0] + (data["x"] - TYPICAL) @ mean[1:-1]
upper = fitted > np.median(fitted)


def statistics(y):
    """Each: (S, N) -> (S,)."""
    residual = y - fitted
    return {
        "lowest score": y.min(1),
        "largest residual": np.abs(residual).max(1),
        "spread, high / low fitted": residual[:, upper].std(1) / residual[:, ~upper].std(1),
    }


seen, drawn = statistics(observed[None]), statistics(replicated)
for name, value in drawn.items():
    share = np.mean(value >= seen[name])
    print(f"{name:27}table {seen[name][0]:7.2f}   replications {value.mean():7.2f} ± {value.std():5.2f}   share above {share:.3f}")

# %% tags=["figure"]
edges = np.linspace(-75, 400, 39)
counts = np.array([np.histogram(y, edges)[0] for y in replicated[::8]])
low, high = np.quantile(counts, [0.025, 0.975], axis=0)
crowded = edges[:-1][np.histogram(observed, edges)[0] > high]
fig, ax = plt.subplots()
ax.stairs(high, edges, baseline=low, fill=True, color=GREY, alpha=0.4, label="95 % of the replications")
ax.stairs(np.histogram(observed, edges)[0], edges, color=BLUE, linewidth=1.8, label="the table")
ax.set(xlabel="score", ylabel="patients")
ax.legend()
show(
    fig,
    alt="The histogram of the observed scores over a band that holds 95 % of the replicated ones. The table has none below "
    f"{observed.min():.0f}, where the model expects {np.mean(replicated < observed.min()) * len(observed):.0f} patients.",
)

# %% [markdown]
# The table is lopsided and the model is not. Scores pile up from `{python} f"{crowded.min():.0f}"` to
# `{python} f"{crowded[crowded < 150].max() + edges[1] - edges[0]:.0f}"`, above the band; none is below `{python} f"{observed.min():.0f}"`,
# where the model expects `{python} f"{np.mean(replicated < observed.min()) * len(observed):.0f}"` patients; and patients with a high fitted
# score scatter more than those with a low one. No inference method can repair that, NUTS no more than VI. ArviZ's own
# `az.plot_ppc_dist(check.idata)` draws the like of the picture. For a patient who is not in the table, `fit.predict` gives the score's
# distribution:

# %%
patient = {"x": np.array([[62, 2, 31.0, 110, 200, 120, 40, 5, 5.1, 100]])}
score = fit.predict(key_new, patient)["y"].to_numpy().ravel()
expected = mean[0] + float((patient["x"][0] - TYPICAL) @ mean[1:-1])
low, high = np.quantile(score, [0.05, 0.95])
print(f"expected score {score.mean():.0f} (exact {expected:.0f}), nine in ten between {low:.0f} and {high:.0f}")
assert abs(score.mean() - expected) < 4 * score.std() / score.size**0.5 + 1.0  # and a point for the mean of the slopes' draws

# %% [markdown]
# ## What a statistician tries next: errors with heavier tails
#
# Replace the normal by a Student-t with four degrees of freedom, and let `az.loo` say which of the two predicts a patient better who was
# left out.


# %%
def robust(x, y=None):
    level = numpyro.sample("level", dist.Normal(150.0, 50.0))
    with numpyro.plate("feature", x.shape[1]):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, PRIOR_SD))
    noise = numpyro.sample("noise", dist.HalfNormal(100.0))
    with numpyro.plate("patient", len(x)):
        numpyro.sample("y", dist.StudentT(4.0, level + (x - TYPICAL) @ slopes, noise), obs=y)


student = vip.fit(key_student, robust, data, **labels)
loo = [az.loo(f.with_log_likelihood(proposal=False).idata, pointwise=True) for f in (fit, student)]
difference = (loo[0].elpd_i - loo[1].elpd_i).to_numpy()
ahead, ahead_se = difference.sum(), difference.std() * len(difference) ** 0.5
print(f"elpd, normal less Student-t: {ahead:.1f} ± {ahead_se:.1f}")

# %% [markdown]
# The normal is ahead by `{python} f"{ahead:.1f}"` ± `{python} f"{ahead_se:.1f}"` nats: nothing calls for heavy tails here. But suppose that
# somebody had typed one zero too many, and made the first patient's score of `{python} f"{observed[0]}"` into
# `{python} f"{10 * observed[0]}"`:

# %%
typo = {"x": data["x"], "y": np.append(10 * observed[0], observed[1:])}
moved = {}
for name, program, before, key in zip(("normal", "Student-t"), (model, robust), (fit, student), random.split(key_typo), strict=True):
    after = vip.fit(key, program, typo, **labels)
    (m0, s0), (m1, s1) = moments(before.posterior), moments(after.posterior)
    moved[name] = np.abs(m1 - m0) / s0
    assert all(f.certificate.ok for f in (before, after))
    slopes_by, noise_by = moved[name][1:-1].max(), moved[name][-1]
    print(f"{name:10} certified {after.certificate.ok}, slopes moved by up to {slopes_by:.2f} sd, the noise by {noise_by:.1f} sd")
assert moved["Student-t"][1:-1].max() < 0.5 < moved["normal"][1:-1].max()

# %% [markdown]
# One wrong cell of 442 moves the normal's slopes by up to `{python} f"{moved['normal'][1:-1].max():.1f}"` posterior sds, the Student-t's by
# `{python} f"{moved['Student-t'][1:-1].max():.1f}"`. All four posteriors were certified: a certificate knows nothing of typing errors.
#
# ## What the documents said
#
# - The note on the design pattern: "Maximizing the ELBO is equivalent to minimizing the KL divergence, and thus finding the **best
#   approximation within the chosen family**". True, while the model's own parameters are fixed. But the best of a family can be poor:
#   mean-field's best made an sd `{python} f"{1 / found[1 + worst]:.1f}"` times too small.
# - Its example ends with `pm.fit(method='advi')`, a thousand draws, and a summary, with no look at convergence or at $\hat k$. With one
#   latent, as there, that goes well. A recipe of that kind on this table is the orange half of the moving picture.
# - The VI note: "maximising ELBO decreases the KL divergence making approximation of $q$ to $p$ better". Better than before, yes. How far
#   it is from good, the ELBO alone does not say: here `{python} f"{log_evidence - cmp.fits['MeanField'].elbo:.1f}"` nats, known only
#   because the evidence is.
#
# ## What to copy
#
# ```python
# import vipatterns as vip
# from vipatterns import tables
#
# table = tables.read("my.csv")
# given = tables.arguments(table, model, target="outcome")
# fit = vip.fit(jax.random.key(0), model, given.data, coords=given.coords, dims=given.dims)
# print(fit.certificate.verdict)
# fit.save("fit.nc")  # az.from_netcdf reads it
# ```
#
# The patterns [linear regression](patterns/linear_regression.md), with closed form and priors from the table, and
# [robust regression](patterns/robust_regression.md); for sparse slopes [horseshoe regression](patterns/horseshoe_regression.md). Why
# correlation breaks mean-field is the matter of [when mean-field lies](05_when_mean_field_lies.md); groups of rows come in
# [the next tutorial](08_hierarchical.md).
#
# ## Exercises
#
# ### 1. The patient of age zero
#
# Forget the centring: let the level be the score at $x = 0$, a patient without age or blood pressure. By what factor would mean-field's sd
# of the level be too small now? No fit is needed: write down $\Lambda$ at the noise found above, with a flat prior.

# %% tags=["answer"]
uncentred = np.column_stack([np.ones(len(observed)), data["x"]])
precision = inverse_square * uncentred.T @ uncentred
factor = np.sqrt(precision[0, 0] * np.linalg.inv(precision)[0, 0])
print(f"{factor:.0f} times too small; centred at the typical patient it was {1 / found[0]:.2f} times")
assert factor > 20 > 1 / found[0]

# %% [markdown]
# ### 2. Coordinates in which mean-field is right
#
# Mean-field's error is not a property of the posterior but of the coordinates. Take the slopes along the principal components of the
# columns for parameters instead of the columns' own. What is the smallest ratio of mean-field's sd to the exact sd then, and what is it for
# the standardised columns? (With a flat prior.)

# %% tags=["answer"]
standard = (data["x"] - data["x"].mean(0)) / spread
u, size, v = np.linalg.svd(standard, full_matrices=False)


def ratios(z):
    """Mean-field's sds over exact sds of the slopes along the columns of z."""
    precision = inverse_square * z.T @ z
    return 1 / np.sqrt(np.diag(precision) * np.diag(np.linalg.inv(precision)))


print(f"standardised {ratios(standard).min():.3f}, along the components {ratios(u * size).min():.3f}")
assert np.allclose(ratios(standard), 1 / np.sqrt(vif))
assert np.allclose(ratios(u * size), 1)

# %% [markdown]
# ### 3. What is known of s1 and s2?
#
# Their slopes have wide intervals, each alone. Use the draws to show that a sum of the two, weighted by the columns' sds, is known much
# better than either.

# %% tags=["answer"]
s1, s2 = (slopes[:, names.index(n)] * spread[names.index(n)] for n in ("s1", "s2"))
print(f"sd of s1 {s1.std():.1f}, of s2 {s2.std():.1f}, of their sum {(s1 + s2).std():.1f}, correlation {np.corrcoef(s1, s2)[0, 1]:.2f}")
assert (s1 + s2).std() < 0.6 * min(s1.std(), s2.std())
