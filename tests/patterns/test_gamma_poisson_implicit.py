"""gamma_poisson_implicit: the derivative of a draw against SciPy's gamma, three gradients by quadrature and by draws, and the fit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO
from scipy.integrate import quad
from scipy.special import digamma, gammaincinv, gammaln, polygamma
from scipy.stats import gamma, poisson

from vipatterns.objectives import ScoreFunction, StickingTheLanding
from vipatterns.patterns import gamma_poisson_implicit as pattern

Y = pattern.data()["y"]
A, B = pattern.conjugate(Y)
POSTERIOR = {"log_mean": math.log(A / B), "log_shape": math.log(A)}
PLACES = {"prior": {"log_mean": 0.0, "log_shape": 0.0}, "on the way": {"log_mean": 0.1, "log_shape": 2.0}, "posterior": POSTERIOR}


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def moments():
    """moments(kind, place) -> parameter -> mean and variance, compiled once for each kind."""
    compiled = {kind: jax.jit(lambda p, kind=kind: pattern.moments(kind, p, Y)) for kind in pattern.KINDS}
    return lambda kind, place: compiled[kind](PLACES[place])


def exact_gradient(p):
    """As the page states it."""
    mean, shape = np.exp(p["log_mean"]), np.exp(p["log_shape"])
    return {"log_mean": A - B * mean, "log_shape": (A - shape) * (shape * polygamma(1, shape) - 1)}


def elbo(log_mean, log_shape):
    """Expected log joint, term by term, plus the entropy of a gamma as SciPy has it."""
    mean, shape = np.exp(log_mean), np.exp(log_shape)
    e_log = digamma(shape) - log_shape + log_mean
    expected = -mean * (1 + len(Y)) + Y.sum() * e_log - gammaln(Y + 1).sum()  # the prior is Gamma(1, 1)
    return expected + gamma(shape, scale=mean / shape).entropy()


def draws(rng_key, place, num):
    return jax.random.gamma(rng_key, np.exp(PLACES[place]["log_shape"]), (num,))


def test_the_evidence_by_quadrature():
    evidence, _ = quad(lambda rate: np.exp(-rate + poisson.logpmf(Y, rate).sum() + 30), 0, 10, epsabs=0, epsrel=1e-10)
    assert pattern.log_evidence(Y) == pytest.approx(np.log(evidence) - 30, abs=1e-8)
    assert pattern.log_evidence(Y) == pytest.approx(elbo(**POSTERIOR), abs=1e-10)


@pytest.mark.parametrize("shape", [0.3, 1.0, 17.0])
def test_a_draw_keeps_its_quantile(shape):
    """dz / d shape against SciPy: the inverse distribution function at a fixed quantile, differenced."""
    u, h = np.array([0.01, 0.3, 0.5, 0.9, 0.999]), 1e-5 * shape
    expected = (gammaincinv(shape + h, u) - gammaincinv(shape - h, u)) / (2 * h)
    z = jnp.asarray(gammaincinv(shape, u))
    slope = jax.jacfwd(lambda shape: pattern.attached(z, shape))(shape)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_jax_s_own_gamma_draws_have_that_derivative(rng_key):
    def draw(shape):
        return jax.random.gamma(rng_key, shape, (5,))

    z = draw(2.5)
    np.testing.assert_allclose(jax.jacfwd(draw)(2.5), jax.jacfwd(lambda shape: pattern.attached(z, shape))(2.5), rtol=1e-9)


@pytest.mark.parametrize("place", PLACES)
def test_the_formula_of_the_gradient_is_the_slope_of_the_elbo(place):
    p, h = PLACES[place], 1e-5
    for k, exact in exact_gradient(p).items():
        slope = (elbo(**p | {k: p[k] + h}) - elbo(**p | {k: p[k] - h})) / (2 * h)
        assert exact == pytest.approx(slope, abs=1e-7), k


@pytest.mark.parametrize("kind", pattern.KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_every_kind_has_the_exact_mean_by_quadrature(place, kind, moments):
    """No Monte Carlo error."""
    found, exact = moments(kind, place), exact_gradient(PLACES[place])
    for k in exact:
        assert float(found[k][0]) == pytest.approx(exact[k], abs=1e-7 * (1 + float(found[k][1]) ** 0.5)), k


@pytest.mark.parametrize("place", PLACES)
def test_variances_in_the_mean_are_the_page_s(place, moments):
    mean, shape = (np.exp(PLACES[place][k]) for k in ("log_mean", "log_shape"))
    assert float(moments("implicit", place)["log_mean"][1]) == pytest.approx(B**2 * mean**2 / shape, rel=1e-8)
    assert float(moments("path", place)["log_mean"][1]) == pytest.approx((B * mean - shape) ** 2 / shape, rel=1e-8, abs=1e-12)


def test_at_the_posterior_the_information_once_log_evidence_squared_times_and_not_at_all(moments):
    information = {"log_mean": A, "log_shape": A**2 * polygamma(1, A) - A}
    for k, expected in information.items():
        assert float(moments("implicit", "posterior")[k][1]) == pytest.approx(expected, rel=1e-6), k
        assert float(moments("score", "posterior")[k][1]) == pytest.approx(expected * pattern.log_evidence(Y) ** 2, rel=1e-6), k
        assert float(moments("path", "posterior")[k][1]) < 1e-12, k


@pytest.mark.parametrize("kind", ["implicit", pytest.param("path", marks=pytest.mark.slow), pytest.param("score", marks=pytest.mark.slow)])
def test_draws_give_that_mean_and_variance(kind, rng_key, z_bound, moments):
    p = PLACES["on the way"]
    params, num = {k: jnp.asarray(v) for k, v in p.items()}, 20_000
    z = draws(rng_key, "on the way", num)
    each = jax.jit(jax.vmap(lambda x: pattern.gradient(kind, params, x, Y)))(z)
    for k, exact in exact_gradient(p).items():
        g = np.asarray(each[k])
        square = (g - exact) ** 2
        assert abs(g.mean() - exact) < z_bound(4) * g.std(ddof=1) / math.sqrt(num), k
        assert abs(square.mean() - float(moments(kind, "on the way")[k][1])) < z_bound(4) * square.std() / math.sqrt(num), k


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "kind"),
    [(Trace_ELBO(), "implicit"), (StickingTheLanding(1), "path"), (ScoreFunction(1, control_variate="none"), "score")],
)
def test_the_libraries_gradients_are_these(objective, kind, rng_key, z_bound, moments):
    p, num = PLACES["on the way"], 20_000
    params = {k: jnp.asarray(v) for k, v in p.items()}

    def gradient(key):
        return jax.grad(lambda q: -objective.loss(key, q, pattern.model, pattern.guide, Y))(params)

    each = jax.jit(jax.vmap(gradient))(jax.random.split(rng_key, num))
    for k, exact in exact_gradient(p).items():
        g = np.asarray(each[k])
        square = (g - exact) ** 2
        assert abs(g.mean() - exact) < z_bound(4) * g.std(ddof=1) / math.sqrt(num), k
        assert abs(square.mean() - float(moments(kind, "on the way")[k][1])) < z_bound(4) * square.std() / math.sqrt(num), k


@pytest.mark.slow
def test_fit_is_the_posterior(assert_fits):
    with jax.enable_x64(False):
        assert_fits(pattern, pattern.data(), {"rate": (A / B, A**0.5 / B)}, worst=0.05)
