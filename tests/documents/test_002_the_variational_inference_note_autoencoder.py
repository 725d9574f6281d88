"""The note on variational inference, fifth part: variational autoencoders, plain and denoising. One test is one claim.

Decoders are linear here, f(z) = W z + b, with x | z ~ N(f(z), sigma^2 I): the model is then probabilistic principal components, whose
posteriors, evidence and maximum likelihood are known (Tipping and Bishop 1999, doi 10.1111/1467-9868.00196). The autoencoder is that of
Kingma and Welling 2013, arXiv 1312.6114; their review of 2019, whose DOI the note leaves open, is doi 10.1561/2200000056.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from scipy.stats import kstest, multivariate_normal, norm

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
W = np.array([[1.0, 0.8], [0.6, 1.0], [0.2, 0.9]])
SIGMA = 0.7


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def generator(rng_key):
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))


def off(draws, exact):
    """How far the mean of the draws is from the exact value, in standard errors."""
    return np.max(np.abs(draws.mean(0) - exact) / (draws.std(0, ddof=1) / math.sqrt(len(draws))))


def to_prior(m, s):
    """KL(N(m, diag(s^2)) || N(0, I)), the closed form of the loss."""
    return 0.5 * (m**2 + s**2 - 1 - 2 * np.log(s)).sum()


POSTERIOR = np.linalg.inv(np.eye(2) + W.T @ W / SIGMA**2)
"""Covariance of z given any x."""
GAIN = POSTERIOR @ W.T / SIGMA**2
"""Posterior mean of z per x."""
WIDTHS = np.diag(np.linalg.inv(POSTERIOR)) ** -0.5
"""Sds of the best q with a diagonal covariance."""


def test_holds_an_encoder_gives_a_mean_and_log_sds_then_a_draw_then_a_prediction(rng_key, z_bound):
    """The four steps in order. An exponential makes sds of any output; predictions have mean W m + b and covariance W diag(s^2) W'."""
    x, b = np.array([0.4, -1.0, 2.0]), np.array([1.0, 0.0, -1.0])
    m, log_s = GAIN @ x, np.array([-1.5, 0.3])
    z = m + np.exp(log_s) * generator(rng_key).normal(size=(100_000, 2))
    predicted = z @ W.T + b
    assert off(predicted, W @ m + b) < z_bound(6)
    centred = predicted - (W @ m + b)
    assert off(centred[:, :, None] * centred[:, None], W @ np.diag(np.exp(2 * log_s)) @ W.T) < z_bound(18)


def test_holds_q_is_a_gaussian_with_a_diagonal_covariance():
    """Its density is the product of those of its dimensions: given x, they are independent."""
    m, s = np.array([0.3, -1.0]), np.array([0.5, 2.0])
    z = np.array([[0.0, 0.0], [1.0, -3.0]])
    np.testing.assert_allclose(multivariate_normal.logpdf(z, m, np.diag(s**2)), norm.logpdf(z, m, s).sum(1), rtol=1e-12)


def test_corrected_the_latent_dimensions_are_independent_given_x_only(rng_key, z_bound):
    """The note calls them linearly independent. Over all x, with the best diagonal q, their covariance is minus the posterior's."""
    rng = generator(rng_key)
    x = rng.normal(size=(200_000, 2)) @ W.T + SIGMA * rng.normal(size=(200_000, 3))
    z = x @ GAIN.T + WIDTHS * rng.normal(size=(200_000, 2))
    aggregate = np.eye(2) - POSTERIOR + np.diag(WIDTHS**2)
    assert off(z[:, :, None] * z[:, None], aggregate) < z_bound(4)
    correlation = aggregate[0, 1] / math.sqrt(aggregate[0, 0] * aggregate[1, 1])
    assert abs(correlation) > 0.05
    np.testing.assert_allclose(aggregate[0, 1], -POSTERIOR[0, 1], rtol=1e-12)


def test_corrected_a_diagonal_q_cannot_follow_a_correlated_posterior():
    """What the constraint costs in the bound: log(prod of precisions / determinant of the precision) / 2, the same for every x."""

    def kl(log_s):
        precision = np.linalg.inv(POSTERIOR)
        return 0.5 * (np.diag(precision) @ np.exp(2 * log_s) - 2 + np.linalg.slogdet(POSTERIOR)[1] - 2 * log_s.sum())

    found = minimize(kl, np.zeros(2))
    np.testing.assert_allclose(np.exp(found.x), WIDTHS, rtol=1e-4)
    np.testing.assert_allclose(found.fun, -np.log(WIDTHS).sum() + 0.5 * np.linalg.slogdet(POSTERIOR)[1], rtol=1e-7)
    assert found.fun > 0.01


def test_holds_different_latents_give_different_predictions(rng_key):
    """Two draws of q for one x decode to predictions at least as far apart as the draws, times the least singular value of W."""
    z = GAIN @ [0.4, -1.0, 2.0] + WIDTHS * generator(rng_key).normal(size=(2, 1_000, 2))
    apart, predicted_apart = (np.linalg.norm(draws[0] - draws[1], axis=1) for draws in (z, z @ W.T))
    assert (predicted_apart >= np.linalg.svd(W)[1].min() * apart * (1 - 1e-12)).all()
    assert predicted_apart.min() > 0


def test_corrected_predictions_are_means_of_p_of_x_given_z_not_draws_of_it(rng_key, z_bound):
    """Given z there is one prediction and no spread. Decoded latents lack sigma^2 of the variance of x."""
    rng = generator(rng_key)
    predicted = rng.normal(size=(200_000, 2)) @ W.T
    drawn = predicted + SIGMA * rng.normal(size=predicted.shape)
    assert off(predicted**2, np.diag(W @ W.T)) < z_bound(6)
    assert off(drawn**2, np.diag(W @ W.T) + SIGMA**2) < z_bound(6)


def test_holds_noise_added_to_the_latent_is_a_wider_encoder(rng_key, false_alarm):
    """f(z + noise), with z from N(m, s^2) and noise of sd t: predictions are those of an encoder with the variance s^2 + t^2."""
    rng = generator(rng_key)
    z = rng.normal(0.4, 0.3, 50_000)
    predicted = np.tanh(2 * (z + rng.normal(0.0, 0.5, z.size)))
    wide = norm(0.4, math.hypot(0.3, 0.5))
    assert kstest(predicted, lambda x: wide.cdf(np.arctanh(np.clip(x, -1 + 1e-15, 1 - 1e-15)) / 2)).pvalue > false_alarm


def test_corrected_with_noise_on_the_latent_the_divergence_must_count_it():
    """With the divergence of the q before the noise the loss can promise more than log p(x); with that of the wider q it is a bound."""
    x, sigma, noise = 8.0, 5.0, 1.0

    def log_likelihood(z):
        return norm.logpdf(x, z**2, sigma)

    grid = np.linspace(-12, 12, 24_001)
    log_evidence = np.log(np.sum(norm.pdf(grid) * np.exp(log_likelihood(grid))) * (grid[1] - grid[0]))
    lattice = [(m, s) for m in np.linspace(0, 2.5, 11) for s in np.linspace(0.05, 1.0, 20)]

    def promised(m, s, counted):
        return WEIGHTS @ log_likelihood(m + math.hypot(s, noise) * NODES) - to_prior(np.array([m]), np.array([counted]))

    assert max(promised(m, s, math.hypot(s, noise)) for m, s in lattice) < log_evidence
    assert max(promised(m, s, s) for m, s in lattice) > log_evidence


X = np.array([0.4, -1.0, 2.0])
AT = {
    "m": np.array([0.3, -0.2]),
    "log_s": np.array([-0.5, 0.1]),
    "w": W + 0.1,
    "b": np.array([0.2, 0.0, -0.1]),
}
"""Outputs of an encoder at X, and a decoder."""


def loss(p, c):
    """The note's, C |x - f(z)|^2 + KL, the mean over z taken exactly: |x - f(m)|^2 + the variances that W passes on."""
    squared = jnp.sum((X - p["w"] @ p["m"] - p["b"]) ** 2) + jnp.sum(p["w"] ** 2 * jnp.exp(2 * p["log_s"]))
    return c * squared + 0.5 * jnp.sum(p["m"] ** 2 + jnp.exp(2 * p["log_s"]) - 1 - 2 * p["log_s"])


FEW, FEW_WEIGHTS = np.polynomial.hermite_e.hermegauss(4)
GRID = np.stack(np.meshgrid(FEW, FEW), -1).reshape(-1, 2)
GRID_WEIGHTS = np.outer(FEW_WEIGHTS, FEW_WEIGHTS).ravel() / FEW_WEIGHTS.sum() ** 2


def minus_bound(p, sigma):
    """-E[log p(x, z) - log q(z)] by quadrature over both dimensions of z."""
    z = p["m"] + jnp.exp(p["log_s"]) * GRID
    log_p = jax.scipy.stats.norm.logpdf(z).sum(1) + jax.scipy.stats.norm.logpdf(X, z @ p["w"].T + p["b"], sigma).sum(1)
    return -GRID_WEIGHTS @ (log_p - jax.scipy.stats.norm.logpdf(z, p["m"], jnp.exp(p["log_s"])).sum(1))


def apart(p, c, sigma):
    """The largest difference of the two gradients."""
    of_loss, of_bound = jax.jit(jax.grad(loss))(p, c), jax.jit(jax.grad(minus_bound))(p, sigma)
    return max(np.abs(of_loss[name] - of_bound[name]).max() for name in p)


def test_corrected_the_loss_is_minus_the_bound_up_to_a_constant_only_for_one_c():
    """For C = 1 / (2 sigma^2) all gradients agree, and the constant is (D / 2) log(2 pi sigma^2); for C twice or half of it they do not."""
    c = 1 / (2 * SIGMA**2)
    assert apart(AT, c, SIGMA) < 1e-10
    np.testing.assert_allclose(minus_bound(AT, SIGMA) - loss(AT, c), 1.5 * math.log(2 * math.pi * SIGMA**2), rtol=1e-10)
    assert min(apart(AT, 2 * c, SIGMA), apart(AT, c / 2, SIGMA)) > 0.1


@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_corrected_another_c_is_another_sigma(c):
    """Whatever C is, it belongs to a model: that with sigma^2 = 1 / (2 C). Where sigma is learned, the constant cannot be left out."""
    sigma = math.sqrt(1 / (2 * c))
    assert apart(AT, c, sigma) < 1e-10 * max(1.0, c)
    of_sigma = jax.grad(minus_bound, 1)(AT, sigma)
    without = jax.grad(lambda sigma: loss(AT, 1 / (2 * sigma**2)))(sigma)
    np.testing.assert_allclose(of_sigma - without, 3 / sigma, rtol=1e-8)


def test_holds_one_latent_draw_gives_the_loss_without_bias(rng_key, z_bound):
    """The printed |x - f(z)|^2 at a draw of q has the mean that the bound asks for."""
    z = AT["m"] + np.exp(AT["log_s"]) * generator(rng_key).normal(size=(100_000, 2))
    squared = ((X - z @ AT["w"].T - AT["b"]) ** 2).sum(1)
    exact = float(loss(AT, 1.0) - loss(AT, 0.0))
    assert off(squared, exact) < z_bound()


def test_holds_the_divergence_of_the_loss_has_a_closed_form(rng_key, z_bound):
    """Half the sum of m^2 + s^2 - 1 - log s^2, against the mean of log q - log p over draws of q; in the other direction it is another."""
    m, s = np.array([0.3, -0.2, 1.0]), np.array([0.5, 1.1, 0.7])
    z = m + s * generator(rng_key).normal(size=(100_000, 3))
    assert off((norm.logpdf(z, m, s) - norm.logpdf(z)).sum(1), to_prior(m, s)) < z_bound()
    other_way = 0.5 * ((1 + m**2) / s**2 - 1 + 2 * np.log(s)).sum()
    assert abs(other_way - to_prior(m, s)) > 0.1


V, DELTA = 2.0, 0.8
"""Variance of a scalar x, and the sd of the noise that corrupts it."""


def test_holds_its_architecture_is_like_a_denoising_autoencoder_s():
    """Vincent et al. 2010 reconstruct x from x + noise; here the code is noisy. Linear ones shrink x, and can by the same factor."""
    denoising = minimize(lambda r: (r[0] - 1) ** 2 * V + r[0] ** 2 * DELTA**2, [0.0]).x[0]
    np.testing.assert_allclose(denoising, V / (V + DELTA**2), rtol=1e-6)
    variance = V * DELTA**2 / (V + DELTA**2)  # of x given z, for which the two agree

    def minus_bound(v):
        """Mean over x of the bound, with encoder N(a x, s^2) and decoder w z."""
        w, a, s = v[0], v[1], np.exp(v[2])
        return ((1 - w * a) ** 2 * V + w**2 * s**2) / (2 * variance) + 0.5 * (a**2 * V + s**2) - v[2]

    w, a, _ = minimize(minus_bound, [1.0, 0.5, 0.0], options={"gtol": 1e-9}).x
    np.testing.assert_allclose(w * a, denoising, rtol=1e-5)
    np.testing.assert_allclose(w**2 + variance, V, rtol=1e-5)


@pytest.mark.parametrize("a", [0.5, 0.2])
def test_holds_the_denoising_variant_has_a_bound(a):
    """Im et al. 2015, arXiv 1511.06406: the encoder sees x + noise. Averaged over the noise, its bound stays below log p(x)."""
    x, s = 1.3, math.sqrt(0.5 - DELTA**2 / 4)  # z ~ N(0, 1), x | z ~ N(z, 1); s is the best for a = 1 / 2

    def bound(m, s):
        z = m + s * NODES
        return WEIGHTS @ (norm.logpdf(z) + norm.logpdf(x, z) - norm.logpdf(z, m, s))

    def kl(m, s, m2, s2):
        return math.log(s2 / s) + (s**2 + (m - m2) ** 2) / (2 * s2**2) - 0.5

    seen, wide = a * (x + DELTA * NODES), math.hypot(s, a * DELTA)
    denoising = WEIGHTS @ [bound(m, s) for m in seen]  # log q of the encoder at what it saw
    marginal = bound(a * x, wide)  # log q of its average over the noise
    log_evidence = norm.logpdf(x, 0, math.sqrt(2))
    assert denoising < marginal <= log_evidence + 1e-12
    np.testing.assert_allclose(marginal - denoising, WEIGHTS @ [kl(m, s, a * x, wide) for m in seen], rtol=1e-10)
    assert (abs(marginal - log_evidence) < 1e-10) == (a == 0.5)


ROWS = np.random.RandomState(3).normal(size=(60, 1)) @ [[1.5, -0.7, 0.9]] + np.random.RandomState(4).normal([1, 0, -2], 0.6, (60, 3))
START = {"w": jnp.ones(3), "b": jnp.zeros(3), "log_sigma": 0.0, "a": jnp.zeros(3), "offset": 0.0, "log_s": 0.0}


def both_networks(p, noise):
    """Minus the bound of a row, with noise (row, draw): encoder N(a x + offset, s^2), decoder w z + b, and sigma."""
    z = (jnp.asarray(ROWS) @ p["a"] + p["offset"])[:, None] + jnp.exp(p["log_s"]) * noise
    squared = jnp.mean((ROWS[:, None] - z[..., None] * p["w"] - p["b"]) ** 2, (0, 1)).sum()
    m = jnp.asarray(ROWS) @ p["a"] + p["offset"]
    kl = 0.5 * jnp.mean(m**2 + jnp.exp(2 * p["log_s"]) - 1 - 2 * p["log_s"])
    return squared / (2 * jnp.exp(2 * p["log_sigma"])) + 1.5 * (math.log(2 * math.pi) + 2 * p["log_sigma"]) + kl


def likelihood(p):
    """log p(x) of a row, on average, under a decoder; z integrated out."""
    covariance = np.outer(p["w"], p["w"]) + np.exp(2 * p["log_sigma"]) * np.eye(3)
    return multivariate_normal.logpdf(ROWS, np.asarray(p["b"]), covariance).mean()


def closed_form():
    """The decoder of most likelihood: the leading principal component, and the mean of the other eigenvalues."""
    values, vectors = np.linalg.eigh(np.cov(ROWS.T, bias=True))
    variance = values[:2].mean()
    return {"w": vectors[:, 2] * math.sqrt(values[2] - variance), "b": ROWS.mean(0), "log_sigma": 0.5 * math.log(variance)}


def trained():
    """Both networks at once; two draws, +1 and -1, give the mean over noise exactly, the loss being quadratic in it."""
    flat, shape = ravel_pytree(START)
    value = jax.jit(jax.value_and_grad(lambda v: both_networks(shape(v), jnp.array([[1.0, -1.0]]))))
    fit = minimize(value, flat, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2_000})
    return jax.tree.map(np.asarray, shape(fit.x)), -fit.fun


def test_holds_encoder_and_decoder_trained_end_to_end_reach_the_most_likely_model():
    """On 60 rows of three columns with one latent: the trained bound, its likelihood and the closed form's agree."""
    p, bound = trained()
    best = closed_form()
    np.testing.assert_allclose([bound, likelihood(p)], likelihood(best), atol=1e-9)
    np.testing.assert_allclose(np.outer(p["w"], p["w"]), np.outer(best["w"], best["w"]), atol=1e-4)
    np.testing.assert_allclose([*p["b"], p["log_sigma"]], [*best["b"], best["log_sigma"]], atol=1e-4)


def test_holds_the_trained_encoder_gives_the_posterior_and_the_decoder_generates_the_data():
    """Encoder: mean w'(x - b) / (w'w + sigma^2) and sd sigma / sqrt(w'w + sigma^2). Decoder: leading and total variance of the rows."""
    p, _ = trained()
    total = p["w"] @ p["w"] + np.exp(2 * p["log_sigma"])
    np.testing.assert_allclose(ROWS @ p["a"] + p["offset"], (ROWS - p["b"]) @ p["w"] / total, atol=1e-4)
    np.testing.assert_allclose(np.exp(2 * (p["log_s"] - p["log_sigma"])), 1 / total, rtol=1e-4)
    generated = np.outer(p["w"], p["w"]) + np.exp(2 * p["log_sigma"]) * np.eye(3)
    of_rows = np.cov(ROWS.T, bias=True)
    np.testing.assert_allclose(np.linalg.eigvalsh(generated)[-1], np.linalg.eigvalsh(of_rows)[-1], rtol=1e-4)
    np.testing.assert_allclose(np.trace(generated), np.trace(of_rows), rtol=1e-4)


def test_holds_training_by_sampled_latents_gets_there_too(rng_key):
    """One draw of z a row and step, as the note has it, and a rate that decays: within a thousandth of a nat a row of the most likely."""
    num_steps = 4_000
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))
    start = jax.tree.map(jnp.asarray, START)

    def step(carry, key):
        p, state = carry
        g = jax.grad(both_networks)(p, jax.random.normal(key, (len(ROWS), 1)))
        updates, state = optimizer.update(g, state)
        return (optax.apply_updates(p, updates), state), None

    (p, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(rng_key, num_steps))
    assert 0 <= likelihood(closed_form()) - likelihood(jax.tree.map(np.asarray, p)) < 1e-3
