"""The example of one's own model and table, run as its first lines say, against sampling by NumPyro alone with its gaps imputed."""

import importlib.util
import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from arviz_stats.base.array import array_stats
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density
from scipy import stats
from scipy.integrate import quad
from typer.testing import CliRunner

import vipatterns as vip
from vipatterns.cli import app
from vipatterns.verdict import MEAN_LIMIT, SD_LIMIT

ROOT = pathlib.Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("heating", ROOT / "examples" / "heating.py")
heating = importlib.util.module_from_spec(spec)
spec.loader.exec_module(heating)
[COMMAND] = re.findall(r"(?m)^ {4}(vipatterns .*)$", heating.__doc__)
TABLE = ROOT / "examples" / "heating.csv"
SITES = ["ordinary", "between", "per_m2", "per_cm", "noise", "usual", "spread", "level"]


def arguments():
    frame = pd.read_csv(TABLE)
    codes, labels = pd.factorize(frame["district"], sort=True)
    return {
        "district": codes,
        "num_districts": len(labels),
        **{name: frame[name].to_numpy(float) for name in ("area", "insulation", "kwh")},
    }


def test_the_table_is_the_simulation():
    pd.testing.assert_frame_equal(pd.read_csv(TABLE, dtype={name: "Int64" for name in ("area", "insulation", "kwh")}), heating.simulate())


def test_the_readme_shows_the_command():
    assert f"uv run {COMMAND}" in (ROOT / "README.md").read_text()


def test_a_gap_is_integrated_out():
    """A home of unknown insulation counts by the integral over it, one that nothing is known of not at all."""
    values = {"ordinary": 15_000.0, "between": 1_500.0, "per_m2": 90.0, "per_cm": -300.0, "noise": 2_000.0, "usual": 11.0, "spread": 4.0}
    one = {"district": np.array([0]), "num_districts": 1, "area": np.array([120.0]), "insulation": np.array([np.nan])}

    def log_p(**row):
        with jax.enable_x64(True):
            return float(log_density(heating.model, (), {**one, **row}, values | {"level": jnp.array([14_000.0])})[0])

    def joint(cm):
        mean = 14_000 + 90 * 20 - 300 * (cm - 10)
        return stats.norm.pdf(cm, 11, 4) * stats.norm.pdf(13_000, mean, 2_000)

    nothing = log_p(kwh=np.array([np.nan]))
    assert log_p(kwh=np.array([13_000.0])) - nothing == pytest.approx(np.log(quad(joint, -40, 60, points=[11])[0]), rel=1e-9)
    seen = log_p(insulation=np.array([8.0]), kwh=np.array([13_000.0])) - nothing
    assert seen == pytest.approx(np.log(joint(8.0)), rel=1e-9)
    assert log_p(insulation=np.array([8.0]), kwh=np.array([np.nan])) - nothing == pytest.approx(stats.norm.logpdf(8, 11, 4), rel=1e-9)


def imputed(district, num_districts, area, insulation, kwh):
    """The same model with a latent for each gap, which NumPyro alone can only do with the table in NumPy's hands."""
    ordinary = numpyro.sample("ordinary", dist.Normal(15_000, 5_000))
    between = numpyro.sample("between", dist.HalfNormal(3_000))
    per_m2 = numpyro.sample("per_m2", dist.Normal(100, 100))
    per_cm = numpyro.sample("per_cm", dist.Normal(0, 500))
    noise = numpyro.sample("noise", dist.HalfNormal(5_000))
    usual = numpyro.sample("usual", dist.Normal(10, 5))
    spread = numpyro.sample("spread", dist.HalfNormal(5))
    level = numpyro.sample("level", dist.Normal(jnp.full(num_districts, ordinary), between))
    unknown, read = np.isnan(insulation), ~np.isnan(kwh)
    numpyro.sample("seen", dist.Normal(usual, spread), obs=insulation[~unknown])
    gaps = numpyro.sample("gaps", dist.Normal(jnp.zeros(unknown.sum()), 1.0))  # in spreads from the usual
    cm = jnp.nan_to_num(insulation).at[unknown].set(usual + spread * gaps)
    mean = level[district] + per_m2 * (area - 100) + per_cm * (cm - 10)
    numpyro.sample("kwh", dist.Normal(mean[read], noise), obs=kwh[read])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the command writes."""
    out = tmp_path_factory.mktemp("example") / "out"
    argv = [str(ROOT / word) if word.startswith("examples/") else word for word in shlex.split(COMMAND)[1:]]
    done = CliRunner().invoke(app, [*argv, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "level[Weir]" in (out / "report.html").read_text()
    return out


@pytest.fixture(scope="module")
def reference():
    """Means and sds of the sites' scalars, with their Monte Carlo errors, from sampling that mixed."""
    with jax.enable_x64(True):
        sampler = MCMC(
            NUTS(imputed, target_accept_prob=0.9),
            num_warmup=1000,
            num_samples=3000,
            num_chains=4,
            chain_method="vectorized",
            progress_bar=False,
        )
        sampler.run(jax.random.key(1), **arguments())
        draws = stacked(sampler.get_samples(group_by_chain=True))
    assert not sampler.get_extra_fields()["diverging"].any()
    assert array_stats.rhat(np.moveaxis(draws, 2, 0)).max() < 1.01
    return moments(draws)


def stacked(draws):
    """(chain, draw, scalar)."""
    sites = [np.asarray(draws[name]) for name in SITES]
    return np.concatenate([site.reshape(*site.shape[:2], -1) for site in sites], axis=-1)


def moments(draws):
    """Mean, sd, and the standard error of each; (scalar,)."""
    series, flat = np.moveaxis(draws, 2, 0), draws.reshape(-1, draws.shape[-1])
    mean, sd = flat.mean(0), flat.std(0, ddof=1)
    kurtosis = ((flat - mean) ** 4).mean(0) / sd**4
    ess = [array_stats.ess(series, method=method) for method in ("mean", "sd")]
    return mean, sd, sd / np.sqrt(ess[0]), sd * np.sqrt((kurtosis - 1) / ess[1]) / 2


@pytest.mark.slow
def test_nuts_agrees_with_numpyro_alone(results, reference, z_bound):
    mean, sd, mean_error, sd_error = moments(stacked(xr.open_dataset(results / "NUTS.nc", group="posterior")))
    known_mean, known_sd, known_mean_error, known_sd_error = reference
    bound = z_bound(2 * mean.size)
    assert mean.size == 7 + 16
    assert (np.abs(mean - known_mean) < bound * np.hypot(mean_error, known_mean_error)).all()
    assert (np.abs(sd - known_sd) < bound * np.hypot(sd_error, known_sd_error)).all()


@pytest.mark.slow
def test_what_is_called_safe_is_near(results, reference, z_bound):
    fit = vip.load(results / "MeanField.nc", model=heating.model)
    verdict = pd.read_csv(results / "table.csv").set_index("method").loc["MeanField", "verdict"]
    assert verdict.startswith("Safe for means, sds")
    (mean, sd, *_), (known_mean, known_sd, mean_error, sd_error) = moments(stacked(fit.posterior)), reference
    count = 1 / (1 / fit.certificate.ess + 1 / 4000)  # of weighting and of resampling
    noise = z_bound(2 * mean.size) / np.sqrt(count)
    assert (np.abs(mean - known_mean) < (MEAN_LIMIT + noise) * known_sd + z_bound(mean.size) * mean_error).all()
    assert (np.abs(sd - known_sd) < (SD_LIMIT + noise) * known_sd + z_bound(mean.size) * sd_error).all()


@pytest.mark.slow
def test_results_carry_the_districts_and_predict_a_home(results):
    fit = vip.load(results / "NUTS.nc", model=heating.model)
    districts = sorted(set(pd.read_csv(TABLE)["district"]))
    assert list(fit.posterior["level"]["district"].values) == districts
    new = {"district": np.array([3, 3]), "area": np.array([60.0, 160.0]), "insulation": np.array([np.nan, 10.0])}
    small, large = fit.predict(jax.random.key(0), new)["kwh"].mean(("chain", "draw")).values
    expected = fit.posterior["level"].sel(district=districts[3]).mean() + 60 * fit.posterior["per_m2"].mean()
    assert large == pytest.approx(float(expected), abs=5 * float(fit.posterior["noise"].mean()) / np.sqrt(4000))
    assert small < large
