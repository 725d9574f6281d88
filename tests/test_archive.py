"""A fit in a file and back: everything but q and the model's code; what is no such file is told in a sentence."""

import errno
import json
import math
import os
from dataclasses import asdict, dataclass, replace

import arviz as az
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import xarray as xr
from known_q import fit_of

import vipatterns as vip
from vipatterns import archive
from vipatterns.posterior import Rung, described


def model(x, groups, link="identity", y=None, switch=True):
    """Whole numbers, text, a dict with an array in it; a plate with labels."""
    slope = numpyro.sample("slope", dist.Normal(0, groups["scale"]))
    with numpyro.plate("pupil", len(x)):
        mean = numpyro.deterministic("mean", slope * x + groups["shift"][0])
        numpyro.sample("y", dist.Normal(mean, 1), obs=y)


DATA = {
    "x": np.array([1.0, 2.0, np.pi]),
    "groups": {"scale": 2.0, "shift": np.array([1, 2])},
    "link": "log",
    "y": np.array([1.0, 0.0, 3.0]),
}
METHOD = vip.MeanField(num_steps=77, optimizer=optax.scale_by_adam())


@pytest.fixture(scope="module")
def fit(rng_key):
    """Every field filled."""
    made = fit_of(rng_key, model, DATA, num_samples=250, method=METHOD, coords={"pupil": ["Ann", "Bo", "Čeněk"]})
    return replace(made, losses=np.arange(6.0).reshape(2, 3), rungs=(Rung("Laplace", False, "Not safe: ...", 1.5),))


@pytest.fixture(scope="module")
def saved(fit, tmp_path_factory):
    return fit.save(tmp_path_factory.mktemp("fits") / "fit.nc")


def same(a, b):
    """Equal, NaN counting as equal to NaN."""
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def test_what_is_saved_comes_back(fit, saved):
    back = vip.load(saved)
    assert back.idata.identical(fit.idata)
    assert back.idata.attrs["seed"] == fit.idata.attrs["seed"]
    assert type(back.idata.attrs["seed"]) is list
    for which in ("certificate", "proposal_certificate"):
        was = asdict(getattr(fit, which))
        assert all(same(value, was[name]) for name, value in asdict(getattr(back, which)).items())
    for name in archive.PLAIN:
        assert same(getattr(back, name), getattr(fit, name))
    assert np.array_equal(back.losses, fit.losses)
    assert back.rungs == fit.rungs
    assert isinstance(back.method, vip.MeanField)
    assert back.method.num_steps == 77
    assert repr(back.method) == described(METHOD)
    assert back.name == "MeanField"
    assert repr(back).splitlines()[1:] == repr(fit).splitlines()[1:]


def test_with_its_model_a_fit_predicts_as_before(fit, saved, rng_key):
    back = vip.load(saved, model=model)
    assert list(back.target.arrays) != []
    for was, now in zip(fit.target.arrays, back.target.arrays, strict=True):
        assert was.dtype == now.dtype
        assert np.array_equal(was, now)
    assert back.target.rebuild(back.target.arrays)[1]["link"] == "log"
    new = {"x": [1.0, 5.0], "groups": DATA["groups"]}
    assert back.predict(rng_key, new).drop_attrs().identical(fit.predict(rng_key, new).drop_attrs())
    assert back.with_log_likelihood().idata["log_likelihood"].equals(fit.with_log_likelihood().idata["log_likelihood"])


def test_without_its_model_a_fit_has_its_draws(fit, saved, rng_key):
    back = vip.load(saved)
    draws = back.sample(rng_key, 2_000)
    assert draws.attrs["drawn"] == "resampled from the fit's own 1000 draws"
    assert list(draws["pupil"].values) == ["Ann", "Bo", "Čeněk"]
    for asks in (lambda: back.predict(rng_key, {}), lambda: back.with_posterior_predictive(rng_key), back.with_log_likelihood):
        with pytest.raises(vip.InputError, match="needs the model, and this fit was loaded without"):
            asks()


def test_a_loaded_fit_is_saved_again(fit, saved, tmp_path):
    again = vip.load(vip.load(saved, model=model).save(tmp_path / "again.nc"), model=model)
    assert again.idata.identical(fit.idata)
    bare = vip.load(saved).save(tmp_path / "bare.nc")
    assert vip.load(bare).idata.identical(fit.idata)
    with pytest.raises(vip.InputError, match="does not hold the model's arguments"):
        vip.load(bare, model=model)


def test_arviz_reads_the_file(fit, saved):
    assert az.summary(az.from_netcdf(saved)).equals(az.summary(fit.idata))


def test_chains_come_back(rng_key, tmp_path):
    method = vip.NUTS(num_warmup=50, num_samples=50)
    fit = method.fit(rng_key, model, DATA)
    back = vip.load(fit.save(tmp_path / "nuts.nc"), model=model)
    assert back.method == method
    assert back.idata.identical(fit.idata)
    assert back.losses is None
    assert back.proposal_certificate is None


def test_data_of_every_kind_come_back(rng_key, tmp_path):
    def model(count, seen, weight, y, /, scale):
        m = numpyro.sample("m", dist.Normal(0, scale))
        numpyro.sample("y", dist.Normal(m * weight + count, 1).mask(seen).to_event(1), obs=y)

    args = (np.array([1, 2], np.int32), np.array([True, False]), np.array([1.0, 0.5], np.float32), np.array([0.0, np.nan]))
    fit = fit_of(rng_key, model, {"scale": np.array(2.0)}, args=args, num_samples=250)
    back = vip.load(fit.save(tmp_path / "fit.nc"), model=model)
    for was, now in zip(fit.target.arrays, back.target.arrays, strict=True):
        assert was.dtype == now.dtype
        assert was.shape == now.shape
        assert np.array_equal(was, now, equal_nan=was.dtype.kind == "f")


def test_what_a_file_cannot_hold_is_asked_for(rng_key, tmp_path):
    def model(network, y):
        m = numpyro.sample("m", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(network(m), 1), obs=y)

    data = {"network": lambda m: 2 * m, "y": np.array(1.0)}
    path = fit_of(rng_key, model, data, num_samples=250).save(tmp_path / "fit.nc")
    with pytest.raises(vip.InputError, match=r"could not hold the arguments \['network'\]: give them again"):
        vip.load(path, model=model)
    assert vip.load(path, model=model, data={"network": data["network"]}).target.dim == 1
    with pytest.raises(vip.InputError, match="a prior, the likelihood or the data has changed"):
        vip.load(path, model=model, data={"network": lambda m: 3 * m})


def test_a_method_that_is_not_ours_keeps_its_name(fit, tmp_path):
    @dataclass(frozen=True)
    class Mine:
        rate: float = 0.5

    back = vip.load(replace(fit, method=Mine()).save(tmp_path / "fit.nc"))
    assert back.name == "Mine"
    assert repr(back.method) == repr(Mine())


def changed(x, groups, link="identity", y=None, switch=True):
    """A prior that is another."""
    model(x, {**groups, "scale": 3.0}, link, y)


def wider(x, groups, link="identity", y=None, switch=True):
    numpyro.sample("slope", dist.Normal(0, 2).expand([2]).to_event(1))


def renamed(x, groups, link="identity", y=None, switch=True):
    numpyro.sample("steepness", dist.Normal(0, 2))


def other_arguments(z):
    numpyro.sample("slope", dist.Normal(0, z))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (changed, "its sites are the same, but a prior, the likelihood or the data has changed"),
        (wider, r"has the latent sites \{'slope': \(2,\)\}, and the fit in .* differ"),
        (renamed, "has the latent sites {'steepness'"),
        (other_arguments, "cannot be called with"),
        (3, "must be a function"),
    ],
)
def test_another_model_is_refused(saved, other, said):
    with pytest.raises(vip.InputError, match=said):
        vip.load(saved, model=other)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.7, 0.9999])
def test_a_file_cut_short_is_refused(saved, tmp_path, share):
    whole = saved.read_bytes()
    cut = tmp_path / "cut.nc"
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(vip.InputError, match=r"cut\.nc cannot be read as a netCDF file .* cut short, damaged, or something else"):
        vip.load(cut)


def test_a_file_that_is_not_ours_is_refused(fit, tmp_path):
    xr.Dataset({"a": 1}).to_netcdf(tmp_path / "other.nc")
    fit.idata.to_netcdf(tmp_path / "tree.nc")
    (tmp_path / "text.nc").write_text("a,b\n1,2\n")
    for name in ("other.nc", "tree.nc"):
        with pytest.raises(vip.InputError, match=f"{name} was not written by Fit.save"):
            vip.load(tmp_path / name)
    with pytest.raises(vip.InputError, match=r"text\.nc cannot be read as a netCDF file"):
        vip.load(tmp_path / "text.nc")
    with pytest.raises(vip.InputError, match=r"There is no file .*nothing\.nc"):
        vip.load(tmp_path / "nothing.nc")


def rewritten(saved, path, change):
    """The file with its record changed."""
    with xr.open_datatree(saved) as tree:
        tree = tree.load()
    record = json.loads(tree.attrs[archive.RECORD])
    change(record)
    tree.attrs[archive.RECORD] = json.dumps(record)
    tree.to_netcdf(path)
    return path


def test_a_later_version_is_named(saved, tmp_path):
    path = rewritten(saved, tmp_path / "later.nc", lambda record: record.update(format=99, vipatterns="7.1"))
    with pytest.raises(vip.InputError, match=r"written by vipatterns 7\.1, in format 99; .* reads up to format 1: install that version"):
        vip.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("certificate"),
        lambda record: record["certificate"].update(colour="red"),
        lambda record: record.pop("num_steps"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(saved, tmp_path, change):
    with pytest.raises(vip.InputError, match=r"was not written by Fit\.save of this version, or it is damaged"):
        vip.load(rewritten(saved, tmp_path / "odd.nc", change))


@pytest.mark.parametrize(
    "change",
    [
        lambda method: method["settings"].update(colour="red"),
        lambda method: method.update(module="vipatterns.methods.nowhere"),
        lambda method: method.update(name="Nobody"),
    ],
)
def test_a_method_of_another_version_is_a_name_and_a_text(saved, tmp_path, change):
    back = vip.load(rewritten(saved, tmp_path / "odd.nc", lambda record: change(record["method"])))
    assert back.name in ("MeanField", "Nobody")
    assert repr(back.method) == described(METHOD)


def test_a_file_runs_no_code_of_its_choosing(saved, tmp_path):
    """A method is made only of the rooms of methods; anything else is a name and a text."""
    change = {"module": "os", "name": "system", "settings": {"command": "true"}, "text": "os.system"}
    back = vip.load(rewritten(saved, tmp_path / "evil.nc", lambda record: record.update(method=change)))
    assert isinstance(back.method, archive.NotSaved)
    assert repr(back.method) == "os.system"


def test_a_place_that_cannot_be_written_is_told(fit, tmp_path):
    with pytest.raises(vip.InputError, match="is a folder: name a file in it"):
        fit.save(tmp_path)
    with pytest.raises(vip.InputError, match=r"There is no folder .*nowhere"):
        fit.save(tmp_path / "nowhere" / "fit.nc")


def test_a_failed_write_leaves_the_old_file(fit, tmp_path, monkeypatch):
    path = tmp_path / "fit.nc"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(vip.InputError, match=r"fit\.nc could not be written: No space left on device"):
        fit.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["fit.nc"]
    assert path.read_text() == "old"
    monkeypatch.undo()
    assert vip.load(fit.save(path)).name == "MeanField"


def test_old_keys_are_keys_too(fit, saved):
    assert vip.load(saved).sample(jax.random.PRNGKey(3), 5).attrs["seed"] == [0, 3]
