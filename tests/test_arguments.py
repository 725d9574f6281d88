"""A model's arguments: what is traced, what stays static, that reading runs and compiles nothing, what the axes are called."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from numpyro.contrib.control_flow import scan

from vipatterns import density
from vipatterns.errors import InputError

SEEN = []
"""What the model below saw of its arguments and latents: its one call during a read is looked at from outside."""


def witness(x, n, kind, flag, nothing, rate, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    SEEN.append({"x": x, "n": n, "kind": kind, "flag": flag, "nothing": nothing, "rate": rate, "y": y, "mu": mu})
    with numpyro.plate("row", n):
        numpyro.sample("y", dist.Normal(mu + x, 1.0 if flag and kind == "unit" else rate), obs=y)


def data():
    return {"x": np.arange(4.0), "n": 4, "kind": "unit", "flag": True, "nothing": None, "rate": 2.5, "y": np.ones(4)}


def read(model, data=None, **options):
    with density.precision("float64"):
        return density.read(model, data, **options)


def test_only_arrays_are_traced():
    SEEN.clear()
    read(witness, data())
    assert SEEN
    for call in SEEN:
        assert all(isinstance(call[name], jax.core.Tracer) for name in ("x", "y", "mu")), "a value was concrete: the model was run"
        assert {k: call[k] for k in ("n", "kind", "flag", "nothing", "rate")} == {
            k: data()[k] for k in ("n", "kind", "flag", "nothing", "rate")
        }


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: COMPILED.append(event) if "backend_compile" in event else None)


def test_reading_compiles_nothing():
    read(lambda: numpyro.sample("warm", dist.Normal()))  # makes the seed of jax.random.key, which JAX compiles once
    with density.precision("float64"):
        COMPILED.clear()
        jax.jit(lambda x: 3.0 * x + 17.0)(np.ones(3))
        assert COMPILED, "the listener hears nothing"
        COMPILED.clear()
        density.read(witness, data())
        assert not COMPILED


COLUMNS = {
    "list": [1, 2, 3],
    "list of floats": [1.0, 2.0, 3.0],
    "tuple of NumPy numbers": tuple(np.float32([1, 2, 3])),
    "nested list": [[1.0, 2.0], [3.0, 4.0]],
    "pandas integers": pd.Series([1, 2, 3]),
    "pandas nullable": pd.Series([1, 2, None], dtype="Int64"),
    "pandas bool": pd.Series([True, False, True]),
    "pandas frame": pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}),
    "xarray": xr.DataArray([1.0, 2.0, 3.0], dims="row"),
    "jax": jnp.arange(3.0),
    "float32": np.float32([1, 2, 3]),
    "int8": np.int8([1, 2, 3]),
    "empty": np.zeros(0),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_array_likes_are_traced_with_their_values(name):
    def model(x):
        assert isinstance(x, jax.core.Tracer)
        numpyro.sample("mu", dist.Normal(jnp.sum(x * 0.0), 1.0))

    target = read(model, {"x": COLUMNS[name]})
    [array] = target.arrays
    expected = np.asarray(COLUMNS[name])
    np.testing.assert_array_equal(np.asarray(array), expected)
    assert array.dtype == ("float64" if expected.dtype.kind == "f" else expected.dtype)


def test_numbers_stay_static_whatever_their_type():
    def model(n, m, scale):
        assert (n, m, scale) == (3, 2, 0.5)
        assert not any(isinstance(v, (jax.Array, np.ndarray)) for v in (n, m, scale))
        numpyro.sample("mu", dist.Normal(jnp.zeros((n, m)), scale).to_event(2))

    target = read(model, {"n": np.int64(3), "m": np.uint8(2), "scale": np.float32(0.5)})
    assert target.arrays == ()
    assert target.dim == 6


def positional(x, /, y=None, *, shift=0.0):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu + x + shift, 1.0), obs=y)


def test_positional_only_arguments():
    target = read(positional, {"y": np.ones(3), "shift": 2.0}, args=(np.arange(3.0),))
    assert [a.shape for a in target.arrays] == [(3,), (3,)]
    with pytest.raises(InputError, match=r"'x'"):
        read(positional, {"y": np.ones(3)})


def nested(group, y):
    """`group` is a dict of arrays and a name: arrays inside are traced, the rest stays."""
    assert group["label"] == "a"
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu * group["x"], 1.0), obs=y)


def test_arrays_inside_containers_are_traced():
    target = read(nested, {"group": {"label": "a", "x": np.arange(3.0)}, "y": np.ones(3)})
    assert sorted(a.shape for a in target.arrays) == [(3,), (3,)]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([[1, 2], [3]], "'x' holds lists of different lengths"),
        (pd.Series(["a", "b"]), "'x' must hold numbers"),
        (np.array(["a", "b"]), "'x' must hold numbers"),
        (pd.Series(["a", "b"], dtype="category"), "'x' must hold numbers"),
        (pd.to_datetime(pd.Series(["2020-01-01"])), "'x' must hold numbers"),
        (np.array([1 + 2j]), "'x' must hold numbers"),
    ],
    ids=["ragged", "pandas text", "text", "category", "dates", "complex"],
)
def test_text_and_the_like_are_refused_by_argument(value, match):
    with pytest.raises(InputError, match=match):
        read(lambda x: numpyro.sample("mu", dist.Normal()), {"x": value})


def test_what_is_no_dict_or_no_model():
    with pytest.raises(InputError, match="data must be a dict of the model's arguments, got list"):
        read(positional, [1, 2])
    with pytest.raises(InputError, match="must be a function with NumPyro sample sites, got str"):
        read("positional", {})
    with pytest.raises(InputError, match=r"cannot be called with \['z'\].*'n'"):
        read(witness, {"z": 1})


def hierarchy(group, y):
    with numpyro.plate("school", 3):
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        numpyro.sample("slope", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("pupil", len(y)):
        numpyro.deterministic("fitted", effect[group])
        numpyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)


def steps(y):
    def step(level, y_t):
        level = numpyro.sample("level", dist.Normal(level, 1.0))
        numpyro.sample("y", dist.Normal(level, 1.0), obs=y_t)
        return level, None

    scan(step, 0.0, y)


def test_axes_are_named_by_their_plates():
    target = read(hierarchy, {"group": np.array([0, 0, 1, 2]), "y": np.zeros(4)})
    named = {k: s.dims for k, s in {**target.latents, **target.deterministics, **target.observations}.items()}
    assert named == {
        "effect": ("school",),
        "slope": ("school", "slope_dim_1"),
        "fitted": ("pupil",),
        "y": ("pupil",),
    }
    assert target.names[:4] == ("effect[0]", "effect[1]", "effect[2]", "slope[0, 0]")
    assert set(target.observed) == {"y"}
    assert set(target.constant) == {"group"}
    assert read(steps, {"y": np.zeros(5)}).latents["level"].shape == (5,)
