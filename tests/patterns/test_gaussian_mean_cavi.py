"""gaussian_mean_cavi: sweeps against a numerical maximum, the ELBO against draws, and the flat-prior limits of the textbook."""

import jax
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO
from scipy.optimize import minimize

from vipatterns.patterns import gaussian_mean_cavi as pattern
from vipatterns.patterns import gaussian_mean_precision as by_gradients


@pytest.fixture(scope="module")
def rows():
    return pattern.data()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def settled(y, mean_tau=20.0, sweeps=60):
    for _ in range(sweeps):
        params = pattern.sweep(mean_tau, y)
        mean_tau = params["tau_a"] / params["tau_b"]
    return {name: float(value) for name, value in params.items()}


def test_data_and_answers_are_those_of_gaussian_mean_precision(rows):
    np.testing.assert_array_equal(rows["y"], by_gradients.data()["y"])
    assert pattern.log_evidence(**rows) == pytest.approx(by_gradients.log_evidence(**rows), rel=1e-13)
    for site, moments in by_gradients.documented_bias(**rows).items():
        np.testing.assert_allclose(pattern.documented_bias(**rows)[site], moments, rtol=1e-12)
        here, there = pattern.exact_posterior(**rows)[site], by_gradients.exact_posterior(**rows)[site]
        np.testing.assert_allclose([here.mean, here.variance], [there.mean, there.variance], rtol=1e-6)


def test_sweeps_come_to_rest_at_the_documented_bias(rows, x64):
    p, bias = settled(rows["y"]), pattern.documented_bias(**rows)
    np.testing.assert_allclose([p["mu_m"], p["mu_s"]], bias["mu"], rtol=1e-12)
    np.testing.assert_allclose([p["tau_a"] / p["tau_b"], p["tau_a"] ** 0.5 / p["tau_b"]], bias["tau"], rtol=1e-12)


def test_sweeps_come_to_rest_at_the_maximum_of_the_elbo(rows, x64):
    """Found by BFGS in the logarithms of all four numbers, which knows nothing of conditionals; the maximum is flat, hence the 1e-4."""
    names = ["mu_s", "tau_a", "tau_b"]

    def loss(u):
        return -float(pattern.elbo(dict(zip(names, np.exp(u[1:]), strict=True)) | {"mu_m": u[0]}, rows["y"]))

    best, p = minimize(loss, [0.0, 0.0, 0.0, 0.0], method="BFGS"), settled(rows["y"])
    np.testing.assert_allclose(np.append(best.x[0], np.exp(best.x[1:])), [p["mu_m"], *(p[name] for name in names)], rtol=1e-4)
    assert -best.fun == pytest.approx(float(pattern.elbo(p, rows["y"])), abs=1e-8)


def test_elbo_is_numpyro_s_by_draws(rows, rng_key, z_bound):
    """At a q that is not the optimum: the formula and the mean of 20,000 draws of log p - log q."""
    params = {"mu_m": 1.0, "mu_s": 0.6, "tau_a": 3.0, "tau_b": 4.0}
    keys = jax.random.split(rng_key, 20_000)
    draws = -jax.vmap(lambda key: Trace_ELBO().loss(key, params, pattern.model, pattern.guide, **rows))(keys)
    draws = np.asarray(draws, float)
    assert abs(draws.mean() - float(pattern.elbo(params, rows["y"]))) < z_bound() * draws.std() / np.sqrt(len(draws))


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e3])
def test_no_sweep_lowers_the_elbo(rows, x64, start):
    elbos = []
    for _ in range(12):
        params = pattern.sweep(start, rows["y"])
        start = params["tau_a"] / params["tau_b"]
        elbos.append(float(pattern.elbo(params, rows["y"])))
    assert np.all(np.diff(elbos) > -1e-12)
    assert elbos[0] < elbos[-1] < pattern.log_evidence(**rows)


def test_each_sweep_shrinks_the_error_by_the_order_of_n(rows, x64):
    """Near rest the error of E[tau] is divided by N + 1 + 2 a_0: twice the shape of the gamma."""
    y, rest = rows["y"], settled(rows["y"])
    rest = rest["tau_a"] / rest["tau_b"]
    after = pattern.sweep(rest * (1 + 1e-5), y)
    rate = (float(after["tau_a"] / after["tau_b"]) - rest) / (1e-5 * rest)
    assert rate == pytest.approx(1 / (len(y) + 1 + 2 * pattern.A0), rel=1e-4)


def test_flat_priors_give_the_textbook_s_ratios(rows, x64, monkeypatch):
    """p(mu) flat and p(tau) as 1 / tau: E[tau] = (N - 1) / S, exactly; variances (N - 3) / (N - 1) and (N - 1) / N of the exact ones."""
    for name, value in {"A0": -0.5, "B0": 0.0, "LAMBDA0": 0.0}.items():
        monkeypatch.setattr(pattern, name, value)
    y, p = rows["y"], settled(rows["y"])
    n, s = len(y), np.sum((y - y.mean()) ** 2)
    assert p["mu_m"] == pytest.approx(y.mean(), rel=1e-12)
    assert p["tau_a"] / p["tau_b"] == pytest.approx((n - 1) / s, rel=1e-12)
    exact_var_mu, exact_var_tau = s / (n * (n - 3)), 2 * (n - 1) / s**2
    assert p["mu_s"] ** 2 / exact_var_mu == pytest.approx((n - 3) / (n - 1), rel=1e-12)
    assert p["tau_a"] / p["tau_b"] ** 2 / exact_var_tau == pytest.approx((n - 1) / n, rel=1e-12)


def test_variance_ratios_of_the_docstring(rows):
    a, exact, bias = (len(rows["y"]) + 1) / 2, pattern.exact_posterior(**rows), pattern.documented_bias(**rows)
    assert bias["mu"][1] ** 2 / float(exact["mu"].variance) == pytest.approx((a - 1) / a, rel=1e-5)
    assert bias["tau"][1] ** 2 / float(exact["tau"].variance) == pytest.approx(a / (a + 0.5), rel=1e-5)


def test_fit_has_the_documented_bias(rows, assert_fits):
    """No noise: in float32 what is left is rounding."""
    assert_fits(pattern, rows, pattern.documented_bias(**rows), worst=1e-4, floor=1e-4)


def test_fit_in_other_units(assert_fits):
    d = pattern.data({"y": pattern.data()["y"] * 60 + 500})
    assert_fits(pattern, d, pattern.documented_bias(**d), worst=1e-3, floor=1e-3)
