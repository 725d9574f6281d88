"""The DataTree of draws and data: names of axes, labels, and what it says of itself."""

from importlib.metadata import version

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import vipatterns as vip
from vipatterns import density, draws

KEY = jax.random.key(7)


def read(model, **data):
    with density.precision("float64"):
        return density.read(model, data)


def tree_of(model, values, *, coords=None, dims=None, **data):
    return draws.tree(read(model, **data), {"posterior": values}, rng_key=KEY, coords=coords, dims=dims)


def regression(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("pupil", len(x)):
        loc = numpyro.deterministic("loc", x @ slope)
        numpyro.sample("y", dist.Normal(loc, 1), obs=y)


X, Y = np.ones((3, 2)), np.zeros(3)
VALUES = {"slope": np.zeros((2, 5, 2)), "loc": np.zeros((2, 5, 3))}


def test_axes_are_named_by_plates_and_by_the_caller():
    names = {"coords": {"feature": ["age", "dose"], "pupil": ["a", "b", "c"]}, "dims": {"slope": ["feature"], "x": ["pupil", "feature"]}}
    tree = tree_of(regression, VALUES, x=X, y=Y, **names)
    assert tree["posterior"]["slope"].dims == ("chain", "draw", "feature")
    assert tree["posterior"]["loc"].dims == ("chain", "draw", "pupil")
    assert tree["observed_data"]["y"].dims == ("pupil",)
    assert tree["constant_data"]["x"].dims == ("pupil", "feature")
    for group, dim in [("posterior", "feature"), ("posterior", "pupil"), ("observed_data", "pupil"), ("constant_data", "feature")]:
        assert list(tree[group][dim].values) == names["coords"][dim]


def test_axes_without_a_name_are_numbered():
    tree = tree_of(regression, VALUES, x=X, y=Y)
    assert tree["posterior"]["slope"].dims == ("chain", "draw", "slope_dim_0")
    assert tree["constant_data"]["x"].dims == ("x_dim_0", "x_dim_1")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"dims": {"slpoe": ["feature"]}}, "dims names 'slpoe', but the model's sites and arguments are"),
        ({"dims": {"slope": ["a", "b"]}}, r"dims gives 'slope' the 2 names \['a', 'b'\], but its shape is \(2,\)"),
        ({"dims": {"x": ["a", "a"]}}, "differ from one another"),
        ({"dims": {"slope": ["draw"]}}, "from chain and draw"),
        ({"dims": {"slope": ["loc"]}}, "'loc' is the name of a variable"),
        ({"dims": {"slope": ["a"], "loc": ["a"]}}, "'a' has size 2 elsewhere"),
        ({"coords": {"pupil": ["a", "b"]}}, "coords gives 2 labels for 'pupil', which has size 3"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, said):
    with pytest.raises(vip.InputError, match=said):
        tree_of(regression, VALUES, x=X, y=Y, **names)


def test_plates_of_one_name_and_two_sizes_stay_apart():
    """xarray would pad the shorter one with NaN, without a word."""

    def model():
        for site, size in (("a", 2), ("b", 3)):
            with numpyro.plate("item", size):
                numpyro.sample(site, dist.Normal(0, 1))

    posterior = tree_of(model, {"a": np.zeros((1, 4, 2)), "b": np.zeros((1, 4, 3))})["posterior"]
    assert posterior["a"].dims == ("chain", "draw", "item")
    assert posterior["b"].dims == ("chain", "draw", "b_dim_0")
    assert np.isfinite(posterior["a"]).all()


def test_a_plate_named_as_an_argument_keeps_its_name():
    def model(school, num_schools):
        with numpyro.plate("school", num_schools):
            numpyro.sample("effect", dist.Normal(0, 1))

    data = {"school": np.array([0, 0, 1]), "num_schools": 2}
    tree = tree_of(model, {"effect": np.zeros((1, 4, 2))}, coords={"school": ["Ash", "Birch"]}, **data)
    assert list(tree["posterior"]["school"].values) == ["Ash", "Birch"]
    assert tree["constant_data"]["school"].dims == ("school_dim_0",)


def test_an_argument_longer_than_its_site():
    def model(y):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        with numpyro.plate("time", len(y) - 1):
            numpyro.sample("y", dist.Normal(slope * y[:-1], 1), obs=y[1:])

    tree = tree_of(model, {"slope": np.zeros((1, 4))}, y=np.arange(5.0))
    assert np.array_equal(tree["observed_data"]["y"], np.arange(5.0))


def test_sites_in_a_scope_are_stored_under_a_dot(rng_key):
    """A DataTree takes a slash for a path; numpyro's scope, and its networks, put one into names."""

    def model(y=None):
        m = numpyro.handlers.scope(lambda: numpyro.sample("m", dist.Normal(0, 1)), "part")()
        numpyro.sample("y", dist.Normal(m, 1), obs=y)

    fit = vip.Laplace().fit(rng_key, model, {"y": np.array(0.5)})
    assert list(fit.posterior) == ["part.m"]
    assert list(fit.sample(rng_key, 10)) == ["part.m"]
    assert list(fit.predict(rng_key)) == ["y"]
    assert list(fit.with_log_likelihood().idata["log_likelihood"]) == ["y"]


def test_what_the_tree_says_of_itself():
    tree = tree_of(regression, VALUES, x=X, y=Y)
    for node in (tree, tree["posterior"]):
        assert node.attrs["seed"] == [0, 7]
        assert node.attrs["dtype"] == "float64"
        assert node.attrs["device"] == "cpu"
        assert {k: node.attrs[k] for k in ("vipatterns", "numpyro", "jax", "arviz")} == {
            k: version(k) for k in ("vipatterns", "numpyro", "jax", "arviz")
        }
