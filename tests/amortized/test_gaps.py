"""Gaps of linear models against their closed forms, for encoders that are wrong by a known amount."""

import math

import jax
import numpy as np
import pytest
from exact_vae import correlated, count_guide, count_model, orthogonal, trained

import vipatterns as vip
from vipatterns.amortized.gaps import SETTLED

NUM_ROWS = 20


def agree(found, exact, z_bound):
    """Every datum, and the mean over data, within error; what refinement left is allowed one gain that it would not have gone on for."""
    for column, value in exact.items():
        error = found.table[column] - value
        mcse = found.table[f"{column}_mcse"]
        left = 0.0 if column in ("elbo", "log_p") else SETTLED
        assert (error.abs() < z_bound(NUM_ROWS * len(exact)) * mcse + left + 1e-5).all(), column
        assert abs(error.mean()) < z_bound(len(exact)) * found.mean_mcse(column) + left, column


def test_an_encoder_that_is_off_where_the_family_holds_the_posterior(rng_key, z_bound):
    linear = orthogonal()
    x = linear.rows(np.random.default_rng(0), NUM_ROWS)
    wrong = {"shift": 0.3, "factor": 1.5 / np.sqrt(np.diag(linear.precision))}
    found = vip.amortized.gaps(rng_key, linear.trained(x, **wrong))
    kl, log_p = linear.kls(x, **wrong), linear.log_p(x)
    agree(
        found,
        {"elbo": log_p - kl, "best_elbo": log_p, "log_p": log_p, "amortisation_gap": kl, "approximation_gap": np.zeros(NUM_ROWS)},
        z_bound,
    )
    assert found.family == "diagonal Gaussian"
    assert "The encoder loses more" in found.sentence
    assert found.mean("approximation_gap")[0] < 1e-4


def test_a_family_that_is_too_poor(rng_key, z_bound):
    """The best diagonal q has the precision's diagonal for its own: KL = half of log (product of the diagonal / determinant)."""
    linear = correlated()
    x = linear.rows(np.random.default_rng(0), NUM_ROWS)
    sds = 1 / np.sqrt(np.diag(linear.precision))
    best = 0.5 * (np.log(np.diag(linear.precision)).sum() - np.linalg.slogdet(linear.precision)[1])
    found = vip.amortized.gaps(rng_key, linear.trained(x, shift=-0.1, factor=sds))
    kl, log_p = linear.kls(x, shift=-0.1, factor=sds), linear.log_p(x)
    agree(
        found,
        {"elbo": log_p - kl, "best_elbo": log_p - best, "log_p": log_p, "amortisation_gap": kl - best, "approximation_gap": best + 0 * kl},
        z_bound,
    )
    assert "The family loses more" in found.sentence
    assert (found.table.khat < 0.7).all(), "half of the draws are wider, so that log p has no heavy tail"
    assert found.num_rounds < 8
    assert found.last_gain <= SETTLED


def test_a_full_covariance_is_refined_as_one(rng_key, z_bound):
    linear = correlated()
    x = linear.rows(np.random.default_rng(0), NUM_ROWS)
    factor = np.diag(np.sqrt(np.diag(np.linalg.inv(linear.precision))))
    found = vip.amortized.gaps(rng_key, linear.trained(x, factor=factor))
    kl, log_p = linear.kls(x, factor=factor), linear.log_p(x)
    agree(found, {"best_elbo": log_p, "log_p": log_p, "amortisation_gap": kl, "approximation_gap": np.zeros(NUM_ROWS)}, z_bound)
    assert found.family == "full Gaussian"


def test_another_family_is_said_to_be_one(rng_key, z_bound):
    """An exact Gamma posterior: a Gaussian on log z falls short of it, so the gap to the best one is negative, and the gaps sum to zero."""
    counts = np.arange(5)
    found = vip.amortized.gaps(rng_key, trained(count_model, count_guide(), {"x": counts}), num_samples=2_000)
    assert found.family == "other"
    assert found.sentence.startswith("Q is no Gaussian")
    assert "the family loses" not in found.sentence
    np.testing.assert_allclose(found.table.elbo, -(counts + 1) * math.log(2), rtol=1e-10)
    assert (found.table.amortisation_gap < z_bound(5) * found.table.amortisation_gap_mcse).all()
    assert found.table.amortisation_gap.mean() < -z_bound() * found.mean_mcse("amortisation_gap")
    error = found.table.log_p + (counts + 1) * math.log(2)
    assert (error.abs() < z_bound(5) * found.table.log_p_mcse).all()


def test_nothing_to_gain_is_said_and_log_p_may_be_given(rng_key):
    linear = orthogonal()
    model = linear.trained(linear.rows(np.random.default_rng(0), 4))
    given = vip.amortized.log_likelihood(rng_key, model, num_samples=100, bounds=())
    found = vip.amortized.gaps(rng_key, model, log_likelihood=given, num_samples=100, num_steps=20)
    assert "Neither gap can be told from nothing." in found.sentence
    np.testing.assert_array_equal(found.table.log_p, given.log_p)
    np.testing.assert_allclose(found.table.amortisation_gap, 0, atol=1e-9)
    assert found.num_rounds == 1
    for part in ("ELBO after refinement", "approximation gap", "over 4 data"):
        assert part in repr(found)
    with pytest.raises(vip.InputError, match="of 4 data, and there are 2 rows"):
        vip.amortized.gaps(jax.random.key(0), model, {"x": model.held_out["x"][:2]}, log_likelihood=given)


@pytest.mark.parametrize("method", [vip.Laplace(), pytest.param(vip.NUTS(), marks=pytest.mark.slow)], ids=["laplace", "nuts"])
def test_single_data_beside_a_reference(method, rng_key, z_bound):
    """The posterior of this model is Gaussian, so Laplace is exact: q is off by what the encoder is off by, in posterior sds."""
    linear = correlated()
    x = linear.rows(np.random.default_rng(0), 2)
    sds = 1 / np.sqrt(np.diag(linear.precision))
    found = vip.amortized.reference(rng_key, linear.trained(x, shift=0.3, factor=sds), method=method)
    means, cov = linear.posterior(x)
    exact_sds = np.tile(np.sqrt(np.diag(cov)), 2)
    assert list(found.index) == [(0, "z[0]"), (0, "z[1]"), (1, "z[0]"), (1, "z[1]")]
    assert found.reference_ok.all()
    assert (np.abs(found.reference_mean - means.ravel()) < z_bound(16) * found.mcse * exact_sds).all()
    assert (np.abs(found.mean_error - 0.3 / exact_sds) < z_bound(16) * 2 * found.mcse).all()
    assert (np.abs(found.reference_sd / exact_sds - 1) < z_bound(16) * found.mcse).all()
    assert (np.abs(found.sd_ratio - np.tile(sds, 2) / exact_sds) < z_bound(16) * found.mcse).all()
