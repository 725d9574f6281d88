# /// script
# requires-python = ">=3.12"
# dependencies = ["numpyro", "scikit-learn"]
# ///
"""Linear auto-encoder: with a linear decoder the best VAE is known in closed form, and this one is held to it.

**Technique** amortised mean-field: a linear encoder gives q of every latent; minibatches.
**Use when** correlated columns are to be summed up in a few; or a training loop is to be tried on something whose end is known.
**Avoid when** the columns' noise differs (factor_analysis), the data bend (vae), or all that is wanted is the closed form.
**Cost** seconds; a step costs the rows of a minibatch, times columns, times latents.
**Bias to expect** none: the encoder contains the posterior where the columns of W are orthogonal, and there training ends.
**Source** Tipping and Bishop 1999, doi 10.1111/1467-9868.00196; Lucas, Tucker, Grosse and Norouzi 2019, arXiv 1911.02469.
"""

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from sklearn.datasets import load_digits

# %% [markdown]
# # Linear auto-encoder
#
# Every row is a linear map of a few hidden numbers, plus noise of one sd in all columns; offset, loadings and noise are learned:
#
# $$z_i \sim \mathcal N(0, I_L), \qquad x_i \mid z_i \sim \mathcal N(\mu + W z_i,\ \sigma)
# \quad\Rightarrow\quad x_i \sim \mathcal N(\mu, C), \qquad C = W W^\top + \sigma^2 I,$$
#
# where the second argument is an sd, or a covariance where it is a matrix. This is probabilistic principal component analysis.


# %%
def data(frame=None):
    """Rows `x`, (N, D), in units of full ink; `num_columns`, D; `num_latents`, L.

    With a table, its numeric columns, best in units of about their sd; without, 1,797 handwritten digits: the pixels that vary.
    """
    if frame is None:
        levels = load_digits(return_X_y=True)[0]
        frame = {"x": levels[:, levels.std(0) > 0] / 16}
    columns = {name: np.asarray(frame[name]) for name in frame}
    x = columns["x"] if "x" in columns else np.stack([c for c in columns.values() if c.dtype.kind in "biuf"], axis=1)
    return {"x": x.astype(float), "num_columns": x.shape[1], "num_latents": 2}


def centre(x, num_columns):
    """The offset, (D,), which decoder and encoder share; training starts at the mean of the first rows that it sees."""
    return numpyro.param("offset", jnp.zeros(num_columns) if x is None else jnp.mean(x, axis=0))


def model(x=None, num_images=1, num_columns=61, num_latents=2):
    """`num_images` is read only where `x` is None: that many are then drawn."""
    loadings = numpyro.param("loadings", lambda key: 0.1 * random.normal(key, (num_columns, num_latents)))
    noise = numpyro.param("noise", 0.5, constraint=dist.constraints.positive)
    with numpyro.plate("image", num_images if x is None else len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([num_latents]).to_event(1))
        numpyro.sample("x", dist.Normal(centre(x, num_columns) + z @ jnp.transpose(loadings), noise).to_event(1), obs=x)


# %% [markdown]
# ## The guide
#
# The exact posterior is Gaussian, its mean linear in $x$, and its covariance the same for every row:
#
# $$z_i \mid x_i \sim \mathcal N\big(M^{-1} W^\top (x_i - \mu),\ \sigma^2 M^{-1}\big), \qquad M = W^\top W + \sigma^2 I.$$
#
# So a linear encoder of $x_i - \mu$, with one sd a latent, contains it where $W^\top W$ is diagonal. The likelihood cares only for
# $W W^\top$, which any rotation of the latents leaves as it is; the guide picks the rotation whose posterior factorises, and its columns
# are the principal components. Where two eigenvalues are close the ELBO is nearly flat in that rotation, and training finds it last.


# %%
def guide(x=None, num_images=1, num_columns=61, num_latents=2):
    weights = numpyro.param("weights", jnp.zeros((num_columns, num_latents)))
    s = numpyro.param("s", jnp.full(num_latents, 0.5), constraint=dist.constraints.positive)
    with numpyro.plate("image", len(x)):
        numpyro.sample("z", dist.Normal((x - centre(x, num_columns)) @ weights, s).to_event(1))


def learn(rng_key, x, *, num_steps, batch_size=256, **settings):
    """Parameters of both, and the losses (num_steps,) in nats in total; Adam, minibatches without replacement."""
    key_init, key_order = random.split(rng_key)
    x, size = jnp.asarray(x, jnp.float32), min(batch_size, len(x))
    svi = SVI(model, guide, numpyro.optim.Adam(lambda step: 0.05 * 0.001 ** (step / num_steps)), Trace_ELBO())
    per_epoch = len(x) // size
    shuffled = jax.vmap(lambda key: random.permutation(key, len(x)))(random.split(key_order, -(-num_steps // per_epoch)))
    batches = shuffled[:, : per_epoch * size].reshape(-1, size)[:num_steps]

    @jax.jit
    def run(state):
        return lax.scan(lambda state, rows: svi.update(state, x[rows], **settings), state, batches)

    state, losses = run(svi.init(key_init, x[:size], **settings))
    return svi.get_params(state), losses * len(x) / size


def fit(rng_key, x, num_images=1, num_columns=61, num_latents=2, *, num_steps=4000):
    """Learn both maps, and encode the rows.

    Returns:
        q: dict, `z` -> fitted Normals, (N, L); which latent is which, and its sign, the start decides.
        losses: (num_steps,), the negative ELBO of all rows in nats, noisy.
    """
    settings = {"num_columns": num_columns, "num_latents": num_latents}
    params, losses = learn(rng_key, x, num_steps=num_steps, **settings)
    encoded = handlers.seed(handlers.substitute(guide, params), rng_key)
    return {"z": handlers.trace(encoded).get_trace(jnp.asarray(x, jnp.float32), **settings)["z"]["fn"]}, losses


def training():
    """Settings of vip.train."""
    return {"batch_size": 128, "num_epochs": 500, "patience": 50}


# %% [markdown]
# ## The exact answer
#
# With eigenvalues $\lambda_1 \ge \dots \ge \lambda_D$ of the covariance of $x$ (divided by $N$) and their eigenvectors $U$, the
# likelihood is largest at
#
# $$\hat\mu = \bar x, \qquad \hat\sigma^2 = \frac1{D - L} \sum_{d > L} \lambda_d, \qquad
# \hat W = U_L\, (\Lambda_L - \hat\sigma^2 I)^{1/2},$$
#
# up to a rotation, and its logarithm is there
#
# $$\log p(x) = -\frac N2 \Big(D \log 2\pi + \sum_{d \le L} \log \lambda_d + (D - L) \log \hat\sigma^2 + D\Big).$$
#
# No ELBO of any parameters is above it. All the ELBO's stationary points are stationary points of this likelihood (Lucas et al.): an idle
# latent is one whose eigenvalue is no larger than the noise, and no fault of the guide.


# %%
def maximum_likelihood(x, num_latents=2):
    """Offset (D,), loadings (D, L), noise sd."""
    values, vectors = np.linalg.eigh(np.cov(np.asarray(x, float).T, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[num_latents:].mean()
    return x.mean(0), vectors[:, :num_latents] * np.sqrt(values[:num_latents] - noise), float(np.sqrt(noise))


def log_likelihood(x, offset, loadings, noise):
    """log p of every row, (N,), in nats, the latents integrated out."""
    x, offset, loadings, noise = (np.asarray(v, float) for v in (x, offset, loadings, noise))
    cov = loadings @ loadings.T + noise**2 * np.eye(len(loadings))
    off = x - offset
    square = np.einsum("nd,nd->n", off, np.linalg.solve(cov, off.T).T)
    return -0.5 * (square + np.linalg.slogdet(cov)[1] + len(cov) * np.log(2 * np.pi))


def log_evidence(x, num_images=1, num_columns=61, num_latents=2):
    """Nats of all rows: the largest log likelihood that any offset, loadings and noise reach."""
    n, d = x.shape
    values = np.linalg.eigvalsh(np.cov(np.asarray(x, float).T, bias=True))[::-1]
    kept, noise = np.log(values[:num_latents]).sum(), values[num_latents:].mean()
    return float(-0.5 * n * (d * np.log(2 * np.pi) + kept + (d - num_latents) * np.log(noise) + d))


def main():
    d = data()
    params, losses = learn(random.key(0), num_steps=4000, **d)
    exact, n = maximum_likelihood(d["x"], d["num_latents"]), len(d["x"])
    print(f"{'':<26}{'learned':>10}{'exact':>10}")
    print(f"{'log p(x), nats a datum':<26}{log_likelihood(d['x'], *map(params.get, ('offset', 'loadings', 'noise'))).mean():10.4f}", end="")
    print(f"{log_evidence(**d) / n:10.4f}\n{'ELBO, the last steps':<26}{-losses[-200:].mean() / n:10.4f}")
    print(f"{'noise sd':<26}{params['noise']:10.5f}{exact[2]:10.5f}")
    for k, rows in enumerate(zip(*(np.sort((np.asarray(w) ** 2).sum(0))[::-1] for w in (params["loadings"], exact[1])), strict=True)):
        print(f"{f'|W_{k}|^2':<26}" + "".join(f"{v:10.5f}" for v in rows))


if __name__ == "__main__":
    main()
