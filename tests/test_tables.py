"""tables.py: columns go where the rule says, and what cannot be used is said in one sentence."""

import datetime
import decimal
import gzip

import numpy as np
import pandas as pd
import pytest

from vipatterns.errors import InputError
from vipatterns.tables import arguments, read


def regression(x, y=None): ...


def grouped(county, x, y=None, num_counties=1): ...


def counts(dose, n, deaths=None, scale=2.0): ...


TABLE = pd.DataFrame({"age": [20, 31, 42], "weight": [60.5, 71.0, 82.25], "score": [3, 1, 2]})


# Reading


@pytest.mark.parametrize(("suffix", "sep"), [(".csv", ","), (".csv", ";"), (".tsv", "\t"), (".txt", "\t"), (".csv.gz", ",")])
def test_text_files_are_read_whatever_separates_the_columns(tmp_path, suffix, sep):
    path = tmp_path / f"table{suffix}"
    TABLE.to_csv(path, index=False, sep=sep)
    pd.testing.assert_frame_equal(read(path), TABLE)


def test_parquet_and_frames_are_read_as_they_are(tmp_path):
    TABLE.to_parquet(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(read(tmp_path / "table.parquet"), TABLE)
    pd.testing.assert_frame_equal(read(TABLE), TABLE)
    assert list(read(TABLE.set_axis([0, 1, 2], axis=1)).columns) == ["0", "1", "2"]


def test_names_lose_their_spaces_and_quoted_commas_stay(tmp_path):
    (tmp_path / "t.csv").write_text('﻿age, "body weight, kg" ,score \n20, 60.5, 3\n', encoding="utf-8")
    frame = read(tmp_path / "t.csv")
    assert list(frame.columns) == ["age", "body weight, kg", "score"]
    assert frame.dtypes.map(str).tolist() == ["int64", "float64", "int64"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("missing.csv", None, r"There is no file .*missing\.csv: check its name and folder\."),
        ("tabel.csv", None, r"There is no file .*tabel\.csv: did you mean .*table\.csv\?"),
        ("t.xlsx", "PK", r"t\.xlsx is none of \.csv, \.tsv and \.parquet: convert it"),
        ("t.csv", "", r"t\.csv is empty: a line of column names"),
        ("t.csv", "a,b\n", r"t\.csv is empty \(0 rows, 2 columns\): a fit needs at least one row"),
        ("t.csv", "a,b,a\n1,2,3\n", r"Several columns of .*t\.csv are named a: give each"),
        ("t.csv", "1.5,2\n1,2\n", r"The first line of .*t\.csv holds numbers: it should hold the names"),
        ("t.csv", "a,b\n1,2\n1,2,3\n", r"t\.csv cannot be read as a table: .*line 3"),
        ("t.csv", "a,b\n1,2,3\n4,5,6\n", r"t\.csv cannot be read as a table: Length of header"),
        ("t.csv", b"a,b\n1,\xff\n", r"t\.csv is not text in UTF-8"),
        ("t.parquet", "not parquet", r"t\.parquet cannot be read as a table: "),
    ],
)
def test_a_file_that_is_no_table_gets_a_sentence(tmp_path, name, content, sentence):
    (tmp_path / "table.csv").write_text("a\n1\n")
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=sentence) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_folder_a_cut_archive_and_repeated_names_of_a_frame(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n" * 100)[:-9])
    with pytest.raises(InputError, match="cannot be read as a table"):
        read(tmp_path / "t.csv.gz")
    with pytest.raises(InputError, match="Several columns of The table are named a"):
        read(pd.DataFrame([[1, 2]], columns=["a", "a"]))


# The rule


def test_the_target_is_y_and_the_remaining_numeric_columns_are_x():
    a = arguments(TABLE, regression, target="score")
    np.testing.assert_array_equal(a.data["x"], [[20, 60.5], [31, 71], [42, 82.25]])
    np.testing.assert_array_equal(a.data["y"], [3, 1, 2])
    assert (a.data["x"].dtype, a.data["y"].dtype) == (np.float64, np.int64)
    assert (a.coords["feature"].tolist(), a.dims, a.left_out) == (["age", "weight"], {"x": ["row", "feature"]}, {})


def test_a_column_named_as_an_argument_goes_to_it_and_defaults_stay():
    frame = pd.DataFrame({"Dose": [0.1, 0.2], "n": [5, 6], "deaths": [1, 2], "note": ["a", "b"]})
    a = arguments(frame, counts, rename={"Dose": "dose"})
    assert {k: v.tolist() for k, v in a.data.items()} == {"dose": [0.1, 0.2], "n": [5, 6], "deaths": [1, 2]}
    assert (a.data["n"].dtype, a.left_out) == (np.int64, {"note": "no argument has its name"})
    assert arguments(frame.rename(columns={"deaths": "died"}), counts, target="died", rename={"Dose": "dose"}).data["deaths"].tolist() == [
        1,
        2,
    ]


def test_a_column_named_x_is_x_alone_and_float():
    a = arguments(pd.DataFrame({"x": [1, 2], "z": [3, 4], "y": [5, 6]}), regression)
    assert (a.data["x"].tolist(), a.data["x"].dtype, a.coords, list(a.left_out)) == ([1.0, 2.0], np.float64, {}, ["z"])


def test_the_target_goes_to_y_and_nowhere_else():
    def model(score, y=None): ...

    assert list(arguments(TABLE, model, target="score", known=["score"]).data) == ["y"]
    with pytest.raises(InputError, match="No column is the model's score"):
        arguments(TABLE, model, target="score")


def test_upper_case_x_and_y_count():
    def model(X, Y): ...

    a = arguments(TABLE, model, target="score")
    assert (a.data["X"].shape, a.data["Y"].tolist(), a.dims) == ((3, 2), [3, 1, 2], {"X": ["row", "feature"]})


@pytest.mark.parametrize("by", [{"index": ["county"]}, {"index": ["region"], "rename": {"region": "county"}}])
def test_an_index_is_coded_keeps_its_labels_and_counts_them(by):
    frame = pd.DataFrame({next(iter(by["index"])): ["Pine", "Aitkin", "Pine"], "floor": [0, 1, 0], "y": [1.5, 2.5, 3.5]})
    a = arguments(frame, grouped, **by)
    assert a.data["county"].tolist() == [1, 0, 1]
    assert a.coords["county"].tolist() == a.coords["counties"].tolist() == ["Aitkin", "Pine"]
    assert (a.data["num_counties"], a.coords["feature"].tolist()) == (2, ["floor"])


@pytest.mark.parametrize(
    ("labels", "codes", "kept"),
    [
        ([30, 10, 30], [1, 0, 1], [10, 30]),
        (pd.Categorical(["lo", "hi", "lo"], categories=["lo", "hi", "top"]), [0, 1, 0], ["lo", "hi"]),
        ([True, False, True], [1, 0, 1], ["False", "True"]),
        (pd.array([7, "b", 7], dtype=object), [0, 1, 0], ["7", "b"]),
    ],
)
def test_labels_of_an_index_may_be_of_any_kind(labels, codes, kept):
    a = arguments(pd.DataFrame({"county": labels, "floor": [0, 1, 0], "y": [1.5, 2.5, 3.5]}), grouped, index=["county"])
    assert (a.data["county"].tolist(), a.coords["county"].tolist()) == (codes, kept)


def test_what_is_no_number_is_left_out_of_x_and_listed():
    frame = TABLE.assign(
        city=["A", "B", "C"],
        day=pd.to_datetime(["2020-01-01"] * 3),
        born=[datetime.date(1990, 1, 1)] * 3,
        kind=pd.Categorical(["a", "b", "a"]),
    )
    frame = frame.assign(**{"Unnamed: 0": [0, 1, 2], "pair": [(1, 2)] * 3, "smoker": [True, False, True]})
    a = arguments(frame, regression, target="score")
    assert a.coords["feature"].tolist() == ["age", "weight", "smoker"]
    assert list(a.left_out) == ["city", "day", "born", "kind", "Unnamed: 0", "pair"]
    assert (a.left_out["day"], a.left_out["kind"], a.left_out["Unnamed: 0"]) == ("it holds dates", "it holds categories", "it has no name")


def test_row_numbers_that_to_csv_wrote_are_no_feature(tmp_path):
    TABLE.to_csv(tmp_path / "t.csv")
    assert arguments(read(tmp_path / "t.csv"), regression, target="score").coords["feature"].tolist() == ["age", "weight"]


def test_booleans_nullable_and_decimal_columns():
    def model(mask, size, y=None): ...

    frame = pd.DataFrame({"mask": [True, False], "size": pd.array([1, 2], dtype="Int64"), "y": [True, False]})
    a = arguments(frame, model)
    assert [a.data[k].dtype for k in ("mask", "size", "y")] == [np.bool_, np.int64, np.int64]
    price = pd.DataFrame({"price": [decimal.Decimal("1.5"), decimal.Decimal("2.5")], "y": [1, 2]})
    assert arguments(price, regression).data["x"].tolist() == [[1.5], [2.5]]
    damaged = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [True, None], "y": [1.0, 2.0]})
    kept = arguments(damaged, lambda a, b, y=None: None, missing=True).data
    np.testing.assert_array_equal(kept["a"], [1, np.nan])
    np.testing.assert_array_equal(kept["b"], [1, np.nan])


def test_known_arguments_are_not_asked_for_and_drop_leaves_out():
    def model(x, size, y=None): ...

    assert arguments(TABLE, model, target="score", known=["size"], drop=["age"]).coords["feature"].tolist() == ["weight"]


# What cannot be used

NAN = TABLE.assign(age=[np.nan, 2, 3], weight=[1.0, np.nan, np.nan])


@pytest.mark.parametrize(
    ("frame", "options", "sentence"),
    [
        (TABLE, {"target": "scor"}, r"There is no column scor \(did you mean score\?\): the table has age, weight, score\."),
        (TABLE, {"target": "z"}, r"There is no column z: the table has age"),
        (TABLE, {"target": "score", "rename": {"hight": "x"}}, r"There is no column hight \(did you mean weight\?\)"),
        (TABLE, {"target": "score", "drop": ["Age"]}, r"There is no column Age \(did you mean age\?\)"),
        (TABLE, {}, r"No column is the model's y: name it by --target COLUMN, one of age, weight, score\."),
        (TABLE, {"target": "score", "index": ["score"]}, r"Column score cannot be both the target and an index"),
        (TABLE, {"target": "score", "index": ["age"]}, r"no argument age: say where it goes by --rename age=ARGUMENT, one of x, y\."),
        (TABLE, {"target": "score", "rename": {"age": "y"}}, r"Both the target score and column y would be the argument y"),
        (TABLE, {"target": "score", "rename": {"age": "weight"}}, r"Several columns of the renamed table are named weight"),
        (TABLE[["score"]], {"target": "score"}, r"No column is the model's x: name it by --rename COLUMN=x"),
        (
            TABLE.assign(age=["20", "3l", "42"]),
            {"target": "score"},
            r"Column age should hold numbers for x, and row 2 holds '3l': mend it, or --drop age\.",
        ),
        (TABLE.assign(score=["a", "b", "c"]), {"target": "score"}, r"Column score should hold numbers for y, and row 1 holds 'a'"),
        (
            TABLE.assign(score=pd.to_datetime("2020-01-01")),
            {"target": "score"},
            r"should hold numbers for y, and holds dates: turn them into days",
        ),
        (TABLE.assign(score=pd.Categorical(list("aba"))), {"target": "score"}, r"and holds categories: --index score codes them"),
        (TABLE.assign(score=[1j, 2j, 3j]), {"target": "score"}, r"and holds complex128: convert it"),
        (
            NAN,
            {"target": "score"},
            r"Column age has 1 missing \(NaN\) value, first in row 1; column weight has 2 missing \(NaN\) values, first in row 2:",
        ),
        (NAN, {"target": "score"}, r"--allow-missing if the model masks NaN\."),
        (
            TABLE.assign(age=[1.0, np.inf, -np.inf]),
            {"target": "score", "missing": True},
            r"Column age has 2 infinite values, first in row 2: mend",
        ),
        (
            TABLE.assign(age=5),
            {"target": "score"},
            r"Column age holds only 5, so its effect cannot be told .*: leave it out by --drop age\.",
        ),
        (TABLE.assign(age=np.nan), {"target": "score", "missing": True}, r"Column age holds no value, so"),
    ],
)
def test_a_table_that_does_not_fit_gets_a_sentence(frame, options, sentence):
    with pytest.raises(InputError, match=sentence):
        arguments(frame, regression, **options)


@pytest.mark.parametrize(
    ("model", "frame", "options", "sentence"),
    [
        (
            counts,
            TABLE.assign(DOSE=1.0),
            {"target": "score"},
            r"No column is the model's dose: name it by --rename DOSE=dose, or give one number by --set dose=",
        ),
        (
            counts,
            TABLE,
            {"rename": {"age": "dose", "weight": "n"}},
            r"No column is the model's deaths: name it by --target COLUMN, one of score\.",
        ),
        (
            lambda x, obs=None, mask=None: None,
            TABLE,
            {"target": "score"},
            r"no argument y: say where score goes by --rename score=ARGUMENT, one of x, obs, mask",
        ),
        (
            grouped,
            TABLE.assign(county=["a", None, "b"]),
            {"target": "score", "index": ["county"]},
            r"Index column county lacks a label in 1 rows, first in row 2",
        ),
        (
            grouped,
            TABLE.assign(county=list("abc")),
            {"target": "score"},
            r"numbers for county, and row 1 holds 'a': mend it, or --index county if",
        ),
    ],
)
def test_other_models_get_their_own_sentence(model, frame, options, sentence):
    with pytest.raises(InputError, match=sentence):
        arguments(frame, model, **options)


def test_missing_values_are_kept_on_request():
    a = arguments(NAN, regression, target="score", drop=["weight"], missing=True)
    np.testing.assert_array_equal(a.data["x"], [[np.nan], [2], [3]])
