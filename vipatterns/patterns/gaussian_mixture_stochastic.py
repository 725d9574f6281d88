# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro"]
# ///
"""Gaussian mixture by stochastic VI: coordinate ascent from a few rows at a time, for tables that are too long to sweep.

**Technique** mean-field with labels, stochastic natural gradients.
**Use when** the model is conjugate given its labels, and there are so many rows that one sweep of gaussian_mixture_cavi is long.
**Avoid when** a sweep is cheap: coordinate ascent has no rate to choose, and its ELBO tells of every mistake.
**Cost** about a second; a step costs B K, with B rows in a batch and K components, however many rows there are.
**Bias to expect** that of gaussian_mixture_cavi; the noise of the batches dies out with the rate, and is gone to a few hundredths of an sd.
**Source** Hoffman, Blei, Wang and Paisley 2013, arXiv 1206.7051; the rates: Robbins and Monro 1951, doi 10.1214/aoms/1177729586.
"""

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.scipy.special import digamma, logsumexp
from numpyro import handlers
from numpyro.distributions import kl_divergence

# %% [markdown]
# # Gaussian mixture by stochastic VI
#
# The model of `gaussian_mixture_cavi`, on a longer table. With $\bar y$ and $s_y$ the mean and sd of the data,
#
# $$w \sim \mathrm{Dirichlet}(1), \quad \tau_k \sim \mathrm{Gamma}(a_0, b_0\, s_y^2), \quad
# \mu_k \mid \tau_k \sim \mathcal N\big(\bar y, (\kappa_0 \tau_k)^{-1/2}\big), \quad
# p(y_i \mid w, \mu, \tau) = \sum_k w_k\, \mathcal N\big(y_i; \mu_k, \tau_k^{-1/2}\big).$$

# %%
ALPHA0, A0, B0, KAPPA0 = 1.0, 2.0, 0.1, 0.01
BATCH_SIZE = 100
DELAY, FORGETTING = 10.0, 0.7


def data(frame=None):
    """Measurements `y`, (N,), `num_components`, K, `num_observations`, N, and `units`, (2,), mean and sd of y, in y's units.

    `y` is a table's column of that name; without a table, 5,000 simulated heights in cm, of a crop of three kinds.
    """
    if frame is None:
        rng = np.random.default_rng(0)
        kind = rng.choice(3, 5000, p=[0.5, 0.3, 0.2])
        frame = {"y": rng.normal(np.array([60.0, 85.0, 110.0])[kind], np.array([5.0, 4.0, 6.0])[kind])}
    y = np.asarray(frame["y"], float)
    return {"y": y, "num_components": 3, "num_observations": len(y), "units": known(y)}


def known(y, units=None, xp=np):
    """Mean and sd of y."""
    if units is None and y is None:
        raise ValueError("units are read from y: pass y too, or units=..., those of the table that was fitted")
    return xp.stack([xp.mean(y), xp.std(y)]) if units is None else units


def model(y=None, num_components=3, num_observations=1, units=None):
    """`num_observations` is read only where `y` is None: that many are then predicted."""
    mean, sd = known(y, units, jnp)
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(num_components, ALPHA0)))
    with numpyro.plate("component", num_components):
        tau = numpyro.sample("tau", dist.Gamma(A0, B0 * sd**2))
        mu = numpyro.sample("mu", dist.Normal(mean, (KAPPA0 * tau) ** -0.5))
    with numpyro.plate("observation", num_observations if y is None else len(y)):
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(mu, tau**-0.5)), obs=y)


# %% [markdown]
# ## The guide, by its sufficient statistics
#
# As in coordinate ascent $w \sim \mathrm{Dirichlet}(\alpha)$, $\tau_k \sim \mathrm{Gamma}(a_k, b_k)$ and
# $\mu_k \mid \tau_k \sim \mathcal N(m_k, (\kappa_k \tau_k)^{-1/2})$, labels $q(z_i = k) = r_{ik}$. In the standardised rows
# $x_i = (y_i - \bar y) / s_y$ all of it is a function of three sums for every component,
#
# $$S = \sum_i t(x_i), \qquad t_k(x_i) = r_{ik}\, (1,\ x_i,\ x_i^2),$$
#
# and the natural parameters of $q$ are those of the prior plus $S$, linear in it.


# %%
def guide(y=None, num_components=3, num_observations=1, units=None):
    """`sums`, (3, K), are S: how many rows each component has, and the sums of x and of x^2 over them."""
    (mean, sd), k = known(y, units, jnp), num_components
    q = posterior(numpyro.param("sums", start(num_observations, k)))
    numpyro.sample("weights", dist.Dirichlet(q["alpha"]))
    with numpyro.plate("component", k):
        tau = numpyro.sample("tau", dist.Gamma(q["a"], q["b"] * sd**2))
        numpyro.sample("mu", dist.Normal(mean + sd * q["m"], (q["kappa"] * tau) ** -0.5))


def posterior(sums):
    """The parameters of q(w) and q(mu, tau), (K,) each, standardised."""
    n, first, second = sums
    kappa, m = KAPPA0 + n, first / (KAPPA0 + n)
    return {"alpha": ALPHA0 + n, "m": m, "kappa": kappa, "a": A0 + n / 2, "b": B0 + (second - kappa * m**2) / 2}


def label(q, x):
    """E_q log p(x_i, z_i = k | parameters), (N, K); the softmax over k is q(z_i)."""
    log_scale = 0.5 * (digamma(q["a"]) - jnp.log(2 * jnp.pi * q["b"]) - 1 / q["kappa"])
    mean_log_w = digamma(q["alpha"]) - digamma(q["alpha"].sum())
    return mean_log_w + log_scale - 0.5 * q["a"] / q["b"] * (x[:, None] - q["m"]) ** 2


def cost(q):
    """KL of q(w) and q(mu, tau) from the prior, in nats."""
    tau, ratio = dist.Gamma(q["a"], q["b"]), KAPPA0 / q["kappa"]
    of_mu = 0.5 * (ratio - 1 - jnp.log(ratio) + KAPPA0 * tau.mean * q["m"] ** 2)
    of_w = kl_divergence(dist.Dirichlet(q["alpha"]), dist.Dirichlet(jnp.full(len(q["alpha"]), ALPHA0)))
    return of_w + (kl_divergence(tau, dist.Gamma(A0, B0)) + of_mu).sum()


# %% [markdown]
# ## The step
#
# A sweep of coordinate ascent replaces $S$ by the sum under the new labels; the natural gradient of the ELBO *is* the difference.
# A batch of $B$ rows estimates it without bias, and a step goes a part $\rho_t$ of the way:
#
# $$S \leftarrow S + \rho_t \Big(\frac NB \sum_{i \in \text{batch}} t(x_i) - S\Big), \quad \rho_t = (t + d)^{-f}, \ \tfrac12 < f \le 1.$$
#
# The rates sum to infinity, so that no start is too far away; their squares do not, so that the noise dies out.


# %%
def step(sums, x, num_observations, rate):
    """One step from a batch x, (B,); also the estimate of the ELBO of standardised rows before it."""
    q = posterior(sums)
    log_p, scale = label(q, x), num_observations / len(x)
    r = jax.nn.softmax(log_p, axis=1)
    target = scale * jnp.stack([r.sum(0), x @ r, x**2 @ r])
    return sums + rate * (target - sums), scale * logsumexp(log_p, axis=1).sum() - cost(q)


def start(n, num_components):
    """As if every component had its share of n rows, with half the sd, centred from one sd below the mean to one above."""
    centre = jnp.linspace(-1, 1, num_components)
    return n / num_components * jnp.stack([jnp.ones(num_components), centre, centre**2 + 0.25])


def fit(rng_key, y, num_components=3, num_observations=1, units=None, *, num_steps=5000):
    """Steps from batches that share out the rows anew, at random, in each pass over them.

    Returns:
        q: dict, `weights` -> Dirichlet, `tau` -> Gammas, `mu` -> StudentTs, its marginals.
        losses: (num_steps,), the negative ELBO in nats, noisy.
    """
    y, (mean, sd), n, size = jnp.asarray(y), known(y, units, jnp), len(y), min(BATCH_SIZE, len(y))
    keys = random.split(rng_key, -(-num_steps // (n // size)))
    batches = jax.vmap(lambda key: random.permutation(key, n)[: n // size * size].reshape(-1, size))(keys)

    def body(sums, batch_and_time):
        batch, t = batch_and_time
        sums, elbo = step(sums, (y[batch] - mean) / sd, n, (t + DELAY) ** -FORGETTING)
        return sums, n * jnp.log(sd) - elbo

    sums, losses = lax.scan(body, start(n, num_components), (batches.reshape(-1, size)[:num_steps], jnp.arange(num_steps)))
    sites = handlers.trace(handlers.seed(handlers.substitute(guide, {"sums": sums}), rng_key)).get_trace(y, num_components, units=units)
    q = posterior(sums)
    mu = dist.StudentT(2 * q["a"], mean + sd * q["m"], sd * jnp.sqrt(q["b"] / (q["a"] * q["kappa"])))
    return {"weights": sites["weights"]["fn"], "tau": sites["tau"]["fn"], "mu": mu}, losses


# %%
def documented_bias(y, num_components=3, num_observations=1, units=None):
    """Mean and sd of every site where coordinate ascent from the same start comes to rest: all rows, steps of 1, in float64."""
    mean, sd = known(y, units)
    with jax.enable_x64(True):
        x = jnp.asarray((y - mean) / sd)
        sums = lax.fori_loop(0, 300, lambda _, sums: step(sums, x, len(y), 1.0)[0], start(len(y), num_components))
        q = jax.tree.map(np.asarray, posterior(sums))
    a, b, share, total = q["a"], q["b"] * sd**2, q["alpha"] / q["alpha"].sum(), q["alpha"].sum()
    moments = {"weights": (share, np.sqrt(share * (1 - share) / (total + 1))), "tau": (a / b, np.sqrt(a) / b)}
    return moments | {"mu": (mean + sd * q["m"], np.sqrt(b / ((a - 1) * q["kappa"])))}


# %%
def main():
    d = data()
    (q, losses), expected = fit(random.key(0), **d), documented_bias(**d)
    print(f"{'':<12}{'mean':>10}{'best q':>10}{'sd':>10}{'best q':>10}")
    for site in ("weights", "mu", "tau"):
        rows = (q[site].mean, expected[site][0], q[site].variance ** 0.5, expected[site][1])
        for k, row in enumerate(zip(*rows, strict=True)):
            print(f"{f'{site}[{k}]':<12}" + "".join(f"{value:10.4f}" for value in row))
    print(f"elbo {-jnp.mean(losses[-500:]):.2f}")


if __name__ == "__main__":
    main()
