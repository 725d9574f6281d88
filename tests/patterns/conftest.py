"""A pattern's fit under many keys at once: the spread over keys is the optimiser's own error."""

import jax
import numpy as np
import pytest
from numpyro.distributions import Distribution
from scipy.stats import t


@pytest.fixture(scope="session")
def refit(rng_key):
    """refit(pattern, data) -> site -> (means, sds), each (key, *shape): one pattern fitted under `num` keys, in one vmapped program."""

    def moments(q):
        return (q.mean, q.variance**0.5) if isinstance(q, Distribution) else (q.mean(0), q.std(0))

    def run(pattern, data, num=16, **settings):
        def one(key):
            q, _ = pattern.fit(key, **data, **settings)
            return {site: moments(q[site]) for site in q}

        return jax.tree.map(lambda a: np.asarray(a, float), jax.vmap(one)(jax.random.split(rng_key, num)))

    return run


@pytest.fixture(scope="session")
def assert_fits(refit, false_alarm):
    """assert_fits(pattern, data, expected, worst): every fit is within `worst` of the expected (mean, sd), and their average is unbiased.

    Errors are in expected sds, and in log sds. The average over keys is held within a t-quantile of its standard error,
    at the suite's false-alarm rate, plus `floor`, the part that a finite number of steps leaves.

    A point estimate has an expected sd of 0. Its own must be 0 exactly, and a hundredth of its value stands in for the sd as the unit.
    """

    def check(pattern, data, expected, worst, floor=0.005, num=16, **settings):
        fits = refit(pattern, data, num, **settings)
        comparisons = 2 * sum(np.size(fits[site][0][0]) for site in expected)
        bound = t.isf(false_alarm / (2 * comparisons), num - 1) / np.sqrt(num)
        for site, (m, s) in expected.items():
            means, sds = fits[site]
            if np.all(np.equal(s, 0)):
                assert np.all(sds == 0), f"{site} is expected to be a point, and has sds {sds}"
                errors = {"point": (means - m) / (0.01 * np.abs(m))}
            else:
                errors = {"mean": (means - m) / s, "log sd": np.log(sds / s)}
            for name, error in errors.items():
                assert np.abs(error).max() < worst, f"{site}, {name}: one fit is off by {np.abs(error).max():.3f}"
                allowed = bound * error.std(0, ddof=1) + floor
                assert np.all(np.abs(error.mean(0)) < allowed), f"{site}, {name}: biased by {error.mean(0)}, allowed {allowed}"

    return check
