"""Units do not matter: a latent in other units, its prior and the data's column with it, has the same posterior, mapped."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vipatterns as vip

RNG = np.random.default_rng(3)
HEIGHTS = RNG.standard_t(4, 60)
AGES = RNG.normal(0, 1, (80, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]])
DEATHS = RNG.poisson(np.exp(0.3 + 0.4 * AGES[:, 0]))
METHODS = [vip.MeanField(), vip.FullRank(), vip.Laplace(), vip.NUTS(num_warmup=300, num_samples=500)]
FEW = settings(max_examples=3, deadline=None, derandomize=True)
UNITS = st.floats(-3, 3).map(lambda exponent: 10.0**exponent)
SHIFTS = st.floats(-1e4, 1e4)


def robust_location(unit, shift, y=None):
    mu = numpyro.sample("mu", dist.Normal(shift, 3 * unit))
    with numpyro.plate("row", 60):
        numpyro.sample("y", dist.StudentT(4, mu, unit), obs=y)


def counts(x, prior_sds, y=None):
    level = numpyro.sample("level", dist.Normal(0, 2))
    with numpyro.plate("feature", 2):
        slopes = numpyro.sample("slopes", dist.Normal(0, prior_sds))
    with numpyro.plate("row", 80):
        numpyro.sample("y", dist.Poisson(jax.numpy.exp(level + x @ slopes)), obs=y)


def moments(method, model, data, site):
    fit = vip.fit(jax.random.key(0), model, data, method=method, progress=False)
    draws = fit.posterior[site].stack(sample=("chain", "draw"))
    return draws.mean("sample").to_numpy(), draws.std("sample").to_numpy(), min(draws.sizes["sample"], fit.certificate.ess)


def assert_mapped(base, other, unit, shift, bound):
    """Means and sds of `other` are those of `base`, mapped, within their Monte Carlo errors."""
    (mean, sd, num), (mean2, sd2, num2) = base, other
    error = np.sqrt(1 / num + 1 / num2)
    assert np.all(np.abs((mean2 - shift) / unit - mean) / sd < bound * error)
    # Half the error of a Gaussian's variance, doubled for the heavier tails of these posteriors.
    assert np.all(np.abs(np.log(sd2 / unit / sd)) < bound * error)


@pytest.fixture(scope="module")
def bases():
    """Each method's answer in the plain units, made once."""
    return {}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_location_in_any_unit_and_from_any_origin(method, bases, z_bound):
    def data(unit, shift):
        return {"unit": np.array(unit), "shift": np.array(shift), "y": shift + unit * HEIGHTS}

    if method not in bases:
        bases[method] = moments(method, robust_location, data(1.0, 0.0), "mu")

    @FEW
    @given(unit=UNITS, shift=SHIFTS)
    def check(unit, shift):
        # The origin is told in units, so that float64 still holds the data's digits.
        shift = shift * unit
        assert_mapped(bases[method], moments(method, robust_location, data(unit, shift), "mu"), unit, shift, z_bound(2))

    check()


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda m: type(m).__name__)
def test_slopes_of_columns_in_any_unit(method, z_bound):
    def data(unit):
        return {"x": AGES / unit, "prior_sds": 2 * unit, "y": DEATHS}

    base = moments(method, counts, data(np.ones(2)), "slopes")

    @FEW
    @given(st.tuples(UNITS, UNITS).map(np.array))
    def check(unit):
        assert_mapped(base, moments(method, counts, data(unit), "slopes"), unit, 0.0, z_bound(4))

    check()
