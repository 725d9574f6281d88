# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Mixture density network: y has several values for one x, a network with a Gaussian output fails, one with a latent label fits.

**Technique** point-mass guide (MAP) over a network's weights, labels summed out.
**Use when** y given x has several branches or a changing shape, and its whole distribution is wanted, not its mean.
**Avoid when** rows are few: the weights are one point, and what the data leave open about them is not in the answer.
**Cost** seconds; a step costs N H K, with N rows, H hidden units and K components.
**Bias to expect** held-out density a little below the true one's; with one component, by what a Gaussian of the right mean and sd loses.
**Source** Bishop 1994, Mixture density networks, report NCRG/94/004; networks with latent inputs: Kingma and Welling 2014, arXiv 1312.6114.
"""

# %%
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO

# %% [markdown]
# # Mixture density network
#
# Forwards the problem is easy: $x = g(y) + 0.05\,\varepsilon$ with $g(y) = y + 0.3 \sin 2 \pi y$ and $y$ uniform on $(0, 1)$. Backwards,
# from $x$ to $y$, it is not: about $x = 0.5$ there are three branches, and their mean is the middle one, at best.
#
# A network with $H$ hidden units reads $x$. With one component, its outputs are a mean and an sd: least squares, almost. With $K$
# components they are the parameters of a mixture, and a latent label $z_i$ says which branch a row is on:
#
# $$z_i \mid x_i \sim \mathrm{Categorical}(\pi(x_i)), \qquad y_i \mid z_i, x_i \sim \mathcal N(m_{z_i}(x_i), s_{z_i}(x_i)).$$
#
# Summed out, it leaves $p(y_i \mid x_i) = \sum_k \pi_k(x_i)\, \mathcal N(y_i; m_k(x_i), s_k(x_i))$.

# %%
UNITS, NOISE = 4, 0.05


def forwards(y):
    return y + 0.3 * np.sin(2 * np.pi * y)


def simulated(seed, num):
    """x, (num, 1), and y, (num,)."""
    rng = np.random.RandomState(seed)
    y = rng.uniform(size=num)
    return (forwards(y) + NOISE * rng.normal(size=num))[:, None], y


def data(frame=None):
    """Rows `x`, (N, 1), and `y`, (N,), both in units of their range, from about 0 to 1, and `num_components`, K.

    Of a table, `y` is the column of that name and x the column `x`, or the first of the others. Without one, 60 simulated rows.
    """
    x, y = simulated(42, 60) if frame is None else (frame["x" if "x" in frame else next(c for c in frame if c != "y")], frame["y"])
    return {"x": np.asarray(x, float).reshape(len(y), 1), "y": np.asarray(y, float), "num_components": 3}


def conditional(x, num_components, slope, offset, weights, level):
    """p(y | x), of batch shape (N,): the network, (N, 1) -> (N, H) -> (N, 3 K), and the mixture that its outputs stand for."""
    out = level + jnp.tanh(slope * x + offset) @ weights
    logits, m, log_s = (out[:, i * num_components : (i + 1) * num_components] for i in range(3))
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(0.5 + m, 0.2 * jnp.exp(log_s)))


def model(x, y=None, num_components=3):
    slope = numpyro.sample("slope", dist.Normal(0.0, 5.0).expand([UNITS]).to_event(1))
    offset = numpyro.sample("offset", dist.Normal(0.0, 5.0).expand([UNITS]).to_event(1))
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([UNITS, 3 * num_components]).to_event(2))
    level = numpyro.sample("level", dist.Normal(0.0, 1.0).expand([3 * num_components]).to_event(1))
    with numpyro.plate("observation", len(x)):
        numpyro.sample("y", conditional(x, num_components, slope, offset, weights, level), obs=y)


# %% [markdown]
# ## The guide
#
# All of $q$ on one point: the ELBO is then the log joint density there, less a constant, and its maximum the MAP. Every other
# order of the units and of the components is as good a point, so that a spread over weights would say little; what $q$ is for
# here is $p(y \mid x)$. The units start with their bends spread over the range of $x$, and the components apart.


# %%
def guide(x, y=None, num_components=3):
    steepness = jnp.where(jnp.arange(UNITS) % 2, 4.0, 8.0)
    slope = numpyro.param("slope_at", steepness)
    offset = numpyro.param("offset_at", -steepness * jnp.linspace(0.0, 1.0, UNITS))
    weights = numpyro.param("weights_at", lambda key: 0.3 * random.normal(key, (UNITS, 3 * num_components)))
    apart = (jnp.arange(num_components) + 0.5) / num_components - 0.5
    level = numpyro.param("level_at", jnp.concatenate([jnp.zeros(num_components), apart, jnp.zeros(num_components)]))
    numpyro.sample("slope", dist.Delta(slope).to_event(1))
    numpyro.sample("offset", dist.Delta(offset).to_event(1))
    numpyro.sample("weights", dist.Delta(weights).to_event(2))
    numpyro.sample("level", dist.Delta(level).to_event(1))


def fit(rng_key, x, y, num_components=3, *, num_steps=8000):
    """Fit the guide by Adam, its rate decaying from 0.05 to 0.0005.

    Returns:
        q: dict, `slope`, `offset`, `weights` and `level` -> point masses.
        losses: (num_steps,), the negative log joint density in nats.
    """
    optimizer = numpyro.optim.Adam(lambda step: 0.05 * 0.01 ** (step / num_steps))
    result = SVI(model, guide, optimizer, Trace_ELBO()).run(rng_key, num_steps, x, y, num_components, progress_bar=False)
    fitted = handlers.seed(handlers.substitute(guide, result.params), rng_key)
    sites = handlers.trace(fitted).get_trace(x, y, num_components)
    return {name: site["fn"] for name, site in sites.items() if site["type"] == "sample"}, result.losses


# %% [markdown]
# ## What can be reached
#
# Since the way forwards is known, so is $p(y \mid x)$, and the most that any conditional density scores on new rows: minus the
# entropy of the true one. The most for a Gaussian is scored by that with the true mean and sd,
#
# $$\mathbb E \log q(y \mid x) \le -\mathbb E_x \mathrm H[y \mid x] \quad \text{for all } q, \qquad
# \mathbb E \log q(y \mid x) \le -\tfrac12\, \mathbb E_x \log\big(2 \pi e\, \mathrm{Var}[y \mid x]\big) \quad \text{for Gaussian } q.$$
#
# Both are integrals over $x$ and $y$, here by the midpoint rule. Their difference is the price of the missing label. Where the network
# can be the true density, its $d$ weights, estimated from $N$ rows, cost about $d / 2 N$ a new row. The mixture's few units
# nearly can; a Gaussian's cannot, since its mean and sd jump where branches begin and end.


# %%
def best_scores(num=1000):
    """The largest expected log density of a new row, in nats: for a Gaussian, and for any conditional density."""
    y, x = (np.arange(num) + 0.5) / num, np.linspace(-0.4, 1.4, num)[:, None]
    joint = np.exp(-0.5 * ((x - forwards(y)) / NOISE) ** 2) / (NOISE * np.sqrt(2 * np.pi)) + 1e-300
    marginal = joint.mean(1, keepdims=True)
    log_true = np.log(joint / marginal)
    mean = np.mean(joint * y, 1, keepdims=True) / marginal
    variance = np.mean(joint * (y - mean) ** 2, 1) / marginal[:, 0]
    weight = marginal[:, 0] / marginal.sum()
    return -0.5 * weight @ np.log(2 * np.pi * np.e * variance), np.sum(joint * log_true) / joint.sum()


def scores(q, x, y, num_components):
    """log p(y_i | x_i) of new rows, (N,), in nats."""
    return conditional(x, num_components, *(q[name].mean for name in ("slope", "offset", "weights", "level"))).log_prob(y)


# %%
def main():
    for num in (200, 2000):
        x, y = simulated(42, num)
        print(f"{f'{num} rows':<12}{'per new row':>14}{'error':>8}{'best':>9}")
        for (what, num_components), best in zip((("Gaussian", 1), ("mixture", 3)), best_scores(), strict=True):
            q, _ = fit(random.key(0), x, y, num_components)
            new = np.asarray(scores(q, *simulated(0, 10_000), num_components))
            print(f"{what:<12}{new.mean():14.4f}{new.std() / 100:8.4f}{best:9.4f}")


if __name__ == "__main__":
    main()
