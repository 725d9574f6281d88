"""More draws of a posterior: thinned or repeated evenly where they are there, fresh and weighed where q is."""

import math

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from known_q import fit_of

import vipatterns as vip
from vipatterns import resampling


def posterior(number):
    return xr.Dataset(
        {"m": (("chain", "draw"), np.arange(float(number)).reshape(2, -1)), "v": (("chain", "draw", "i"), np.ones((2, number // 2, 3)))}
    )


@pytest.mark.parametrize(("asked", "most"), [(7, 1), (20, 1), (40, 2), (50, 3)])
def test_draws_that_are_there_are_used_evenly(rng_key, asked, most):
    values = resampling.again(rng_key, posterior(20), asked)
    assert {k: v.shape for k, v in values.items()} == {"m": (1, asked), "v": (1, asked, 3)}
    counts = np.bincount(values["m"][0].astype(int), minlength=20)
    assert counts.max() == most
    assert counts.max() - counts.min() <= 1
    assert asked < 20 or not np.array_equal(np.sort(values["m"][0]), values["m"][0]), "the order is random"


def model():
    m = numpyro.sample("m", dist.Normal(3, 2))
    numpyro.deterministic("twice", 2 * m)


@pytest.fixture(scope="module")
def wide(rng_key):
    """q has the right mean and 1.5 times the sd."""
    return fit_of(rng_key, model, scale=1.5)


def test_fresh_draws_are_of_the_posterior_not_of_q(wide, rng_key, z_bound):
    draws = wide.sample(jax.random.fold_in(rng_key, 1), 10_000)
    m = draws["m"].values[0]
    assert np.array_equal(draws["twice"], 2 * draws["m"])
    # 10,000 draws of 3 x 40,000 weighed ones, whose effective number is 80 % of that (E w^2 = 1.5^2 / sqrt(2 1.5^2 - 1) = 1.20).
    count = 1 / (1 / 10_000 + 1.20 / 120_000)
    assert abs(m.mean() - 3) < z_bound(2) * 2 / math.sqrt(count)
    assert abs(m.std() - 2) < z_bound(2) * 2 / math.sqrt(2 * count)


def test_fresh_draws_are_fresh(wide, rng_key):
    draws = wide.sample(rng_key, 9_000)["m"].values[0]
    assert not np.isin(draws, wide.idata["proposal"]["m"].values).any()
    assert len(np.unique(draws)) > 8_000, "a round may repeat a draw of large weight, rounds do not repeat one another"
    assert np.array_equal(draws, wide.sample(rng_key, 9_000)["m"].values[0])


def test_fresh_draws_say_where_they_come_from(wide, rng_key):
    says = wide.sample(rng_key, 5_000).attrs
    assert says["drawn"] == "afresh from q, resampled by the smoothed weights of 80000 draws"
    assert says["khat"] < 0
    assert says["verdict"] == wide.certificate.verdict
    assert says["seed"] == np.asarray(jax.random.key_data(rng_key)).tolist()


def test_mcmc_draws_are_its_own_again(rng_key):
    fit = vip.NUTS(num_warmup=50, num_samples=50).fit(rng_key, model)
    draws = fit.sample(rng_key, 300)
    assert draws.sizes == {"chain": 1, "draw": 300}
    assert np.isin(draws["m"].values, fit.posterior["m"].values).all()
    assert draws.attrs["drawn"] == "resampled from the fit's own 200 draws"


def test_no_draws_are_refused(wide, rng_key):
    for number in (0, -1, 1e4, "10", True):
        with pytest.raises(vip.InputError, match="num_samples must be a whole number, 1 or more, got"):
            wide.sample(rng_key, number)


def test_what_is_no_key_is_refused(wide):
    for asks in (lambda: wide.sample(0, 10), lambda: wide.predict(0), lambda: vip.prior_predictive(0, model)):
        with pytest.raises(vip.InputError, match=r"rng_key must be a JAX key, got int; write jax\.random\.key\(0\)"):
            asks()


def test_old_keys_give_the_draws_of_new_ones(wide):
    assert wide.sample(jax.random.PRNGKey(3), 10).equals(wide.sample(jax.random.key(3), 10))
