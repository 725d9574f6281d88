"""fit(), the ladder and what every method owes its caller: settings of JAX untouched, keys of both kinds, any precision, any helper."""

import dataclasses
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from synthetic import Vague, fit_of, normal

import vipatterns as vip
from vipatterns import certification, methods, mode, programs
from vipatterns.patterns import correlated_gaussian, gaussian_mean
from vipatterns.posterior import Certificate

METHODS = [getattr(methods, name) for name in methods.__all__ if isinstance(getattr(methods, name), type)]
QUICK = {"MeanField": {"num_steps": 100, "num_samples": 50}, "NUTS": {"num_warmup": 50, "num_samples": 50, "num_chains": 2}}


def quick(name):
    return getattr(vip, name)(**QUICK[name])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_a_method_is_a_frozen_record_with_a_fit(method):
    assert dataclasses.is_dataclass(method)
    assert method.__dataclass_params__.frozen
    parameters = list(inspect.signature(method.fit).parameters.values())
    assert [p.name for p in parameters[:4]] == ["self", "rng_key", "model", "data"]
    options = [p for p in parameters[4:] if p.kind is not p.VAR_KEYWORD]
    assert [p.name for p in options[:4]] == ["args", "coords", "dims", "progress"]
    assert {p.name for p in options[4:]} <= {"around"}
    assert all(p.kind is p.KEYWORD_ONLY for p in options)
    assert hasattr(vip, method.__name__)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_callers_precision_is_left_as_it_was(name, enabled, dtype, rng_key):
    method = dataclasses.replace(quick(name), dtype=dtype)
    with jax.enable_x64(enabled):
        fit = vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=method)
        assert jax.config.jax_enable_x64 == enabled
        assert jnp.zeros(()).dtype == ("float64" if enabled else "float32")
    assert not jax.config.jax_enable_x64
    assert fit.posterior["mu"].dtype == dtype
    assert fit.target.dtype == fit.idata.attrs["dtype"] == dtype


def test_a_dtype_that_is_none(rng_key):
    with pytest.raises(vip.InputError, match=r"dtype must be 'float32' or 'float64', got 'float16'"):
        vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=vip.MeanField(dtype="float16"))


HELPERS = {
    "product": lambda weights: lambda mu: (mu * weights).mean(),
    "sum": lambda weights: lambda mu: mu + jnp.sum(weights) * 0.0,
    "scan": lambda weights: lambda mu: jax.lax.scan(lambda total, w: (total + w * 0.0, None), mu, weights)[0],
    "index": lambda weights: lambda mu: mu * jnp.take(weights, np.arange(100) + jnp.asarray(mu * 0, int)).mean(),
    "helper in a helper": lambda weights: lambda mu: jax.jit(lambda mu: (mu * weights).mean())(mu),
}


@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize("how", ["fit", "compare"])
def test_a_users_jitted_helper_that_was_traced_in_float32(helper, how, rng_key):
    """JAX keeps its trace and its array, which are of another precision; afterwards the user goes on in float32."""
    helper = jax.jit(HELPERS[helper](np.ones(100)))

    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", len(x)):
            numpyro.sample("x", dist.Normal(helper(mu), 1.0), obs=x)

    def look():
        with numpyro.handlers.seed(rng_seed=0):
            model(np.ones(3, np.float32))
        assert jax.grad(helper)(1.0) == pytest.approx(1)

    look()
    if how == "fit":
        fit = vip.fit(rng_key, model, {"x": np.ones(3)}, method=quick("MeanField"))
    else:
        [fit] = vip.compare(rng_key, model, {"x": np.ones(3)}, methods=[quick("MeanField")]).finished.values()
    assert fit.posterior["mu"].mean() == pytest.approx(0.75, abs=6 * 0.5 / math.sqrt(200))
    look()


def test_keys_of_both_kinds(rng_key):
    old = jax.random.key_data(rng_key)
    fits = [vip.fit(key, gaussian_mean.model, gaussian_mean.data(), method=quick("MeanField")) for key in (rng_key, old, np.asarray(old))]
    for fit in fits[1:]:
        np.testing.assert_array_equal(fit.posterior["mu"], fits[0].posterior["mu"])
    for wrong in (0, None, np.zeros(3, np.uint32)):
        with pytest.raises(vip.InputError, match=r"rng_key must be a JAX key, got .*write jax.random.key\(0\)"):
            vip.fit(wrong, gaussian_mean.model, gaussian_mean.data())


@pytest.mark.parametrize("wrong", [vip.MeanField, "MeanField", 3])
def test_what_is_no_method(wrong, rng_key):
    with pytest.raises(vip.InputError, match=r"method must be one such as vip.MeanField\(\)"):
        vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=wrong)


def scaled(x, /, y, *, units):
    """Positional-only x, a static switch, a plate."""
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("city", len(y)):
        numpyro.sample("y", dist.Normal(b * x * (1000.0 if units == "m" else 1.0), 1.0), obs=y)


@pytest.mark.parametrize("name", QUICK)
def test_positional_static_and_named_axes(name, rng_key):
    x, y = np.arange(3.0), np.array([0.1, 0.9, 2.1])
    cities = ["Ulm", "Trier", "Köln"]
    fit = vip.fit(rng_key, scaled, {"y": y, "units": "km"}, args=(x,), method=quick(name), coords={"city": cities}, dims={"y": ["city"]})
    precision = 1 + (x**2).sum()
    assert fit.posterior["b"].mean() == pytest.approx(x @ y / precision, abs=6 / math.sqrt(100 * precision))
    observed = fit.idata["observed_data"]["y"]
    assert observed.dims == ("city",)
    assert list(observed["city"].values) == cities
    with pytest.raises(vip.InputError, match=r"coords gives 2 labels for 'city', which has size 3"):
        vip.fit(rng_key, scaled, {"y": y, "units": "km"}, args=(x,), method=quick(name), coords={"city": cities[:2]})


def test_times_are_told(rng_key):
    programs._kept.clear()  # nothing is compiled where an earlier test did
    fit = vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=quick("NUTS"))
    assert fit.compile_seconds > 0
    assert fit.run_seconds > 0


def ladder_of(*results):
    return vip.Ladder(rungs=tuple(Vague(fit) for fit in results))


def made(ok, **options):
    return fit_of({"mu": normal(np.random.default_rng(0), 0, 1, num=10)}, ok=ok, **options)


def test_the_ladder_stops_at_the_first_certificate(rng_key):
    first, second, third = made(False), made(True), made(True)
    fit = vip.fit(rng_key, None, {}, method=ladder_of(first, second, third))
    assert fit.posterior.equals(second.posterior)
    assert [r.ok for r in fit.rungs] == [False, True]
    assert [r.method for r in fit.rungs] == ["Vague", "Vague"]
    assert fit.rungs[0].verdict == first.certificate.verdict
    assert all(r.seconds >= 0 for r in fit.rungs)
    assert fit.compile_seconds == first.compile_seconds + second.compile_seconds
    assert fit.run_seconds == first.run_seconds + second.run_seconds


def test_a_ladder_on_which_all_refuse_returns_a_fit_that_is_not_ok(rng_key):
    fit = vip.fit(rng_key, None, {}, method=ladder_of(made(False), made(False)))
    assert not fit.certificate.ok
    assert [r.ok for r in fit.rungs] == [False, False]


def test_ctrl_c_on_the_ladder_keeps_the_rung_before(rng_key):
    first = made(False)
    fit = vip.fit(rng_key, None, {}, method=ladder_of(first, KeyboardInterrupt(), made(True)))
    assert fit.posterior.equals(first.posterior)
    assert fit.stopped_because.startswith("interrupted: Ctrl-C")
    assert len(fit.rungs) == 1
    with pytest.raises(KeyboardInterrupt):
        vip.fit(rng_key, None, {}, method=ladder_of(KeyboardInterrupt(), made(True)))
    interrupted = made(False, stopped="interrupted")
    fit = vip.fit(rng_key, None, {}, method=ladder_of(interrupted, made(True)))
    assert fit.posterior.equals(interrupted.posterior)


def test_a_ladder_climbs_past_mean_field(rng_key):
    """Correlation .9 is beyond mean-field and its weights; what vouches for the posterior says so itself."""
    ladder = vip.Ladder(rungs=(vip.MeanField(), vip.NUTS()))
    fit = vip.fit(rng_key, correlated_gaussian.model, {"rho": 0.9}, method=ladder)
    assert fit.certificate.ok
    assert fit.name == "NUTS"
    assert [(r.method, r.ok) for r in fit.rungs] == [("MeanField", False), ("NUTS", True)]
    assert "k-hat" in fit.rungs[0].verdict
    seconds = sum(r.seconds for r in fit.rungs)
    assert fit.compile_seconds + fit.run_seconds == pytest.approx(seconds, rel=0.2, abs=0.5)


def test_a_rung_that_cannot_take_the_model_is_passed_by(rng_key):
    refusing = vip.InputError("Too many latents.")
    fit = vip.fit(rng_key, None, {}, method=ladder_of(refusing, made(True)))
    assert [(r.ok, r.verdict) for r in fit.rungs] == [(False, "Too many latents."), (True, "Looks fine.")]
    first = made(False)
    fit = vip.fit(rng_key, None, {}, method=ladder_of(first, refusing))
    assert fit.posterior.equals(first.posterior)
    with pytest.raises(vip.InputError, match="Too many latents"):
        vip.fit(rng_key, None, {}, method=ladder_of(refusing, refusing))


def test_a_ladder_that_has_no_time_left_climbs_no_further(rng_key):
    first = made(False)
    ladder = dataclasses.replace(ladder_of(first, made(True)), max_seconds=0)
    fit = vip.fit(rng_key, None, {}, method=ladder)
    assert fit.posterior.equals(first.posterior)
    assert fit.rungs[1].verdict == "Not tried: 0 s were over."


def test_nuts_goes_on_from_the_rung_before(rng_key, monkeypatch):
    """It looks for no mode of its own, and its draws are those of the posterior."""
    ladder = vip.Ladder(rungs=(vip.DADVI(), vip.NUTS()))
    refused = Certificate(False, "Not safe.")
    monkeypatch.setattr(certification, "_certificate", lambda *args: refused)
    searches, find = [], mode.find
    monkeypatch.setattr(mode, "find", lambda *args, **options: searches.append(1) or find(*args, **options))
    fit = vip.fit(rng_key, correlated_gaussian.model, {"rho": 0.9}, method=ladder)
    assert searches == [1]
    assert fit.name == "NUTS"
    assert fit.certificate.ok
    z = fit.posterior["z"].values.reshape(-1, 2)
    assert np.corrcoef(z.T)[0, 1] == pytest.approx(0.9, abs=6 * (1 - 0.81) / math.sqrt(fit.certificate.ess))


def test_the_climb_records_the_key_that_repeats_it():
    key = jax.random.key(11)
    fit = vip.fit(key, gaussian_mean.model, gaussian_mean.data())
    assert fit.idata.attrs["seed"] == fit.posterior.attrs["seed"] == np.asarray(jax.random.key_data(key)).tolist()


def test_fit_climbs_the_ladder_by_default(rng_key):
    fit = vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data())
    assert fit.certificate.ok
    assert len(fit.rungs) == 1, "the first rung is perfect here"
    assert fit.posterior["mu"].mean() == pytest.approx(1.8773796857484217, abs=6 * 0.0995 / math.sqrt(4_000))
