"""One method is another: coordinate ascent is a natural gradient step of 1, EM is coordinate ascent with points, all in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln
from numpyro import distributions as dist

from vipatterns.patterns import gaussian_mean_cavi, gaussian_mean_natural_gradient, gaussian_mean_precision
from vipatterns.patterns import gaussian_mixture_cavi as cavi
from vipatterns.patterns import gaussian_mixture_em as em
from vipatterns.patterns import gaussian_mixture_stochastic as stochastic


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def galaxies():
    """Standardised."""
    d = cavi.data()
    return (d["y"] - d["units"][0]) / d["units"][1]


UNITS = np.array([0.0, 1.0])


def shares(y, sharpness=1.0):
    """Labels of no particular merit."""
    r = np.exp(-sharpness * (y[:, None] - np.array([-2.0, 0.0, 2.0])) ** 2)
    return r / r.sum(1, keepdims=True)


def natural_step(elbo, log_normaliser, start, rate=1.0):
    """start + rate x F^-1 gradient in natural parameters, with the Fisher matrix F, the log normaliser's Hessian, written out."""
    start = jnp.asarray(start)
    return start + rate * jnp.linalg.solve(jax.hessian(log_normaliser)(start), jax.grad(elbo)(start))


def test_natural_gradient_step_of_1_is_coordinate_ascent_of_the_mean():
    """gaussian_mean_cavi, the factor q(mu) while q(tau) is held."""
    y, tau = gaussian_mean_precision.data()["y"], {"tau_a": 3.0, "tau_b": 2.0}
    expected = gaussian_mean_cavi.sweep(3.0 / 2.0, y)

    def elbo(u):
        return gaussian_mean_cavi.elbo(tau | {"mu_m": -0.5 * u[0] / u[1], "mu_s": (-0.5 / u[1]) ** 0.5}, y)

    u = natural_step(elbo, lambda u: -(u[0] ** 2) / (4 * u[1]) - 0.5 * jnp.log(-2 * u[1]), [0.4, -2.0])
    np.testing.assert_allclose([-0.5 * u[0] / u[1], (-0.5 / u[1]) ** 0.5], [expected["mu_m"], expected["mu_s"]], rtol=1e-10)


def test_natural_gradient_step_of_1_is_coordinate_ascent_of_the_precision():
    """gaussian_mean_cavi, the factor q(tau) while q(mu) is held."""
    y = gaussian_mean_precision.data()["y"]
    expected = gaussian_mean_cavi.sweep(1.7, y)
    mu = {name: expected[name] for name in ("mu_m", "mu_s")}
    u = natural_step(
        lambda u: gaussian_mean_cavi.elbo(mu | {"tau_a": u[0] + 1, "tau_b": -u[1]}, y),
        lambda u: gammaln(u[0] + 1) - (u[0] + 1) * jnp.log(-u[1]),
        [4.0, -1.5],
    )
    np.testing.assert_allclose([u[0] + 1, -u[1]], [expected["tau_a"], expected["tau_b"]], rtol=1e-10)


def test_one_factor_makes_coordinate_ascent_the_exact_posterior():
    """gaussian_mean_natural_gradient has a single factor, whose optimum given no others is p(mu | y)."""
    y = gaussian_mean_natural_gradient.data()["y"]
    m, var = gaussian_mean_natural_gradient.natural_step(0.2, 0.7, y, 1.0)
    np.testing.assert_allclose([m, var], [y.sum() / (len(y) + 1), 1 / (len(y) + 1)], rtol=1e-10)


def mixture_parameters(u):
    """Natural parameters (5, K) of Dirichlet and normal-gammas -> those of gaussian_mixture_cavi."""
    alpha, shape, rate, mean, kappa = u
    kappa = -2 * kappa
    m = mean / kappa
    return {"alpha": alpha + 1, "m": m, "kappa": kappa, "a": shape + 0.5, "b": -rate - 0.5 * kappa * m**2}


def mixture_natural(q):
    """And back: sufficient statistics log w, log tau, tau, tau mu and tau mu^2."""
    return jnp.stack([q["alpha"] - 1, q["a"] - 0.5, -q["b"] - 0.5 * q["kappa"] * q["m"] ** 2, q["kappa"] * q["m"], -0.5 * q["kappa"]])


def mixture_log_normaliser(u):
    q = mixture_parameters(u.reshape(5, -1))
    of_weights = gammaln(q["alpha"]).sum() - gammaln(q["alpha"].sum())
    return of_weights + jnp.sum(gammaln(q["a"]) - q["a"] * jnp.log(q["b"]) - 0.5 * jnp.log(q["kappa"]))


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_natural_gradient_step_of_a_mixture(galaxies, rate):
    """All fifteen parameters at once. With 1 it is the sweep; with less it goes that part of the way, in natural parameters."""
    q = cavi.update(shares(galaxies), galaxies, UNITS)
    sweep = cavi.update(jax.nn.softmax(cavi.label(q, galaxies), axis=1), galaxies, UNITS)
    start, end = mixture_natural(q), mixture_natural(sweep)
    u = natural_step(
        lambda u: cavi.elbo(mixture_parameters(u.reshape(5, -1)), galaxies, UNITS), mixture_log_normaliser, start.ravel(), rate
    )
    np.testing.assert_allclose(u.reshape(5, -1), start + rate * (end - start), rtol=1e-10, atol=1e-10)


def test_stochastic_step_of_1_on_all_rows_is_coordinate_ascent(galaxies):
    sums = stochastic.start(len(galaxies), 3)
    q = stochastic.posterior(sums)
    for _ in range(10):
        sums, _ = stochastic.step(sums, galaxies, len(galaxies), 1.0)
        q = cavi.update(jax.nn.softmax(cavi.label(q, galaxies), axis=1), galaxies, UNITS)
        for name, value in stochastic.posterior(sums).items():
            np.testing.assert_allclose(value, q[name], rtol=1e-10, atol=1e-12)


def test_em_is_coordinate_ascent_when_data_outweigh_every_doubt(galaxies, monkeypatch):
    """Let each row count c times: q narrows to points as c grows, and the sweeps become EM's rounds without a prior."""
    for name, value in {"A0": 0.5, "B0": 0.0, "KAPPA0": 0.0}.items():
        monkeypatch.setattr(em, name, value)
    errors = []
    for c in (1e4, 1e6, 1e8):
        r, point = shares(galaxies), em.maximise(shares(galaxies), galaxies, UNITS)
        for _ in range(5):
            q = cavi.update(c * r, galaxies, UNITS)
            r = jax.nn.softmax(cavi.label(q, galaxies), axis=1)
            np.testing.assert_allclose(q["alpha"] / q["alpha"].sum(), point["weights"], rtol=20 / c**0.5)
            errors.append(
                max(float(jnp.abs(q["a"] / q["b"] / point["tau"] - 1).max()), float(jnp.abs(r - em.expect(point, galaxies)).max()))
            )
            point = em.maximise(em.expect(point, galaxies), galaxies, UNITS)
    worst = np.array(errors).reshape(3, 5).max(1)
    np.testing.assert_allclose(worst[:-1] / worst[1:], 100, rtol=0.05)
    assert worst[-1] < 1e-6


def test_em_is_coordinate_ascent_with_a_point_for_the_parameters(galaxies):
    """F = E_q(z)[log p(y, z, point) - log q(z)], written out: flat in q(z) after the E-step, in the point after the M-step."""

    def bound(logits, u):
        log_r = jax.nn.log_softmax(logits, axis=1)
        weights, mu, tau = jax.nn.softmax(u[0]), u[1], jnp.exp(u[2])
        log_p = jnp.log(weights) + dist.Normal(mu, tau**-0.5).log_prob(galaxies[:, None])
        prior = dist.Gamma(em.A0, em.B0).log_prob(tau) + dist.Normal(0.0, (em.KAPPA0 * tau) ** -0.5).log_prob(mu)
        return jnp.sum(jnp.exp(log_r) * (log_p - log_r)) + prior.sum() + jnp.log(2.0)

    point = em.maximise(shares(galaxies), galaxies, UNITS)
    u = jnp.stack([jnp.log(point["weights"]), point["mu"], jnp.log(point["tau"])])
    by_point = jax.grad(bound, argnums=1)
    np.testing.assert_allclose(by_point(jnp.log(shares(galaxies)), u), 0, atol=1e-10)
    curvature = np.linalg.eigvalsh(jax.hessian(bound, argnums=1)(jnp.log(shares(galaxies)), u).reshape(9, 9))
    assert np.all(curvature < 1e-10), "a maximum, flat only along the weights' common factor"
    logits = jnp.log(em.expect(point, galaxies))
    np.testing.assert_allclose(jax.grad(bound)(logits, u), 0, atol=1e-10)
    dimensions = {"num_components": 3, "num_observations": len(galaxies), "units": UNITS}
    log_joint, _ = em.log_density(em.model, (), {"y": galaxies, **dimensions}, point)
    assert float(bound(logits, u)) == pytest.approx(float(log_joint), rel=1e-12)
    assert np.abs(by_point(logits, u)).max() > 1e-3, "and now the point can be improved"
