"""Several methods side by side: what goes into the table, what judges it, what is kept when something goes wrong."""

import math
from dataclasses import dataclass

import jax
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
from synthetic import fit_of, normal

from vipatterns.comparison import Failure, compare, label_methods, side_by_side
from vipatterns.errors import InputError
from vipatterns.methods.mean_field import MeanField
from vipatterns.methods.nuts import NUTS

KEY = jax.random.key(0)
EXACT = {"x": dist.Normal(np.zeros(3), 1.0)}


def fit_near(shift=0.0, scale=1.0, seed=0, **settings):
    """A fit of three scalars whose first is N(shift, scale^2); the others, and the reference, are N(0, 1)."""
    return fit_of({"x": normal(np.random.default_rng(seed), [shift, 0, 0], [scale, 1, 1])}, **settings)


def nuts_near(seed=9, **settings):
    return fit_near(seed=seed, method=NUTS(), resampled=False, **settings)


@dataclass(frozen=True)
class Scripted:
    """A method that does what it is told."""

    outcome: object
    calls: list

    def fit(self, rng_key, model, data, **settings):
        self.calls.append((rng_key, settings))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def run(*outcomes, **settings):
    calls = []
    return compare(KEY, lambda: None, {}, methods=[Scripted(outcome, calls) for outcome in outcomes], **settings), calls


def test_the_table_has_the_columns_that_people_rely_on():
    table = side_by_side(KEY, {"A": fit_near(), "NUTS": nuts_near(), "B": Failure(None, "No.")}).table
    plain = [c for c in table.columns if not c.endswith("_mcse")]
    assert " ".join(plain) == (
        "method elbo log_evidence khat ess rhat mean_error sd_ratio_min sd_ratio_max wasserstein compile_seconds run_seconds verdict"
    )
    for column in ("elbo", "log_evidence", "mean_error", "sd_ratio_min", "sd_ratio_max", "wasserstein"):
        assert list(table.columns).index(f"{column}_mcse") == list(table.columns).index(column) + 1
    assert list(table.method) == ["A", "NUTS", "B"]
    assert table.drop(columns=["method", "verdict"]).iloc[2].isna().all()
    assert math.isfinite(table.mean_error[0])
    assert math.isnan(table.mean_error[1])  # the reference is not judged by itself


def test_labels_are_distinct_and_show_the_settings_that_differ():
    methods = [MeanField(), MeanField(num_steps=500), NUTS()]
    assert label_methods(methods) == ["MeanField(num_steps=20000)", "MeanField(num_steps=500)", "NUTS"]
    assert label_methods([NUTS(), NUTS()]) == ["NUTS #1", "NUTS #2"]
    assert len(set(label_methods([MeanField(num_steps=9), MeanField(num_steps=9), MeanField()]))) == 3


def test_a_method_that_fails_goes_into_the_table_with_its_sentence():
    compared, _ = run(InputError("Discrete latents need enumeration."), FloatingPointError("The loss is nan at step 3."), fit_near())
    assert list(compared.table.verdict[:2]) == [
        "Gave no posterior: Discrete latents need enumeration.",
        "Gave no posterior: The loss is nan at step 3.",
    ]
    assert [v.standing for v in compared.verdicts.values()][:2] == ["failed", "failed"]
    assert "failed" in repr(compared)


def test_what_every_method_refuses_is_an_error():
    with pytest.raises(InputError, match="y has 3 values that are not finite"):
        run(InputError("y has 3 values that are not finite."), InputError("y has 3 values that are not finite."))
    compared, _ = run(InputError("One thing."), InputError("Another."))
    assert compared.finished == {}
    assert "No VI method has a result here" in repr(compared)


def test_any_other_exception_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        run(fit_near(), ZeroDivisionError())


def test_an_interruption_keeps_what_is_finished():
    compared, calls = run(fit_near(), KeyboardInterrupt(), fit_near())
    assert len(calls) == 2
    sentences = [fit.sentence for fit in compared.fits.values() if isinstance(fit, Failure)]
    assert sentences == ["Interrupted before it had a result.", "Interrupted before it began."]
    compared, calls = run(fit_near(stopped="interrupted"), fit_near())
    assert len(calls) == 1
    assert len(compared.finished) == 1
    with pytest.raises(KeyboardInterrupt):
        run(KeyboardInterrupt(), fit_near())


def test_every_method_has_a_key_of_its_own_place():
    _, one = run(fit_near())
    _, two = run(fit_near(), fit_near())
    keys = [jax.random.key_data(key).tolist() for key, _ in two]
    assert keys[0] == jax.random.key_data(one[0][0]).tolist()
    assert keys[0] != keys[1]


def test_settings_reach_the_methods():
    _, calls = run(fit_near(), args=(1,), coords={"i": [1]}, dims={"x": ["i"]}, progress=False)
    assert calls[0][1] == {"args": (1,), "coords": {"i": [1]}, "dims": {"x": ["i"]}, "progress": False}


@pytest.mark.parametrize("methods", [[], [MeanField], ["NUTS"]])
def test_methods_must_be_methods(methods):
    with pytest.raises(InputError, match=r"list of methods such as \[vip.MeanField\(\), vip.NUTS\(\)\]"):
        compare(KEY, lambda: None, {}, methods=methods)


def test_a_healthy_nuts_is_the_reference():
    fits = {
        "A": fit_near(0.5),
        "NUTS #1": nuts_near(ess=400.0),
        "NUTS #2": nuts_near(ess=900.0),
        "NUTS #3": nuts_near(ess=4000.0, ok=False),
    }
    compared = side_by_side(KEY, fits)
    assert (compared.reference.kind, compared.reference.label, compared.reference.ok) == ("NUTS", "NUTS #2", True)
    assert set(compared.agreement) == {"A", "NUTS #1", "NUTS #3"}
    assert compared.verdicts["NUTS #2"].standing == "reference"
    assert compared.table.mean_error[0] == pytest.approx(0.5, abs=0.15)


def test_nothing_is_judged_by_a_reference_that_failed():
    bad = nuts_near(ok=False)
    for compared in (side_by_side(KEY, {"A": fit_near(3.0), "NUTS": bad}), side_by_side(KEY, {"A": fit_near(3.0)}, reference=bad)):
        assert not compared.reference.ok
        assert compared.agreement == {}
        assert compared.table.mean_error.isna().all()
        assert "failed, so nothing is judged by it" in compared.verdicts["A"].sentence
        assert "failed, so nothing is judged by it" in repr(compared)


def test_a_given_reference_judges_nuts_too():
    compared = side_by_side(KEY, {"A": fit_near(), "NUTS": nuts_near()}, reference=EXACT)
    assert compared.reference.kind == "exact"
    assert set(compared.agreement) == {"A", "NUTS"}
    assert [v.standing for v in compared.verdicts.values()] == ["safe", "safe"]


def test_a_reference_of_another_model_is_found_out_after_the_first_fit():
    calls = []
    with pytest.raises(InputError, match="sites w; the posterior has x"):
        compare(KEY, None, {}, methods=[Scripted(fit_near(), calls), Scripted(fit_near(), calls)], reference={"w": dist.Normal(0, 1)})
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("fits", "sentence"),
    [
        ({"A": fit_near(), "NUTS": nuts_near()}, "A can stand in for NUTS, in 1.8 s against 1.8 s."),
        ({"A": fit_near(1.0), "B": fit_near(scale=0.5, ok=True), "NUTS": nuts_near()}, "B can stand in for NUTS on means only, in 1.8 s"),
        ({"A": fit_near(1.0, 0.5), "NUTS": nuts_near()}, "A cannot stand in for NUTS."),
        ({"A": fit_near(1.0, 0.5), "B": fit_near(ok=False), "NUTS": nuts_near()}, "No VI method here can stand in for NUTS."),
        ({"A": fit_near()}, "A can stand in for MCMC by its own check alone, in 1.8 s."),
        ({"NUTS": nuts_near()}, "No VI method has a result here."),
    ],
)
def test_the_answer_in_a_sentence(fits, sentence):
    assert side_by_side(KEY, fits).summary.startswith(sentence)


def test_advice_names_the_quickest_that_passed():
    compared = side_by_side(KEY, {"A": fit_near(1.0, 0.5), "B": fit_near(), "NUTS": nuts_near()})
    assert compared.verdicts["A"].sentence.endswith("; use B, which passed in 1.8 s.")
    compared = side_by_side(KEY, {"A": fit_near(1.0, 0.5)}, reference=EXACT)
    assert compared.verdicts["A"].sentence.endswith("; try a richer family, such as Flow, or NUTS.")
    compared = side_by_side(KEY, {"A": fit_near(1.0, 0.5), "NUTS": fit_near(1.0, 0.5, method=NUTS(), resampled=False)}, reference=EXACT)
    assert "no method passed: run NUTS longer" in compared.verdicts["A"].sentence
    assert "no method passed: run it longer" in compared.verdicts["NUTS"].sentence


def test_the_worst_scalars_come_first():
    fits = {"A": fit_of({"x": normal(np.random.default_rng(0), [0, 0.5, 0, 0], [1, 1, 1, 2])}), "NUTS": nuts_near()}
    reference = {"x": dist.Normal(np.zeros(4), 1.0)}
    fits.pop("NUTS")
    assert side_by_side(KEY, fits, reference=reference).worst(2) == (["x[3]", "x[1]"], 4)
    assert side_by_side(KEY, fits).worst(2) == (["x[0]", "x[1]"], 4)


def test_save_writes_a_page_a_table_and_a_file_a_method(tmp_path):
    compared = side_by_side(KEY, {"A(lr=0.1/2)": fit_near(), "B": Failure(None, "No."), "NUTS": nuts_near()}, title="model")
    out = compared.save(tmp_path / "new" / "out")
    assert {p.name for p in out.iterdir()} == {"report.html", "table.csv", "A_lr=0.1_2.nc", "NUTS.nc"}
    pd.testing.assert_frame_equal(pd.read_csv(out / "table.csv"), compared.table, check_dtype=False)
    with pytest.raises(InputError, match="out exists already"):
        compared.save(out)


def test_a_comparison_fits_a_screen():
    rng = np.random.default_rng(0)
    fits = {f"Method{i}(setting={i})": fit_of({"x": normal(rng, np.zeros(40), 1.0)}) for i in range(7)}
    fits["NUTS"] = fit_of({"x": normal(rng, np.zeros(40), 1.0)}, method=NUTS(), resampled=False)
    lines = repr(side_by_side(KEY, fits, title="model")).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 75
