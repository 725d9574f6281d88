"""local_level: its cosines against a random walk and a Kalman filter, its grid against joint Gaussians and NUTS, its fit against that."""

import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.handlers import seed, trace
from numpyro.infer import MCMC, NUTS
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from vipatterns.patterns import local_level as pattern


@pytest.fixture(scope="module")
def nile():
    return pattern.data()


@pytest.fixture(scope="module")
def exact(nile):
    return pattern.exact_posterior(**nile)


def kalman(y, sigma_level, sigma_obs):
    """Diffuse log likelihood, up to a constant: Durbin and Koopman, section 2.9, the first prediction error left out."""
    level, var, total = y[0], sigma_obs**2, 0.0
    for value in y[1:]:
        var += sigma_level**2
        spread, error = var + sigma_obs**2, value - level
        total -= 0.5 * (np.log(spread) + error**2 / spread)
        level, var = level + var / spread * error, var - var**2 / spread
    return total


@pytest.mark.parametrize("n", [2, 3, 50, 101])
def test_the_cosines_make_a_random_walk_about_its_average(n):
    """Steps independent, of unit variance; no average."""
    waves, height = pattern.cosines(n)
    steps = np.diff(waves[:, 1:] * height, axis=0)
    np.testing.assert_allclose(steps @ steps.T, np.eye(n - 1), atol=1e-12)
    np.testing.assert_allclose(waves.sum(0), np.append(n**0.5, np.zeros(n - 1)), atol=1e-12)


@pytest.mark.parametrize(("sigma_level", "sigma_obs"), [(40.0, 120.0), (300.0, 20.0)])
def test_conditionals_are_those_of_the_joint_gaussian(nile, sigma_level, sigma_obs):
    mean, sd = nile["units"]
    waves, height = pattern.cosines(100)
    loading = np.column_stack([np.ones(100), sigma_level * waves[:, 1:] * height])
    prior = np.append(10 * sd, np.ones(99))
    cov = loading * prior**2 @ loading.T + sigma_obs**2 * np.eye(100)
    y = nile["y"] + 30  # so that the average of y is not the prior's mean
    m, s, log_p = pattern.given(np.array([sigma_level / sd]), np.array([sigma_obs / sd]), y, nile["units"])
    gain = prior[:, None] ** 2 * loading.T @ np.linalg.inv(cov)
    unit = np.append(sd, np.ones(99))
    assert log_p == pytest.approx(multivariate_normal.logpdf(y, np.full(100, mean), cov), rel=1e-9)
    np.testing.assert_allclose(m * unit, gain @ (y - mean), atol=1e-7)
    np.testing.assert_allclose(np.diag((s * unit) ** 2), np.diag(prior**2) - gain @ loading * prior**2, atol=1e-6 * sd)


def test_likelihood_is_that_of_the_kalman_filter(nile):
    """The part that does not see the average is the diffuse likelihood, whatever the two sds."""
    sd = nile["units"][1]
    pairs = np.array([[38.3, 122.9], [10.0, 150.0], [200.0, 30.0], [1.0, 169.0]])
    here = pattern.given(pairs[:, :1] / sd, pairs[:, 1:] / sd, nile["y"], nile["units"])[2]
    total = pairs[:, 1] ** 2 / 100 + 100 * sd**2
    here = here + 0.5 * np.log(total)  # the average itself: y's is the prior's mean, so that only a variance is left
    there = [kalman(nile["y"], *pair) for pair in pairs]
    np.testing.assert_allclose(here - here[0], np.subtract(there, there[0]), atol=1e-8)


def test_maximum_likelihood_is_durbin_and_koopmans(nile):
    """Variances 15099 and 1469.1: table 2.1 and section 2.10.3 of the second edition."""
    best = minimize(lambda p: -kalman(nile["y"], *np.exp(p)), [3.0, 5.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    np.testing.assert_allclose(np.exp(2 * best.x), [1469.1, 15099], rtol=1e-4)


def test_grid_is_fine_and_wide_enough(nile):
    """Every second row and column gives the same evidence, and the edges hold nothing."""
    _, log_p = pattern.grid(nile["y"], nile["units"])
    top = log_p.max()
    whole = np.exp(log_p - top).sum()
    assert 4 * np.exp(log_p[::2, ::2] - top).sum() == pytest.approx(whole, rel=1e-6)
    assert max(np.exp(edge - top).sum() for edge in (log_p[0], log_p[-1], log_p[:, 0], log_p[:, -1])) < 1e-6 * whole


@pytest.mark.slow
def test_exact_draws_agree_with_nuts(nile, exact, rng_key, z_bound):
    """An effective number counts for means; of sds, whose tails are a little heavy, half of it."""
    mcmc = MCMC(NUTS(pattern.model), num_warmup=1000, num_samples=3000, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(rng_key, **nile, extra_fields=("diverging",))
    assert int(mcmc.get_extra_fields()["diverging"].sum()) <= 5
    for site, draws in mcmc.get_samples(group_by_chain=True).items():
        draws = np.asarray(draws, float)
        assert np.all(split_gelman_rubin(draws) < 1.01), site
        error, flat = np.sqrt(1 / effective_sample_size(draws) + 1 / 100_000), draws.reshape(-1, *draws.shape[2:])
        assert np.all(np.abs(flat.mean(0) - exact[site].mean(0)) / exact[site].std(0) < z_bound(404) * error), site
        assert np.all(np.abs(flat.std(0) / exact[site].std(0) - 1) < 1.5 * z_bound(404) * error), site


def test_fit_is_the_best_gaussian(nile, assert_fits):
    assert_fits(pattern, nile, pattern.documented_bias(**nile), worst=0.08, floor=0.01)


def test_levels_of_the_fit_are_all_but_exact(nile, exact, assert_fits):
    """floor: the 0.03 sd that the sds are off by, and the error of 100,000 draws."""
    assert_fits(pattern, nile, {site: (exact[site].mean(0), exact[site].std(0)) for site in ("level", "average")}, worst=0.1, floor=0.045)


def test_docstring_tells_the_bias(nile, exact, rng_key):
    for site, (m, s) in pattern.documented_bias(**nile).items():
        assert abs(m - exact[site].mean()) < 0.03 * exact[site].std()
        assert abs(np.log(s / exact[site].std())) < 0.03
    q, losses = pattern.fit(rng_key, **nile)
    assert np.std(q["z"][:, 0]) / exact["z"][:, 0].std() == pytest.approx(0.9, abs=0.05)
    assert pattern.log_evidence(**nile) + float(losses[-300:].mean()) == pytest.approx(0.033, abs=0.03)


def test_levels_that_ignore_the_sds_would_make_sigma_level_five_times_too_sure(nile, exact):
    """The text's claim, by the maximum of the ELBO of q(sigma_level) q(sigma_obs) q(average, z), log-normal times Gaussian."""
    (mean, sd), (waves, height) = nile["units"], pattern.cosines(100)
    seen = waves[:, 1:].T @ (nile["y"] - mean) / sd

    def loss(p):  # in the coefficients w = sigma_level * height * z, up to constants; the average is left out, as y has next to all to say
        a, b, c, d = p[0], np.exp(p[1]), p[2], np.exp(p[3])
        walk, noise = np.exp(-2 * a + 2 * b**2) / height**2, np.exp(-2 * c + 2 * d**2)
        m, var = noise * seen / (walk + noise), 1 / (walk + noise)
        fit = 0.5 * np.sum(noise * ((seen - m) ** 2 + var) + walk * (m**2 + var)) - 0.5 * np.sum(np.log(var)) + 99 * (a + c)
        return fit + 0.5 * (np.exp(2 * a + 2 * b**2) + np.exp(2 * c + 2 * d**2)) - a - c - np.log(b * d)

    b = np.exp(minimize(loss, [-1.0, -1.0, -0.5, -2.0], method="BFGS").x[1])
    assert np.log(exact["sigma_level"]).std() / b == pytest.approx(5.3, abs=0.2)


def test_a_series_of_any_length_is_predicted(nile, rng_key):
    sites = trace(seed(pattern.model, rng_key)).get_trace(num_times=7, units=nile["units"])
    assert sites["y"]["value"].shape == sites["level"]["value"].shape == (7,)
    with pytest.raises(ValueError, match="pass y too"):
        pattern.model(num_times=7)
