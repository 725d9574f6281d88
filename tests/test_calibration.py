"""Calibration: right posteriors look right, biased and narrow ones do not, and a false certificate is counted."""

from dataclasses import dataclass, replace

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.calibration import vsbc_diagnostic
from scipy import stats

import vipatterns as vip
from vipatterns import calibration
from vipatterns.calibration import Rate, calibrate
from vipatterns.patterns import linear_regression
from vipatterns.ranks import ranks


def two_means(spread, y=None):
    """Correlated means, so that mean-field is too narrow; conjugate, so that the posterior is known."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 4):
        numpyro.sample("y", dist.Normal(a + b, spread), obs=y)


def exact(spread, y):
    precision = np.eye(2) + 4 / spread**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ np.full(2, np.sum(y) / spread**2)
    sd = np.sqrt(np.diagonal(covariance))
    return {"a": dist.Normal(mean[0], sd[0]), "b": dist.Normal(mean[1], sd[1])}


@dataclass(frozen=True)
class MeanFieldOptimum:
    """q is the best Gaussian of independent latents, which is known here."""

    def fit(self, rng_key, model, data, **options):
        fit = vip.DADVI().fit(rng_key, model, data, **options)
        precision = 1 + 4 / data["spread"] ** 2
        tree, mean = fit.idata.copy(), exact(**data)["a"].mean
        draws = np.asarray(jax.random.normal(jax.random.fold_in(rng_key, 99), (1, 4_000))) / np.sqrt(precision)
        tree["proposal"] = xr.DataTree(xr.Dataset({"a": (("chain", "draw"), mean + draws)}))
        return replace(fit, idata=tree)


@dataclass(frozen=True)
class Lying:
    """DADVI's posterior, moved and stretched, with its certificate."""

    shift: float = 0.0
    """Of a's mean, in sds."""
    stretch: float = 1.0

    def fit(self, rng_key, model, data, **options):
        fit = vip.DADVI().fit(rng_key, model, data, **options)
        tree = fit.idata.copy()
        for group in ("posterior", "proposal"):
            a = tree[group]["a"]
            tree[group]["a"] = a.mean() + self.stretch * (a - a.mean()) + self.shift * a.std()
        return replace(fit, idata=tree)


def test_an_exact_interval_of_a_rate():
    """Of none in n the upper bound is 1 - .05^(1/n), which is below 1 % from 299 on."""
    assert Rate(0, 299).upper() == pytest.approx(1 - 0.05 ** (1 / 299))
    assert Rate(0, 298).upper() > 0.01 > Rate(0, 299).upper()
    low, high = Rate(3, 50).interval()
    assert stats.binom.sf(2, 50, low) == pytest.approx(0.025)
    assert stats.binom.cdf(3, 50, high) == pytest.approx(0.025)
    assert np.isnan(Rate(0, 0).share)
    assert str(Rate(0, 0)) == "0 of 0"


@pytest.fixture(scope="module")
def honest():
    return calibrate(jax.random.key(1), two_means, {"spread": 0.5}, num_datasets=200, reference=exact, progress=False)


def test_a_right_method_is_calibrated(honest, false_alarm):
    table = honest.table
    assert honest.certified.share == 1
    assert table.uniform_p.min() > false_alarm / 4
    for level in calibration.LEVELS:
        covered = (table[f"covers_{level:.0%}"] * 200).round().astype(int)
        assert all(stats.binomtest(int(k), 200, level).pvalue > false_alarm / 8 for k in covered)
    assert honest.false_certificates.count == 0
    assert honest.false_certificates.number == 200
    assert "none leaves the band" in ranks(honest).alt
    assert "0 of 200 (below 1.49% with 95 % confidence)" in honest.sentence


@pytest.mark.parametrize(("lie", "column"), [(Lying(shift=0.7), "vsbc_p"), (Lying(stretch=0.4), "uniform_p")], ids=["biased", "narrow"])
def test_a_wrong_method_is_found_out(lie, column, rng_key):
    found = calibrate(rng_key, two_means, {"spread": 0.5}, method=lie, num_datasets=60, reference=exact, progress=False)
    assert found.table.loc["a", column] < 1e-3
    assert found.table.loc["b", column] > 1e-3
    if lie.stretch != 1:
        assert found.table.loc["a", "vsbc_p"] > 1e-3  # symmetric, though far too narrow
    assert found.false_certificates.share == 1
    assert set(found.datasets.worst) == {"a"}
    assert "contradict uniformity" in found.sentence
    assert "outside the band: a." in ranks(found).alt
    assert "60 of 60" in found.sentence


def test_vsbc_agrees_with_numpyros(rng_key, false_alarm):
    """Mean-field's own shares, on data from the same prior: both samples have one distribution, wider than uniform at both ends."""
    numpyro_found = vsbc_diagnostic(
        jax.random.PRNGKey(2),
        two_means,
        AutoNormal(two_means),
        numpyro.optim.Adam(0.05),
        Trace_ELBO(num_particles=10),
        0.5,
        observed_sites=["y"],
        num_simulations=100,
        num_svi_steps=600,
        num_samples=400,
    )
    theirs = np.asarray(numpyro_found.probabilities["a"])
    found = calibrate(rng_key, two_means, {"spread": 0.5}, method=MeanFieldOptimum(), num_datasets=200, progress=False)
    ours = found.idata["proposal_sbc"]["a"].values[0]
    assert stats.ks_2samp(theirs, ours).pvalue > false_alarm / 3
    # And neither is a sample of what a right posterior has.
    assert stats.kstest(theirs, "uniform").pvalue < 1e-3
    assert stats.kstest(ours, "uniform").pvalue < 1e-3
    assert found.table.loc["a", "vsbc_p"] > false_alarm / 3


def test_a_method_as_reference_that_fails_its_own_check_is_left_out(rng_key):
    short = vip.NUTS(num_warmup=50, num_samples=50)
    found = calibrate(rng_key, two_means, {"spread": 0.5}, num_datasets=3, reference=short, progress=False)
    assert not found.datasets.reference_ok.any()
    assert found.false_certificates.number == 0
    long = vip.NUTS(num_warmup=300, num_samples=1_000)
    found = calibrate(rng_key, two_means, {"spread": 0.5}, num_datasets=3, reference=long, progress=False)
    assert found.false_certificates.number == int(found.datasets.reference_ok.sum()) > 0


def test_a_pattern_in_raw_units(rng_key):
    data = {k: v for k, v in linear_regression.data().items() if k != "y"}
    found = calibrate(rng_key, linear_regression.model, data, num_datasets=20, reference=linear_regression.exact_posterior, progress=False)
    assert found.false_certificates.number == 20
    assert found.false_certificates.count == 0
    assert list(found.table.index) == ["intercept", "slopes[0]", "slopes[1]", "slopes[2]"]


def unnamed(observed):
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1.0), obs=observed)


def improper(y=None):
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [(unnamed, {"observed": 1.0}, "of the same name"), (improper, {}, "has no draws"), (two_means, {"spread": "wide"}, "spread")],
)
def test_what_cannot_be_simulated_is_told_in_a_sentence(model, data, says, rng_key):
    with pytest.raises(vip.InputError, match=says):
        calibrate(rng_key, model, data, num_datasets=3, progress=False)


def test_without_a_reference_there_is_no_rate_of_false_certificates(rng_key):
    found = calibrate(rng_key, two_means, {"spread": 0.5}, num_datasets=3, progress=False)
    with pytest.raises(vip.InputError, match="reference"):
        _ = found.false_certificates
    assert "false" not in found.sentence
