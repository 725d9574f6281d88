"""`vipatterns compare NAME` on every pattern at its defaults: what it calls safe is right by the exact posterior, read afresh."""

import re

import numpy as np
import pytest
import xarray as xr
from numpyro.distributions import Distribution
from typer.testing import CliRunner

import vipatterns as vip
from vipatterns import catalogue
from vipatterns.cli import app
from vipatterns.relabelling import exchangeable

MOST_MEAN_ERROR, MOST_SD_ERROR = 0.15, 0.15
"""What a verdict must not call safe: a mean off by more reference sds, an sd off by a larger share."""
TRAINED = [p.name for p in catalogue.patterns() if "\ndef training(" in catalogue.find(p.name).read_text(encoding="utf-8")]
"""Patterns whose models have parameters of their own: trained, not fitted."""
NAMES = [pattern.name for pattern in catalogue.patterns() if pattern.name not in TRAINED]
SAFE = re.compile(r"(?:The reference, s|S)afe for ([a-z, ]+?)(?: only)?(?=:| by its own check)")


@pytest.fixture
def compare(monkeypatch):
    """compare(name) -> what the command line prints, and the Comparison that it printed."""
    seen = []
    asked_for = vip.compare
    monkeypatch.setattr(vip, "compare", lambda *args, **options: seen.append(asked_for(*args, **options)) or seen[-1])

    def run(name):
        result = CliRunner().invoke(app, ["compare", name], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        [comparison] = seen
        return result.stdout, comparison

    return run


def moments(value, labels):
    """Mean and sd of every scalar, of a distribution or of draws; interchangeable labels, along the axis `labels`, are sorted first.

    Draws are an array (draw, *shape), as patterns give them, or a DataArray (chain, draw, *shape).
    """
    if isinstance(value, Distribution):
        return np.asarray(value.mean, float), np.sqrt(np.asarray(value.variance, float))
    axes = (0, 1) if isinstance(value, xr.DataArray) else (0,)
    draws = np.asarray(value, float)
    draws = draws if labels is None else np.sort(draws, axis=len(axes) + labels)
    return draws.mean(axes), draws.std(axes)


def worst(fit, reference):
    """Largest error of a mean, in reference sds, and largest relative error of an sd, over the scalars that vary."""
    mean_errors, sd_errors = [], []
    for site in set(fit.posterior) & set(reference):
        labels = exchangeable(fit).get(site)
        (mean, sd), (exact, exact_sd) = moments(fit.posterior[site], labels), moments(reference[site], labels)
        varies = exact_sd > 1e-9 * np.abs(exact)
        mean_errors.append((np.abs(mean - exact) / exact_sd)[varies].ravel())
        sd_errors.append(np.abs(sd / exact_sd - 1)[varies].ravel())
    return np.concatenate(mean_errors).max(), np.concatenate(sd_errors).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compare_calls_nothing_safe_that_is_off(name, compare):
    printed, comparison = compare(name)
    _, pattern, _ = catalogue.load(name)
    exact = pattern.exact_posterior(**pattern.data()) if hasattr(pattern, "exact_posterior") else None
    assert list(comparison.fits) == ["MeanField", "NUTS"]
    assert (comparison.reference.kind == "NUTS") == (exact is None)
    for method, fit in comparison.fits.items():
        sentence = comparison.verdicts[method].sentence
        assert re.search(rf"^ *{method} .*[0-9] s *$", printed, re.M), printed
        assert f"{method} {comparison.verdicts[method].standing} {sentence}" in " ".join(printed.split()), printed
        assert len(re.findall(r"\.(?=\s|$)", sentence)) == 1, sentence
        assert sentence.endswith("."), sentence
        found = SAFE.match(sentence)
        safe = set(re.split(", | and ", found[1])) if found else set()
        assert safe == set(comparison.verdicts[method].safe), sentence
        if exact is None and (method == "NUTS" or not comparison.reference.ok):
            continue
        reference = comparison.fits["NUTS"].posterior if exact is None else exact
        mean_error, sd_error = worst(fit, reference)
        assert not ("means" in safe and mean_error > MOST_MEAN_ERROR), f"{mean_error:.3f} sd: {sentence}"
        assert not ("sds" in safe and sd_error > MOST_SD_ERROR), f"{sd_error:.0%}: {sentence}"
        if fit.certificate.ok:  # its own check, which knew no reference
            assert mean_error < MOST_MEAN_ERROR, f"{mean_error:.3f} sd: {fit.certificate.verdict}"
            assert sd_error < MOST_SD_ERROR, f"{sd_error:.0%}: {fit.certificate.verdict}"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_compare_refuses_a_model_that_is_trained(name):
    result = CliRunner().invoke(app, ["compare", name])
    assert result.exit_code == 2, result.output
    assert "numpyro.param" in result.stderr
    assert "Traceback" not in result.output
