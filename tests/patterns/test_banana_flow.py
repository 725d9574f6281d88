"""banana_flow: what a Gaussian loses by formula, by a numerical maximum and by a fit; how near the flow comes to the evidence."""

import jax
import numpy as np
import pytest
from numpyro import handlers
from scipy.optimize import minimize
from scipy.special import roots_hermitenorm

import vipatterns as vip
from vipatterns.patterns import banana_flow as pattern

BENDS = [0.0, 0.01, 0.03, 0.1]


def negative_elbo(p, bend):
    """Of N(m, L L^T) with p = (m1, m2, log L11, L21, log L22), by quadrature: nothing of the pattern's algebra."""
    node, weight = roots_hermitenorm(20)
    w = np.outer(weight, weight) / weight.sum() ** 2
    x1 = p[0] + np.exp(p[2]) * node[:, None]
    x2 = p[1] + p[3] * node[:, None] + np.exp(p[4]) * node
    log_p = -0.5 * (x1 / pattern.SD) ** 2 - np.log(pattern.SD) - 0.5 * (x2 - bend * (pattern.SD**2 - x1**2)) ** 2
    return -float(np.sum(w * log_p)) - p[2] - p[4] - 1


@pytest.mark.parametrize("bend", BENDS)
def test_no_gaussian_does_better_than_the_formula(bend):
    """A search over all five numbers of a full-rank Gaussian, from a correlated start off the axis."""
    best = minimize(negative_elbo, [1.0, 0.5, 1.0, 0.5, 0.1], (bend,), method="BFGS", options={"gtol": 1e-8, "maxiter": 2000})
    sd, mean, elbo = pattern.best_gaussian(bend)
    assert -best.fun == pytest.approx(elbo, abs=1e-8)
    np.testing.assert_allclose(best.x, [0, mean, np.log(sd), 0, 0], atol=1e-3)


def test_without_a_bend_a_gaussian_loses_nothing():
    assert pattern.best_gaussian(0.0) == (pattern.SD, 0.0, 0.0)


def test_exact_draws_have_the_moments_of_the_prose(z_bound):
    bend = 0.03
    x2 = pattern.exact_posterior(bend)["x2"]
    variance = 1 + 2 * bend**2 * pattern.SD**4
    squares = (x2 - x2.mean()) ** 2
    assert abs(x2.mean()) < z_bound(2) * np.sqrt(variance / len(x2))
    assert abs(x2.var() - variance) < z_bound(2) * squares.std() / np.sqrt(len(x2))


def test_the_guide_reports_the_density_that_it_draws_from(rng_key):
    """log q = log N(z) - log |dx/dz|, the determinant by automatic differentiation, at weights that bend in both directions."""
    keys = jax.random.split(rng_key, 6)
    at_rest = {"weight": (4, 2, 17), "bias": (4, 2), "slope": (4, 16), "centre": (2,), "log_scale": (2,)}
    params = {name: 0.3 * jax.random.normal(key, shape) for (name, shape), key in zip(at_rest.items(), keys[:5], strict=True)}
    seeded = handlers.substitute(handlers.seed(pattern.guide, keys[5]), params)
    z = handlers.trace(seeded).get_trace()["z"]["value"]

    def push(z):
        sites = handlers.trace(handlers.substitute(seeded, {"z": z})).get_trace()
        return sites["x1"]["value"], sites["x2"]["value"], sites["x1"]["fn"].log_prob(sites["x1"]["value"])

    jacobian = np.array(jax.jit(jax.jacobian(lambda z: push(z)[:2]))(z))
    assert float(push(z)[2]) == pytest.approx(-np.linalg.slogdet(jacobian)[1], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", [vip.MeanField(), vip.FullRank()], ids=["mean-field", "full-rank"])
def test_fitted_gaussians_lose_what_the_formula_says(method, rng_key, z_bound):
    d = pattern.data()
    fit = vip.fit(rng_key, pattern.model, d, method=method)
    elbo = pattern.best_gaussian(**d)[2]
    assert abs(fit.elbo - elbo) < z_bound() * fit.elbo_mcse + 0.005
    assert not fit.certificate.ok


@pytest.mark.slow
def test_the_flow_is_within_a_hundredth_of_a_nat_of_the_evidence(rng_key, z_bound):
    """Where the best Gaussian is a third of a nat away."""
    d = pattern.data()
    _, losses = pattern.fit(rng_key, **d)
    last = np.asarray(losses[-300:], float)
    noise = z_bound() * last.std(ddof=1) / np.sqrt(len(last))
    assert pattern.log_evidence() - noise < last.mean() < 0.01 + noise
    assert last.mean() < 0.05 * -pattern.best_gaussian(**d)[2]
