"""Annealed importance sampling of log p(x) against closed forms, also where plain weights from the guide fail."""

import math

import jax
import numpy as np
import pytest
from exact_vae import correlated, count_guide, count_model, trained
from scipy.stats import t

import vipatterns as vip
from vipatterns.amortized.annealing import schedule

NUM_ROWS = 40
NUM_CHAINS = 32


@pytest.fixture(scope="module")
def linear():
    return correlated()


@pytest.fixture(scope="module")
def x(linear):
    return linear.rows(np.random.default_rng(0), NUM_ROWS)


@pytest.fixture(scope="module")
def narrow(linear, x):
    """An encoder beside the posterior and far too sure of itself."""
    return linear.trained(x, shift=0.3, factor=0.3 / np.sqrt(np.diag(linear.precision)))


def unbiased(found, exact, false_alarm):
    """The mean weight over p(x) is one in expectation, datum by datum, however few the temperatures; chains are apart over data."""
    ratio = np.exp(found.log_p - exact)
    return abs(ratio.mean() - 1) < t.isf(false_alarm / 2, len(ratio) - 1) * ratio.std(ddof=1) / math.sqrt(len(ratio))


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_it_lies_within_its_error(start, narrow, linear, x, rng_key, false_alarm):
    """From the prior, or from a guide whose own weights fail."""
    exact = linear.log_p(x)
    found = vip.amortized.annealed_log_likelihood(rng_key, narrow, start=start, num_chains=NUM_CHAINS, num_temperatures=60, num_leapfrog=5)
    assert unbiased(found, exact, false_alarm)
    error = found.log_p - exact
    assert np.sqrt((error**2).mean()) < 0.5
    # The stated error is the error that was made, on average over data.
    assert 0.5 < np.sqrt((found.mcse**2).mean() / (error**2).mean()) < 2
    assert (np.abs(found.acceptance - 0.75) < 0.2).all()
    assert np.isnan(found.khat).all()
    assert "acceptance" in found.table
    assert f"from the {start}, {NUM_CHAINS} chains" in repr(found)


def test_plain_weights_of_that_guide_fail_and_say_so(narrow, linear, x, rng_key):
    found = vip.amortized.log_likelihood(rng_key, narrow, bounds=())
    assert (found.log_p - linear.log_p(x)).mean() < -5 * found.mean_mcse
    assert found.unreliable > NUM_ROWS / 2


def test_few_temperatures_are_unbiased_too(narrow, linear, x, rng_key, z_bound):
    """The step sizes come from chains of their own, and the weights from where a chain stood before it moved."""
    found = vip.amortized.annealed_log_likelihood(rng_key, narrow, start="prior", num_chains=4_000, num_temperatures=4, num_leapfrog=3)
    ratio = np.exp(found.log_p - linear.log_p(x))
    assert abs(ratio.mean() - 1) < z_bound() * np.sqrt(((ratio * found.mcse) ** 2).sum()) / NUM_ROWS


def test_a_latent_with_a_support_of_its_own(rng_key, false_alarm):
    """Poisson counts with an exponential rate: moves are on log z, with its Jacobian in both densities."""
    counts = np.repeat(np.arange(6), 5)
    model = trained(count_model, count_guide(3.0), {"x": counts})
    for start in ("guide", "prior"):
        found = vip.amortized.annealed_log_likelihood(
            rng_key, model, start=start, num_chains=NUM_CHAINS, num_temperatures=40, num_leapfrog=5
        )
        error = found.log_p + (counts + 1) * math.log(2)
        assert unbiased(found, -(counts + 1) * math.log(2), false_alarm)
        assert np.sqrt((error**2).mean()) < 0.2


def test_a_rare_weight_is_said(linear, x, rng_key):
    far = linear.trained(x[:5], shift=8.0, factor=np.full(2, 0.1))
    found = vip.amortized.annealed_log_likelihood(rng_key, far, num_temperatures=2, num_leapfrog=1)
    assert "more temperatures" in found.sentence


def test_the_schedule_runs_from_the_start_to_the_joint():
    betas = schedule(50)
    assert betas[0] == 0
    assert betas[-1] == 1
    steps = np.diff(betas)
    assert (steps > 0).all()
    np.testing.assert_allclose(steps, steps[::-1])
    assert steps[0] < steps[25] / 2


def test_another_start_is_refused(narrow):
    with pytest.raises(vip.InputError, match="'guide' or 'prior', got 'encoder'"):
        vip.amortized.annealed_log_likelihood(jax.random.key(0), narrow, start="encoder")
