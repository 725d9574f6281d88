"""varying_intercepts: its integrals against joint Gaussians, its data against nlme, its grid against NUTS, its fit against the grid."""

import jax
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from vipatterns.patterns import varying_intercepts as pattern

SITES = ["intercept", "level", "sigma", "slopes", "tau"]


@pytest.fixture(scope="module")
def jaws():
    return pattern.data()


@pytest.fixture(scope="module")
def exact(jaws):
    return pattern.exact_posterior(**jaws)


def joint(d, tau, sigma):
    """Mean and covariance of y, and the loadings and prior sds of (intercept, slopes, deviations of levels) behind it; raw units."""
    mean, sd = d["units"]
    loading = np.column_stack([np.ones(len(d["y"])), d["x"] - mean[:-1], np.eye(d["num_groups"])[d["group"]]])
    prior = np.concatenate([[2.5 * sd[-1]], 2.5 * sd[-1] / sd[:-1], np.full(d["num_groups"], tau)])
    return np.full(len(d["y"]), mean[-1]), loading * prior**2 @ loading.T + sigma**2 * np.eye(len(d["y"])), loading, prior


@pytest.mark.parametrize(("tau", "sigma"), [(1.9, 1.4), (0.02, 3.0), (6.0, 0.3)])
def test_conditionals_are_those_of_the_joint_gaussian(jaws, tau, sigma):
    """All rows at once, with nothing integrated out by hand; some are left out, lest balance make cross terms vanish."""
    keep = np.arange(108) % 7 < 5
    jaws = jaws | {name: jaws[name][keep] for name in ("x", "group", "y")}
    mean, sd = jaws["units"]
    centre, cov, loading, prior = joint(jaws, tau, sigma)
    log_p, m, precision, levels = pattern.given(np.array(tau / sd[-1]), np.array(sigma / sd[-1]), **jaws)
    assert log_p == pytest.approx(multivariate_normal.logpdf(jaws["y"], centre, cov), rel=1e-9)

    gain = prior[:, None] ** 2 * loading.T @ np.linalg.inv(cov)
    expected, spread = gain @ (jaws["y"] - centre), np.diag(prior**2) - gain @ loading * prior**2
    scale = np.append(sd[-1], sd[-1] / sd[:-1])
    np.testing.assert_allclose(m * scale, expected[:3], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(np.linalg.inv(precision) * np.outer(scale, scale), spread[:3, :3], rtol=1e-6, atol=1e-8)

    # Marginally over b: the levels' mean is linear in b, and their variance that given b plus what b passes on.
    level, level_sd = levels(m)
    jacobian = np.stack([levels(m + unit)[0] - level for unit in np.eye(3)], axis=1)
    transform = np.column_stack([np.ones(27), np.zeros((27, 2)), np.eye(27)])
    np.testing.assert_allclose(mean[-1] + sd[-1] * level, mean[-1] + transform @ expected, rtol=1e-9)
    total = np.diag(level_sd**2) + jacobian @ np.linalg.inv(precision) @ jacobian.T
    np.testing.assert_allclose(sd[-1] ** 2 * total, transform @ spread @ transform.T, rtol=1e-6, atol=1e-8)


def test_data_has_the_published_fit(jaws):
    """nlme's lme(distance ~ age + Sex, random = ~1 | Subject): 17.7067 + .6602 age - 2.3210 female; sds by REML 1.807425, 1.431592."""
    age, male = jaws["x"].T
    design = np.column_stack([np.ones(108), age, 1 - male])
    same = jaws["group"][:, None] == jaws["group"]

    def gls(p):
        cov = np.exp(2 * p[0]) * same + np.exp(2 * p[1]) * np.eye(108)
        weighted = np.linalg.solve(cov, design)
        b = np.linalg.solve(design.T @ weighted, weighted.T @ jaws["y"])
        residual = jaws["y"] - design @ b
        log_det = np.linalg.slogdet(cov)[1] + np.linalg.slogdet(design.T @ weighted)[1]
        return b, residual @ np.linalg.solve(cov, residual) + log_det

    best = minimize(lambda p: gls(p)[1], [0.5, 0.3], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    np.testing.assert_allclose(gls(best.x)[0], [17.7067, 0.6602, -2.3210], atol=1e-4)
    np.testing.assert_allclose(np.exp(best.x), [1.807425, 1.431592], atol=1e-5)


def test_grid_is_fine_and_wide_enough(jaws):
    """Every second row and column gives the same evidence, and the edges hold nothing."""
    _, log_p = pattern.grid(**jaws)
    top = log_p.max()
    whole = np.exp(log_p - top).sum()
    assert 4 * np.exp(log_p[::2, ::2] - top).sum() == pytest.approx(whole, rel=1e-6)
    assert max(np.exp(edge - top).sum() for edge in (log_p[0], log_p[-1], log_p[:, 0], log_p[:, -1])) < 1e-6 * whole


@pytest.mark.slow
def test_exact_draws_agree_with_nuts(jaws, exact, rng_key, z_bound):
    """An effective number counts for means; of sds, whose tails are a little heavy, half of it."""
    mcmc = MCMC(NUTS(pattern.model), num_warmup=1000, num_samples=4000, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(rng_key, **jaws, extra_fields=("diverging",))
    assert int(mcmc.get_extra_fields()["diverging"].sum()) <= 5
    for site, draws in mcmc.get_samples(group_by_chain=True).items():
        draws = np.asarray(draws, float)
        assert np.all(split_gelman_rubin(draws) < 1.01)
        error, flat = np.sqrt(1 / effective_sample_size(draws) + 1 / 100_000), draws.reshape(-1, *draws.shape[2:])
        assert np.all(np.abs(flat.mean(0) - exact[site].mean(0)) / exact[site].std(0) < z_bound(64) * error), site
        assert np.all(np.abs(flat.std(0) / exact[site].std(0) - 1) < 1.5 * z_bound(64) * error), site


@pytest.mark.slow
def test_fit_is_the_exact_posterior(jaws, exact, assert_fits):
    """floor: what log-normals cannot do, 2 to 3 % of tau's sd, and the error of 20,000 and 100,000 draws."""
    assert_fits(pattern, jaws, {site: (exact[site].mean(0), exact[site].std(0)) for site in SITES}, worst=0.08, floor=0.045)


def test_elbo_is_the_evidence_to_a_hundredth(jaws, rng_key):
    """The last losses average to a thousandth of a nat: all draws of the guide have nearly the same weight."""
    last = -np.asarray(pattern.fit(rng_key, **jaws)[1][-200:], float)
    assert last.std() / np.sqrt(200) < 0.005
    assert -0.03 < last.mean() - pattern.log_evidence(**jaws) < 0.01


def test_mean_field_would_be_three_times_too_sure_of_male(jaws, exact):
    """The text's claim: given the levels, which mean-field holds still, the slope of male has a third of its sd; that of age nearly all."""
    _, sd = jaws["units"]
    scale = np.append(exact["sigma"].mean() / np.sqrt(108) / sd[:-1], exact["tau"].mean() / np.sqrt(27))
    ratio = scale / np.append(exact["slopes"].std(0), exact["intercept"].std(0))
    assert ratio[0] > 0.95
    assert ratio[1] == pytest.approx(1 / 3, abs=0.03)


def test_labels_of_groups_may_be_anything_and_units_do_not_matter(jaws):
    text = pattern.data({"y": 10 * jaws["y"], "g": ["?"] * 108, "age": 12 * jaws["x"][:, 0], "group": [f"c{j:02}" for j in jaws["group"]]})
    np.testing.assert_array_equal(text["group"], jaws["group"])
    assert (text["num_groups"], text["x"].shape) == (27, (108, 1))
    plain = pattern.data({"y": jaws["y"], "age": jaws["x"][:, 0], "group": jaws["group"]})
    assert pattern.log_evidence(**text) == pytest.approx(pattern.log_evidence(**plain) - 108 * np.log(10), rel=1e-9)


def test_new_rows_need_the_units_of_the_old(jaws):
    with pytest.raises(ValueError, match="pass y too"):
        pattern.model(jaws["x"], jaws["group"], 27)
    shapes = jax.eval_shape(lambda: pattern.known(jaws["x"], None, jaws["units"]))
    assert shapes.shape == (2, 3)
