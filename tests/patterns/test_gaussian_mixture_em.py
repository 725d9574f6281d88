"""gaussian_mixture_em: scikit-learn step by step, the highest mode by many climbs of another kind, the singularities and their cure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import gamma, norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from vipatterns.patterns import gaussian_mixture_em as pattern


@pytest.fixture(scope="module")
def rows():
    return pattern.data()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def maximum_likelihood(monkeypatch):
    for name, value in {"A0": 0.5, "B0": 0.0, "KAPPA0": 0.0}.items():
        monkeypatch.setattr(pattern, name, value)


def log_lik(point, y):
    return logsumexp(np.log(point["weights"]) + norm.logpdf(y[:, None], point["mu"], np.asarray(point["tau"]) ** -0.5), axis=1).sum()


def log_joint(point, y):
    """log p(y, point), written with SciPy's densities."""
    mean, sd = y.mean(), y.std()
    tau, mu = np.asarray(point["tau"], float), np.asarray(point["mu"], float)
    log_prior = gamma.logpdf(tau, pattern.A0, scale=1 / (pattern.B0 * sd**2)) + norm.logpdf(mu, mean, (pattern.KAPPA0 * tau) ** -0.5)
    return log_lik(point, y) + log_prior.sum() + np.log(2)  # 2 is the density of Dirichlet(1, 1, 1)


def start(y):
    return {"weights": np.full(3, 1 / 3), "mu": np.array([15.0, 20.0, 25.0]), "tau": np.full(3, 0.3)}


def test_galaxies_are_82_and_sorted(rows):
    assert rows["y"].shape == (82,)
    assert np.all(np.diff(rows["y"]) > 0)


@pytest.mark.parametrize("steps", [1, 40])
def test_without_a_prior_each_step_is_scikit_learn_s(rows, x64, maximum_likelihood, steps):
    y, point = rows["y"], start(rows["y"])
    oracle = GaussianMixture(
        3,
        covariance_type="spherical",
        tol=0.0,
        reg_covar=0.0,
        max_iter=steps,
        weights_init=point["weights"],
        means_init=point["mu"][:, None],
        precisions_init=point["tau"],
    )
    with pytest.warns(ConvergenceWarning):  # that many steps and no more
        oracle.fit(y[:, None])
    for _ in range(steps):
        point = pattern.maximise(pattern.expect(point, y), y, rows["units"])
    np.testing.assert_allclose(point["weights"], oracle.weights_, rtol=1e-9)
    np.testing.assert_allclose(point["mu"], oracle.means_[:, 0], rtol=1e-9)
    np.testing.assert_allclose(point["tau"], oracle.precisions_, rtol=1e-9)
    np.testing.assert_allclose(pattern.expect(point, y), oracle.predict_proba(y[:, None]), atol=1e-9)


def test_no_step_lowers_the_log_joint(rows, x64):
    y, point, path = rows["y"], start(rows["y"]), []
    for _ in range(60):
        point = pattern.maximise(pattern.expect(point, y), y, rows["units"])
        path.append(log_joint(point, y))
    assert np.all(np.diff(path) > -1e-10)
    assert path[-1] - path[0] > 1


@pytest.mark.slow
def test_losses_are_minus_the_log_joint_and_fall(rows, rng_key):
    q, losses = pattern.fit(rng_key, **rows)
    point = {site: np.asarray(q[site].mean, float) for site in q}
    assert float(-losses[-1]) == pytest.approx(log_joint(point, rows["y"]), rel=1e-5)
    assert np.all(np.diff(losses) < 1e-4)  # float32 rounds sums of 200 at 1e-5


def test_a_likelihood_without_a_prior_has_no_maximum(rows):
    """A component on one row: each tenfold precision raises the log likelihood by log(10) / 2, past any other point's."""
    y = rows["y"]
    best = {site: m for site, (m, _) in pattern.documented_bias(**rows).items()}
    collapsed = {"weights": [0.01, 0.98, 0.01], "mu": [y[10], y.mean(), y[-1]]}
    heights = [log_lik(collapsed | {"tau": np.array([10.0**j, y.std() ** -2, 1.0])}, y) for j in (30, 31, 32, 100)]
    np.testing.assert_allclose(np.diff(heights[:3]), np.log(10) / 2, rtol=1e-9)
    assert heights[-1] > log_lik(best, y)
    with_prior = [log_joint(collapsed | {"tau": np.array([10.0**j, y.std() ** -2, 1.0])}, y) for j in (2, 4, 6)]
    assert np.all(np.diff(with_prior) < -10)
    assert with_prior[0] < log_joint(best, y)


def test_em_without_a_prior_collapses_and_with_it_cannot(rows, x64, monkeypatch):
    """From a component that stands alone on one row; the bound on tau is the pattern's."""
    y = rows["y"]
    narrow = {"weights": np.array([0.05, 0.9, 0.05]), "mu": np.array([y[7], 21.0, 33.0]), "tau": np.array([1e6, 0.1, 1.0])}

    def climb(steps):
        point = narrow
        for _ in range(steps):
            point = pattern.maximise(pattern.expect(point, y), y, rows["units"])
        return point

    tau, n = climb(60)["tau"], len(y)
    assert np.all(tau < (2 * pattern.A0 - 1 + n) / (2 * pattern.B0 * rows["units"][1] ** 2))
    assert tau[0] < 100
    for name, value in {"A0": 0.5, "B0": 0.0, "KAPPA0": 0.0}.items():
        monkeypatch.setattr(pattern, name, value)
    collapsed = float(climb(2)["tau"][0])
    assert not collapsed < 1e12


@pytest.mark.slow
def test_documented_bias_is_the_highest_mode(rows):
    """Of 30 climbs by BFGS, from rows drawn at random, on the density written with SciPy, none comes higher."""
    y, (mean, sd), rng = rows["y"], rows["units"], np.random.default_rng(0)

    def point_at(u):
        u = np.clip(u, -30, 30)  # where a line search overshoots
        return {"weights": np.exp(u[:3] - logsumexp(u[:3])), "mu": mean + sd * u[3:6], "tau": np.exp(u[6:]) / sd**2}

    best, heights = pattern.documented_bias(**rows), []
    for _ in range(30):
        u = np.concatenate([np.zeros(3), (rng.choice(y, 3, replace=False) - mean) / sd, np.log(np.full(3, 4.0))])
        heights.append(-minimize(lambda u: -log_joint(point_at(u), y), u, method="BFGS").fun)
    highest = log_joint({site: m for site, (m, _) in best.items()}, y)
    assert max(heights) < highest + 1e-6
    assert np.sum(np.abs(np.array(heights) - highest) < 1e-3) > 5, "found again, so not for want of trying"
    assert min(heights) < highest - 5, "there are others, so restarts are needed"


def test_documented_bias_is_where_em_rests(rows, x64):
    y, point = rows["y"], {site: m for site, (m, _) in pattern.documented_bias(**rows).items()}
    after = pattern.maximise(pattern.expect(point, y), y, rows["units"])
    for site in point:
        np.testing.assert_allclose(after[site], point[site], rtol=1e-6)


def test_fit_is_the_mode_under_every_key(rows, assert_fits):
    assert_fits(pattern, rows, pattern.documented_bias(**rows), worst=0.01, floor=0.005)


@pytest.mark.slow
def test_fit_in_other_units(assert_fits):
    """Kilometres a second, and a shift of the origin."""
    d = pattern.data({"y": pattern.data()["y"] * 1000 - 5000})
    assert_fits(pattern, d, pattern.documented_bias(**d), worst=0.01, floor=0.005)


def test_units_are_asked_for_where_there_is_no_y():
    with pytest.raises(ValueError, match="units are read from y"):
        pattern.known(None, None, jnp)
