"""The note on variational inference, second part: black box variational inference by the score function. One test is one claim.

The source of most of it is Ranganath, Gerrish and Blei 2014, arXiv 1401.0118. `ScoreFunction` is put beside the few lines that it
stands for: E[d log q (log p - log q)].
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import expit
from scipy.stats import norm, poisson

from vipatterns.objectives import ScoreFunction
from vipatterns.objectives.score_function import STATE
from vipatterns.patterns import gaussian_mean

X = gaussian_mean.data()["y"]
MU = 2.0


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


def gradients(rng_key, objective, model, guide, params, num, state=None):
    """`num` independent gradients of the bound by an estimator of ours: name -> (num, *shape)."""
    params = {k: jnp.asarray(v, float) for k, v in params.items()}

    def gradient(key):
        return jax.grad(lambda p: -objective.loss(key, p | (state or {}), model, guide))(params)

    together = min(num // 4, 10_000)
    return jax.tree.map(np.asarray, jax.jit(lambda keys: jax.lax.map(gradient, keys, batch_size=together))(jax.random.split(rng_key, num)))


def log_joint(z):
    """log p(x, z) of z ~ N(0, 1) and x_i | z ~ N(z, 1), at each z."""
    return norm.logpdf(z) - 0.5 * (np.sum(X**2) - 2 * z * X.sum() + len(X) * (z**2 + math.log(2 * math.pi)))


def score_gradients(rng_key, m, log_s, log_p, num):
    """The estimator in full: at draws of q = N(m, s^2) the score, with respect to m and log s, times log p - log q; (num, 2)."""
    noise, s = generator(rng_key).normal(size=num), math.exp(log_s)
    z = m + s * noise
    score = np.stack([noise / s, noise**2 - 1], 1)
    return score * (log_p(z) - norm.logpdf(z, m, s))[:, None]


def of_square(rng_key, num, mu=MU):
    """Score and f = z^2 at draws of N(mu, 1): of E[z^2] the gradient is 2 mu."""
    z = generator(rng_key).normal(mu, size=num)
    return z - mu, z**2


def test_holds_the_bound_is_the_mean_of_log_p_minus_log_q(rng_key, z_bound):
    """Over draws of q: against the closed form; where q is the posterior, every single draw gives log p(x)."""
    noise = generator(rng_key).normal(size=100_000)
    m, s = 1.7, 0.15
    squares = np.sum((X - m) ** 2) + len(X) * s**2 + m**2 + s**2
    exact = -0.5 * (len(X) * math.log(2 * math.pi) + squares) + math.log(s) + 0.5
    assert off(log_joint(m + s * noise) - norm.logpdf(m + s * noise, m, s), exact) < z_bound()
    m, s = X.sum() / 101, 101**-0.5
    at_posterior = log_joint(m + s * noise) - norm.logpdf(m + s * noise, m, s)
    np.testing.assert_allclose(at_posterior, gaussian_mean.log_evidence(X), rtol=1e-10)


STATES = np.array(list(itertools.product([0, 1], repeat=3)))
LOG_P = np.linspace(-3.0, 1.0, 8) ** 2
"""log p(x, z), an arbitrary table over eight states."""


def log_bernoulli(v):
    """log q of every state, three independent bits with logits v."""
    return jnp.where(STATES, jax.nn.log_sigmoid(v), jax.nn.log_sigmoid(-v)).sum(1)


def test_holds_the_score_gradient_is_the_gradient_of_the_bound():
    """The expectation summed over all states, against the derivative of the bound itself: equal, with nothing left out."""
    v = jnp.array([0.4, -1.0, 2.0])
    log_q, scores = log_bernoulli(v), jax.jacobian(log_bernoulli)(v)
    by_score = (jnp.exp(log_q) * (LOG_P - log_q)) @ scores
    exact = jax.grad(lambda v: jnp.sum(jnp.exp(log_bernoulli(v)) * (LOG_P - log_bernoulli(v))))(v)
    np.testing.assert_allclose(by_score, exact, rtol=1e-12)


def test_holds_the_score_has_mean_zero():
    """Why the derivative of log q inside the bound can be left out, and why a constant taken off log p - log q changes no mean."""
    v = jnp.array([0.4, -1.0, 2.0])
    log_q, scores = log_bernoulli(v), jax.jacobian(log_bernoulli)(v)
    np.testing.assert_allclose(jnp.exp(log_q) @ scores, 0.0, atol=1e-12)
    np.testing.assert_allclose(scores, STATES - jax.nn.sigmoid(v), rtol=1e-12)


V = np.array([1.5, -1.0])
EXACT = np.array([X.sum() - 101 * V[0], 1 - 101 * math.exp(2 * V[1])])
"""The gradient of the running example's bound with respect to m and log s."""


def test_holds_monte_carlo_gives_the_gradient_without_bias(rng_key, z_bound):
    """Averages tend to the exact gradient: by the formula, log p less a constant to spare draws, and by the library's estimator."""
    log_evidence = gaussian_mean.log_evidence(X)
    assert off(score_gradients(rng_key, *V, lambda z: log_joint(z) - log_evidence, 200_000), EXACT) < z_bound(4)

    def guide():
        numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), jnp.exp(numpyro.param("log_s", 0.0))))

    ours = gradients(rng_key, ScoreFunction(2), lambda: gaussian_mean.model(X), guide, {"m": V[0], "log_s": V[1]}, 20_000)
    assert off(np.stack([ours["m"], ours["log_s"]], 1), EXACT) < z_bound(4)


@pytest.mark.parametrize("k", [1, 4, 25])
def test_holds_the_average_of_samples_is_approximate(k, rng_key, z_bound):
    """The mean of k draws is right on average, with the variance of one draw divided by k."""
    score, f = of_square(rng_key, (200_000 // k, k))
    average = (score * f).mean(1)
    assert off(average, 2 * MU) < z_bound(2)
    assert off_in_variance(average, (MU**4 + 14 * MU**2 + 15) / k) < z_bound(2)


def test_holds_only_evaluations_of_the_model_are_needed(rng_key, z_bound):
    """A black box: log p is a step function. Its derivative along the path of a draw is zero, that of the bound is not, and is found."""

    def box(z):
        return -0.5 * (np.floor(z) - 1.0) ** 2

    def exact(m, log_s):
        """Of E[box - log q], summed over the steps, the gradient: each step's probability is a difference of normal distributions."""
        s = math.exp(log_s)
        ends = (np.arange(-12, 14) - m) / s
        cost = box(np.arange(-12, 13))
        return np.array([-cost @ np.diff(norm.pdf(ends)) / s, 1 - cost @ np.diff(ends * norm.pdf(ends))])

    assert off(score_gradients(rng_key, 0.3, 0.2, box, 100_000), exact(0.3, 0.2)) < z_bound(2)
    z = generator(rng_key).normal(0.3, size=1_000)
    assert np.mean(box(z + 1e-9) - box(z)) == 0
    assert exact(0.3, 0.2)[0] > 0.1


def test_holds_a_discrete_latent_is_no_obstacle(rng_key, z_bound):
    """A count behind a measurement, with a Poisson guide: the library's estimator against the bound's derivative, summed over counts."""

    def model():
        numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Poisson(3.0)), 1.0), obs=5.0)

    def guide():
        numpyro.sample("z", dist.Poisson(jnp.exp(numpyro.param("v", 0.0))))

    def elbo(v):
        z = np.arange(80)
        log_q = dist.Poisson(jnp.exp(v)).log_prob(z)
        return jnp.sum(jnp.exp(log_q) * (poisson.logpmf(z, 3.0) + norm.logpdf(5.0, z) - log_q))

    g = gradients(rng_key, ScoreFunction(8), model, guide, {"v": 1.0}, 4_000)["v"]
    assert off(g, jax.grad(elbo)(1.0)) < z_bound()


def test_holds_the_score_gradient_lets_q_be_complex(rng_key, z_bound):
    """A mixture for q, whose choice of component has no derivative: draws and a density suffice. By quadrature it is the gradient."""
    logit, means = 0.5, np.array([-1.0, 2.0])

    def weight(z):
        """log p - log q, log p being -z^4 / 10, and the score with respect to the logit."""
        parts = norm.pdf(z[:, None], means)
        q = parts @ [expit(logit), expit(-logit)]
        return -0.1 * z**4 - np.log(q), expit(logit) * expit(-logit) * (parts[:, 0] - parts[:, 1]) / q, parts

    grid = np.linspace(-10.0, 10.0, 4_001)
    cost, _, parts = weight(grid)
    exact = (grid[1] - grid[0]) * np.sum(expit(logit) * expit(-logit) * (parts[:, 0] - parts[:, 1]) * cost)
    rng = generator(rng_key)
    z = rng.normal(means[(rng.random(200_000) > expit(logit)).astype(int)])
    cost, score, _ = weight(z)
    assert off(score * cost, exact) < z_bound()


@pytest.mark.parametrize("mu", [0.0, 1.0, 2.0, 5.0])
def test_holds_the_variance_is_high(mu, rng_key, z_bound):
    """Of E[z^2] under N(mu, 1): mu^4 + 14 mu^2 + 15, where the reparameterised gradient has 4 for every mu."""
    score, f = of_square(rng_key, 400_000, mu)
    assert off(score * f, 2 * mu) < z_bound(2)
    assert off_in_variance(score * f, mu**4 + 14 * mu**2 + 15) < z_bound(2)
    assert mu**4 + 14 * mu**2 + 15 > 3 * 4


COUNTS = np.array([0.2, 1.7, -0.9, 2.4])
LOGITS = np.array([0.3, -0.8, 0.5, 1.0])


@pytest.mark.parametrize("reduced", [True, False], ids=["rao_blackwellised", "plain"])
def test_holds_rao_blackwellisation_reduces_the_variance(reduced, rng_key, z_bound):
    """A row's score needs the terms of its own row alone. Both variances by enumeration of all states, and the reduced one is less."""

    def model():
        with numpyro.plate("row", 4):
            numpyro.sample("x", dist.Normal(2.0 * numpyro.sample("z", dist.Bernoulli(0.5)), 1.0), obs=COUNTS)

    def guide():
        logits = numpyro.param("v", LOGITS)
        with numpyro.plate("row", 4):
            numpyro.sample("z", dist.Bernoulli(logits=logits))

    def enumerated(reduced):
        z = np.array(list(itertools.product([0, 1], repeat=4)))
        log_q = -np.logaddexp(0.0, np.where(z == 1, -LOGITS, LOGITS))
        cost = norm.logpdf(COUNTS, 2.0 * z) + math.log(0.5) - log_q
        g = (z - expit(LOGITS)) * (cost if reduced else cost.sum(1, keepdims=True))
        weight = np.exp(log_q.sum(1))
        return weight @ g, weight @ g**2 - (weight @ g) ** 2

    objective = ScoreFunction(1, control_variate="none", rao_blackwellize=reduced)
    g = gradients(rng_key, objective, model, guide, {"v": LOGITS}, 20_000)["v"]
    mean, variance = enumerated(reduced)
    np.testing.assert_allclose(mean, enumerated(not reduced)[0], rtol=1e-10)
    assert off(g, mean) < z_bound(8)
    assert off_in_variance(g, variance) < z_bound(8)
    assert (enumerated(True)[1] < enumerated(False)[1]).all()


def variance_with(a):
    """Of (f - a) times the score, in closed form."""
    return MU**4 + 14 * MU**2 + 15 - 2 * a * (MU**2 + 3) + a**2


@pytest.mark.parametrize("a", [0.0, MU**2 + 1, MU**2 + 3, 3 * MU**2 + 9])
def test_holds_a_control_variate_changes_the_variance_and_not_the_mean(a, rng_key, z_bound):
    """The score times a number a, whose mean is zero, taken off: nothing, the mean of f, the best number, and one that does harm."""
    score, f = of_square(rng_key, 200_000)
    assert off(score * (f - a), 2 * MU) < z_bound(2)
    assert off_in_variance(score * (f - a), variance_with(a)) < z_bound(2)


def test_holds_the_best_control_variate_is_covariance_over_variance():
    """a* = E[s^2 f] / E[s^2] = mu^2 + 3 leaves 8 mu^2 + 6; both moments by quadrature, and every other a leaves more."""
    noise, weight = np.polynomial.hermite_e.hermegauss(20)
    weight = weight / weight.sum()
    f = (MU + noise) ** 2
    best = (weight @ (noise**2 * f)) / (weight @ noise**2)
    np.testing.assert_allclose(best, MU**2 + 3, rtol=1e-12)
    np.testing.assert_allclose(weight @ (noise * (f - best)) ** 2 - (2 * MU) ** 2, 8 * MU**2 + 6, rtol=1e-12)
    assert min(variance_with(best - 0.1), variance_with(best + 0.1)) > 8 * MU**2 + 6


def test_holds_a_running_mean_reduces_the_variance(rng_key, z_bound):
    """The mean f of four earlier steps, weights decaying by 0.9, is independent of this one: its mean and variance enter the formula."""
    num_steps, decay = 4, 0.9
    _, earlier = of_square(jax.random.fold_in(rng_key, 1), (400_000, num_steps))
    weights = decay ** np.arange(num_steps)[::-1]
    weights = weights / weights.sum()
    score, f = of_square(jax.random.fold_in(rng_key, 2), 400_000)
    exact = variance_with(MU**2 + 1) + (4 * MU**2 + 2) * np.sum(weights**2)
    g = score * (f - earlier @ weights)
    assert off(g, 2 * MU) < z_bound(2)
    assert off_in_variance(g, exact) < z_bound(2)
    assert exact < variance_with(0.0)


def by_leave_one_out(k):
    """The variance of the sample covariance of score and f from k draws, by their moments."""
    return (12 * MU**2 + 10) / k - (k - 2) / (k * (k - 1)) * 4 * MU**2 + (4 * MU**2 + 2) / (k * (k - 1))


OURS = {
    "none": (ScoreFunction(1, control_variate="none"), variance_with(0.0)),
    "running_mean": (ScoreFunction(1, control_variate="running_mean"), variance_with(MU**2 + 1)),
    "leave_one_out": (ScoreFunction(3), by_leave_one_out(3)),
    "optimal": (ScoreFunction(1_000, control_variate="optimal"), (8 * MU**2 + 6) / 1_000),
}
"""Estimator and variance; `optimal` holds to order 1/K, since its number is estimated from the other draws."""


@pytest.mark.parametrize("name", OURS)
def test_holds_each_of_the_library_s_reductions_has_the_variance_of_its_formula(name, rng_key, z_bound):
    """The running mean is put at E[f]. Leave-one-out is newer than the paper of 2014 (VarGrad: Richter et al. 2020, arXiv 2010.10436)."""

    def model():
        z = numpyro.sample("z", dist.Normal(jax.lax.stop_gradient(numpyro.param("mu", MU)), 1.0))
        numpyro.factor("square", z**2)

    def guide():
        numpyro.sample("z", dist.Normal(numpyro.param("mu", MU), 1.0))

    objective, exact = OURS[name]
    state = {STATE: {"weight": 0.5, "total": {"z": 0.5 * (MU**2 + 1)}}}
    g = gradients(rng_key, objective, model, guide, {"mu": MU}, 4_000 if name == "optimal" else 200_000, state)["mu"]
    assert off(g, 2 * MU) < z_bound(2)
    assert off_in_variance(g, exact) < z_bound(2)
    assert exact * objective.num_particles <= variance_with(0.0)
