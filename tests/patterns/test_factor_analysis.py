"""factor_analysis: its data against a published fit, its model against dense Gaussians, its Gibbs draws against NUTS, its fit to them."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_value
from numpyro.infer.util import log_density
from scipy.optimize import minimize
from scipy.stats import chi, invgamma, multivariate_normal, norm

from vipatterns.patterns import factor_analysis as pattern

SITES = ["diagonal", "below", "mu", "noise"]
INDEPENDENT = 10_000
"""Draws that exact_posterior says it is worth."""


@pytest.fixture(scope="module")
def girls():
    return pattern.data()


@pytest.fixture(scope="module")
def exact(girls):
    return pattern.exact_posterior(**girls)


@pytest.fixture(scope="module")
def school():
    """Rows with the correlations of Gaelic, arithmetic, English, history, algebra and geometry of 220 boys (Lawley and Maxwell 1971)."""
    correlations = np.eye(6)
    published = ".288 .439 .354 .410 .164 .351 .329 .595 .320 .190 .248 .470 .329 .181 .464"
    correlations[np.tril_indices(6, -1)] = np.array(published.split(), float)
    rows = np.random.default_rng(0).normal(size=(220, 6))
    rows = np.linalg.qr(rows - rows.mean(0))[0] * np.sqrt(220)
    return pattern.data({"x": rows @ np.linalg.cholesky(correlations).T})


def covariance(loadings, noise):
    return loadings @ np.swapaxes(loadings, -1, -2) + noise[..., None] * np.eye(noise.shape[-1])


def loadings_of(draws):
    """(S, P, 2), in the columns' sds, by loops: the diagonal, then what is below it, row by row."""
    w, entries = np.zeros((len(draws["mu"]), draws["mu"].shape[1], 2)), iter(draws["below"].T)
    for p in range(w.shape[1]):
        for k in range(min(p, 2)):
            w[:, p, k] = next(entries)
    w[:, 0, 0], w[:, 1, 1] = draws["diagonal"].T
    return w


def likelihood_ratio(log_noise, correlation, num_factors):
    """Of the best loadings for these noise variances, per row (Lawley 1940): a sum over the eigenvalues that no factor takes."""
    sd = np.exp(log_noise / 2)
    left = np.linalg.eigvalsh(correlation / np.outer(sd, sd))[:-num_factors]
    return np.sum(left - np.log(left) - 1)


def test_data_has_the_published_fit(girls):
    """factanal(factors = 2, covmat = Harman23.cor) in R: uniquenesses, and a chi-square of 75.74 on 13 degrees of freedom."""
    np.testing.assert_allclose(girls["units"], [[50] * 8, [10] * 8], rtol=1e-12)
    correlation = np.corrcoef(girls["x"].T)
    best = minimize(likelihood_ratio, np.full(8, -1.0), args=(correlation, 2), method="BFGS")
    np.testing.assert_allclose(np.exp(best.x), [0.170, 0.089, 0.107, 0.166, 0.199, 0.364, 0.416, 0.537], atol=6e-4)
    assert best.fun * (305 - 1 - (2 * 8 + 5) / 6 - 2 * 2 / 3) == pytest.approx(75.74, abs=0.01)


@pytest.mark.parametrize("num_factors", [1, 2, 3])
def test_model_is_the_dense_gaussian(girls, num_factors):
    d, rng = girls | {"num_factors": num_factors}, np.random.default_rng(num_factors)
    mean, sd = d["units"]
    w = np.tril(rng.normal(size=(8, num_factors)))
    w[np.diag_indices(num_factors)] = np.abs(np.diag(w))
    mu, noise = mean + rng.normal(size=8), sd**2 * rng.uniform(0.2, 1.0, 8)
    below = [w[p, k] for p in range(8) for k in range(min(p, num_factors))]
    sites = {"diagonal": np.diag(w), "below": np.array(below), "mu": mu, "noise": noise}
    prior = sum(chi.logpdf(w[k, k], num_factors - k) for k in range(num_factors)) + norm.logpdf(below).sum()
    prior += norm.logpdf(mu, mean, 2.5 * sd).sum() + invgamma.logpdf(noise, 3, scale=sd**2).sum()
    log_p = multivariate_normal.logpdf(d["x"], mu, covariance(sd[:, None] * w, noise)).sum()
    got = log_density(pattern.model, (), d, {name: jnp.asarray(value) for name, value in sites.items()})[0]
    assert float(got) == pytest.approx(log_p + prior, rel=1e-5)  # in float32


def test_the_triangle_of_a_full_matrix_has_the_prior(z_bound):
    """The text's claim: second moments of the triangle that standard normals turn into; chi-square's are its degrees of freedom."""
    full = np.random.default_rng(1).normal(size=(50_000, 4, 3))
    w = full @ np.linalg.qr(np.swapaxes(full[:, :3], 1, 2))[0]
    expected = np.array([[3, 0, 0], [1, 2, 0], [1, 1, 1], [1, 1, 1]])
    error = (w**2).std(0) / np.sqrt(len(w))
    assert np.all(np.abs((w**2).mean(0) - expected) < z_bound(9) * error + 1e-12)
    np.testing.assert_allclose(w @ np.swapaxes(w, 1, 2), full @ np.swapaxes(full, 1, 2), atol=1e-10)


@pytest.mark.slow
def test_exact_draws_agree_with_nuts(girls, exact, rng_key, z_bound):
    """Chains start at positive loadings. An effective number counts for means; of sds, whose tails are a little heavy, half of it."""
    start = {name: jnp.asarray(exact[name].mean(0)) for name in SITES}
    kernel = NUTS(pattern.model, init_strategy=init_to_value(values=start))
    mcmc = MCMC(kernel, num_warmup=300, num_samples=1000, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(rng_key, **girls, extra_fields=("diverging",))
    assert int(mcmc.get_extra_fields()["diverging"].sum()) <= 5
    for name in SITES:
        draws = np.asarray(mcmc.get_samples(group_by_chain=True)[name], float)
        assert np.all(split_gelman_rubin(draws) < 1.01)
        error, flat = np.sqrt(1 / effective_sample_size(draws) + 1 / INDEPENDENT), draws.reshape(-1, draws.shape[-1])
        assert np.all(np.abs(flat.mean(0) - exact[name].mean(0)) / exact[name].std(0) < z_bound(62) * error), name
        assert np.all(np.abs(flat.std(0) / exact[name].std(0) - 1) < 1.5 * z_bound(62) * error), name


def test_exact_draws_are_worth_what_is_said(exact):
    """400 chains of 100 draws, 5 steps apart."""
    for name in SITES:
        assert exact[name].shape[0] == 40_000
        chains = np.swapaxes(exact[name].reshape(100, 400, -1), 0, 1)
        assert effective_sample_size(chains).min() > INDEPENDENT, name
        assert np.all(np.abs(chains[:, :10].mean((0, 1)) - chains.mean((0, 1))) < 0.1 * chains.std((0, 1))), f"{name}: still on its way"


def test_order_of_columns_names_the_factors_and_changes_nothing_else(girls, exact, z_bound):
    """Chest girth and forearm first: other loadings, the same covariance of the columns."""
    order = [6, 3, 0, 1, 2, 4, 5, 7]
    other = pattern.exact_posterior(girls["x"][:, order])
    assert np.abs(loadings_of(other).mean(0) - loadings_of(exact)[:, order].mean(0)).max() > 0.3
    one, two = (covariance(10 * loadings_of(draws), draws["noise"]) for draws in (exact, other))
    one = one[:, order][:, :, order]
    bound, entry = z_bound(2 * 36) * np.sqrt(2 / INDEPENDENT), np.tril_indices(8)
    assert np.all((np.abs(one.mean(0) - two.mean(0)) / one.std(0))[entry] < bound)
    assert np.all(np.abs(np.log(one.std(0) / two.std(0)))[entry] < bound)


@pytest.mark.slow
def test_docstring_tells_the_bias(girls, exact, school, refit):
    """Averages over four keys: each within the error of 80,000 draws and of those of the Gibbs chains."""
    for d, answer, most, least, greatest in (
        (girls, exact, 0.02, 0.97, 1.0),
        (school, pattern.exact_posterior(**school), 0.04, 0.86, 0.98),
    ):
        fits = refit(pattern, d, 4)
        shift = [np.abs(fits[name][0].mean(0) - answer[name].mean(0)) / answer[name].std(0) for name in SITES]
        ratio = np.concatenate([fits[name][1].mean(0) / answer[name].std(0) for name in SITES])
        assert np.concatenate(shift).max() < most + 0.01
        np.testing.assert_allclose([ratio.min(), ratio.max()], [least, greatest], atol=0.02)


def test_independent_gaussians_would_be_twice_too_sure_of_a_mean(girls, exact):
    """The text's claim, for arm span: the variance of a mean given the other means, over its own."""
    cov = covariance(10 * loadings_of(exact), exact["noise"])[::10]
    precision = 305 * np.linalg.inv(cov).mean(0) + np.eye(8) / 25**2
    assert 1 / np.sqrt(precision[2, 2]) / exact["mu"][:, 2].std() < 0.5


def test_rows_are_predicted_and_new_ones_need_the_units_of_the_old(girls, rng_key):
    sites = handlers.trace(handlers.seed(pattern.model, rng_key)).get_trace(num_observations=7, units=girls["units"])
    assert sites["x"]["value"].shape == (7, 8)
    with pytest.raises(ValueError, match="pass x too"):
        pattern.model()


def test_units_do_not_matter(girls, exact):
    moved = pattern.data({f"c{j}": 2.54 * girls["x"][:, j] - 100 * j for j in range(8)} | {"name": ["?"] * 305})
    there = pattern.exact_posterior(**moved)
    np.testing.assert_allclose(there["below"], exact["below"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(there["noise"], 2.54**2 * exact["noise"], rtol=1e-6)
    np.testing.assert_allclose(there["mu"], 2.54 * exact["mu"] - 100 * np.arange(8), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_factors", [1, 3])
def test_guide_draws_triangles_for_any_number_of_factors(girls, num_factors, rng_key):
    """Its log density is that of the Gaussian and the change of variables; above the diagonal nothing, on it only what is positive."""
    trace = handlers.trace(handlers.seed(pattern.guide, rng_key)).get_trace(**girls | {"num_factors": num_factors})
    loadings = np.asarray(trace["loadings"]["value"])
    assert loadings.shape == (8, num_factors)
    assert np.all(np.triu(loadings, 1) == 0)
    assert np.all(np.diag(loadings) > 0)
    b = np.split(trace["b"]["value"], np.cumsum([num_factors, len(trace["below"]["value"]), 8]))
    np.testing.assert_allclose(trace["diagonal"]["value"], np.exp(b[0]), rtol=1e-5)
    np.testing.assert_allclose(trace["noise"]["value"], 100 * np.exp(b[3]), rtol=1e-5)
    jacobian = {name: np.sum(trace[name]["fn"].log_density) for name in SITES}
    expected = {"diagonal": -b[0].sum(), "below": 0, "mu": -8 * np.log(10), "noise": -16 * np.log(10) - b[3].sum()}
    np.testing.assert_allclose([float(jacobian[name]) for name in SITES], [float(expected[name]) for name in SITES], rtol=1e-5)
