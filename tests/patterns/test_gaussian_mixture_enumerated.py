"""gaussian_mixture_enumerated: the ELBO of gaussian_mixture, draw for draw, and its labels against enumeration by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO, TraceEnum_ELBO
from scipy.special import softmax

from vipatterns.patterns import gaussian_mixture as summed
from vipatterns.patterns import gaussian_mixture_enumerated as pattern


@pytest.fixture(scope="module")
def rows():
    return pattern.data()


def test_data_and_guide_are_those_of_gaussian_mixture(rows):
    assert rows.keys() == summed.data().keys()
    np.testing.assert_array_equal(rows["y"], summed.data()["y"])
    for here, there in zip(pattern.documented_bias(**rows)["mu"], summed.documented_bias(**rows)["mu"], strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_elbo_and_gradient_equal_those_of_gaussian_mixture(rows, rng_key, shift):
    """Draw for draw, to the rounding of float32, at the optimum and in a place where rows could belong to two components."""
    m, s = pattern.documented_bias(**rows)["mu"]
    params = {"mu_m": jnp.asarray(m * (1 - shift / 3)), "mu_s": jnp.asarray(s + shift)}

    def loss(params, elbo, module):
        return elbo.loss(rng_key, params, module.model, module.guide, **rows)

    enumerated = jax.value_and_grad(loss)(params, TraceEnum_ELBO(num_particles=4, max_plate_nesting=1), pattern)
    by_hand = jax.value_and_grad(loss)(params, Trace_ELBO(num_particles=4), summed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), enumerated, by_hand)


def test_fit_is_the_fixed_point(rows, assert_fits):
    assert_fits(pattern, rows, pattern.documented_bias(**rows), worst=0.05)


def test_labels_are_drawn_from_their_posterior(rng_key, z_bound):
    """Two groups that overlap: which rows share a component, by 1,000 draws and by summing over all assignments."""
    y = np.array([-1.5, -1.2, -0.9, 0.2, 1.0, 1.4, 1.6])
    q, _ = pattern.fit(rng_key, y, 2)
    assert q["z"].shape == (1000, 7)
    drawn = np.mean(q["z"][:, :, None] == q["z"][:, None, :], axis=0)
    mu = np.asarray(q["mu"].sample(rng_key, (20_000,)), float)
    r = softmax(-0.5 * (y[:, None] - mu[:, None, :]) ** 2, axis=2)
    expected = np.mean(r @ r.transpose(0, 2, 1), axis=0)
    np.fill_diagonal(expected, 1)
    error = np.sqrt(expected * (1 - expected) / 1000 + 1e-12)
    assert 0.2 < expected[0, 3] < 0.9
    assert np.all(np.abs(drawn - expected) < z_bound(21) * error + 0.005)


def test_same_component_is_right_where_single_labels_are_not(rows, rng_key):
    """The docstring's lesson: q is certain of row 1's label, the posterior gives each a third; who is with whom, both agree on."""
    q, _ = pattern.fit(rng_key, **rows)
    log_p, _, _ = summed.assignments(rows["y"], 3)
    z = np.stack(np.unravel_index(np.arange(3**10), [3] * 10), axis=1)
    weight = softmax(log_p)
    np.testing.assert_allclose([weight @ (z[:, 0] == k) for k in range(3)], 1 / 3, atol=1e-9)
    assert np.mean(q["z"][:, 0] == 0) > 0.99
    same = np.array([weight @ (z[:, [i]] == z) for i in range(10)])
    assert np.abs(np.mean(q["z"][:, :, None] == q["z"][:, None, :], axis=0) - same).max() < 0.02
