"""Verdicts: never safe where the measured error is beyond the limits, on any input; and readable where they should be."""

import math
import re

import jax
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import fit_of, normal

from vipatterns import verdict
from vipatterns.agreement import Agreement, _summary, against
from vipatterns.errors import InputError
from vipatterns.posterior import Certificate

KEY = jax.random.key(0)
ANY = st.floats(allow_nan=True, allow_infinity=True)
NEAR = st.one_of(ANY, st.floats(-0.4, 0.4))
RATIO = st.one_of(ANY, st.floats(0, 2))
ROW = st.tuples(NEAR, RATIO, st.one_of(ANY.map(abs), st.floats(0, 0.05)), *[st.one_of(ANY.map(abs), st.floats(0, 0.1))] * 3)
GOOD = (0.01, 1.01, 0.002, 0.02, 0.02, 0.003)
MAYBE = st.one_of(ANY, st.floats(-11, -9))


def agreement_of(rows):
    """(mean_error, sd_ratio, tail_error, and the three errors of those) a scalar."""
    columns = ["mean_error", "sd_ratio", "tail_error", "mean_error_mcse", "sd_ratio_mcse", "tail_error_mcse"]
    t = pd.DataFrame(rows, columns=columns, index=[f"theta[{i}]" for i in range(len(rows))], dtype=float)
    t = t.assign(
        wasserstein=t.mean_error.abs(), wasserstein_mcse=t.mean_error_mcse, tail_share=0.05 + t.tail_error, reference_tail_share=0.05
    )
    with np.errstate(all="ignore"):
        return Agreement(t, **_summary(t))


@settings(max_examples=1_000, deadline=None)
@given(
    st.lists(st.one_of(ROW, st.just(GOOD)), max_size=5),
    st.booleans(),
    MAYBE,
    st.one_of(ANY, st.floats(0, 0.2)),
    st.one_of(st.none(), MAYBE),
)
def test_nothing_is_called_safe_that_was_measured_to_be_off(rows, ok, log_evidence, mcse, exact):
    agreement = agreement_of(rows)
    certificate = Certificate(ok, "Said to be safe for means, sds, tails and evidence.", log_evidence=log_evidence, log_evidence_mcse=mcse)
    v = verdict.measured(certificate, agreement, "NUTS", log_evidence=exact, advice="use NUTS")
    claimed = re.findall(r"means|sds|tails|evidence", (re.match(r"Safe for ([\w, ]+)", v.sentence) or [""])[0])
    assert set(claimed) == set(v.safe)
    assert "safe" not in v.sentence.removeprefix("Safe for").lower()  # no second claim slips in
    if "means" in v.safe:
        assert agreement.mean_error <= verdict.MEAN_LIMIT
    if "sds" in v.safe:
        assert agreement.sd_ratio_min >= 1 - verdict.SD_LIMIT - 1e-12
        assert agreement.sd_ratio_max <= 1 + verdict.SD_LIMIT + 1e-12
    if "tails" in v.safe:
        assert agreement.tail_error <= verdict.TAIL_LIMIT
        assert {"means", "sds"} <= set(v.safe)
    if "evidence" in v.safe:
        assert math.isfinite(log_evidence)
        assert mcse <= verdict.EVIDENCE_LIMIT
        assert exact is None or abs(log_evidence - exact) <= verdict.EVIDENCE_LIMIT
    if v.safe:
        assert ok
        assert rows
    assert (v.standing == "safe") == ({"means", "sds", "tails"} <= set(v.safe))


@settings(max_examples=60, deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(1, 4), st.integers(0, 2**31))
def test_nothing_is_called_safe_on_draws(shift, log_scale, num, seed):
    rng = np.random.default_rng(seed)
    fit = fit_of({"x": normal(rng, np.append(shift, np.zeros(num - 1)), np.append(math.exp(log_scale), np.ones(num - 1)), num=500)})
    x = fit.posterior["x"].values.reshape(-1, num)
    agreement = against(fit, {"x": dist.Normal(np.zeros(num), 1.0)}, KEY)
    v = verdict.measured(fit.certificate, agreement, "the exact posterior", log_evidence=None, advice="use NUTS")
    if np.abs(x.mean(0)).max() > 0.15:
        assert "means" not in v.safe
    if np.abs(x.std(0, ddof=1) - 1).max() > 0.15:
        assert "sds" not in v.safe
    if abs(shift) < 0.05 and abs(log_scale) < 0.05:  # five Monte Carlo errors of room: what is good is called good
        assert v.standing == "safe"


@pytest.mark.parametrize(
    ("rows", "ok", "standing", "safe", "words"),
    [
        (
            [GOOD] * 3,
            True,
            "safe",
            ("means", "sds", "tails", "evidence"),
            "means within 0.01 sd and sds within 1 % of NUTS; a mode that NUTS missed",
        ),
        (
            [GOOD, (0.01, 0.6, 0.04, 0.01, 0.01, 0.002), (0.0, 0.7, 0.03, 0.01, 0.01, 0.001)],
            True,
            "partly",
            ("means",),
            r"sd of theta\[1\] \(and 1 more\) is 0.60 times that of NUTS; use NUTS",
        ),
        (
            [GOOD, (-0.5, 1.0, 0.05, 0.02, 0.02, 0.003)],
            True,
            "partly",
            ("sds",),
            r"Safe for sds only: the mean of theta\[1\] is off by 0.50 sd",
        ),
        ([(0.5, 2.0, 0.2, 0.02, 0.02, 0.002)], True, "unsafe", (), "Do not use: the mean"),
        ([(0.1, 1.0, 0.01, 0.3, 0.3, 0.03)], True, "unknown", (), "Monte Carlo error is too large to tell for means, sds and tails"),
        (
            [(0.2, 1.0, 0.01, 0.05, 0.02, 0.002)],
            True,
            "partly",
            ("sds",),
            "Safe for sds only: Monte Carlo error is too large to tell for means",
        ),
        ([(math.nan, 1.0, 0.01, 0.0, 0.0, 0.0)], True, "partly", ("sds",), "too large to tell for means"),
        (
            [GOOD, (0.01, 1.0, 0.05, 0.01, 0.01, 0.002)],
            True,
            "partly",
            ("means", "sds", "evidence"),
            r"only: a tail of theta\[1\] holds 10.0% of the draws and should hold 5.0%; use NUTS",
        ),
        ([GOOD], False, "unsafe", (), "Agrees with NUTS here .*own check fails: without NUTS nothing would tell"),
        ([(0.5, 1.0, 0.05, 0.02, 0.02, 0.002)], False, "unsafe", (), "Do not use: .*its own check fails too"),
        ([], True, "unknown", (), "no scalar"),
    ],
)
def test_sentences(rows, ok, standing, safe, words):
    certificate = Certificate(ok, "k-hat is 1.2.", log_evidence=-10.0, log_evidence_mcse=0.01)
    v = verdict.measured(certificate, agreement_of(rows), "NUTS", log_evidence=None, advice="use NUTS")
    assert (v.standing, v.safe) == (standing, safe)
    assert re.search(words, v.sentence)
    assert v.sentence.endswith(".")


def test_many_scalars_are_not_condemned_by_their_noise():
    """The worst of 1,000 errors of .14 sd, seen through noise of .06 sd, is about .33: not to be called off, nor safe."""
    rng = np.random.default_rng(0)
    rows = [(e, 1.0, 0.0, 0.06, 0.01, 0.01) for e in 0.14 + 0.06 * rng.normal(size=1000)]
    v = verdict.measured(Certificate(True, ""), agreement_of(rows), "NUTS", log_evidence=None, advice="draw more")
    assert v.safe == ("sds",)
    assert "Monte Carlo error is too large to tell for means" in v.sentence


@pytest.mark.parametrize(("exact", "safe"), [(None, True), (-10.05, True), (-10.7, False)])
def test_evidence_is_held_to_the_exact_one(exact, safe):
    """A certificate that vouches for one mode of two has an evidence that is short by log 2."""
    certificate = Certificate(True, "", log_evidence=-10.0, log_evidence_mcse=0.01)
    assert ("evidence" in verdict.unmeasured(certificate, "no reference", log_evidence=exact, advice="").safe) == safe
    assert ("evidence" in verdict.measured(certificate, agreement_of([GOOD]), "NUTS", log_evidence=exact, advice="").safe) == safe


def test_a_noisy_evidence_is_not_vouched_for():
    certificate = Certificate(True, "", log_evidence=-10.0, log_evidence_mcse=0.2)
    assert "evidence" not in verdict.unmeasured(certificate, "no reference", log_evidence=-10.0, advice="").safe


def test_without_a_reference_the_sentence_says_so():
    v = verdict.unmeasured(Certificate(True, ""), "NUTS failed", log_evidence=None, advice="")
    assert v.sentence == "Safe for means, sds and tails by its own check alone (NUTS failed); a mode that it missed would not show."
    v = verdict.unmeasured(Certificate(True, "", khat=0.2), "NUTS failed", log_evidence=None, advice="")
    assert v.safe == ("means", "sds")
    v = verdict.unmeasured(Certificate(False, "Not safe: k-hat is 1.2."), "NUTS failed", log_evidence=None, advice="use Flow")
    assert (v.safe, v.sentence) == ((), "Not safe: k-hat is 1.2; use Flow.")


def test_references_and_their_own_health():
    rng = np.random.default_rng(0)
    x = normal(rng, np.zeros(2), 1.0)
    fit = fit_of({"x": x})
    stuck = x + np.arange(4)[:, None, None]
    for good, kind in (({"x": x}, "given"), ({"x": x[0]}, "given"), ({"x": dist.Normal(0, 1)}, "exact"), (fit, "given")):
        ref = verdict.judge_reference(good, fit.posterior)
        assert (ref.ok, ref.kind) == (True, kind)
    for bad in (xr.Dataset({"x": (("chain", "draw", "i"), stuck)}), {"x": stuck}, {"x": x[:, :1]}, fit_of({"x": x}, ok=False)):
        ref = verdict.judge_reference(bad, fit.posterior)
        assert (ref.kind, ref.ok) == ("given", False)
        assert "failed" in ref.sentence
    for bad in (3, {}, {"x": np.zeros((0, 2))}):
        with pytest.raises(InputError):
            verdict.judge_reference(bad, fit.posterior)
