"""Units do not matter: latents, columns and observations in other units, from another origin, have the same posterior, mapped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_stats.base.array import array_stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vipatterns as vip
from vipatterns import density

FAMILIES = ("normal", "regression", "robust", "logistic", "poisson")
METHODS = {
    "MeanField": vip.MeanField(),
    "FullRank": vip.FullRank(),
    "Laplace": vip.Laplace(),
    "NUTS": vip.NUTS(num_warmup=300, num_samples=500),
}
PLAIN = {"unit": [1.0, 1.0, 1.0], "shift": [0.0, 0.0, 0.0], "unit_y": 1.0}
HARDEST = {"unit": [1e3, 1e-3, 1.0], "shift": [1e4, -1e4, 1e4], "unit_y": 1e-3}
WITHIN = 0.06
"""Sds, and log sds: what converged promises of one fit, from both sides."""


def model(x, y, offset, unit, shift, unit_y, family):
    """b has the prior N(shift, 2 unit): with x in 1 / unit and offset = x @ shift, the linear predictor is that of plain units."""
    b = numpyro.sample("b", dist.Normal(shift, 2.0 * unit).to_event(1))
    eta = x @ b - offset
    if family in ("logistic", "poisson"):
        numpyro.sample("y", dist.Bernoulli(logits=eta) if family == "logistic" else dist.Poisson(jnp.exp(eta)), obs=y)
        return
    sigma = numpyro.sample("sigma", dist.LogNormal(jnp.log(unit_y), 1.0))
    numpyro.sample("y", dist.StudentT(4.0, eta, sigma) if family == "robust" else dist.Normal(eta, sigma), obs=y)


def data(family, unit, shift, unit_y):
    """The same 40 rows in any units: b' = unit_y unit b + shift, y' = unit_y y. Counts have no unit."""
    rng = np.random.default_rng(FAMILIES.index(family))
    x = np.ones((40, 1)) if family == "normal" else np.column_stack([np.ones(40), rng.normal(size=(40, 2))])
    num = x.shape[1]
    eta = x @ np.array([0.5, 1.0, -0.7])[:num]
    if family == "logistic":
        y, unit_y = (rng.uniform(size=40) < 1 / (1 + np.exp(-eta))).astype(int), 1.0
    elif family == "poisson":
        y, unit_y = rng.poisson(np.exp(eta)), 1.0
    else:
        y = unit_y * (eta + 0.5 * (rng.standard_t(4, 40) if family == "robust" else rng.normal(size=40)))
    unit, shift = np.asarray(unit)[:num], np.asarray(shift)[:num]
    x = x / unit
    values = {"x": x, "y": y, "offset": x @ shift, "unit": unit_y * unit, "shift": shift, "unit_y": np.asarray(unit_y)}
    return {**values, "family": family}


def drawn(fit, family, unit, shift, unit_y):
    """Draws of all scalars (chain, draw, K), of q itself where there is one, mapped back to plain units; sigma as its log."""
    group = fit.idata["proposal" if "proposal" in fit.idata.children else "posterior"]
    told = data(family, unit, shift, unit_y)
    b = (group["b"].values - told["shift"]) / told["unit"]
    return np.concatenate([b, np.log(group["sigma"].values / told["unit_y"])[..., None]], -1) if "sigma" in group else b


def moments(draws, independent):
    """Means, sds, and the standard errors of means and log sds, in sds."""
    mean, sd = draws.mean((0, 1)), draws.std((0, 1))
    series = np.moveaxis((draws - mean) / sd, 2, 0)
    if independent:
        ess = squares = np.full(len(mean), draws.shape[0] * draws.shape[1])
    else:
        ess, squares = array_stats.ess(series, method="mean"), array_stats.ess(series**2, method="mean")
    return mean, sd, 1 / np.sqrt(ess), (series**2).std((1, 2)) / np.sqrt(squares) / 2


@pytest.fixture(scope="module")
def plain(rng_key):
    """(family, method) -> its fit in plain units, made once."""
    return functools.cache(lambda family, method: vip.fit(rng_key, model, data(family, **PLAIN), method=METHODS[method]))


def check(family, method, plain, rng_key, z_bound, **scale):
    one, other = plain(family, method), vip.fit(rng_key, model, data(family, **scale), method=METHODS[method])
    if method == "NUTS":
        assert other.certificate.rhat < 1.02
        leapfrog = [float(fit.idata["sample_stats"]["n_steps"].mean()) for fit in (one, other)]
        assert leapfrog[1] < 2 * leapfrog[0], "other units cost more"
    else:
        assert one.stopped_because.startswith("converged: ")
        assert other.stopped_because.startswith("converged: ")
    independent = method != "NUTS"
    mean, sd, mean_error, sd_error = moments(drawn(one, family, **PLAIN), independent)
    mean2, sd2, mean_error2, sd_error2 = moments(drawn(other, family, **scale), independent)
    allowed = WITHIN if method in ("MeanField", "FullRank") else 0.0
    z = z_bound(8 * 10)  # eight figures a fit, ten fits a test
    assert (np.abs(mean - mean2) / sd < allowed + z * np.hypot(mean_error, mean_error2)).all()
    assert (np.abs(np.log(sd / sd2)) < allowed + z * np.hypot(sd_error, sd_error2)).all()


QUICK = [("regression", "MeanField"), ("robust", "NUTS")]
SLOW = [
    *((family, "MeanField") for family in FAMILIES if family != "regression"),
    ("robust", "FullRank"),
    ("logistic", "FullRank"),
    ("robust", "Laplace"),
    ("poisson", "Laplace"),
    ("poisson", "NUTS"),
]


@pytest.mark.parametrize(("family", "method"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_units_of_a_million_to_one_and_origins_far_off(family, method, plain, rng_key, z_bound):
    check(family, method, plain, rng_key, z_bound, **HARDEST)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["regression", "logistic"])
def test_mean_field_in_any_units(family, plain, rng_key, z_bound):
    @settings(max_examples=3, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(
        unit=st.lists(st.floats(-3, 3).map(lambda e: 10.0**e), min_size=3, max_size=3),
        shift=st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3),
        unit_y=st.floats(-3, 3).map(lambda e: 10.0**e),
    )
    def in_any(unit, shift, unit_y):
        check(family, "MeanField", plain, rng_key, z_bound, unit=unit, shift=shift, unit_y=unit_y)

    in_any()


@pytest.mark.parametrize("family", ["robust", "poisson"])
def test_the_map_is_exact(family):
    """Of the model itself: log p at mapped points differs by a constant, the log of the units."""
    values = []
    with density.precision("float64"):
        for scale in (PLAIN, HARDEST):
            told = data(family, **scale)
            target = density.read(model, told)
            z = np.random.default_rng(0).normal(size=(4, target.dim))
            num = len(told["unit"])
            z[:, :num] = told["unit"] * z[:, :num] + told["shift"]
            z[:, num:] += np.log(told["unit_y"])
            values.append(np.asarray(jax.jit(jax.vmap(lambda z, target=target: target.log_p(z, target.arrays)))(z)))
    difference = values[1] - values[0]
    np.testing.assert_allclose(difference, difference[0], atol=1e-4)
