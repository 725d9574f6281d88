"""gaussian_mixture_stochastic: batches without bias, the rest of coordinate ascent by two other ways, and noise that dies out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vipatterns.patterns import gaussian_mixture_cavi as by_sweeps
from vipatterns.patterns import gaussian_mixture_stochastic as pattern


@pytest.fixture(scope="module")
def rows():
    return pattern.data()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standardised(rows, x64):
    """Rows, and sums on the way to rest: two sweeps from the start."""
    x = jnp.asarray((rows["y"] - rows["units"][0]) / rows["units"][1])
    sums = pattern.start(len(x), 3)
    for _ in range(2):
        sums, _ = pattern.step(sums, x, len(x), 1.0)
    return x, sums


def test_priors_are_those_of_gaussian_mixture_cavi():
    for name in ("ALPHA0", "A0", "B0", "KAPPA0"):
        assert getattr(pattern, name) == getattr(by_sweeps, name)


@pytest.mark.parametrize("size", [50, 500])
def test_the_batches_of_one_pass_average_to_all_rows(standardised, rng_key, size):
    """Every row is in one batch: the average natural gradient, and the average estimate of the ELBO, are those of all rows."""
    x, sums = standardised
    batches = jax.random.permutation(rng_key, x).reshape(-1, size)
    after, elbos = jax.vmap(lambda batch: pattern.step(sums, batch, len(x), 1.0))(batches)
    full, elbo = pattern.step(sums, x, len(x), 1.0)
    np.testing.assert_allclose(after.mean(0), full, rtol=1e-10, atol=1e-8)
    assert float(elbos.mean()) == pytest.approx(float(elbo), rel=1e-10)


def test_a_batch_drawn_at_random_is_unbiased(standardised, rng_key, z_bound):
    """4,000 batches of 50, apart from one another: the mean natural gradient within its standard error of that of all rows."""
    x, sums = standardised
    draw = jax.vmap(lambda key: pattern.step(sums, jax.random.choice(key, x, (50,), replace=False), len(x), 1.0)[0] - sums)
    gradients = np.asarray(draw(jax.random.split(rng_key, 4_000)))
    full = np.asarray(pattern.step(sums, x, len(x), 1.0)[0] - sums)
    assert np.all(np.abs(gradients.mean(0) - full) < z_bound(9) * gradients.std(0) / np.sqrt(4_000))
    assert np.all(np.abs(full) < 10 * gradients.std(0)), "and a single batch is noisy"


def test_elbo_of_all_rows_is_that_of_gaussian_mixture_cavi(rows, standardised):
    x, sums = standardised
    (mean, sd), q = rows["units"], pattern.posterior(sums)
    _, elbo = pattern.step(sums, x, len(x), 1.0)
    in_units = q | {"m": mean + sd * q["m"], "b": q["b"] * sd**2}
    assert float(elbo - len(x) * np.log(sd)) == pytest.approx(float(by_sweeps.elbo(in_units, rows["y"], rows["units"])), rel=1e-12)


def test_documented_bias_is_the_maximum_of_the_elbo(rows):
    """By BFGS, in gaussian_mixture_cavi: no sweep, no sums."""
    expected = by_sweeps.documented_bias(**rows)
    for site, moments in pattern.documented_bias(**rows).items():
        np.testing.assert_allclose(moments, expected[site], rtol=1e-4)


def test_rates_are_those_of_robbins_and_monro():
    """Of (t + d)^-f the sum diverges for f <= 1, and the sum of squares converges for f > 1/2; each shown on ever later stretches."""
    assert 0.5 < pattern.FORGETTING <= 1
    rates = (np.arange(10.0**6) + pattern.DELAY) ** -pattern.FORGETTING
    stretches = [rates[10**j : 10 ** (j + 1)] for j in range(2, 6)]
    assert np.all(np.diff([stretch.sum() for stretch in stretches]) > 0)
    assert np.all(np.diff(np.log([(stretch**2).sum() for stretch in stretches])) < -0.5)


@pytest.mark.slow
def test_fit_is_the_best_q(rows, assert_fits):
    assert_fits(pattern, rows, pattern.documented_bias(**rows), worst=0.06, floor=0.01)


@pytest.mark.slow
def test_the_noise_dies_out_with_the_rate(rows, rng_key, monkeypatch):
    """At a rate that stays where it was at the hundredth step, fits under eight keys scatter five times as much as at rates that fall."""

    def scatter():
        fit = jax.jit(jax.vmap(lambda key: pattern.fit(key, **rows, num_steps=3000)[0]["mu"].mean))
        return np.asarray(fit(jax.random.split(rng_key, 8)), float).std(0)

    falling = scatter()
    step, fixed = pattern.step, (100 + pattern.DELAY) ** -pattern.FORGETTING
    monkeypatch.setattr(pattern, "step", lambda sums, x, n, rate: step(sums, x, n, fixed))
    assert np.all(scatter() > 5 * falling)


def test_a_table_shorter_than_a_batch_is_one_batch(rng_key):
    y = np.array([1.0, 1.2, 0.9, 5.0, 5.3, 9.1, 9.0])
    q, losses = pattern.fit(rng_key, **pattern.data({"y": y}), num_steps=30)
    assert losses.shape == (30,)
    assert np.all(np.isfinite(losses))
    assert np.all(np.diff(q["mu"].mean) > 0)
