"""eight_schools_centered: the same posterior as eight_schools, a worse guide, and how much worse, predicted."""

import jax.numpy as jnp
import numpy as np
import pytest

from vipatterns.patterns import eight_schools as non_centred
from vipatterns.patterns import eight_schools_centered as pattern

MEAN = {"mu": 4.396821, "tau": 3.597705, "theta": [6.211884, 4.940178, 3.927004, 4.757098, 3.615477, 4.042613, 6.296724, 4.854253]}
SD = {"mu": 3.317704, "tau": 3.219958, "theta": [5.593126, 4.674268, 5.262615, 4.780297, 4.657453, 4.826866, 5.077849, 5.290801]}
"""By quadrature over tau, computed elsewhere."""


def test_log_evidence():
    assert pattern.log_evidence(**pattern.data()) == pytest.approx(-31.311347, abs=1e-6)


def test_exact_draws_have_the_published_moments(z_bound):
    """100,000 independent draws; the standard error of a variance follows from the fourth moment."""
    draws = pattern.exact_posterior(**pattern.data())
    for site, x in draws.items():
        squares = (x - x.mean(0)) ** 2
        assert np.all(np.abs(x.mean(0) - MEAN[site]) < z_bound(20) * x.std(0) / np.sqrt(len(x))), site
        assert np.all(np.abs(x.var(0) - np.square(SD[site])) < z_bound(20) * squares.std(0) / np.sqrt(len(x))), site


def test_fit_is_the_best_mean_field_guide(assert_fits):
    d = pattern.data()
    assert_fits(pattern, d, pattern.documented_bias(**d), worst=0.05)


def test_the_failure_is_as_documented():
    best = pattern.documented_bias(**pattern.data())
    assert (best["tau"][0] - MEAN["tau"]) / SD["tau"] == pytest.approx(0.77, abs=0.01)
    assert best["tau"][1] / SD["tau"] == pytest.approx(0.46, abs=0.01)
    assert best["mu"][1] / SD["mu"] == pytest.approx(0.55, abs=0.01)


def test_the_centred_elbo_is_far_lower(rng_key):
    """2.1 nats below the evidence, where the non-centred guide loses 0.3; the last losses average to a few hundredths."""
    d = pattern.data()
    gap = {p: p.log_evidence(**d) + float(jnp.mean(p.fit(rng_key, **d)[1][-500:])) for p in (pattern, non_centred)}
    assert gap[pattern] == pytest.approx(2.10, abs=0.05)
    assert gap[non_centred] == pytest.approx(0.29, abs=0.05)
