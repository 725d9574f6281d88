"""Predictions, prior predictive draws and pointwise log likelihoods, against closed forms."""

import math
import warnings

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from known_q import fit_of
from matplotlib import pyplot as plt
from scipy import stats

import vipatterns as vip
from vipatterns import prediction
from vipatterns.patterns import gaussian_mean

PREDICTIVE_SD = 1.0049383016


@pytest.fixture(scope="module")
def mean_fit(rng_key):
    return fit_of(rng_key, gaussian_mean.model, gaussian_mean.data())


def schools(x, school, num_schools, shift=0, y=None):
    level = numpyro.sample("level", dist.Normal(0, 1))
    with numpyro.plate("schools", num_schools):
        effect = numpyro.sample("effect", dist.Normal(level, 1))
    with numpyro.plate("pupil", len(x)):
        mean = numpyro.deterministic("mean", effect[school] + x + shift)
        numpyro.sample("y", dist.Normal(mean, 1), obs=y)


PUPILS = {"x": np.arange(6.0), "school": np.array([0, 1, 2, 0, 1, 2]), "num_schools": 3, "y": np.arange(6.0) / 2}


@pytest.fixture(scope="module")
def school_fit(rng_key):
    labels = {"schools": ["Ash", "Birch", "Cedar"], "pupil": list("abcdef")}
    return fit_of(rng_key, schools, PUPILS, coords=labels)


def test_predictive_moments_of_gaussian_mean(mean_fit, rng_key, z_bound):
    """Two new observations share mu: mean, sd and covariance in closed form."""
    y = mean_fit.predict(jax.random.fold_in(rng_key, 1), {"num_observations": 2}, num_samples=40_000)["y"].values[0]
    n, z = len(y), z_bound(4)
    exact = gaussian_mean.exact_posterior(**gaussian_mean.data())["mu"]
    assert np.all(abs(y.mean(0) - exact.mean) < z * PREDICTIVE_SD / math.sqrt(n))
    assert abs(y[:, 0].std() - PREDICTIVE_SD) < z * PREDICTIVE_SD / math.sqrt(2 * n)
    product_se = math.sqrt((PREDICTIVE_SD**4 + exact.variance**2) / n)
    assert abs(np.cov(y.T)[0, 1] - exact.variance) < z * product_se


def test_own_data_gives_the_posterior_predictive(mean_fit, rng_key, z_bound):
    """Every draw predicts all rows once, with a mu of its own: row means scatter by mu and by the noise's mean."""
    predicted = mean_fit.predict(rng_key)["y"]
    assert predicted.dims == ("chain", "draw", "observation")
    assert predicted.shape == (4, 1000, 100)
    same = mean_fit.predict(rng_key, gaussian_mean.data())["y"]
    assert np.array_equal(predicted, same)  # the observed values are not read
    residual = predicted - mean_fit.posterior["mu"]
    assert abs(float(residual.std()) - 1) < z_bound(2) / math.sqrt(2 * residual.size)
    assert abs(float(residual.mean())) < z_bound(2) / math.sqrt(residual.size)


def test_arguments_that_are_no_arrays_keep_their_value(mean_fit, rng_key):
    assert mean_fit.predict(rng_key, {}).sizes["observation"] == 100
    assert mean_fit.predict(rng_key, {"num_observations": 3}).sizes["observation"] == 3


def test_deterministic_sites_follow_the_new_data(school_fit, rng_key):
    new = school_fit.predict(rng_key, {"x": [10.0, 20.0], "school": [2, 0]})
    expected = school_fit.posterior["effect"].values[:, :, [2, 0]] + np.array([10.0, 20.0])
    np.testing.assert_allclose(new["mean"], expected, rtol=1e-12)
    assert {name: values.dims[2:] for name, values in new.items()} == {"mean": ("pupil",), "y": ("pupil",)}


def test_fewer_predictions_are_of_posterior_draws(school_fit, rng_key):
    few = school_fit.predict(rng_key, {"x": [0.0], "school": [1]}, num_samples=50)
    assert few.sizes == {"chain": 1, "draw": 50, "pupil": 1}
    assert np.isin(few["mean"].values, school_fit.posterior["effect"].values[:, :, 1]).all()
    assert len(np.unique(few["mean"].values)) > 45


def test_labels_of_rows_are_not_taken_for_those_of_other_rows(school_fit, rng_key):
    other = {**PUPILS, "x": PUPILS["x"] + 1}
    assert list(school_fit.predict(rng_key)["pupil"].values) == list("abcdef")
    assert list(school_fit.predict(rng_key, other)["pupil"].values) == [0, 1, 2, 3, 4, 5]
    labelled = school_fit.predict(rng_key, other, coords={"pupil": list("uvwxyz")})
    assert list(labelled["pupil"].values) == list("uvwxyz")
    with pytest.raises(vip.InputError, match="coords gives 2 labels for 'pupil'"):
        school_fit.predict(rng_key, other, coords={"pupil": ["u", "v"]})


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({"num_schools": 4}, r"'effect' has shape \(3,\) in the fit, and \(4,\) on this data \(schools has 3, and would have 4\)"),
        ({"school": [0, 3]}, "'school' holds the index 3, but site 'effect' has 3 groups, numbered 0 to 2"),
        ({"school": [0, -1]}, "'school' holds the index -1, but site 'effect' has 3 groups"),
        ({"x": [1.0, np.nan]}, "not finite: 'x' holds 1 "),
        ({"x": [1.0, 2.0, 3.0]}, "incompatible shapes"),
        ({"x": None}, "raised TypeError"),
        ({"z": 1}, "cannot be called with"),
    ],
)
def test_what_the_fit_cannot_know_is_refused_by_name(school_fit, rng_key, new, said):
    with pytest.raises(vip.InputError, match=said):
        school_fit.predict(rng_key, {"x": [1.0, 2.0], "school": [0, 1], **new})


def test_a_latent_for_every_row_is_refused_for_other_rows(rng_key):
    def model(x, y=None):
        with numpyro.plate("row", len(x)):
            effect = numpyro.sample("effect", dist.Normal(x, 1))
            numpyro.sample("y", dist.Normal(effect, 1), obs=y)

    fit = fit_of(rng_key, model, {"x": np.zeros(3), "y": np.ones(3)}, num_samples=250)
    assert fit.predict(rng_key, {"x": np.ones(3)}).sizes["row"] == 3
    with pytest.raises(vip.InputError, match="row has 3, and would have 2"):
        fit.predict(rng_key, {"x": np.ones(2)})


def test_negative_whole_numbers_that_index_nothing_are_taken(rng_key):
    def model(shift, y=None):
        m = numpyro.sample("m", dist.Normal(0, 1))
        with numpyro.plate("row", len(shift)):
            numpyro.deterministic("mean", m + shift)
            numpyro.sample("y", dist.Normal(m + shift, 1), obs=y)

    fit = fit_of(rng_key, model, {"shift": np.array([0, 1, 2]), "y": np.ones(3)}, num_samples=250)
    new = fit.predict(rng_key, {"shift": [-1, -(2**40)]})
    np.testing.assert_allclose(new["mean"][0, 0] - fit.posterior["m"][0, 0], [-1, -(2.0**40)])


def test_a_model_whose_observed_argument_is_required(rng_key):
    def model(x, y):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(slope * x, 1).to_event(1), obs=y)

    fit = fit_of(rng_key, model, {"x": np.ones(3), "y": np.ones(3)}, num_samples=250)
    assert fit.predict(rng_key, {"x": np.ones(5)})["y"].shape == (4, 250, 5)


def test_positional_arguments(rng_key):
    def model(x, y=None, /):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(slope * x, 1), obs=y)

    fit = fit_of(rng_key, model, args=(np.ones(3), np.ones(3)), num_samples=250)
    assert fit.predict(rng_key)["y"].shape == (4, 250, 3)
    assert fit.predict(rng_key, args=(np.ones(5),))["y"].shape == (4, 250, 5)


def several(x, mask, count=None, length=None):
    """Whole numbers; partly masked lengths, which depend on the counts; a factor, which has no value."""
    rate = numpyro.sample("rate", dist.LogNormal(0, 1))
    with numpyro.plate("row", len(x)):
        count = numpyro.sample("count", dist.Poisson(rate * x), obs=count)
        with numpyro.handlers.mask(mask=mask):
            numpyro.sample("length", dist.Normal(count, 0.001), obs=length)
    numpyro.factor("nudge", -((jnp.log(rate)) ** 2))


SEVERAL = {
    "x": np.array([1.0, 2.0, 3.0, 4.0]),
    "mask": np.array([True, False, True, False]),
    "count": np.array([1, 2, 2, 5]),
    "length": np.array([1.0, np.nan, 2.0, np.nan]),
}


@pytest.fixture(scope="module")
def several_fit(rng_key):
    return fit_of(rng_key, several, SEVERAL, num_samples=250)


def test_observed_sites_are_drawn_jointly(several_fit, rng_key):
    new = several_fit.predict(rng_key)
    assert sorted(new) == ["count", "length"]
    assert new["count"].dtype.kind == "i"
    assert abs(new["length"] - new["count"]).max() < 0.01  # a length belongs to the count that was drawn, masked or not
    assert float(new["count"].std()) > 1


def test_log_likelihood_of_several_sites(several_fit):
    fit = several_fit.with_log_likelihood()
    rate = fit.posterior["rate"].values[..., None]
    told = fit.idata["log_likelihood"]
    np.testing.assert_allclose(told["count"], stats.poisson.logpmf(SEVERAL["count"], rate * SEVERAL["x"]), rtol=1e-9)
    assert told["length"].shape == (4, 250, 2), "masked rows have no likelihood"
    assert list(told["length_observed"].values) == [0, 2]
    np.testing.assert_allclose(told["length"], np.full((4, 250, 2), stats.norm.logpdf(0, scale=0.001)))
    np.testing.assert_allclose(told["nudge"], -(np.log(fit.posterior["rate"]) ** 2), rtol=1e-9)
    assert fit.idata["proposal_log_likelihood"]["count"].shape == (*fit.idata["proposal"]["rate"].shape, 4)
    assert az.loo(fit.idata, var_name="count").n_data_points == 4


def test_a_mask_of_several_axes_leaves_one(rng_key):
    y = np.linspace(-1, 1, 6).reshape(2, 3)  # near the prior, so that no observation alone decides: loo would warn
    seen = np.array([[True, True, False], [False, True, True]])

    def model(y, seen):
        m = numpyro.sample("m", dist.Normal(0, 1))
        with numpyro.plate("a", 2, dim=-2), numpyro.plate("b", 3, dim=-1):
            numpyro.sample("y", dist.Normal(m, 1).mask(seen), obs=y)

    fit = fit_of(rng_key, model, {"y": y, "seen": seen}, num_samples=250).with_log_likelihood()
    told = fit.idata["log_likelihood"]["y"]
    assert told.dims == ("chain", "draw", "y_observed")
    np.testing.assert_allclose(told, stats.norm.logpdf(y[seen], fit.posterior["m"].values[..., None]), rtol=1e-9)
    assert az.loo(fit.idata).n_data_points == 4


def exact_elpd(y):
    """log p(y_i | the others), summed: each is N(sum of the others / N, 1 + 1 / N)."""
    n = len(y)
    return stats.norm.logpdf(y, (y.sum() - y) / n, math.sqrt(1 + 1 / n)).sum()


def error_of(log_likelihood, log_ratio):
    """Monte Carlo standard error of the elpd's importance estimate, at most: errors of all observations added up."""
    weights = np.exp(log_ratio[:, None] - log_likelihood)
    weights /= weights.mean(0)
    likelihood = np.exp(log_likelihood)
    mean = (weights * likelihood).mean(0)
    return (np.std(weights * (likelihood - mean), axis=0) / mean / math.sqrt(len(weights))).sum()


def test_loo_of_the_posteriors_draws_is_exact(mean_fit, z_bound):
    fit = mean_fit.with_log_likelihood()
    log_likelihood = fit.idata["log_likelihood"]["y"].values.reshape(4000, -1)
    elpd = exact_elpd(gaussian_mean.data()["y"])
    assert abs(az.loo(fit.idata).elpd - elpd) < z_bound() * error_of(log_likelihood, np.zeros(4000))


def test_loo_of_the_raw_draws_of_a_wrong_q_is_corrected(rng_key, z_bound):
    """q is three times too wide: az.loo on its raw draws is off, az.loo_approximate_posterior is not."""
    idata = fit_of(rng_key, gaussian_mean.model, gaussian_mean.data(), scale=3.0).with_log_likelihood().idata
    raw = xr.DataTree.from_dict({"posterior": idata["proposal"], "log_likelihood": idata["proposal_log_likelihood"]})
    log_p, log_q = (idata["proposal_stats"][name] for name in ("log_p", "log_q"))
    log_likelihood = raw["log_likelihood"]["y"].values.reshape(log_p.size, -1)
    allowed = z_bound() * error_of(log_likelihood, (log_p - log_q).values.ravel())
    elpd = exact_elpd(gaussian_mean.data()["y"])
    assert abs(az.loo_approximate_posterior(raw, log_p, log_q).elpd - elpd) < allowed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert abs(az.loo(raw).elpd - elpd) > 10 * allowed


def test_posterior_predictive_is_plotted(mean_fit, several_fit, rng_key):
    az.plot_ppc_dist(mean_fit.with_posterior_predictive(rng_key).idata)
    counted = several_fit.with_posterior_predictive(rng_key, num_samples=150).idata
    assert counted["posterior_predictive"].sizes["draw"] == 150
    az.plot_ppc_dist(counted, var_names=["count"], kind="ecdf")
    plt.close("all")


def test_observed_values_are_there_whatever_their_argument_is_called(rng_key):
    def model(outcome):
        m = numpyro.sample("m", dist.Normal(0, 1))
        with numpyro.plate("row", len(outcome)):
            numpyro.sample("obs", dist.Normal(m, 1), obs=outcome**2)

    data = {"outcome": np.array([1.0, 2.0, 3.0])}
    fit = fit_of(rng_key, model, data, num_samples=250).with_posterior_predictive(rng_key)
    assert np.array_equal(fit.idata["observed_data"]["obs"], [1.0, 4.0, 9.0])
    assert fit.idata["observed_data"]["obs"].dims == ("row",)
    assert list(fit.idata["posterior_predictive"]) == ["obs"]
    az.plot_ppc_dist(fit.idata)
    plt.close("all")


def test_missing_values_that_numpyro_imputes(rng_key):
    """obs_mask makes two sites of y; on new rows it is one again, and the imputed values of the old rows do not count."""

    def model(x, y=None):
        m = numpyro.sample("m", dist.Normal(0, 1))
        seen = None if y is None else ~jnp.isnan(y)
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(m + x, 1), obs=None if y is None else jnp.where(seen, y, 0.0), obs_mask=seen)

    y = np.array([1.0, np.nan, 2.0, 3.0])
    fit = fit_of(rng_key, model, {"x": np.arange(4.0), "y": y}, num_samples=250)
    new = fit.predict(rng_key, {"x": [0.0, 100.0]})
    assert {k: v.shape for k, v in new.items()} == {"y": (4, 250, 2)}
    assert np.all(abs(new["y"].mean(("chain", "draw")) - [0, 100]) < 5)
    told = fit.with_log_likelihood().with_posterior_predictive(rng_key).idata
    assert told["log_likelihood"]["y_observed"].shape == (4, 250, 3)
    assert np.array_equal(told["observed_data"]["y_observed"], y, equal_nan=True)
    assert az.loo(told).n_data_points == 3


def test_enumerated_latents_are_drawn_anew(rng_key, z_bound):
    """Two equal components at -5 and 5: half of the new observations come from each, whatever the old ones did."""

    def model(y=None, num=1):
        centre = numpyro.sample("centre", dist.Normal(5, 0.1))
        with numpyro.plate("row", num if y is None else len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Normal(jnp.where(z, centre, -centre), 1), obs=y)

    fit = fit_of(rng_key, model, {"y": np.array([5.0, 5.5, 4.5, -5.0])})
    y = fit.predict(rng_key, {"num": 1})["y"].values
    assert abs((y > 0).mean() - 0.5) < z_bound() * 0.5 / math.sqrt(y.size)
    with pytest.raises(vip.InputError, match="summed out"):
        fit.with_log_likelihood()


def test_predictions_that_would_fill_the_memory_are_refused(mean_fit, rng_key, monkeypatch):
    monkeypatch.setattr(prediction, "MAX_BYTES", 8 * 100 * 500)
    with pytest.raises(vip.InputError, match="give num_samples=500 or fewer"):
        mean_fit.predict(rng_key)
    assert mean_fit.predict(rng_key, num_samples=500).sizes["draw"] == 500


def test_log_likelihoods_that_would_fill_the_memory_are_refused(mean_fit, monkeypatch):
    monkeypatch.setattr(prediction, "MAX_BYTES", 8 * 100 * 4000)
    with pytest.raises(vip.InputError, match=r"100 observations at 40000 draws would take 0 GB: .*proposal=False"):
        mean_fit.with_log_likelihood()
    assert "proposal_log_likelihood" not in mean_fit.with_log_likelihood(proposal=False).idata.children


def test_subsampled_plates_are_predicted_at_full_size(rng_key):
    def model(x, y=None, batch=2):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        with numpyro.plate("row", len(x), subsample_size=batch) as rows:
            mean = numpyro.deterministic("mean", slope * x[rows])
            numpyro.sample("y", dist.Normal(mean, 1), obs=None if y is None else y[rows])

    fit = fit_of(rng_key, model, {"x": np.arange(5.0), "y": np.ones(5)}, num_samples=250)
    assert fit.predict(rng_key)["y"].shape == (4, 250, 5)
    new = fit.predict(rng_key, {"x": np.arange(7.0)})
    np.testing.assert_allclose(new["mean"], fit.posterior["slope"].values[..., None] * np.arange(7.0))
    assert fit.with_log_likelihood().idata["log_likelihood"]["y"].shape == (4, 250, 5)


def test_predictions_in_single_precision(rng_key):
    fit = vip.Laplace(dtype="float32").fit(rng_key, gaussian_mean.model, gaussian_mean.data())
    assert fit.predict(rng_key)["y"].dtype == np.float32
    assert fit.sample(rng_key, 10)["mu"].dtype == np.float32
    assert fit.with_log_likelihood(proposal=False).idata["log_likelihood"]["y"].dtype == np.float32


def test_a_model_that_observes_nothing(rng_key):
    fit = fit_of(rng_key, lambda: numpyro.sample("m", dist.Normal(0, 1)), num_samples=250)
    with pytest.raises(vip.InputError, match="nothing to predict"):
        fit.predict(rng_key)
    with pytest.raises(vip.InputError, match="no observed sites"):
        fit.with_log_likelihood()


def test_prior_predictive_moments(rng_key, z_bound):
    """y_i = mu + noise, both standard: variance 2, covariance 1."""
    tree = vip.prior_predictive(rng_key, gaussian_mean.model, {"num_observations": 2}, num_samples=20_000)
    y, mu = tree["prior_predictive"]["y"].values[0], tree["prior"]["mu"].values[0]
    n, z = len(y), z_bound(4)
    assert abs(mu.std() - 1) < z / math.sqrt(2 * n)
    assert np.all(abs(y.var(0) - 2) < z * 2 * math.sqrt(2 / n))
    assert abs(np.cov(y.T)[0, 1] - 1) < z * math.sqrt(5 / n)
    assert tree.attrs["seed"] == np.asarray(jax.random.key_data(rng_key)).tolist()


def test_prior_predictive_does_not_look_at_the_data(rng_key):
    data = gaussian_mean.data()
    seen = vip.prior_predictive(rng_key, gaussian_mean.model, data, num_samples=100, coords={"observation": np.arange(100) + 1})
    unseen = vip.prior_predictive(rng_key, gaussian_mean.model, {"num_observations": 100}, num_samples=100)
    assert np.array_equal(seen["prior_predictive"]["y"], unseen["prior_predictive"]["y"])
    assert seen["prior_predictive"]["observation"].values[0] == 1
    assert list(seen["prior"]) == ["mu"]
    assert "observed_data" in seen.children
    assert "observed_data" not in unseen.children
    az.plot_ppc_dist(seen, group="prior_predictive")
    plt.close("all")


def test_a_prior_without_draws_is_named(rng_key):
    def model(y):
        m = numpyro.sample("m", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(m, 1), obs=y)

    with pytest.raises(vip.InputError, match="'m' has the prior ImproperUniform, which has no draws"):
        vip.prior_predictive(rng_key, model, {"y": 1.0})
