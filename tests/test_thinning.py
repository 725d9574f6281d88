"""More draws of q than are held: what is held of them weighs as they all do, and a fit that needs them is certified."""

import math

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from known_q import fit_of
from scipy.stats import norm

import vipatterns as vip
from vipatterns import certification, diagnosis, keys
from vipatterns.thinning import Drawn

SD = 1.5
"""Of q; p is N(0, 1)."""
DIM = 14
"""Of the model: with q 1.5 times too wide in each, 4,000 draws have an effective number of 4,000 / 1.20^14, too few for its means."""


def batch(rng_key, number):
    z = SD * keys.generator(rng_key).standard_normal(number)
    return Drawn(norm.logpdf(z), norm.logpdf(z, 0, SD), {"z": z, "twice": np.stack([z, 2 * z], 1)})


def thinned(rng_key, *, first=2_000, number=6_500, most_held=700):
    key, key_thin, key_more = keys.split(rng_key, 3)
    return batch(key, first).thinned(keys.generator(key_thin), most_held).extended(batch, key_more, number, batch=1_000)


def weighted(drawn):
    return np.exp(drawn.log_weights(diagnosis.smooth(drawn.log_p, drawn.log_q)))


def test_what_is_held_are_the_draws_of_the_largest_priority(rng_key):
    drawn = thinned(rng_key)
    z, size = drawn.values["z"], 2_000 + 6_500
    assert (drawn.size, drawn.log_q.size, len(z), len(np.unique(drawn.held))) == (size, size, 700, 700)
    np.testing.assert_array_equal(drawn.values["twice"], np.stack([z, 2 * z], 1))
    chosen = np.arange(0, 700, 7)
    np.testing.assert_allclose(drawn.log_densities(chosen)["log_p"], norm.logpdf(z[chosen]))
    np.testing.assert_allclose(drawn.log_densities(chosen)["log_q"], norm.logpdf(z[chosen], 0, SD))
    ratio = (drawn.log_p - drawn.log_q)[drawn.held]
    assert (drawn.priority > drawn.cut).all()
    assert (drawn.priority > ratio).all()
    assert set(np.flatnonzero(drawn.log_p - drawn.log_q > drawn.cut)) <= set(drawn.held), "a weight above the cut stays for certain"


def test_a_sample_that_is_asked_to_be_thinned_again_goes_on(rng_key):
    """As where draws are taken in more than one round: it raised, since it no longer holds what it let go."""
    key, key_again, key_more = keys.split(rng_key, 3)
    once = thinned(key)
    again = once.thinned(keys.generator(key_again), 700)
    assert again is once
    assert again.extended(batch, key_more, 1_500, batch=1_000).size == 2_000 + 6_500 + 1_500


def test_sums_over_what_is_held_are_those_over_all(rng_key, z_bound):
    """Of p = N(0, 1) the weighted moments 0, 1, 0, 3; their errors by the scatter over runs."""
    moments = []
    for key in keys.split(rng_key, 200):
        drawn = thinned(key)
        w, z = weighted(drawn), drawn.values["z"]
        assert w.sum() == pytest.approx(1)
        moments.append([w @ z**k for k in (1, 2, 3, 4)])
    mean, sd = np.mean(moments, 0), np.std(moments, 0, ddof=1)
    assert (np.abs(mean - [0, 1, 0, 3]) < z_bound(4) * sd / math.sqrt(200)).all()
    # As good as independent draws of N(0, 1), or better: theirs have variances 1 and 2.
    assert (sd[:2] < np.sqrt([1, 2]) / math.sqrt(700) * (1 + z_bound(2) / math.sqrt(400))).all()


@pytest.mark.parametrize("at", [0, 3_333])
def test_a_draw_that_is_not_finite_is_seen_though_it_weighs_nothing(at, rng_key):
    seen = iter(range(10_000_000))

    def broken(key, number):
        drawn = batch(key, number)
        start = next(seen) * 1_000
        if start <= at < start + number:
            drawn.log_p[at - start], drawn.values["z"][at - start] = -np.inf, np.nan
        return drawn

    key, key_thin, key_more = keys.split(rng_key, 3)
    drawn = broken(key, 1_000).thinned(keys.generator(key_thin), 300).extended(broken, key_more, 5_000, batch=1_000)
    assert np.isnan(drawn.values["z"]).sum() == 1
    assert drawn.held[np.isnan(drawn.values["z"])] == [at]


def model():
    numpyro.sample("x", dist.Normal(0, 1).expand([DIM]).to_event(1))


@pytest.fixture(scope="module")
def fit(rng_key):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certification, "HELD_NUMBERS", certification.FEWEST_PROPOSALS * DIM)
        yield fit_of(rng_key, model, scale=SD)


def test_more_draws_are_weighed_than_are_held(fit, rng_key, monkeypatch, z_bound):
    monkeypatch.setattr(certification, "HELD_NUMBERS", certification.FEWEST_PROPOSALS * DIM)
    monkeypatch.setattr(certification, "MORE", 1)
    few = fit_of(rng_key, model, scale=SD)
    assert not few.certificate.ok
    assert "the Monte Carlo error of x[" in few.certificate.verdict
    assert fit.certificate.ok, fit.certificate.verdict
    assert fit.certificate.mcse < few.certificate.mcse
    assert fit.certificate.ess < certification.FEWEST_PROPOSALS / 2, "of those that are held"
    x = fit.posterior["x"].values.reshape(-1, DIM)
    bound = z_bound(2 * DIM + 1)
    assert np.abs(x.mean(0)).max() < bound * fit.certificate.mcse
    assert np.abs(x.std(0) - 1).max() < bound * fit.certificate.mcse
    assert abs(fit.certificate.log_evidence) < bound * fit.certificate.log_evidence_mcse
    assert fit.certificate.log_evidence_mcse < 0.7 * few.certificate.log_evidence_mcse, "it is of all that were weighed"


def test_stats_go_with_their_draws(fit):
    for group, stats in (("posterior", "sample_stats"), ("proposal", "proposal_stats")):
        x = fit.idata[group]["x"].values
        np.testing.assert_allclose(fit.idata[stats]["log_p"], norm.logpdf(x).sum(-1))
        np.testing.assert_allclose(fit.idata[stats]["log_q"], norm.logpdf(x, 0, SD).sum(-1))


def test_the_first_of_the_raw_draws_are_there(fit, z_bound):
    raw = fit.idata["proposal"]["x"].values
    assert raw.shape == (1, certification.FEWEST_PROPOSALS, DIM)
    assert np.abs(raw.std((0, 1)) - SD).max() < z_bound(DIM) * SD / math.sqrt(2 * raw.shape[1])
    assert f"by a factor {SD:.1f}" in fit.proposal_certificate.verdict
    assert fit.proposal_certificate.ess == 4 * certification.FEWEST_PROPOSALS


def test_fresh_draws_are_weighed_as_many_a_round(fit, rng_key, z_bound):
    draws = fit.sample(jax.random.fold_in(rng_key, 1), 8_000)
    assert draws.attrs["drawn"] == "afresh from q, resampled by the smoothed weights of 32000 draws"
    x = draws["x"].values[0]
    assert np.abs(x.mean(0)).max() < z_bound(2 * DIM) * fit.certificate.mcse
    assert np.abs(x.std(0) - 1).max() < z_bound(2 * DIM) * fit.certificate.mcse


def test_it_is_saved_and_comes_back(fit, tmp_path):
    back = vip.load(fit.save(tmp_path / "fit.nc"), model=model)
    assert back.idata.identical(fit.idata)
    assert back.certificate.verdict == fit.certificate.verdict
    assert back.proposal_certificate.verdict == fit.proposal_certificate.verdict
    assert back.sample(jax.random.key(1), 100).sizes["draw"] == 100
