"""What cannot be treated is refused before anything is compiled, in one sentence that names the site, the argument or the line."""

import functools
import inspect

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from vipatterns import density, mode
from vipatterns.errors import InputError


def no_latents(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def nothing_at_all(y):
    return y


def with_param(y):
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal()), scale), obs=y)


def infinitely_many(y):
    k = numpyro.sample("k", dist.Poisson(3.0))
    numpyro.sample("y", dist.Normal(k, 1.0), obs=y)


def normal(y, n=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu * jnp.ones(n or len(y)), 1.0), obs=y)


def in_a_plate(y, n):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", n):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def minibatch_given_by_hand(y):
    """The plate says 100 rows, the data are one minibatch, and the model does not use numpyro.subsample."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 100, subsample_size=5):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def by_name(y):
    loc = y.mean() + unknown  # noqa: F821
    numpyro.sample("mu", dist.Normal(loc, 1.0))


def deep(y):
    numpyro.sample("mu", dist.Normal(helper(y), 1.0))


def helper(y):
    return y @ jnp.ones(7)


def branching(y):
    if y.sum() > 0:
        numpyro.sample("mu", dist.Normal(0.0, 1.0))


def twice(y):
    numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("mu", dist.Normal(0.0, 1.0))


def swallowed(y):
    """NumPyro records plates and sites under one roof: the plate takes the place of the latent."""
    school = numpyro.sample("school", dist.Normal(0.0, 1.0))
    with numpyro.plate("school", len(y)):
        numpyro.sample("y", dist.Normal(school, 1.0), obs=y)


def read(model, **data):
    with density.precision("float64"):
        return density.read(model, data)


Y = np.ones(5)
REFUSED = {
    "no latents": (no_latents, {"y": Y}, "no latent sample sites"),
    "no sites": (nothing_at_all, {"y": Y}, "no latent sample sites"),
    "param": (with_param, {"y": Y}, r"numpyro.param 'scale'.*prior with numpyro.sample"),
    "discrete without end": (infinitely_many, {"y": Y}, "'k' is a discrete latent that cannot be enumerated"),
    "too few rows": (normal, {"y": Y, "n": 4}, r"'y' has data of shape \(5,\), but its distribution has shape \(4,\)|shape"),
    "a column as a matrix": (
        normal,
        {"y": Y[:, None]},
        r"'y' has data of shape \(5, 1\), but its distribution has shape \(5,\).*two-dimensional",
    ),
    "plate of another size": (in_a_plate, {"y": Y, "n": 4}, r"row|\(5,\)"),
    "minibatch by hand": (minibatch_given_by_hand, {"y": Y}, r"row|\(5,\)"),
    "same name twice": (twice, {"y": Y}, "mu"),
    "plate with the name of a site": (swallowed, {"y": Y}, "plate 'school' has the name of a site"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case):
    model, data, match = REFUSED[case]
    with pytest.raises(InputError, match=match) as caught:
        read(model, **data)
    assert "\n" not in str(caught.value)


def line(function, text):
    """file, line N of the line of `function` that holds `text`."""
    lines, start = inspect.getsourcelines(function)
    return f"test_refusal.py, line {start + next(i for i, code in enumerate(lines) if text in code)} ("


@pytest.mark.parametrize(
    ("model", "where", "what"),
    [
        (by_name, line(by_name, "unknown"), "NameError"),
        (deep, line(helper, "ones(7)"), r"TypeError"),
        (branching, line(branching, "if y.sum"), "TracerBoolConversionError"),
        (functools.partial(deep), "", "TypeError"),
    ],
    ids=["name", "in a helper", "branches on a value", "partial"],
)
def test_a_model_that_raises_names_file_line_and_shapes(model, where, what):
    with pytest.raises(InputError, match=f"The model raised {what}") as caught:
        read(model, y=Y)
    message = str(caught.value)
    assert where in message
    assert "y (5,)" in message
    assert "\n" not in message


def gamma(y):
    shape = numpyro.sample("shape", dist.HalfNormal(1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Gamma(shape, 1.0), obs=y)
    numpyro.sample("fine", dist.Normal(shape, 1.0), obs=jnp.ones(()))


def zero_scale(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 0.0 * y), obs=y)


def kinked(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.factor("norm", -jnp.sqrt(0.0 * mu) + 0.0 * y.sum())


def find(rng_key, model, args=(), **data):
    with density.precision("float64"):
        return mode.find(rng_key, density.read(model, data, args=args), density.Clock())


@pytest.mark.parametrize(
    ("model", "y", "match"),
    [
        (gamma, np.array([1.0, -2.0, 3.0]), r"not finite.*: y\. .*outside its distribution's support"),
        (zero_scale, np.array([1.0, 2.0]), r"not finite.*: y\."),
        (normal, np.array([1.0, np.nan, 2.0, np.nan]), r"'y' holds 2 NaN or infinite values \(the first at index 1\).*drop or impute"),
        (normal, np.array([[1.0, np.inf], [1.0, 1.0]])[0], r"'y' holds 1 NaN or infinite values \(the first at index 1\)"),
        (kinked, np.array([1.0]), "its gradient is not"),
    ],
    ids=["outside the support", "zero scale", "NaN", "infinite", "gradient"],
)
def test_nothing_finite_at_any_start(model, y, match, rng_key):
    with pytest.raises(InputError, match=match) as caught:
        find(rng_key, model, y=y)
    assert "fine" not in str(caught.value)


def test_nan_in_a_positional_argument(rng_key):
    def model(x, /, y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal()) * x, 1.0), obs=y)

    with pytest.raises(InputError, match=r"argument 0.* holds 1 NaN or infinite values \(the first at index 2\)"):
        find(rng_key, model, args=(np.array([1.0, 2.0, np.nan]),), y=np.ones(3))


def test_a_network_s_parameters_are_named():
    """They are a tree of arrays, and no array."""

    def model(y=None):
        weights = numpyro.param("net$params", {"kernel": jnp.ones((2, 3))})
        mu = numpyro.sample("mu", dist.Normal(weights["kernel"].sum(), 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    with density.precision("float64"), pytest.raises(InputError, match=r"numpyro.param 'net\$params'.*vip.train"):
        density.read(model, {"y": np.zeros(3)})
