"""A posterior against a reference: every figure against its closed form for normals, every Monte Carlo error against its own scatter."""

import math

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
import xarray as xr
from scipy.stats import chi2, norm
from synthetic import fit_of, normal

from vipatterns.agreement import against
from vipatterns.errors import InputError


def rng_of(rng_key):
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))


REFERENCES = {
    "numpyro": {"x": dist.Normal(np.zeros(3), np.ones(3))},
    "numpyro event": {"x": dist.Normal(np.zeros(3), np.ones(3)).to_event(1)},
    "numpyro scalar": {"x": dist.Normal(0.0, 1.0)},
    "numpyro multivariate": {"x": dist.MultivariateNormal(np.zeros(3), np.eye(3))},
    "scipy": {"x": scipy.stats.norm(np.zeros(3), np.ones(3))},
    "scipy scalar": {"x": scipy.stats.norm(0, 1)},
    "scipy multivariate": {"x": scipy.stats.multivariate_normal(np.zeros(3), np.eye(3))},
    "scipy new": {"x": scipy.stats.Normal(mu=np.zeros(3), sigma=np.ones(3))},
}


@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)
def test_figures_of_normals(reference, rng_key, z_bound):
    """N(.3, 1.2^2) against N(0, 1): mean .3, sd 1.2, tail P(.3 + 1.2 z > 1.645), Wasserstein the mean of |.3 + .2 z|."""
    x = normal(rng_of(rng_key), np.full(3, 0.3), 1.2, num=5_000)
    t = against(xr.Dataset({"x": (("chain", "draw", "i"), x)}), reference, rng_key).scalars
    shift = 0.3 * (1 - 2 * norm.cdf(-1.5)) + 0.2 * math.sqrt(2 / math.pi) * math.exp(-(1.5**2) / 2)
    expected = {"mean_error": 0.3, "sd_ratio": 1.2, "wasserstein": shift, "tail_share": norm.sf((norm.isf(0.05) - 0.3) / 1.2)}
    for column, value in expected.items():
        scale = t[f"{column}_mcse".replace("share", "error")].to_numpy()
        scale = 3 * scale if column == "tail_share" else scale  # the binomial noise of a share of 13 %, seen at 5 %, with room
        assert (np.abs(t[column] - value) < z_bound(12) * scale).all(), column
    np.testing.assert_allclose(t.reference_mean, 0, atol=1e-12)
    np.testing.assert_allclose(t.reference_sd, 1, rtol=1e-12)


@pytest.mark.parametrize("autocorrelation", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["draws", "exact"])
def test_errors_scatter_as_their_mcse_says(autocorrelation, kind, rng_key, false_alarm):
    """Over 200 equal scalars, error / mcse has mean square one: chi square, with room for the noise in mcse itself."""
    rng, num = rng_of(rng_key), 200

    def chains(length):
        x = rng.normal(size=(4, length, num))
        for t in range(1, length):
            x[:, t] = autocorrelation * x[:, t - 1] + math.sqrt(1 - autocorrelation**2) * x[:, t]
        return x

    ours = xr.Dataset({"x": (("chain", "draw", "i"), 2 + chains(1_000))})  # far off, so that the noise of the unit matters
    reference = {"x": chains(500) if kind == "draws" else dist.Normal(np.zeros(num), 1.0)}
    t = against(ours, reference, rng_key).scalars
    low, high = chi2.isf([1 - false_alarm / 4, false_alarm / 4], num) / num
    for z in ((t.mean_error - 2) / t.mean_error_mcse, (t.sd_ratio - 1) / t.sd_ratio_mcse):
        assert low / 1.15 < (z**2).mean() < high * 1.15


def test_noise_of_wasserstein_and_tails(rng_key, z_bound):
    """Two samples of one distribution are as far apart as `wasserstein_mcse` says, and their tails as `tail_error_mcse` says."""
    rng, num = rng_of(rng_key), 400
    ours = xr.Dataset({"x": (("chain", "draw", "i"), rng.normal(size=(4, 500, num)))})
    t = against(ours, {"x": rng.normal(size=(4000, num))}, rng_key).scalars
    ratio = t.wasserstein / t.wasserstein_mcse
    assert abs(ratio.mean() - 1) < z_bound(2) * ratio.std() / math.sqrt(num) + 0.05
    # The larger of two independent |normal| has mean 1.128 (David and Nagaraja 2003).
    ratio = t.tail_error / t.tail_error_mcse
    assert abs(ratio.mean() - 1.128) < z_bound(2) * ratio.std() / math.sqrt(num) + 0.05


def test_draws_without_chains_count_as_independent(rng_key):
    """A grid of quantiles in its order is as good as it is shuffled."""
    rng = rng_of(rng_key)
    x = np.sort(rng.normal(size=4000))
    t = against(fit_of({"x": normal(rng, 0.0, 1.0)}), {"x": x}, rng_key).scalars.iloc[0]
    assert t.mean_error_mcse == pytest.approx(math.sqrt(3 / 4000), rel=0.05)  # resampling counts twice on our side, once on theirs


def test_labels_come_from_coords_and_orders_are_matched(rng_key):
    rng = rng_of(rng_key)
    x = normal(rng, [0.0, 10.0], 1.0)
    fit = fit_of(
        {"theta": x, "L": normal(rng, np.zeros((2, 2)), 1.0)}, dims={"theta": ["school"]}, coords={"school": ["Choate", "Deerfield"]}
    )
    other = xr.Dataset({"theta": (("chain", "draw", "school"), x[..., ::-1])}, coords={"school": ["Deerfield", "Choate"]})
    result = against(fit, other, rng_key)
    assert list(result.scalars.index) == ["theta[Choate]", "theta[Deerfield]"]
    assert result.mean_error < 1e-12
    assert result.unmatched == ("L",)
    assert list(against(fit, fit, rng_key).scalars.index)[2:] == ["L[0, 0]", "L[0, 1]", "L[1, 0]", "L[1, 1]"]


def test_every_form_of_draws_gives_the_same(rng_key):
    rng = rng_of(rng_key)
    fit, other = fit_of({"x": normal(rng, np.zeros(2), 1.0)}), fit_of({"x": normal(rng, np.ones(2), 1.0)}, resampled=False)
    x = other.posterior["x"].values
    stacked = other.posterior.stack(sample=("chain", "draw")).transpose("x_dim_0", "sample")
    forms = [other, other.idata, other.posterior, {"x": x}, {"x": x.reshape(-1, 2)}, stacked]
    errors = [against(fit, form, rng_key).scalars.mean_error.to_numpy() for form in forms]
    for error in errors[1:]:
        np.testing.assert_allclose(error, errors[0], rtol=1e-12)


def test_what_does_not_vary_is_left_out_and_what_collapsed_is_not(rng_key):
    rng = rng_of(rng_key)
    x = normal(rng, np.zeros(3), 1.0)
    x[..., 1] = 1.0
    reference = x[..., ::1].copy()
    collapsed = x.copy()
    collapsed[..., 2] = 5.0
    result = against(fit_of({"x": collapsed}), {"x": reference}, rng_key)
    assert list(result.scalars.index) == ["x[0]", "x[2]"]
    assert result.sd_ratio_min == 0


def test_summary_takes_the_largest_and_lets_nothing_hide_a_nan(rng_key):
    x = normal(rng_of(rng_key), [0.0, -0.5, 0.3], 1.0)
    fit = fit_of({"x": x})
    result = against(fit, {"x": dist.Normal(np.zeros(3), 1.0)}, rng_key)
    at = result.scalars.loc["x[1]"]
    assert result.mean_error == -at.mean_error
    assert result.mean_error_mcse == at.mean_error_mcse
    assert result.worst_first().index[0] == "x[1]"
    heavy = against(fit, {"x": dist.StudentT(np.array([1.0, 9.0, 9.0]), 0.0, 1.0)}, rng_key)
    assert math.isnan(heavy.mean_error)
    assert heavy.worst_first().index[0] == "x[0]"


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ({"y": np.zeros(9)}, "sites y; the posterior has x"),
        ({"x": np.zeros((9, 4))}, r"shape \(draw, ...\) or \(chain, draw, ...\) with \(3,\) in the end; got \(9, 4\)"),
        ({"x": np.full((9, 3), np.nan)}, "27 values that are not finite"),
        ({"x": dist.Normal(np.zeros(4), 1.0)}, "does not broadcast to its site's shape"),
        ({"x": scipy.stats.norm(np.zeros(4), 1.0)}, "does not broadcast"),
        ("nuts", "draws, or a dict site -> distribution; got str"),
        (xr.Dataset({"x": ("row", np.zeros(3))}), "dims chain and draw; these have row"),
        (xr.DataTree(), "group named posterior"),
    ],
)
def test_a_reference_that_does_not_fit_is_told_in_a_sentence(reference, sentence, rng_key):
    with pytest.raises(InputError, match=sentence):
        against(fit_of({"x": normal(rng_of(rng_key), np.zeros(3), 1.0)}), reference, rng_key)


def test_records_show_themselves_on_one_screen(rng_key):
    fit = fit_of({"<b>x": normal(rng_of(rng_key), np.zeros(50), 1.0)})
    result = against(fit, fit, rng_key)
    assert len(repr(result).splitlines()) < 14
    assert "<b>" not in result._repr_html_()
