"""A budget of wall time: searches end after the step that they are in, and where they came to is judged."""

import math

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from synthetic import Vague, fit_of, normal

import vipatterns as vip
from vipatterns import evaluation, mode, newton
from vipatterns.density import Clock
from vipatterns.patterns import eight_schools, logistic_regression

SECONDS = 1_000


@pytest.fixture
def counted(monkeypatch):
    """What is computed, in order: "derivatives" for each call at a batch of points, and the number of draws for each weighing."""
    seen, derivatives, log_p = [], mode.derivatives, evaluation.Points.log_p

    def counting(target, clock):
        at = derivatives(target, clock)
        return lambda points: seen.append("derivatives") or at(points)

    monkeypatch.setattr(mode, "derivatives", counting)
    monkeypatch.setattr(evaluation.Points, "log_p", lambda self, z: seen.append("weighed") or log_p(self, z))
    return seen


@pytest.fixture
def over_after(monkeypatch):
    """A clock whose budget of so many seconds is used up at the look after so many."""

    def set_to(looks):
        seen = []
        monkeypatch.setattr(Clock, "run_seconds", property(lambda self: seen.append(1) or (2.0 * SECONDS if len(seen) > looks else 0.0)))

    return set_to


def test_a_ladder_whose_time_is_over_at_once_makes_one_step_of_each_search(rng_key, counted):
    fit = vip.fit(rng_key, logistic_regression.model, logistic_regression.data(), method=vip.Ladder(max_seconds=0))
    assert fit.stopped_because.startswith("time budget: 0 s were over after 0 steps of the search for q")
    # One of the mode, and one of the ELBO, each at its start; then the weighing of what the first might be, and of mean-field's q.
    assert counted == ["derivatives", "weighed", "derivatives", "weighed"]
    assert fit.idata["proposal"].sizes["draw"] == 4_000
    assert fit.name == "DADVI"
    assert fit.certificate.ok or [r.verdict for r in fit.rungs[1:]] == ["Not tried: 0 s were over."] * 2


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "matrix-free"])
@pytest.mark.parametrize("looks", [1, 4, 7])
def test_a_search_that_is_cut_short_is_judged_by_its_weights(looks, dense, rng_key, over_after, monkeypatch):
    """Wherever it ends: the means and sds that are certified are right, and the sentence says what was not finished."""
    if not dense:
        monkeypatch.setattr(mode, "DENSE_DIM", 1)
    over_after(looks)
    fit = vip.fit(rng_key, logistic_regression.model, logistic_regression.data(), method=vip.DADVI(max_seconds=SECONDS))
    assert fit.stopped_because.startswith(f"time budget: {SECONDS} s were over")
    assert fit.certificate.verdict.endswith(".")
    if fit.certificate.ok:
        exact = logistic_regression.log_evidence(**logistic_regression.data())
        assert abs(fit.certificate.log_evidence - exact) < 6 * fit.certificate.log_evidence_mcse
        assert "before its maximum, so that the weights alone vouch for it; modes that no start met" in fit.certificate.verdict


def test_newtons_method_makes_no_step_after_its_time():
    looks, evaluated = [], []

    def at(points, lanes):
        evaluated.append(points.copy())
        return (points**4).sum(1), 4 * points**3, 12 * points[:, :, None] ** 2 * np.eye(1)

    found = newton.minimise(at, np.ones((1, 1)), lambda: looks.append(1) or len(looks) > 3)
    assert len(evaluated) == 4  # the start and three steps
    assert not found.converged.any()
    np.testing.assert_array_equal(found.x, evaluated[-1])


def banana(bend):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(bend * (x**2 - 1), 0.5))


def test_imis_adds_no_component_after_its_time(rng_key, over_after):
    """A look a component, from where another method came to."""
    before = vip.fit(rng_key, banana, {"bend": np.asarray(2.0)}, method=vip.DADVI())
    over_after(3)
    fit = vip.IMIS(max_seconds=SECONDS).fit(rng_key, banana, {"bend": np.asarray(2.0)}, around=before.around)
    assert fit.stopped_because.startswith(f"time budget: {SECONDS} s were over; 3 components were added along 2 of 2 directions")
    assert fit.idata["proposal"].sizes["draw"] == 4_000
    assert not fit.certificate.ok


def test_draws_that_there_was_no_time_for_are_said(rng_key, over_after):
    """The funnel's neighbour that would be refused for its Monte Carlo error only, with few draws kept."""
    method = vip.DADVI(num_samples=50, max_seconds=SECONDS)
    fit = vip.fit(rng_key, eight_schools.model, eight_schools.data(), method=method)
    assert "time budget" not in fit.stopped_because


def test_ladder_keeps_what_was_better_before_time_cut_a_rung_short(rng_key):
    draws = {"mu": normal(np.random.default_rng(0), 0, 1, num=10)}
    first, worse, better = (
        fit_of(draws, ok=False, stopped=stopped, khat=khat)
        for stopped, khat in (("converged", 0.8), ("time budget", 0.9), ("time budget", 0.75))
    )
    for second, kept in ((worse, first), (better, better)):
        fit = vip.fit(rng_key, None, {}, method=vip.Ladder(rungs=(Vague(first), Vague(second))))
        assert fit.certificate == kept.certificate
        assert len(fit.rungs) == 2
        assert fit.run_seconds == first.run_seconds + second.run_seconds


def test_a_budget_that_is_not_used_up_changes_nothing(rng_key):
    model, data = logistic_regression.model, logistic_regression.data()
    free, bound = (vip.fit(rng_key, model, data, method=vip.Ladder(max_seconds=s)) for s in (math.inf, 10_000))
    assert free.posterior.equals(bound.posterior)
    assert free.stopped_because == bound.stopped_because
