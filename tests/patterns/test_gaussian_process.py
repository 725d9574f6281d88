"""gaussian_process: its model, curve and grid against dense Gaussians, its grid against NUTS, its fit against the grid."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density
from scipy.special import softmax
from scipy.stats import halfnorm, lognorm, multivariate_normal

from vipatterns.patterns import gaussian_process as pattern

HYPER = ["lengthscale", "amplitude", "noise"]


@pytest.fixture(scope="module")
def games():
    return pattern.data()


@pytest.fixture(scope="module")
def exact(games):
    return pattern.exact_posterior(**games)


def matern(d, lengthscale):
    """Matern 3/2, written with loops, from distances in ranges of x."""
    t = d["x"][:, 0] / np.ptp(d["x"])
    k = np.empty((len(t), len(t)))
    for i, j in itertools.product(range(len(t)), repeat=2):
        s = np.sqrt(3) * abs(t[i] - t[j]) / lengthscale
        k[i, j] = (1 + s) * np.exp(-s)
    return k


def log_joint(d, lengthscale, amplitude, noise):
    """log p(y, lengthscale, amplitude, noise), in raw units."""
    mean, sd = d["y"].mean(), d["y"].std()
    cov = amplitude**2 * matern(d, lengthscale) + (noise**2 + 1e-5 * sd**2) * np.eye(len(d["y"]))
    prior = lognorm.logpdf(lengthscale, 0.75, scale=0.5) + halfnorm.logpdf(amplitude, scale=2 * sd) + halfnorm.logpdf(noise, scale=sd)
    return multivariate_normal.logpdf(d["y"], np.full(len(cov), mean), cov) + prior


def test_cells_of_the_grid_hold_their_dense_gaussians(games):
    logs, log_p = pattern.grid(**games)
    sd, rng = games["y"].std(), np.random.default_rng(2)
    volume = np.prod([log[1] - log[0] for log in logs])
    for i, j, k in rng.integers([20, 40, 40], [50, 100, 100], (8, 3)):
        node = np.exp([logs[0][i], logs[1][j], logs[2][k]]) * [1, sd, sd]
        jacobian = np.sum(np.log(node))
        assert log_p[i, j, k] == pytest.approx(log_joint(games, *node) + jacobian + np.log(volume), abs=1e-6)


def test_grid_is_fine_and_wide_enough(games):
    """Every second node gives the same evidence; the edges hold nothing, but for the prior's own tails in the lengthscale."""
    _, log_p = pattern.grid(**games)
    weight = np.exp(log_p - log_p.max())
    assert 8 * weight[::2, ::2, ::2].sum() == pytest.approx(weight.sum(), rel=1e-6)
    for axis, most in ((0, 1e-4), (1, 1e-5), (2, 1e-5)):
        assert max(weight.take(edge, axis).sum() for edge in (0, -1)) < most * weight.sum()


def test_model_is_the_dense_gaussian(games):
    """Step by step, each point from those before it, comes to the joint density; and so does the model that draws all at once."""
    for values in ((0.4, 0.5, 0.1), (2.0, 0.05, 0.4)):
        sites, expected = dict(zip(HYPER, map(jnp.asarray, values), strict=True)), log_joint(games, *values)
        assert float(log_density(pattern.model, (), games, sites)[0]) == pytest.approx(expected, abs=1e-3)  # in float32
        at_once = handlers.condition(pattern.model, {"y": games["y"]})
        without_y = {"x": games["x"], "units": games["units"]}
        assert float(log_density(at_once, (), without_y, sites)[0]) == pytest.approx(expected, abs=1e-3)


def test_exact_draws_have_the_moments_of_a_coarser_grid(games, exact):
    """Every fourth node: the draws have no Monte Carlo error but that of 100,000 even steps."""
    logs, log_p = pattern.grid(**games)
    weight = softmax(log_p[::4, ::4, ::4])
    for axis, site in enumerate(HYPER):
        marginal = weight.sum(tuple({0, 1, 2} - {axis}))
        value = np.exp(logs[axis][::4]) * (1 if site == "lengthscale" else games["y"].std())
        mean = marginal @ value
        assert exact[site].mean() == pytest.approx(mean, rel=1e-3)
        assert exact[site].std() == pytest.approx(np.sqrt(marginal @ (value - mean) ** 2), rel=2e-3)


def test_curve_is_that_of_the_joint_gaussian(games):
    """At new points and at old ones, by conditioning (y, f) at once."""
    new = np.array([[1890.0], [1940.0], [1988.0], [2030.0]])
    both = {"x": np.concatenate([games["x"], new])}
    ratio = np.ptp(games["x"]) / np.ptp(both["x"])  # matern() measures in the range of what it is given
    draws = {"lengthscale": np.array([0.4, 2.0]), "amplitude": np.array([0.5, 0.05]), "noise": np.array([0.1, 0.4])}
    m, s = pattern.curve(new, **games, **draws)
    for row, (lengthscale, amplitude, noise) in enumerate(zip(*draws.values(), strict=True)):
        cov = amplitude**2 * matern(both, lengthscale * ratio)
        gain = cov[29:, :29] @ np.linalg.inv(cov[:29, :29] + (noise**2 + 1e-5 * games["y"].var()) * np.eye(29))
        np.testing.assert_allclose(m[row], games["y"].mean() + gain @ (games["y"] - games["y"].mean()), rtol=1e-9)
        np.testing.assert_allclose(s[row] ** 2, np.diag(cov[29:, 29:] - gain @ cov[:29, 29:]), rtol=1e-7)


@pytest.mark.slow
def test_exact_draws_agree_with_nuts(games, exact, rng_key, z_bound):
    """An effective number counts for means; of sds, whose tails are heavy, a quarter of it."""
    mcmc = MCMC(NUTS(pattern.model), num_warmup=500, num_samples=2000, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(rng_key, **games, extra_fields=("diverging",))
    assert int(mcmc.get_extra_fields()["diverging"].sum()) <= 5
    for site, draws in mcmc.get_samples(group_by_chain=True).items():
        draws = np.asarray(draws, float)
        assert split_gelman_rubin(draws) < 1.01, site
        error = np.sqrt(1 / effective_sample_size(draws) + 1 / 100_000)
        assert abs(draws.mean() - exact[site].mean()) / exact[site].std() < z_bound(6) * error, site
        assert abs(draws.std() / exact[site].std() - 1) < 2 * z_bound(6) * error, site


def test_fit_is_the_exact_posterior(games, exact, assert_fits):
    """floor: what a log-normal cannot do, and the error of 10,000 and 100,000 draws."""
    assert_fits(pattern, games, {site: (exact[site].mean(0), exact[site].std(0)) for site in HYPER}, worst=0.1, floor=0.045)


def test_elbo_is_the_evidence_to_a_tenth(games, rng_key):
    last = -np.asarray(pattern.fit(rng_key, **games)[1][-300:], float)
    assert 0 < pattern.log_evidence(**games) - last.mean() < 0.1


def test_units_do_not_matter(games):
    moved = pattern.data({"days": 365.25 * games["x"][:, 0] - 1e6, "y": 1000 * games["y"]})
    assert pattern.log_evidence(**moved) == pytest.approx(pattern.log_evidence(**games) - 29 * np.log(1000), abs=1e-6)
    with pytest.raises(ValueError, match="pass y too"):
        pattern.model(games["x"])


def test_docstring_tells_the_bias(games, exact, rng_key):
    """Within the Monte Carlo error of 10,000 draws; the curve of the last Games to a tenth of its sd."""
    q, _ = pattern.fit(rng_key, **games)
    assert min(np.std(q[site]) / exact[site].std() for site in HYPER[1:]) == pytest.approx(0.96, abs=0.03)
    ends = np.array([[1900.0], [2024.0], [2028.0]])
    here, there = (
        pattern.curve(ends, **games, **{k: np.asarray(v[::step], float) for k, v in draws.items()}) for draws, step in ((q, 5), (exact, 50))
    )
    total = np.sqrt(there[0].var(0) + np.mean(there[1] ** 2, axis=0))
    assert np.all(np.abs(here[0].mean(0) - there[0].mean(0)) < 0.1 * total)
