"""The note on variational inference, third part: reparameterisation, plain, generalised and implicit. One test is one claim.

What the note calls the reparameterisation gradient is the path derivative of Roeder, Wu and Duvenaud 2017, arXiv 1703.09194, here
`StickingTheLanding`; the trick itself is that of Kingma and Welling 2013, arXiv 1312.6114, and of Rezende, Mohamed and Wierstra 2014,
arXiv 1401.4082. Ruiz, Titsias and Blei 2016, arXiv 1610.02287, whom the note cites for it, generalise it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO
from scipy.integrate import quad
from scipy.special import digamma, gammainc, polygamma
from scipy.stats import beta, gamma, kstest, norm

from vipatterns.objectives import StickingTheLanding
from vipatterns.patterns import gaussian_mean

X = gaussian_mean.data()["y"]
S = X.sum()
V = np.array([1.5, -1.0])
"""m and log s of a guide N(m, s^2) that is not the posterior N(S / 101, 1 / 101)."""
PERFECT = np.array([S / 101, -0.5 * math.log(101)])


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def generator(rng_key):
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))


def off(draws, exact):
    """How far the mean of the draws is from the exact value, in standard errors."""
    return np.max(np.abs(draws.mean(0) - exact) / (draws.std(0, ddof=1) / math.sqrt(len(draws))))


def off_in_variance(draws, exact):
    """How far the variance of the draws is from the exact value, in standard errors."""
    return off((draws - np.mean(draws, 0)) ** 2, exact)


def path(noise, v):
    """The note's gradient for each noise: d/dz [log p - log q] times dz/dv, with z = m + s noise; (num, 2)."""
    m, s = v[0], np.exp(v[1])
    z = m + s * noise
    slope = S - 101 * z + (z - m) / s**2
    return np.stack([slope, slope * s * noise], 1)


def score(noise, v):
    """d/dv log q_v(z) at z held fixed."""
    return np.stack([noise / np.exp(v[1]), noise**2 - 1], 1)


def exact_gradient(v):
    """Of the bound, in closed form."""
    return np.array([S - 101 * v[0], 1 - 101 * np.exp(2 * v[1])])


def log_weight(noise, v, held):
    """log p(x, z) - log q(z), with z of the guide at v, and log q of the guide at `held`."""
    z = v[0] + jnp.exp(v[1]) * noise
    log_p = jax.scipy.stats.norm.logpdf(z) + jax.scipy.stats.norm.logpdf(X, z).sum()
    return log_p - jax.scipy.stats.norm.logpdf(z, held[0], jnp.exp(held[1]))


def estimator(rng_key, objective, model, guide, names):
    """A function of the parameters: 10,000 independent gradients of the bound, (10000, number of parameters)."""
    keys = jax.random.split(rng_key, 10_000)

    @jax.jit
    def estimates(v):
        return jax.vmap(lambda key: jax.grad(lambda v: -objective.loss(key, dict(zip(names, v, strict=True)), model, guide))(v))(keys)

    return lambda v: np.asarray(estimates(jnp.asarray(v, float)))


def bell_model():
    gaussian_mean.model(X)


def bell_guide():
    numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), jnp.exp(numpyro.param("log_s", 0.0))))


@pytest.mark.parametrize("skew", [0.0, 0.8])
def test_holds_transformed_simple_noise_has_the_complex_distribution(skew, rng_key, false_alarm):
    """z = t(noise, v) has the density q_v(z): for m + s noise, and for a skewed one, by the change of variables."""
    noise = generator(rng_key).normal(size=50_000)
    z = 1.5 + 0.3 * np.sinh(np.arcsinh(noise) + skew)

    def density(z):
        u = (z - 1.5) / 0.3
        back = np.sinh(np.arcsinh(u) - skew)
        return norm.pdf(back) * np.sqrt(1 + back**2) / np.sqrt(1 + u**2) / 0.3

    grid = np.linspace(-8.0, 18.0, 40_001)
    cumulative = np.cumsum(density(grid)) * (grid[1] - grid[0])
    np.testing.assert_allclose(cumulative[-1], 1.0, atol=1e-8)
    assert kstest(z, lambda at: np.interp(at, grid + (grid[1] - grid[0]) / 2, cumulative)).pvalue > false_alarm
    is_gaussian = kstest(z, norm(1.5, 0.3).cdf).pvalue > false_alarm
    assert is_gaussian == (skew == 0)


def test_holds_all_randomness_is_in_the_noise():
    """Given the noise, z is a smooth function of v: finite differences of one draw are its derivative, 1 for m and s noise for log s."""
    noise = np.array([-1.3, 0.0, 0.4, 2.0])

    def t(v):
        return v[0] + np.exp(v[1]) * noise

    for i, exact in enumerate([np.ones(4), np.exp(V[1]) * noise]):
        step = 1e-6 * np.eye(2)[i]
        np.testing.assert_allclose((t(V + step) - t(V - step)) / 2e-6, exact, atol=1e-9)


def test_holds_automatic_differentiation_gives_the_slope_in_z():
    """Of log p(x, z) - log q(z), which is the integrand of the bound rather than, as the note has it, the model."""
    noise = np.array([-1.3, 0.0, 0.4, 2.0])
    by_jax = jax.vmap(jax.grad(log_weight, 1), (0, None, None))(noise, V, V)
    np.testing.assert_allclose(by_jax, path(noise, V), rtol=1e-9)


def test_holds_the_printed_gradient_has_the_right_mean(rng_key, z_bound):
    """Averaged over noise it is the gradient of the bound: by the formula, and by the library's estimator."""
    noise = generator(rng_key).normal(size=200_000)
    assert off(path(noise, V), exact_gradient(V)) < z_bound(4)
    ours = estimator(rng_key, StickingTheLanding(), bell_model, bell_guide, ["m", "log_s"])(V)
    assert off(ours, exact_gradient(V)) < z_bound(4)


def test_corrected_the_printed_gradient_leaves_out_a_term_whose_mean_is_zero(rng_key, z_bound):
    """v is in log q_v too: the derivative of the estimated bound has one more term, minus the score, draw by draw."""
    noise = generator(rng_key).normal(size=200_000)
    some = noise[:50]
    total = jax.vmap(jax.grad(lambda v, noise: log_weight(noise, v, v)), (None, 0))(V, some)
    np.testing.assert_allclose(total, path(some, V) - score(some, V), rtol=1e-9)
    assert off(score(noise, V), 0.0) < z_bound(2)


@pytest.mark.parametrize("name", ["printed", "total"])
def test_corrected_at_a_perfect_guide_the_printed_gradient_has_no_variance_and_the_total_has_101(name, rng_key, z_bound):
    """What is left out is then all the noise there is: 101 for m, the posterior's precision, and 2 for log s."""
    objective = StickingTheLanding() if name == "printed" else Trace_ELBO()
    ours = estimator(rng_key, objective, bell_model, bell_guide, ["m", "log_s"])(PERFECT)
    noise = generator(rng_key).normal(size=200_000)
    lines = path(noise, PERFECT) - (score(noise, PERFECT) if name == "total" else 0.0)
    for g in (ours, lines):
        if name == "printed":
            assert np.abs(g).max() < 1e-9
        else:
            assert off_in_variance(g, [101, 2]) < z_bound(4)


@pytest.mark.parametrize(("log_s", "quieter"), [(-1.0, "printed"), (-3.0, "total")])
def test_corrected_the_printed_gradient_is_not_always_the_quieter(log_s, quieter, rng_key, z_bound):
    """For m its variance is (101 - 1/s^2)^2 s^2, that of the total derivative 101^2 s^2: where q is far too narrow it loses."""
    noise, variance = generator(rng_key).normal(size=200_000), math.exp(2 * log_s)
    v = np.array([1.5, log_s])
    printed, total = path(noise, v)[:, 0], (path(noise, v) - score(noise, v))[:, 0]
    exact = {"printed": (101 - 1 / variance) ** 2 * variance, "total": 101**2 * variance}
    assert off_in_variance(printed, exact["printed"]) < z_bound(2)
    assert off_in_variance(total, exact["total"]) < z_bound(2)
    assert min(exact, key=exact.__getitem__) == quieter


def test_holds_sampling_and_following_the_gradient_finds_the_posterior(rng_key):
    """Noise, z, gradient, step: one draw a step and a fixed rate come to rest on the posterior, since its gradients have no noise there."""
    rng = generator(rng_key)
    errors = {}
    for name in ("printed", "total"):
        v, trail = np.array([0.0, 0.0]), []
        for noise in rng.normal(size=(3_000, 1)):
            v = v + 0.005 * (path(noise, v)[0] - (score(noise, v)[0] if name == "total" else 0.0))
            trail.append(np.abs(v - PERFECT).max())
        errors[name] = np.mean(trail[-100:])
    assert errors["printed"] < 1e-8
    assert errors["total"] > 1e-3


@pytest.mark.parametrize("mu", [0.0, 1.0, 2.0, 5.0])
def test_holds_the_reparameterised_gradient_has_a_low_variance(mu, rng_key, z_bound):
    """Of E[z^2] under N(mu, 1): 4 for every mu, where the score function has mu^4 + 14 mu^2 + 15."""
    g = 2 * generator(rng_key).normal(mu, size=200_000)
    assert off(g, 2 * mu) < z_bound(2)
    assert off_in_variance(g, 4) < z_bound(2)


# The generalised gradient: noise that is standardised, and still depends on v; a correction makes up for it.


def generalised_gaussian(z, m, s):
    """The factor of f in Ruiz's correction, for m and for s: d/dv of the log density of the noise (z - m) / s."""
    noise = (z - m) / s
    slope, moves, volume = -noise / s, np.stack([np.ones_like(z), noise]), np.array([[0.0], [1 / s]])
    return slope * moves + np.stack([noise / s, (noise**2 - 1) / s]) + volume


def generalised_gamma(z, a):
    """dz/da with the noise (log z - digamma(a)) / sqrt(trigamma(a)) held, and d/da of that noise's log density."""
    one, two = polygamma(1, a), polygamma(2, a)
    moves = z * ((np.log(z) - digamma(a)) * two / (2 * one) + one)
    return moves, ((a - 1) / z - 1) * moves + np.log(z) - digamma(a) + moves / z + two / (2 * one)


def test_corrected_ruiz_generalises_the_trick_which_returns_where_the_noise_is_free_of_v():
    """The note cites Ruiz et al. for the plain trick. Theirs has a correction, which vanishes for a Gaussian at every draw."""
    z = np.linspace(-4.0, 5.0, 11)
    np.testing.assert_allclose(generalised_gaussian(z, 1.5, 0.3), 0.0, atol=1e-10)
    assert np.abs(generalised_gamma(np.linspace(0.5, 5, 11), 2.5)[1]).max() > 0.01


@pytest.mark.parametrize(("a", "quieter"), [(0.6, "score"), (2.5, "generalised")])
def test_holds_the_generalised_gradient_is_unbiased_for_a_gamma(a, quieter, rng_key, z_bound):
    """Of E[z^2] = a (a + 1); uncorrected it is off by a known amount. Its variance is below the score's, but not for small shapes."""
    z = generator(rng_key).gamma(a, size=400_000)
    moves, correction = generalised_gamma(z, a)
    one, two = polygamma(1, a), polygamma(2, a)
    uncorrected = 2 * a * (a + 1) * (one + two / (2 * one) * (digamma(a + 2) - digamma(a)))
    assert off(2 * z * moves + z**2 * correction, 2 * a + 1) < z_bound(2)
    assert off(2 * z * moves, uncorrected) < z_bound(2)
    assert abs(uncorrected - (2 * a + 1)) > 0.02

    def variance(estimate):
        return quad(lambda z: gamma.pdf(z, a) * (estimate(z) - 2 * a - 1) ** 2, 0, 80, limit=500, points=[1e-3, 0.1, 1, 5])[0]

    def generalised(z):
        moves, correction = generalised_gamma(z, a)
        return 2 * z * moves + z**2 * correction

    variances = {"generalised": variance(generalised), "score": variance(lambda z: z**2 * (np.log(z) - digamma(a)))}
    assert min(variances, key=variances.__getitem__) == quieter


# The implicit gradient: no noise is named; dz/dv = -(dF/dv) / q, with F the distribution function. JAX's samplers have it.


def moved(sampler, *parameters):
    """Draws, and how each moves with each parameter: what JAX differentiates through the sampler; (num, ...), (parameter, num, ...)."""
    flat = jnp.concatenate([jnp.ravel(jnp.asarray(p, float)) for p in parameters])
    draws, push = jax.linearize(sampler, flat)
    return np.asarray(draws), np.stack([push(unit) for unit in jnp.eye(len(flat))])


NUM = 20_000


@pytest.mark.parametrize("a", [0.6, 30.0])
def test_holds_implicit_reparameterisation_of_a_gamma(a, rng_key, z_bound):
    """Figurnov et al. 2018, arXiv 1805.08498: each draw moves by -(dF/da) / q, the means of log z and z^2 by trigamma(a) and 2 a + 1."""
    z, (dz,) = moved(lambda v: jax.random.gamma(rng_key, v[0], (NUM,)), a)
    step = 1e-5 * a
    some = slice(0, 200)
    by_definition = -(gammainc(a + step, z[some]) - gammainc(a - step, z[some])) / (2 * step) / gamma.pdf(z[some], a)
    np.testing.assert_allclose(dz[some], by_definition, rtol=1e-4)
    assert off(dz / z, polygamma(1, a)) < z_bound(2)
    assert off(2 * z * dz, 2 * a + 1) < z_bound(2)


@pytest.mark.parametrize(("a", "b"), [(0.7, 2.0), (3.0, 1.5)])
def test_holds_implicit_reparameterisation_of_a_beta(a, b, rng_key, z_bound, false_alarm):
    """Against the exact gradients of E[z] and E[log z] with respect to both parameters."""
    z, dz = moved(lambda v: jax.random.beta(rng_key, v[0], v[1], (NUM,)), a, b)
    assert kstest(z, beta(a, b).cdf).pvalue > false_alarm
    n = a + b
    assert off(dz.T, np.array([b / n**2, -a / n**2])) < z_bound(4)
    assert off((dz / z).T, np.array([polygamma(1, a), 0.0]) - polygamma(1, n)) < z_bound(4)


def test_holds_implicit_reparameterisation_of_a_dirichlet(rng_key, z_bound):
    """Against the exact gradients of every E[z_i] and E[log z_i] with respect to every parameter."""
    a = np.array([0.7, 2.0, 3.5])
    z, dz = moved(lambda v: jax.random.dirichlet(rng_key, v, (NUM,)), a)
    mean = a / a.sum()
    np.testing.assert_allclose(dz.sum(2), 0.0, atol=1e-8)
    assert off(dz.transpose(1, 0, 2), (np.eye(3) - mean) / a.sum()) < z_bound(18)
    assert off((dz / z).transpose(1, 0, 2), np.diag(polygamma(1, a)) - polygamma(1, a.sum())) < z_bound(18)


def test_holds_the_printed_gradient_serves_a_gamma_guide(rng_key, z_bound):
    """Counts and their rate, by the library: unbiased away from the posterior, Gamma(16, 6), and without noise on it."""
    counts = np.array([3.0, 1.0, 4.0, 1.0, 5.0])

    def model():
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        with numpyro.plate("row", 5):
            numpyro.sample("x", dist.Poisson(rate), obs=counts)

    def guide():
        numpyro.sample("rate", dist.Gamma(numpyro.param("a", 1.0), numpyro.param("b", 1.0)))

    estimates = estimator(rng_key, StickingTheLanding(), model, guide, ["a", "b"])
    posterior = 2.0 + counts.sum(), 1.0 + len(counts)
    exact = jax.grad(lambda v: -dist.kl_divergence(dist.Gamma(*v), dist.Gamma(*posterior)))((10.0, 3.0))
    assert off(estimates([10.0, 3.0]), np.array(exact)) < z_bound(2)
    assert np.abs(estimates(posterior)).max() < 1e-9
