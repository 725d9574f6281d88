"""Compiled programs are used again where the model computes the same, and only there."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import vipatterns as vip
from vipatterns import density, programs
from vipatterns.patterns import linear_regression

Y = np.array([1.2, -0.3, 0.8, 2.1, 0.4])
noise = 1.0
"""A global that the model reads."""


def gaussian(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(mu, noise), obs=y)


def exact(y, noise):
    precision = 1 / 100 + len(y) / noise**2
    return y.sum() / noise**2 / precision, precision**-0.5


def check(fit, y, noise):
    mean, sd = exact(y, noise)
    draws = fit.posterior["mu"].values
    assert fit.certificate.ok
    assert abs(draws.mean() - mean) < 4 * fit.certificate.mcse * sd
    assert abs(draws.std() / sd - 1) < 4 * fit.certificate.mcse


@pytest.fixture(autouse=True)
def forgotten():
    programs._kept.clear()


@pytest.mark.parametrize(
    "method", [vip.DADVI(), vip.Laplace(), vip.NUTS(num_warmup=100, num_samples=2_000)], ids=lambda m: type(m).__name__
)
def test_other_data_of_the_same_shape_compile_nothing_of_the_search_and_are_answered_themselves(method, rng_key):
    first = vip.fit(rng_key, gaussian, {"y": Y}, method=method, progress=False)
    again = vip.fit(rng_key, gaussian, {"y": 3 * Y + 50}, method=method, progress=False)
    check(first, Y, noise)
    check(again, 3 * Y + 50, noise)
    if not isinstance(method, vip.Laplace):  # whose q is drawn from by a program that holds its numbers
        assert first.compile_seconds > 0
        assert again.compile_seconds == 0


def test_a_program_that_is_used_again_gives_the_same_draws_as_a_fresh_one(rng_key):
    data = linear_regression.data()
    vip.fit(rng_key, linear_regression.model, {**data, "y": data["y"] + 1}, method=vip.DADVI(), progress=False)
    shared = vip.fit(rng_key, linear_regression.model, data, method=vip.DADVI(), progress=False)
    programs._kept.clear()
    fresh = vip.fit(rng_key, linear_regression.model, data, method=vip.DADVI(), progress=False)
    assert shared.compile_seconds == 0 < fresh.compile_seconds
    assert shared.posterior.equals(fresh.posterior)


def test_a_global_that_changed_is_met(rng_key, monkeypatch):
    check(vip.fit(rng_key, gaussian, {"y": Y}, method=vip.DADVI(), progress=False), Y, 1.0)
    monkeypatch.setitem(globals(), "noise", 3.0)
    check(vip.fit(rng_key, gaussian, {"y": Y}, method=vip.DADVI(), progress=False), Y, 3.0)


@pytest.mark.parametrize("jitted", [False, True])
def test_an_array_that_the_model_closes_over_and_that_changed_is_met(rng_key, jitted):
    offsets = np.zeros(5)

    def shift(mu):
        return mu + offsets

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        numpyro.sample("y", dist.Normal((jax.jit(lambda mu: shift(mu)) if jitted else shift)(mu), 1.0), obs=y)

    check(vip.fit(rng_key, model, {"y": Y}, method=vip.DADVI(), progress=False), Y, 1.0)
    offsets[:] = 7.0
    check(vip.fit(rng_key, model, {"y": Y}, method=vip.DADVI(), progress=False), Y - 7, 1.0)


def test_other_shapes_and_the_other_precision_have_programs_of_their_own(rng_key):
    for y, method in [(Y, vip.DADVI()), (Y[:3], vip.DADVI()), (Y, vip.DADVI(dtype="float32"))]:
        fit = vip.fit(rng_key, gaussian, {"y": y}, method=method, progress=False)
        check(fit, y, noise)
        assert fit.compile_seconds > 0
    assert len(programs._kept) == 3


def test_only_so_many_are_kept(rng_key, monkeypatch):
    monkeypatch.setattr(programs, "KEPT", 2)
    for length in (3, 4, 5):
        vip.fit(rng_key, gaussian, {"y": Y[:length]}, method=vip.DADVI(), progress=False)
    assert len(programs._kept) == 2
    assert vip.fit(rng_key, gaussian, {"y": Y[:3]}, method=vip.DADVI(), progress=False).compile_seconds > 0


def test_a_function_is_compiled_once_for_each_trace_shape_and_form_of_its_answer():
    factor = np.arange(3.0)

    def answer(x, form=tuple):
        return programs.jitted(gaussian, lambda x: form([factor * x]))(np.asarray(x, "float32"))

    np.testing.assert_array_equal(answer([1, 2, 3])[0], [0, 2, 6])
    [kept] = programs._kept.values()
    before = dict(kept)
    np.testing.assert_array_equal(answer([4, 5, 6])[0], [0, 5, 12])
    assert [kept] == list(programs._kept.values())
    assert kept == before, "the same program"
    assert isinstance(answer([1, 2, 3]), tuple)
    assert isinstance(answer([1, 2, 3], list), list)
    assert answer([[1, 2, 3]])[0].shape == (1, 3)
    factor[:] = 2.0
    np.testing.assert_array_equal(answer([1, 2, 3])[0], [2, 4, 6])
    assert len(programs._kept) == 3


def test_constants_of_inner_functions_are_seen():
    inside = np.arange(3.0)
    trace = jax.make_jaxpr(lambda x: jax.lax.cond(x.sum() > 0, jax.jit(lambda x: x * inside), lambda x: -x, x))(np.ones(3))
    assert any(np.array_equal(c, inside) for c in map(programs._plain, programs.constants(trace)))


def test_the_widest_array_is_that_which_an_evaluation_makes_and_not_the_data():
    """A matrix product with 300 rows makes 300 numbers of z, a product element by element as many as the data have."""
    x = np.ones((300, 7))

    def product(x, y):
        b = numpyro.sample("b", dist.Normal(0, 1).expand([7]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ b, 1), obs=y)

    def elementwise(x, y):
        b = numpyro.sample("b", dist.Normal(0, 1).expand([7]).to_event(1))
        numpyro.sample("y", dist.Normal((x * b).sum(1), 1), obs=y)

    def looped(x, y):
        b = numpyro.sample("b", dist.Normal(0, 1).expand([7]).to_event(1))
        total = jax.lax.scan(lambda sum, row: (sum + (row * b).sum(), None), 0.0, x)[0]
        numpyro.sample("y", dist.Normal(total, 1), obs=y[0])

    data = {"x": x, "y": np.zeros(300)}
    with density.precision("float64"):
        found = {model.__name__: density.read(model, data).widest for model in (product, elementwise, looped)}
    assert found == {"product": 300, "elementwise": 2100, "looped": 7}
