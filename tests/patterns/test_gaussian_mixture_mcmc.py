"""gaussian_mixture_mcmc: a sweep leaves the enumerated posterior as it is, chains visit all of it, and sorting undoes their switching."""

import jax
import numpy as np
import pytest
from numpyro.infer import MCMC, NUTS
from scipy.special import logsumexp, softmax
from scipy.stats import chi2, norm, t

from vipatterns.patterns import gaussian_mixture as variational
from vipatterns.patterns import gaussian_mixture_mcmc as pattern

OVERLAPPING = np.array([-1.5, -1.2, -0.9, 0.2, 1.0, 1.4, 1.6])
"""Two groups in which most rows could be of either."""


@pytest.fixture(scope="module")
def rows():
    return pattern.data()


@pytest.fixture(scope="module")
def chains(rng_key):
    """chains(y, K, num_steps) -> draws of 16 chains, (16, num, K), and their losses."""

    def run(y, num_components, num_steps):
        fit = jax.jit(jax.vmap(lambda key: pattern.fit(key, y, num_components, num_steps=num_steps)))
        q, losses = fit(jax.random.split(rng_key, 16))
        return np.asarray(q["mu"], float), np.asarray(losses, float)

    return run


def assert_same_mean(values, expected, false_alarm):
    """Means of 16 chains, (16, ...), are about `expected`; the chains' scatter holds whatever their draws' dependence does."""
    bound = t.isf(false_alarm / (2 * np.size(expected)), len(values) - 1)
    assert np.all(np.abs(values.mean(0) - expected) < bound * values.std(0, ddof=1) / np.sqrt(len(values)))


def test_model_data_and_answers_are_those_of_gaussian_mixture(rows):
    np.testing.assert_array_equal(rows["y"], variational.data()["y"])
    assert pattern.log_evidence(**rows) == variational.log_evidence(**rows)
    np.testing.assert_array_equal(pattern.best_guide(rows["y"]), variational.documented_bias(**rows)["mu"])


@pytest.mark.parametrize(("y", "num_components"), [(OVERLAPPING, 2), (pattern.data()["y"], 3)], ids=["overlapping", "apart"])
def test_one_sweep_leaves_the_posterior_as_it_is(y, num_components, rng_key, z_bound):
    """From exact draws to exact draws: E mu_k, E mu_k mu_l and E sum_k r_ik mu_k, all by enumeration, after one sweep."""
    log_p, m, var = pattern.assignments(y, num_components)
    weight = softmax(log_p)
    start = np.random.default_rng(1).permutation(pattern.exact_posterior(y, num_components)["mu"]).astype(np.float32)
    mu = np.asarray(jax.vmap(pattern.sweep, (0, 0, None))(jax.random.split(rng_key, len(start)), start, y), float)
    second = np.einsum("a,ak,al->kl", weight, m, m) + np.diag(weight @ var)
    products = mu[:, :, None] * mu[:, None, :]
    for found, expected in ((mu, weight @ m), (products, second)):
        error = found.std(0) / np.sqrt(len(mu))
        assert np.all(np.abs(found.mean(0) - expected) < z_bound(2 * second.size) * error)


def test_draws_are_the_posterior_over_all_modes(rows, assert_fits):
    log_p, m, var = pattern.assignments(rows["y"], 3)
    weight = softmax(log_p)
    mean = weight @ m
    assert_fits(pattern, rows, {"mu": (mean, np.sqrt(weight @ (var + m**2) - mean**2))}, worst=0.1)


def test_every_order_is_visited_equally_often(rows, rng_key, false_alarm):
    """A new name is drawn afresh at every sweep, so that the counts are multinomial."""
    q, _ = pattern.fit(rng_key, **rows)
    orders, counts = np.unique(np.argsort(q["mu"], axis=1), axis=0, return_counts=True)
    assert len(orders) == 6
    expected = len(q["mu"]) / 6
    assert np.sum((counts - expected) ** 2 / expected) < chi2.isf(false_alarm, 5)


@pytest.mark.parametrize(("y", "num_components"), [(OVERLAPPING, 2), (pattern.data()["y"], 3)], ids=["overlapping", "apart"])
def test_sorted_draws_are_the_sorted_posterior(y, num_components, chains, false_alarm):
    """Means and second moments, where rows could be of two components and where not."""
    draws, _ = chains(y, num_components, 5000)
    exact = np.sort(pattern.exact_posterior(y, num_components)["mu"], axis=1)
    ordered = np.sort(draws, axis=2)
    for power in (1, 2):
        values = np.mean(ordered**power, axis=1)
        slack = np.std(exact**power, axis=0) / np.sqrt(len(exact))  # the exact draws' own error
        scatter = values.std(0, ddof=1)
        bound = t.isf(false_alarm / (4 * num_components), 15)
        assert np.all(np.abs(values.mean(0) - np.mean(exact**power, axis=0)) < bound * np.hypot(scatter / 4, slack))


def test_where_groups_overlap_vi_is_off_and_the_chain_is_not(chains, false_alarm):
    """What VI leaves out: the spread of the means. The chain's sds are the exact ones, VI's are three quarters of them or less."""
    exact = np.sort(pattern.exact_posterior(OVERLAPPING, 2)["mu"], axis=1)
    _, s = pattern.best_guide(OVERLAPPING, 2)
    assert np.all(s < 0.75 * exact.std(0))
    sds = np.sort(chains(OVERLAPPING, 2, 5000)[0], axis=2).std(1)
    assert_same_mean(np.log(sds), np.log(exact.std(0)), false_alarm / 2)


def test_losses_are_the_negative_log_density_of_the_draws(rows, rng_key):
    q, losses = pattern.fit(rng_key, **rows, num_steps=500)
    mu = np.asarray(q["mu"], float)
    assert mu.shape == (450, 3)
    log_y = logsumexp(norm.logpdf(rows["y"][:, None], mu[:, None, :]), axis=2) - np.log(3)
    np.testing.assert_allclose(losses[50:], -log_y.sum(1) - norm.logpdf(mu, scale=5).sum(1), rtol=1e-5)


@pytest.mark.slow
def test_nuts_stays_in_one_mode_and_says_so_nowhere(rows, rng_key, z_bound):
    """The prose's claim: four chains from one mode never change order, agree with one another, and are off by many sds."""
    m, s = pattern.best_guide(rows["y"])
    key_start, key = jax.random.split(rng_key)
    start = {"mu": m + s * jax.random.normal(key_start, (4, 3))}
    mcmc = MCMC(NUTS(pattern.model), num_warmup=500, num_samples=1000, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(key, **rows, init_params=start)
    mu = np.asarray(mcmc.get_samples(group_by_chain=True)["mu"], float)
    assert np.all(np.argsort(mu, axis=2) == np.arange(3))
    ordered = np.sort(pattern.exact_posterior(**rows)["mu"], axis=1)
    np.testing.assert_allclose((mu.mean((0, 1)) - ordered.mean(0)) / ordered.std(0), 0, atol=z_bound(3) / np.sqrt(1000))
    assert np.all(pattern.exact_posterior(**rows)["mu"].std(0) > 4 * mu.std((0, 1)))


def test_too_many_rows_to_enumerate_are_refused():
    with pytest.raises(ValueError, match="compare chains"):
        pattern.log_evidence(np.zeros(40), 3)
