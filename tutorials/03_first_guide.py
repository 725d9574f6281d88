# %% [markdown]
# # Your first guide
#
# Four groups of five animals were given a drug, each group a higher dose: none, one, three and all five of them died. How steeply does
# the risk rise with the dose, and how sure may we be of it? Variational inference (VI) answers with a second program beside the model,
# the *guide*. **What is a guide, how does it learn, and when may you stop it?**

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from figures import BLUE, GREY, ORANGE, PURPLE, moving, plt, show
from jax import lax, random
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy.optimize import minimize
from scipy.special import expit, gammaln, logsumexp

import vipatterns as vip
from vipatterns.patterns import gaussian_mean, logistic_regression

data = {
    "x": np.array([[-0.86], [-0.30], [-0.05], [0.73]]),  # dose, log g/ml: (group, feature)
    "trials": np.full(4, 5),  # animals in each group
    "y": np.array([0, 1, 3, 5]),  # deaths
}


# %% tags=["figure"]
def log_joint(intercept, slope):
    """log p(y, intercept, slope), for arrays of both."""
    log_p = -0.5 * ((intercept / 2) ** 2 + (slope / 10) ** 2) - np.log(2 * np.pi * 2 * 10)
    for dose, n, deaths in zip(data["x"][:, 0], data["trials"], data["y"], strict=True):
        eta = intercept + slope * dose
        binomial = gammaln(n + 1) - gammaln(deaths + 1) - gammaln(n - deaths + 1)
        log_p = log_p + binomial + deaths * eta - n * np.logaddexp(0, eta)
    return log_p


def posterior_contours(axis):
    """Lines that hold 50, 90 and 99 % of the posterior."""
    a, b = np.linspace(-2.2, 4.2, 90), np.linspace(-1, 26, 90)
    p = np.exp(log_joint(a[:, None], b[None, :]))
    ranked = np.sort(p.ravel())[::-1]
    levels = [ranked[np.searchsorted(np.cumsum(ranked) / p.sum(), mass)] for mass in (0.99, 0.9, 0.5)]
    axis.contour(a, b, p.T, levels, colors=GREY, linewidths=1)
    axis.set(xlabel="intercept", ylabel="slope", xlim=(-2.2, 4.2), ylim=(-1, 26))


fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
dose = np.linspace(-1.1, 1, 80)
for intercept, slope in [(-0.5, 3), (0.7, 8), (1.8, 14)]:
    left.plot(dose, expit(intercept + slope * dose), color=GREY, linewidth=1)
    right.plot(intercept, slope, "x", color=ORANGE)
left.plot(data["x"][:, 0], data["y"] / data["trials"], "o", color=BLUE)
left.set(xlabel="dose, log g/ml", ylabel="share that died")
posterior_contours(right)
alt = (
    f"Left, the share that died in {len(data['y'])} groups, rising with the dose, and three S-shaped curves that would explain it. Right, "
    "the posterior of intercept and slope: a tilted, egg-shaped hill; three crosses mark the three curves."
)
show(fig, alt=alt)

# %% [markdown]
# Many curves explain so few animals: each cross on the right is one of the grey curves on the left. The posterior is the hill whose
# contours are drawn; they hold half, nine tenths and all but a hundredth of it. With two unknowns a computer can walk over the whole
# hill on a grid, and we shall use that to check ourselves. With twenty unknowns no grid would do, and that is where a guide comes in.
#
# ## The model
#
# $$\begin{gathered}
# y_i \sim \mathrm{Binomial}\big(n_i, \mathrm{logit}^{-1}(\alpha + \beta x_i)\big), \\
# \alpha \sim \mathcal N(0, 2), \qquad \beta \sim \mathcal N(0, 10),
# \end{gathered}$$
#
# where the second argument is the standard deviation (sd). In NumPyro a model is a function that draws each unknown under a name, its
# *site*:


# %%
def model(x, trials, y=None):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    with numpyro.plate("feature", x.shape[1]):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 10.0))
    with numpyro.plate("group", x.shape[0]):
        numpyro.sample("y", dist.Binomial(trials, logits=intercept + x @ slopes), obs=y)


# %% [markdown]
# ## The guide
#
# A guide is a family of distributions $q$ over the unknowns, written as a program. This one is *mean-field*: an independent Gaussian for
# each.


# %%
def guide(x, trials, y=None):
    m = numpyro.param("intercept_m", 0.0)
    s = numpyro.param("intercept_s", 1.0, constraint=constraints.positive)
    numpyro.sample("intercept", dist.Normal(m, s))
    m = numpyro.param("slopes_m", jnp.zeros(x.shape[1]))
    s = numpyro.param("slopes_s", jnp.ones(x.shape[1]), constraint=constraints.positive)
    with numpyro.plate("feature", x.shape[1]):
        numpyro.sample("slopes", dist.Normal(m, s))


# %% [markdown]
# Read it beside the model; there are five rules.
#
# - **The same arguments** as the model, used or not.
# - **A site for every unknown of the model**, under the same name, of the same shape and with the same support. None for `y`: it is
#   observed.
# - **`numpyro.param`** names the numbers that are to be learned, and says where they start. `numpyro.sample` draws; `numpyro.param` does
#   not.
# - **A constraint** keeps a number where it belongs. The optimiser moves $\log s$, which may be anything; the guide gets $s > 0$. Without
#   it, one long step makes an sd negative.
# - **A plate that holds an unknown** stands in the guide too, and its parameters have one entry for each of its elements. The plate
#   `group` holds data alone, and is left out.
#
# ## The loop
#
# Learning is a loop. Draw the unknowns from the guide; take $\log p(y, z) - \log q(z)$ at the draw, whose mean is the [ELBO](02_elbo.md);
# take its gradient in the guide's parameters ([how](04_gradients.md) is the next page's business); make a step uphill. NumPyro's `SVI`
# holds the four together, and one `update` is one round:


# %%
def follow(optimizer, num_steps, model=model, guide=guide, data=data):
    """The guide's parameters before the first step and after each, and the noisy losses there (minus the ELBO)."""
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=16))

    def step(state, _):
        now = svi.get_params(state)
        state, loss = svi.update(state, **data)
        return state, (now, loss)

    @jax.jit
    def run(rng_key):
        return lax.scan(step, svi.init(rng_key, **data), length=num_steps + 1)[1]

    path, losses = run(random.key(0))
    return {name: np.asarray(value, float).squeeze() for name, value in path.items()}, np.asarray(losses)


num_steps = 4_000
path, losses = follow(numpyro.optim.Adam(lambda step: 0.2 * 0.001 ** (step / num_steps)), num_steps)


# %% [markdown]
# `num_particles=16` averages 16 draws a step. The rate of Adam, the optimiser, falls from `0.2` to a thousandth of that; why it must fall
# we shall see below.
#
# How good is the guide on its way? For this model the ELBO of any Gaussian guide can be computed almost exactly, because
# $\alpha + \beta x_i$ is then Gaussian as well, and all that is left are averages over one dimension, by quadrature:

# %%
node, weight = np.polynomial.hermite_e.hermegauss(64)
design = np.column_stack([np.ones(4), data["x"]])  # (group, unknown)
prior_sd = np.array([2.0, 10.0])


def exact_elbo(mean, root):
    """ELBO in nats of q = N(mean, root root'), with `root` lower triangular; no draws."""
    n, y, eta = data["trials"], data["y"], design @ mean
    spread = np.sqrt(((design @ root) ** 2).sum(1))
    softplus = np.logaddexp(0, eta[:, None] + spread[:, None] * node) @ weight / weight.sum()
    log_likelihood = np.sum(gammaln(n + 1) - gammaln(y + 1) - gammaln(n - y + 1) + y * eta - n * softplus)
    log_prior = -0.5 * np.sum((mean**2 + (root**2).sum(1)) / prior_sd**2) - np.log(prior_sd).sum()
    return log_likelihood + log_prior + np.log(np.diag(root)).sum() + len(mean) / 2


def at(path, step=-1):
    """Mean, sd and exact ELBO of the mean-field guide at a step."""
    mean = np.array([path["intercept_m"][step], path["slopes_m"][step]])
    sd = np.array([path["intercept_s"][step], path["slopes_s"][step]])
    return mean, sd, exact_elbo(mean, np.diag(sd))


grid_a, grid_b = np.linspace(-8, 14, 700)[:, None], np.linspace(-20, 70, 700)[None, :]
on_grid = log_joint(grid_a, grid_b)
log_evidence = logsumexp(on_grid) + np.log(22 / 699 * 90 / 699)
mean, sd, elbo = at(path)

# %% tags=["figure"]
fig, ax = plt.subplots()
posterior_contours(ax)
angle = np.linspace(0, 2 * np.pi, 60)
steps = [0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300, num_steps // 8, num_steps // 4, num_steps // 2, num_steps]
frames, captions = [], []
for step in steps:
    m, s, bound = at(path, step)
    frames.append(
        [
            *(ax.plot(m[0] + r * s[0] * np.cos(angle), m[1] + r * s[1] * np.sin(angle), color=BLUE, linewidth=2)[0] for r in (1, 2)),
            ax.plot(*m, "o", color=BLUE)[0],
        ]
    )
    where = f"intercept {m[0]:.2f} ± {s[0]:.2f}, slope {m[1]:.2f} ± {s[1]:.2f}"
    captions.append(f"Step {step}: {where}. ELBO {bound:.3f}, that is {log_evidence - bound:.3f} nats below log p(y).")
alt = (
    "Contours of the posterior of intercept and slope, and the guide as upright ellipses of one and two sds. From step to step "
    f"they move from slope {at(path, 0)[0][1]:.0f} to slope {mean[1]:.1f}, onto the hill, and grow until they fill it; they cannot tilt."
)
moving(fig, frames, captions, alt=alt, label="step", start=-1)

# %% [markdown]
# First the guide hurries uphill, small as it began, then it grows until growing costs more than it gains. At the end the ELBO is
# `{python} f"{elbo:.4f}"`, and $\log p(y)$, summed on the grid, `{python} f"{log_evidence:.4f}"`. The difference,
# `{python} f"{log_evidence - elbo:.2f}"` nats, is $\mathrm{KL}(q \,\|\, p)$: what is still wrong with $q$. No step will take it away. The
# hill is tilted and skewed, and the family holds upright ellipses alone.
#
# What the family *can* do we ask of another optimiser, which climbs the exact ELBO and needs no draws:


# %%
def tilted(v):
    """(mean, root) of a Gaussian from five free numbers."""
    return v[:2], np.array([[np.exp(v[2]), 0], [v[4], np.exp(v[3])]])


best = minimize(lambda v: -exact_elbo(*tilted(np.append(v, 0))), np.zeros(4)).x
best_mean, best_sd, best_elbo = best[:2], np.exp(best[2:]), exact_elbo(*tilted(np.append(best, 0)))
best_tilted_elbo = -minimize(lambda v: -exact_elbo(*tilted(v)), np.zeros(5)).fun

print(f"{'':14}{'intercept':>22}{'slope':>20}{'ELBO':>11}")
print(f"{'our guide':14}{mean[0]:12.3f} ± {sd[0]:7.3f}{mean[1]:10.3f} ± {sd[1]:7.3f}{elbo:11.4f}")
print(f"{'best of family':14}{best_mean[0]:12.3f} ± {best_sd[0]:7.3f}{best_mean[1]:10.3f} ± {best_sd[1]:7.3f}{best_elbo:11.4f}")

# %% [markdown]
# The guide has learned what it could, to within `{python} f"{best_elbo - elbo:.1g}"` nats.
#
# ## When to stop
#
# Many tutorials let the rate stand. They say `Adam(0.01)`, or smaller, and a round number of steps. Let us do as they do, beside a rate
# that is large and does not fall:

# %%
runs = {f"{rate}": follow(numpyro.optim.Adam(rate), num_steps) for rate in (0.01, 0.2)} | {"falling from 0.2": (path, losses)}
print(f"{'rate':18}{'steps':>6}{'slope':>16}{'best ELBO less ELBO':>22}")
usual_steps = num_steps // 4
for name, steps in [("0.01", usual_steps), ("0.01", num_steps), ("0.2", num_steps), ("falling from 0.2", num_steps)]:
    m, s, bound = at(runs[name][0], steps)
    print(f"{name:18}{steps:6}{m[1]:8.3f} ± {s[1]:.3f}{best_elbo - bound:22.5f}")
short = at(runs["0.01"][0], usual_steps)

# %% tags=["figure"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
shown = np.unique(np.geomspace(1, num_steps, 90).astype(int))
for name, colour in zip(["0.01", "0.2", "falling from 0.2"], [ORANGE, PURPLE, BLUE], strict=True):
    run, noisy = runs[name]
    left.plot(shown, noisy[shown], color=colour, linewidth=1, label=name)
    right.plot(shown, [best_elbo - at(run, i)[2] for i in shown], color=colour)
for axis in (left, right):
    axis.axvline(usual_steps, color=GREY, linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="step")
left.set(ylabel="loss, nats", ylim=(3, 25), title="What SVI prints")
left.legend(title="rate")
right.set(yscale="log", ylabel="nats", title="Best ELBO less ELBO, exact")
off = [f"{value:.1g}" for value in (best_elbo - short[2], best_elbo - elbo)]
alt = (
    "Left, noisy losses under three rates, all flat in the end. Right, on a logarithmic axis, how far the exact ELBO is from the best: "
    f"the small rate comes down late, and is {off[0]} nats off at step {usual_steps:,}; the large one stays noisy; the falling one "
    f"gets to {off[1]}."
)
show(fig, alt=alt)

# %% [markdown]
# Two ways to be wrong, and the loss shows neither well.
#
# **Too early.** After `{python} f"{usual_steps:,}"` steps of `0.01` the slope stands at `{python} f"{short[0][1]:.1f}"`, where the best
# guide has `{python} f"{best_mean[1]:.1f}"`. Adam divides each gradient by its own size, so that a step is about as long as the rate,
# whatever the problem: so many steps of `0.01` lead about `{python} f"{usual_steps * 0.01:.0f}"` units away at the most, and the noise
# makes detours. Nothing failed, nothing was printed. The run was simply over.
#
# **Too restless.** With `0.2` the guide is there in no time, and then shakes for ever: the gradient is noisy, and the rate says how far
# noise throws it.
#
# So begin with a large rate and let it fall, and *measure* whether you have arrived. Does a run with twice the steps end in the same
# place? Do runs from several starts?
#
# How far off can it be? Take a regression in the units that its table has: the progression of diabetes in 442 patients, explained by body
# mass index and blood pressure. With known noise the posterior is a Gaussian in closed form. The guide is one that NumPyro writes, of
# which more below.

# %%
table = np.genfromtxt("../data/diabetes.csv", delimiter=",", names=True)
patients = {name: table[name] for name in ("bmi", "bp", "progression")}


def regression(bmi, bp, progression=None):
    level = numpyro.sample("level", dist.Normal(0.0, 500.0))
    slopes = [numpyro.sample(name, dist.Normal(0.0, 100.0)) for name in ("slope_bmi", "slope_bp")]
    with numpyro.plate("patient", len(bmi)):
        numpyro.sample("progression", dist.Normal(level + slopes[0] * bmi + slopes[1] * bp, 60.0), obs=progression)


columns = np.column_stack([np.ones(len(table)), patients["bmi"], patients["bp"]])
covariance = np.linalg.inv(columns.T @ columns / 60**2 + np.diag([1 / 500**2, 1 / 100**2, 1 / 100**2]))
exact_mean, exact_sd = covariance @ columns.T @ patients["progression"] / 60**2, np.sqrt(np.diag(covariance))

sites = ["level", "slope_bmi", "slope_bp"]
usual, _ = follow(numpyro.optim.Adam(0.01), 5_000, model=regression, guide=AutoNormal(regression), data=patients)
off = [(usual[f"{name}_auto_loc"][-1] - m) / s for name, m, s in zip(sites, exact_mean, exact_sd, strict=True)]
print(f"{'':24}" + "".join(f"{name:>12}" for name in sites))
print(f"{'exact mean':24}" + "".join(f"{m:12.3f}" for m in exact_mean))
print(f"{'exact sd':24}" + "".join(f"{s:12.3f}" for s in exact_sd))
print(f"{'Adam(0.01), off by sds':24}" + "".join(f"{o:12.3f}" for o in off))
assert min(map(abs, off)) > 3

# %% [markdown]
# Five thousand steps, and the level is off by `{python} f"{abs(off[0]):.0f}"` posterior sds: it had to travel
# `{python} f"{abs(exact_mean[0]):.0f}"` units, and 5,000 steps of `0.01` go about 50 at the most. The sds that the guide reports are
# small and say nothing of it. Measure such columns from their means, in their sds; or let a method do it that first finds out how steep
# the hill is, as those of `vip.fit` do (an exercise below, and [regression in raw units](07_regression.md)).
#
# ## Guides that write themselves
#
# Most guides need not be written. `AutoNormal` makes a mean-field guide for any model without discrete unknowns, and
# `AutoMultivariateNormal` one whose ellipse may tilt (*full-rank*). They move constrained unknowns to the whole line for you.

# %%
falling = numpyro.optim.Adam(lambda step: 0.2 * 0.001 ** (step / num_steps))
upright, _ = follow(falling, num_steps, guide=AutoNormal(model))
full, _ = follow(falling, num_steps, guide=AutoMultivariateNormal(model))
upright_elbo = exact_elbo(
    np.array([upright["intercept_auto_loc"][-1], upright["slopes_auto_loc"][-1]]),
    np.diag([upright["intercept_auto_scale"][-1], upright["slopes_auto_scale"][-1]]),
)
full_root = full["auto_scale_tril"][-1]
full_elbo = exact_elbo(full["auto_loc"][-1], full_root)
print(f"AutoNormal              {upright_elbo:.4f}, best mean-field {best_elbo:.4f}")
print(f"AutoMultivariateNormal  {full_elbo:.4f}, best full-rank  {best_tilted_elbo:.4f}")

# %% [markdown]
# Why write guides by hand, then? Because you learn what they are, and because a guide may know what an autoguide cannot: that a row's
# unknown depends on that row's data ([amortisation](09_amortisation.md)), or on a group's ([the funnel](08_hierarchical.md)). One
# caution: an autoguide remembers the shapes of the first data that it met. Make a new one for each data set.
#
# ## A fit that judges itself
#
# With `MeanField` and `FullRank`, `vip.fit` runs the loop from several starts, lets the rate fall, stops when they agree, and then asks
# how far $q$ can be trusted. It weighs each draw by $p / q$: if a few draws carry all the weight, $q$ misses a part of the posterior. The
# number *k-hat* measures that ([how you know](05_when_mean_field_lies.md)), and the *certificate* says it in a sentence.

# %%
key = random.key(0)
fits = {
    "MeanField": vip.fit(key, model, data, method=vip.MeanField(), progress=False),
    "FullRank": vip.fit(key, model, data, method=vip.FullRank(), progress=False),
    "default": vip.fit(key, model, data, progress=False),
}
for name, fit in fits.items():
    print(f"{name}, {fit.stopped_because}\n  {fit.certificate.verdict}\n")

# %% [markdown]
# With no method named, `vip.fit` takes the cheapest one that earns a certificate, here `{python} f"{fits['default'].name}"`. What is in
# the draws, beside the grid's answer:

# %%
p_grid = np.exp(on_grid - logsumexp(on_grid))
grid_mean = np.array([(p_grid * grid_a).sum(), (p_grid * grid_b).sum()])
grid_sd = np.sqrt([(p_grid * (grid_a - grid_mean[0]) ** 2).sum(), (p_grid * (grid_b - grid_mean[1]) ** 2).sum()])


def sds(draws):
    return np.array([float(draws["intercept"].std()), float(draws["slopes"].std())])


print(f"{'sd of':18}{'intercept':>11}{'slope':>8}   certified")
print(f"{'grid':18}{grid_sd[0]:11.3f}{grid_sd[1]:8.3f}")
for name, fit in fits.items():
    raw, weighted = sds(fit.idata["proposal"].to_dataset()), sds(fit.posterior)
    print(f"{name + ', q':18}{raw[0]:11.3f}{raw[1]:8.3f}   {'yes' if fit.proposal_certificate.ok else 'no'}")
    print(f"{name + ', weighted':18}{weighted[0]:11.3f}{weighted[1]:8.3f}   {'yes' if fit.certificate.ok else 'no'}")

# %% [markdown]
# Each fit has two sets of draws. Those of $q$ (`fit.idata["proposal"]`) have the sds of $q$: the best mean-field guide's slope is
# `{python} f"{100 * (1 - best_sd[1] / grid_sd[1]):.0f}"` % too sure of itself. Those in `fit.posterior` were weighed and resampled, and
# the certificate speaks of them. Where it says no, they may still look right, and here the grid tells us how right; without a grid you
# would not know, and the certificate will not pretend to. The default begins with mean-field too, then works out the correlations and
# draws from something wider than the posterior: draws that are too many somewhere can be weighed down, draws that were never made cannot
# be weighed up.
#
# ## What the documents said
#
# **"An example of variational inference using TensorFlow Probability"** is what the note on the design pattern offers, for the mean of a
# hundred measurements. It cannot run: `tfd` is never defined, and it asks a plain function for its `trainable_variables`. It could not
# work either, and the reasons are worth learning, for each breaks a rule of this page.
#
# - It takes `model().sample()` as its draws: both $w$ and $x$ come from the *model*. The average belongs under $q$, and `x_data`, made so
#   carefully, is never used.
# - $x$ is one number there. It should be a plate of a hundred.
# - It makes its variables anew whenever it asks for $q$. Nothing can be learned; it would print softplus of its start,
#   `{python} f"{np.log1p(np.exp(0.54)):.4f}"`, as the scale.
#
# What it would climb can be written down: $-\tfrac12 \log 2\pi - 1 + \log s + (1 + \mu^2) / (2 s^2)$, which contains no data, and grows
# without bound as $s \to 0$.


# %%
def printed(mu, s):
    return -0.5 * np.log(2 * np.pi) - 1 + np.log(s) + (1 + mu**2) / (2 * s**2)


rng = np.random.default_rng(0)
w = rng.normal(size=100_000)  # as printed: w and x from the model
x = rng.normal(w)
for mu, s in [(0.0, 1.0), (1.0, 0.5)]:
    q = dist.Normal(mu, s)
    estimates = np.asarray(dist.Normal(0, 1).log_prob(w) + dist.Normal(w, 1).log_prob(x) - q.log_prob(w), float)
    assert abs(estimates.mean() - printed(mu, s)) < 5 * estimates.std() / np.sqrt(len(w))
print("what it would climb, s = 1, 0.1, 0.01:", *(f"{printed(0.0, s):.0f}" for s in (1, 0.1, 0.01)))

# %% [markdown]
# The pattern [gaussian mean](patterns/gaussian_mean.md) is the same problem done right: data in, plate of a hundred, average under $q$.
# Its answer must *move when the data move*. Prior and data weigh 1 to 100, so where every $x_i$ grows by 1, the mean grows by exactly
# $100/101$:

# %%
before, after = (float(gaussian_mean.fit(random.key(0), gaussian_mean.data()["y"] + shift)[0]["mu"].mean) for shift in (0, 1))
print(f"before {before:.4f}, after {after:.4f}: moved by {after - before:.4f}; 100/101 = {100 / 101:.4f}")
assert abs(after - before - 100 / 101) < 0.002

# %% [markdown]
# That is a test for any guide of your own: change the data in a way whose effect you know. The note's second program, in PyMC3, is sound,
# since it marks its data as observed. PyMC3 is now called PyMC.
#
# ## What to copy
#
# - [logistic regression](patterns/logistic_regression.md): this page's model and guide for a table of yours, with the best mean-field
#   guide computed beside the fit.
# - [gaussian mean](patterns/gaussian_mean.md): the smallest guide that can be checked by hand.
# - The rate that falls: `numpyro.optim.Adam(lambda step: 0.2 * 0.001 ** (step / num_steps))`, with parameters of a size near 1.
# - Where you need an answer and not a lesson: `fit = vip.fit(key, model, data)`, then `fit.certificate.verdict`, before anything else. A
#   guide of your own goes in as `method=vip.Guide(guide)`.
#
# ## Exercises
#
# ### A guide that leans
#
# Write a guide by hand whose ellipse may tilt, without a multivariate distribution: draw the intercept as before, and let the slope's
# mean depend on it. How much ELBO does it win? What is the most it could?


# %% tags=["answer"]
def leaning(x, trials, y=None):
    m = numpyro.param("intercept_m", 0.0)
    s = numpyro.param("intercept_s", 1.0, constraint=constraints.positive)
    intercept = numpyro.sample("intercept", dist.Normal(m, s))
    lean = numpyro.param("lean", jnp.zeros(x.shape[1]))
    rest = numpyro.param("slopes_s", jnp.ones(x.shape[1]), constraint=constraints.positive)
    with numpyro.plate("feature", x.shape[1]):
        numpyro.sample("slopes", dist.Normal(numpyro.param("slopes_m", jnp.zeros(x.shape[1])) + lean * (intercept - m) / s, rest))


lent, _ = follow(falling, num_steps, guide=leaning)
root = np.array([[lent["intercept_s"][-1], 0], [lent["lean"][-1], lent["slopes_s"][-1]]])
leaning_elbo = exact_elbo(np.array([lent["intercept_m"][-1], lent["slopes_m"][-1]]), root)
print(f"ELBO {leaning_elbo:.4f}; mean-field {elbo:.4f}; best of all Gaussians {best_tilted_elbo:.4f}")
# Every bivariate Gaussian is a Gaussian times a Gaussian whose mean leans on the first: the family is full-rank.
assert best_tilted_elbo - 0.002 < leaning_elbo <= best_tilted_elbo + 1e-6

# %% [markdown]
# ### Other units
#
# Measure the dose in units a hundred times as large, so that slopes are a hundred times as large too, prior included: the same problem.
# Where does the loop of this page end? Add up the rates of all steps before you run it. Does `vip.fit` mind?


# %% tags=["answer"]
def coarse(x, trials, y=None):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    with numpyro.plate("feature", x.shape[1]):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 1_000.0))
    with numpyro.plate("group", x.shape[0]):
        numpyro.sample("y", dist.Binomial(trials, logits=intercept + x @ slopes), obs=y)


in_hundreds = data | {"x": data["x"] / 100}
reach = np.sum(0.2 * 0.001 ** (np.arange(num_steps) / num_steps))
stuck = follow(falling, num_steps, model=coarse, data=in_hundreds)[0]["slopes_m"][-1]
easy = vip.fit(random.key(0), coarse, in_hundreds, progress=False)
print(f"the rates add up to {reach:.0f}; the slope's mean ended at {stuck:.0f}, the best is {100 * best_mean[1]:.0f}")
print(f"vip.fit: {float(easy.posterior['slopes'].mean()):.0f}, exact {100 * grid_mean[1]:.0f}")
assert stuck < 1.5 * reach < best_mean[1] * 100 / 4
assert abs(float(easy.posterior["slopes"].mean()) / 100 - grid_mean[1]) < 5 * grid_sd[1] / np.sqrt(4_000)

# %% [markdown]
# ### A slip of the pen
#
# Rename the site `slopes` to `slope` in the guide. What does NumPyro do, and what does `vip.fit` do?


# %% tags=["answer"]
import warnings


def slip(x, trials, y=None):
    numpyro.sample("intercept", dist.Normal(numpyro.param("m", 0.0), 1.0))
    with numpyro.plate("feature", x.shape[1]):
        numpyro.sample("slope", dist.Normal(numpyro.param("slope_m", jnp.zeros(x.shape[1])), 1.0))


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loss = float(jax.jit(lambda key: Trace_ELBO().loss(key, {}, model, slip, **data))(random.key(0)))
print(f"NumPyro: a loss all the same, {loss:.2f}, and on the way {sorted({str(each.message) for each in caught})}")
try:
    vip.fit(random.key(0), model, data, method=vip.Guide(slip), progress=False)
except vip.InputError as error:
    refusal = str(error)
print(f"vipatterns: {refusal}")
assert np.isfinite(loss)
assert "slopes" in refusal

# %% [markdown]
# ## The check
#
# The page checks itself: the guide against the best of its family, that against figures computed elsewhere, the draws against the grid.

# %%
pattern = logistic_regression.documented_bias(**logistic_regression.data())
np.testing.assert_allclose([best_elbo, best_tilted_elbo], [-4.695424, -4.556939], atol=2e-6)
np.testing.assert_allclose(log_evidence, -4.455368, atol=2e-6)
np.testing.assert_allclose([best_mean[1], best_sd[1]], np.ravel(pattern["slopes"]), rtol=1e-4)
np.testing.assert_allclose([*grid_mean, *grid_sd], [0.774519, 8.404909, 0.818435, 3.672280], rtol=1e-5)
for reached, most in [(elbo, best_elbo), (upright_elbo, best_elbo), (full_elbo, best_tilted_elbo)]:
    assert most - 0.002 < reached <= most + 1e-6
assert np.all(np.abs(mean - best_mean) < 0.05 * best_sd)
assert np.all(np.abs(np.log(sd / best_sd)) < 0.05)
assert abs(short[0][1] - best_mean[1]) > best_sd[1]  # the usual setting stops too early
assert fits["default"].certificate.ok
assert np.all(np.abs(sds(fits["default"].posterior) / grid_sd - 1) < 0.06)  # 4,000 draws, 5 errors
assert np.all(np.abs(sds(fits["MeanField"].idata["proposal"].to_dataset()) / best_sd - 1) < 0.04)
