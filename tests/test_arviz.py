"""ArviZ reads what a fit holds: summaries, figures, and leave-one-out against its closed form on a conjugate model."""

import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from arviz_stats.base.array import array_stats
from scipy.stats import norm

import vipatterns as vip
from vipatterns.patterns import eight_schools

Y = np.random.default_rng(3).normal(1.0, 1.0, 25)


def conjugate(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def exact_elpd():
    """Sum over rows of log p(y_i | the other rows), and each term: normal predictives of the conjugate posterior."""
    precision = 1 / 4 + len(Y) - 1
    mean = (Y.sum() - Y) / precision
    return norm.logpdf(Y, mean, np.sqrt(1 + 1 / precision))


def elpd_error(ess):
    """Monte Carlo error of the sum: to second order it falls by (1 + mean of r^2) / 2 for a relative error of var(mu), r the residuals.

    Args:
        ess: effective draws for the square of mu; the relative error of its variance is sqrt(2 / ess).
    """
    return 1.1 * (1 + np.mean((Y - Y.mean()) ** 2)) / 2 * np.sqrt(2 / ess)


METHODS = {"MeanField": vip.MeanField(), "NUTS": vip.NUTS()}


@pytest.fixture(scope="module", params=METHODS)
def schools(request, rng_key):
    data = eight_schools.data()
    fit = vip.fit(rng_key, eight_schools.model, data, method=METHODS[request.param], coords={"school": list("ABCDEFGH")})
    return fit.with_posterior_predictive(jax.random.fold_in(rng_key, 1))


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_summary(schools, z_bound):
    table = az.summary(schools.idata, round_to="none")
    assert {"mu", "tau", "theta[A]", "theta[H]", "z[B]"} <= set(table.index)
    stated = max(schools.certificate.mcse, 0.05)
    assert table.loc["mu", "mean"] == pytest.approx(4.396821, abs=z_bound() * stated * 3.317704)
    assert table.loc["theta[A]", "sd"] == pytest.approx(5.593126, rel=0.25)
    for column in ("ess_bulk", "ess_tail", "r_hat"):
        assert np.isfinite(table[column]).all()


def test_forest(schools):
    pc = az.plot_forest(schools.idata, var_names=["theta"])
    assert len(pc.viz["figure"].item().axes) > 0


def test_posterior_predictive_check(schools):
    assert schools.idata["posterior_predictive"]["y"].dims == ("chain", "draw", "school")
    pc = az.plot_ppc_dist(schools.idata)
    assert len(pc.viz["figure"].item().axes) > 0


def test_other_figures(schools):
    az.plot_dist(schools.idata, var_names=["mu", "tau"])
    az.plot_trace(schools.idata, var_names=["tau"])
    if "diverging" in schools.idata["sample_stats"]:
        az.plot_energy(schools.idata)


@pytest.fixture(scope="module")
def weighed(rng_key):
    return vip.fit(rng_key, conjugate, {"y": Y}, method=vip.MeanField()).with_log_likelihood()


def as_arviz_wants(fit):
    """The raw draws of q with their log likelihood, which is what loo_approximate_posterior corrects."""
    groups = {"posterior": "proposal", "log_likelihood": "proposal_log_likelihood", "observed_data": "observed_data"}
    return xr.DataTree.from_dict({ours: fit.idata[theirs].to_dataset() for ours, theirs in groups.items()})


def test_log_likelihood_is_pointwise_and_in_float64(weighed):
    for draws, group in (("posterior", "log_likelihood"), ("proposal", "proposal_log_likelihood")):
        mu, value = weighed.idata[draws]["mu"].values, weighed.idata[group]["y"]
        assert value.dims == ("chain", "draw", "row")
        np.testing.assert_allclose(value.values, norm.logpdf(Y, mu[..., None]), rtol=1e-12)


def test_loo_of_the_approximate_posterior_is_exact_where_q_is(weighed, z_bound):
    stats = weighed.idata["proposal_stats"]
    loo = az.loo_approximate_posterior(as_arviz_wants(weighed), stats["log_p"], stats["log_q"], pointwise=True)
    exact = exact_elpd()
    # A leave-one-out term is a ratio of means over S draws of weights 1 / p(y_i | mu), whose relative sd is about |y_i - mean| sd(mu).
    mu = weighed.idata["proposal"]["mu"]
    relative = (np.abs(Y - Y.mean()) + float(mu.std())) * float(mu.std())
    error = relative / np.sqrt(mu.size)
    assert (np.abs(loo.elpd_i.values - exact) < 2 * z_bound(len(Y)) * error + 1e-4).all()
    assert abs(loo.elpd - exact.sum()) < z_bound() * elpd_error(mu.size)
    assert (loo.pareto_k < 0.7).all()


def tied(y):
    """The same posterior of mu beside a latent that is tied to it: correlation .4, which mean-field cannot follow."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.sample("beside", dist.Normal(mu, TIE))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


TIE = np.sqrt(5.25 / (1 / 4 + len(Y)))
"""The sd of `beside` given mu that makes their posterior correlation .4: var(mu) / (var(mu) + TIE^2) = .16."""


def test_loo_mends_a_q_that_is_too_narrow(rng_key, z_bound):
    """q's sd of mu is sqrt(1 - .16) of the posterior's; log_p and log_q make up for it, and plain loo of q's draws does not."""
    fit = vip.fit(rng_key, tied, {"y": Y}, method=vip.MeanField()).with_log_likelihood()
    stats, tree = fit.idata["proposal_stats"], as_arviz_wants(fit)
    assert float(tree["posterior"]["mu"].std()) * np.sqrt(1 / 4 + len(Y)) == pytest.approx(np.sqrt(0.84), abs=0.03)
    mended = az.loo_approximate_posterior(tree, stats["log_p"], stats["log_q"])
    plain = az.loo(tree)
    exact = exact_elpd().sum()
    assert abs(mended.elpd - exact) < z_bound() * elpd_error(fit.certificate.ess)
    assert abs(plain.elpd - exact) > 2 * abs(mended.elpd - exact)


def test_loo_of_nuts(rng_key, z_bound):
    fit = vip.fit(rng_key, conjugate, {"y": Y}, method=vip.NUTS()).with_log_likelihood()
    loo = az.loo(fit.idata)
    mu = fit.posterior["mu"].values
    ess = array_stats.ess((mu - mu.mean())[None] ** 2, method="mean")[0]
    assert abs(loo.elpd - exact_elpd().sum()) < z_bound() * elpd_error(ess)


def test_weights_of_the_proposal_are_those_of_the_certificate(weighed):
    stats = weighed.idata["proposal_stats"]
    ratio = (stats["log_p"] - stats["log_q"]).values.ravel()
    assert weighed.elbo == pytest.approx(ratio.mean(), abs=1e-9)
    assert weighed.certificate.log_evidence == pytest.approx(np.logaddexp.reduce(ratio) - np.log(ratio.size), abs=1e-9)


def test_dims_and_coords_are_the_plates_and_the_callers(schools):
    assert list(schools.posterior["theta"]["school"].values) == list("ABCDEFGH")
    assert schools.idata["observed_data"]["y"].dims == ("school",)
    assert schools.idata["constant_data"]["sigma"].shape == (8,)
    assert {"verdict", "method", "seed", "dtype", "numpyro", "vipatterns", "device"} <= set(schools.idata.attrs)
