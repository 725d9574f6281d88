# %% [raw]
# ---
# hide:
#   - toc
# ---

# %% [markdown]
# # vipatterns
#
# Variational inference (VI) puts a simple distribution in place of a posterior. That is quick, and sometimes wrong
# without a sign. vipatterns is VI on NumPyro that shows how far it can be believed: tutorials whose numbers were computed
# in the build that shows them, patterns that are held to exact answers, and one comparison that says, for *your* model
# and data, whether VI can stand in for NUTS.

# %%
import jax

import vipatterns as vip
from vipatterns.patterns import eight_schools as schools

key = jax.random.key(0)
data = schools.data()
fit = vip.fit(key, schools.model, data)  # the cheapest posterior that earns a certificate
print(fit.certificate.verdict)

# %% tags=["figure"]
import numpy as np
from figures import BLUE, GREY, ORANGE, plt, show
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam
from scipy.stats import gaussian_kde

from vipatterns.patterns import eight_schools_centered as centred

key_steps, key_draws = jax.random.split(jax.random.key(1))
guide = AutoNormal(centred.model)
usual = SVI(centred.model, guide, Adam(0.001), Trace_ELBO()).run(key_steps, 2_000, **data, progress_bar=False)
log_tau = {
    "exact": np.log(schools.exact_posterior(**data)["tau"]),
    "vip.fit, certified": np.log(np.ravel(fit.posterior["tau"])),
    "AutoNormal as usual, no warning": np.log(guide.sample_posterior(key_draws, usual.params, sample_shape=(4_000,))["tau"]),
}
truth, certified, shipped = log_tau.values()
off = abs(shipped.mean() - truth.mean()) / truth.std()
narrow = shipped.std() / truth.std()
assert fit.certificate.ok
assert abs(certified.mean() - truth.mean()) < 0.1 * truth.std()
assert abs(certified.std() / truth.std() - 1) < 0.1
assert narrow < 0.8

fig, ax = plt.subplots()
grid = np.linspace(-4, 4, 120)
for (label, draws), colour in zip(log_tau.items(), (GREY, BLUE, ORANGE), strict=True):
    density = gaussian_kde(draws)(grid)
    ax.plot(grid, density, color=colour, label=label)
    if label == "exact":
        ax.fill_between(grid, density, color=colour, alpha=0.3, linewidth=0)
ax.set(xlabel="log of tau, how much eight schools differ", yticks=[])
ax.legend(loc="upper right")
show(
    fig,
    alt="Three densities of log tau in the eight schools: the draws of vip.fit lie on the exact posterior; NumPyro's AutoNormal, "
    "trained as usual, gives a far narrower one in another place.",
)

# %% [markdown]
# The orange curve is what two thousand steps of Adam at its usual rate leave, with no word of doubt: its mean lies
# `{python} f"{off:.1f}"` posterior sds from the truth, and its sd is `{python} f"{narrow:.2f}"` of what it should be.
# Such pictures are what this project is for.
#
# ## Four doors
#
# ### Read
#
# You are learning VI. Begin with [latent variables, and why the posterior is hard](01_latent_variables.md), and go on in
# order. Every page opens with a question, checks itself, and ends with exercises whose answers run. Signs are in the
# [notation](notation.md).
#
# ### Reproduce
#
# You doubt what is written about VI. Three widely read introductions were gone through claim by claim:
#
# ```sh
# uv run pytest tests/documents -v
# ```
#
# What holds, what does not, and what is true instead: the [corrections](corrections.md).
#
# ### Copy
#
# You need a start that works. Take the file that is nearest to your problem; it needs nothing of this project:
#
# ```sh
# uv run vipatterns list
# uv run vipatterns copy linear_regression .
# ```
#
# Which one? [From symptom to pattern](symptoms.md), or [the catalogue](#the-catalogue) below.
#
# ### Apply
#
# You have a NumPyro model and a table:
#
# ```sh
# uv run vipatterns compare my_model.py --data my.csv --target y --out results
# ```
#
# fits by VI and by NUTS, prints a sentence on each, and writes `results/report.html`, a table, and the draws for ArviZ.
# From end to end: [regression in raw units](07_regression.md).
#
# ## Install
#
# In a clone of the repository, on a machine that has Python and Git:
#
# ```sh
# pip install uv
# uv run vipatterns compare gaussian_mean
# ```
#
# `uv run` fetches what is needed. From another environment: `pip install '.[flow,pathfinder,enumerate,vae]'`, with those
# extras that you want.
#
# ## In a few lines
#
# The lines above the picture were run when this page was built. `fit` is the cheapest posterior that earns a certificate,
# its draws an xarray Dataset; `fit.idata` goes to ArviZ. The model is any NumPyro model, the data a dict of its
# arguments. `vip.compare(key, model, data)` sets methods side by side. All names: the [API](api.md).
#
# ## The catalogue
#
# Problems are rows, techniques columns; [as a list](patterns.md), with what each is held to.
#
# <!-- table -->
#
# ## Where to begin
#
# | You | Begin with |
# |---|---|
# | have never fitted by VI | [your first guide](03_first_guide.md) |
# | wonder where the ELBO comes from | [from KL to the ELBO](02_elbo.md) |
# | have sds that look too small | [when mean-field lies](05_when_mean_field_lies.md) |
# | have groups | [hierarchical models](08_hierarchical.md) |
# | have clusters | [mixtures](06_mixtures.md) |
# | have images | [amortisation and the VAE](09_amortisation.md) |
# | do not know whether to use VI at all | [SVI or NUTS?](10_svi_or_nuts.md) |
# | have something that goes wrong | [from symptom to pattern](symptoms.md) |
