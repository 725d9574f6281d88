"""Many data sets at once: each is answered as it would be alone, whatever the others take."""

import math

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import vipatterns as vip
from vipatterns import density, linear_response, many, mode, newton
from vipatterns.patterns import eight_schools_centered, linear_regression


def counts(exposure, y=None):
    """Poisson rates, so that Newton takes several steps; the number of them depends on the data."""
    level = numpyro.sample("level", dist.Normal(0.0, 3.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Poisson(exposure * np.e ** (level + slope * np.linspace(-1, 1, 6))), obs=y)


def two_peaks(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(abs(mu), 1.0), obs=y)


def datasets_of(rng, number):
    rates = np.exp(rng.normal(0, 3, (number, 1)) + rng.normal(0, 1, (number, 1)) * np.linspace(-1, 1, 6))
    return [{"exposure": np.ones(6), "y": y.astype(float)} for y in rng.poisson(rates)]


@pytest.fixture
def float64():
    with density.precision("float64"):
        yield


def test_each_optimum_is_the_one_found_alone(rng_key, float64):
    rng, clock = np.random.default_rng(0), density.Clock()
    datasets = datasets_of(rng, 150)  # more than go through a program at once
    first = density.read(counts, datasets[0])
    targets = [first.on(data) for data in datasets]
    base = linear_response.base_draws(rng_key, 16, first.dim)
    found = many.optima(rng, targets, mode.find(rng_key, first, clock), base, clock)
    assert len(found) == 150
    for i in (0, 1, 70, 149):
        start, optimum = found[i]
        alone, _ = linear_response.maximise(targets[i], start, base, np.zeros(2 * first.dim), clock)
        np.testing.assert_allclose(optimum.loc, alone.loc, atol=1e-6)
        np.testing.assert_allclose(optimum.factor, alone.factor, rtol=1e-5, atol=1e-8)
        assert optimum.converged
        assert optimum.error == pytest.approx(alone.error, rel=1e-4)
        assert optimum.losses[-1] == pytest.approx(alone.losses[-1], abs=1e-8)


def test_data_sets_that_are_done_are_evaluated_no_more():
    """Quadratics need one step, the one quartic among them many; and each ends where it does alone."""
    asked = []

    def at(x, lanes):
        asked.append(len(lanes))
        quartic = lanes == 3
        value = np.where(quartic, (x[:, 0] - 1) ** 4, (x[:, 0] - lanes) ** 2)
        gradient = np.where(quartic, 4 * (x[:, 0] - 1) ** 3, 2 * (x[:, 0] - lanes))
        hessian = np.where(quartic, 12 * (x[:, 0] - 1) ** 2, 2.0)
        return value, gradient[:, None], hessian[:, None, None]

    found = newton.minimise(at, np.full((10, 1), 50.0))
    np.testing.assert_allclose(np.delete(found.x[:, 0] - np.arange(10), 3), 0, atol=1e-9)
    assert found.x[3, 0] == pytest.approx(1, abs=0.02)
    assert found.converged.all()
    assert asked[0] == 10
    assert asked.count(1) > 5


def test_fits_to_many_data_sets_are_the_exact_posteriors(rng_key, z_bound):
    data = linear_regression.data()
    drawn = vip.prior_predictive(rng_key, linear_regression.model, {k: v for k, v in data.items() if k != "y"}, num_samples=20)
    datasets = [{**data, "y": y} for y in drawn["prior_predictive"]["y"].values[0]]
    fits = list(vip.DADVI().fit_many(rng_key, linear_regression.model, datasets))
    errors, evidence = [], []
    for fit, each in zip(fits, datasets, strict=True):
        assert fit.certificate.ok
        exact = linear_regression.exact_posterior(**each)["slopes"]
        mean, sd = np.asarray(exact.mean), np.asarray(exact.variance) ** 0.5
        draws = fit.posterior["slopes"].stack(sample=("chain", "draw")).values
        errors.append((draws.mean(-1) - mean) / sd / fit.certificate.mcse)
        # the reference is exact; the error of the estimate is the certificate's
        evidence.append(abs(fit.certificate.log_evidence - linear_regression.log_evidence(**each)) - 4 * fit.certificate.log_evidence_mcse)
    assert np.abs(errors).max() < z_bound(np.size(errors))
    assert max(evidence) < 1e-3


def test_further_modes_and_data_without_a_mode_are_treated_as_alone(rng_key):
    datasets = [{"y": np.full(5, 6.0)}, {"y": np.full(5, 5.0)}]
    for fit in vip.DADVI().fit_many(rng_key, two_peaks, datasets):
        assert not fit.certificate.ok
        assert "mode" in fit.certificate.verdict
    schools = eight_schools_centered.data()
    for fit in vip.DADVI().fit_many(rng_key, eight_schools_centered.model, [schools, {**schools, "y": 2.0 * np.asarray(schools["y"])}]):
        assert not fit.certificate.ok
        assert "no mode" in fit.stopped_because


def test_data_sets_of_another_shape_are_refused_in_a_sentence(rng_key):
    with pytest.raises(vip.InputError, match=r"like the first, with .*y.*float64\[6\].*one has .*float64\[5\]"):
        list(vip.DADVI().fit_many(rng_key, counts, [{"exposure": np.ones(6), "y": np.ones(6)}, {"exposure": np.ones(6), "y": np.ones(5)}]))


def test_keys_of_the_host_are_independent_and_no_two_alike():
    from vipatterns import keys

    key = jax.random.key(3)
    made = [*keys.split(key, 2), *keys.split(key, 3), *(keys.fold_in(key, i) for i in range(5)), key]
    words = {tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in made}
    assert len(words) == len(made)
    assert {str(k.dtype) for k in made} == {str(key.dtype)}
    # Pearson's correlation of streams that neighbouring keys begin
    streams = np.array([keys.generator(keys.fold_in(key, i)).standard_normal(2_000) for i in range(20)])
    off = np.corrcoef(streams)[np.triu_indices(20, 1)]
    assert np.abs(off).max() < 5 / math.sqrt(2_000)
