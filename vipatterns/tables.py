"""A table becomes the arguments of a model, by one rule.

1. `rename` first: a column takes the name of the argument it is meant for. `drop` leaves columns out.
2. The `target` column goes to `y`; where the model has no `y`, to the one argument whose default is None.
3. An `index` column names groups. It is coded 0, 1, ... in sorted order of its labels, which are kept as coords, and goes to the
   argument of its name. An argument named `num_` (or `n_`) and that name, or its plural, gets the number of labels.
4. Any other column that is named as an argument goes to it. Whole numbers stay whole, except in `x`.
5. If the model has an `x` that no column is named for, the remaining numeric columns are stacked into it, (N, P) float64, their
   names kept as coords of the dim `feature`. Text, dates, categories and columns without a name are left out of it.
6. Arguments that nothing went to keep their default. One without a default is an error, and so is an observed `y` without a column.

`X` and `Y` count as `x` and `y`. The index of a DataFrame is not data. Rows are counted from 1.
"""

import difflib
import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vipatterns.errors import InputError

ROW, FEATURE = "row", "feature"
"""The dims of x: along the second its columns are stacked."""
SUFFIXES = {".csv", ".tsv", ".tab", ".txt", ".parquet", ".pq"}
"""Of the files that are tables; behind them, one of compression."""
UNNAMED = "Unnamed: "
"""Begins the name that pandas gives to a column without one, such as the row numbers that `to_csv` writes."""


@dataclass(frozen=True)
class Arguments:
    """What a table gives to a model."""

    data: dict[str, Any]
    """Argument of the model -> array, (N,) for a column and (N, P) for x; an int for a number of groups."""
    coords: dict[str, np.ndarray]
    """Dim -> labels: an index column's labels under its argument's name and plural, the columns of x under `feature` and `features`."""
    dims: dict[str, list[str]]
    """Argument -> names of its axes: x has `row` and `feature`."""
    left_out: dict[str, str]
    """Columns that went nowhere -> why."""


def read(source: str | os.PathLike | pd.DataFrame, first: int | None = None) -> pd.DataFrame:
    """A table from a CSV, TSV or Parquet file (text may be compressed), or a DataFrame as it is.

    Args:
        source: the file or the frame.
        first: of a Parquet file, read only so many rows.

    Returns:
        A frame with at least one row, whose column names are distinct strings.

    Raises:
        InputError: the file cannot be read, is empty, or names a column twice.
    """
    where = "The table" if isinstance(source, pd.DataFrame) else str(source)
    frame = source if isinstance(source, pd.DataFrame) else _load(Path(source), first)
    frame = frame.set_axis([str(c) for c in frame.columns], axis=1)
    _distinct(list(frame.columns), where)
    if not frame.size:
        raise InputError(f"{where} is empty ({len(frame)} rows, {frame.shape[1]} columns): a fit needs at least one row and one column.")
    return frame


def arguments(
    frame: pd.DataFrame,
    model: Callable | inspect.Signature,
    *,
    target: str | None = None,
    index: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    known: Iterable[str] = (),
    missing: bool = False,
    constant: bool = False,
) -> Arguments:
    """The arguments of `model` from the columns of `frame`, by the rule above.

    Args:
        frame: the table, one row an observation, as `read` returns it.
        model: the model, or its signature.
        target: the column that is explained.
        index: columns that name groups.
        rename: column -> the name it takes. Target and index may be given by either.
        drop: columns to leave out.
        known: arguments that the caller provides otherwise.
        missing: keep NaN, for models that mask it. Infinities and groups without a label are refused all the same.
        constant: keep features that hold one value, for models in which x is observed and explains nothing, such as the pixels of images.

    Returns:
        Arguments: the model's data, and labels for what was coded or stacked.

    Raises:
        InputError: an argument gets no column, or a column holds what it cannot hold; the sentence names both.
    """
    signature = model if isinstance(model, inspect.Signature) else inspect.signature(model)
    rename = dict(rename or {})
    for column in [*rename, *drop]:
        _exists(column, frame.columns)
    frame = frame.drop(columns=list(drop)).rename(columns=rename)
    _distinct(list(frame.columns), "the renamed table")
    columns = {str(name): column for name, column in frame.items()}
    index = [_exists(rename.get(column, column), columns) for column in index]
    target = None if target is None else _exists(rename.get(target, target), columns)

    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    defaults = {p.name: p.default for p in signature.parameters.values() if p.kind not in variadic and p.name not in set(known)}
    source = _assign(columns, defaults, target, index)
    x = next((name for name in ("x", "X") if name in defaults and name not in source), None)
    spare = {c: column for c, column in columns.items() if c not in source.values()}
    features = [c for c, column in spare.items() if x is not None and _is_feature(column)]
    why = {c: "no argument has its name" if x is None else f"it holds {_kind(column)}" for c, column in spare.items() if c not in features}

    data, coords = {}, {}
    for argument, column in source.items():
        if column in index:
            data[argument], labels = _coded(columns[column])
            coords |= dict.fromkeys(_plurals(column), labels)
            sizes = {f"{prefix}_{name}" for prefix in ("num", "n") for name in _plurals(column)}
            data |= {size: len(labels) for size in sizes & defaults.keys() - columns.keys()}
        else:
            explained = column == target or argument in ("y", "Y")
            data[argument] = _numbers(columns[column], argument, whole=argument not in ("x", "X"), target=explained)
    if features:
        stack = [_numbers(columns[c], str(x), whole=False) for c in features]
        data[x] = np.column_stack(stack)
        coords |= dict.fromkeys(_plurals(FEATURE), np.asarray(features))

    _complete(data, defaults, list(spare))
    _finite([columns[c] for c in [*source.values(), *features] if c not in index], missing)
    if not constant:
        _varies([columns[c] for c in features])
    left_out = {c: "it has no name" if c.startswith(UNNAMED) else said for c, said in why.items()}
    return Arguments(data, coords, {x: [ROW, FEATURE]} if features and x else {}, left_out)


def _load(path: Path, first: int | None) -> pd.DataFrame:
    """A file's table; what a reader cannot make of it is said in a sentence."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a CSV, TSV or Parquet file in it.")
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise InputError(
            f"There is no file {path}: " + (f"did you mean {path.parent / near[0]}?" if near else "check its name and folder.")
        )
    suffixes = {s.lower() for s in path.suffixes}
    try:
        if suffixes & {".parquet", ".pq"}:
            return pd.read_parquet(path) if first is None else _first_rows(path, first)
        if not suffixes & SUFFIXES:
            raise InputError(f"{path} is none of .csv, .tsv and .parquet: convert it to one of them.")
        sep, header = max(((sep, _header(path, sep)) for sep in ",;\t"), key=lambda pair: len(pair[1]))
        if all(_is_number(c) for c in header):
            raise InputError(f"The first line of {path} holds numbers: it should hold the names of the columns.")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # else rows longer than the header are cut
            frame = pd.read_csv(path, sep=sep, skipinitialspace=True, index_col=False, low_memory=False)
        return frame.set_axis([c or f"{UNNAMED}{i}" for i, c in enumerate(header)], axis=1)
    except InputError:
        raise
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path} is empty: a line of column names and at least one row are needed.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: save it as UTF-8, or as Parquet.") from error
    except Exception as error:  # parsers raise whatever they like; the file is at fault, not the program
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{path} cannot be read as a table: {said}.") from error


def _first_rows(path: Path, first: int) -> pd.DataFrame:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        rows = next(file.iter_batches(first), None)
    return pd.read_parquet(path) if rows is None else rows.to_pandas()


def _header(path: Path, sep: str) -> list[str]:
    """The cells of a text file's first line, which pandas would rename where they repeat."""
    first = pd.read_csv(path, header=None, nrows=1, sep=sep, dtype=str, keep_default_na=False, skipinitialspace=True)
    return [str(cell).strip() for cell in first.iloc[0]]


def _assign(columns: Iterable[str], defaults: Mapping[str, Any], target: str | None, index: list[str]) -> dict[str, str]:
    """Argument -> the column that goes to it, x's stack aside."""
    for column in index:
        if column == target:
            raise InputError(f"Column {column} cannot be both the target and an index.")
        if column not in defaults:
            raise InputError(
                f"The model has no argument {column}: say where it goes by --rename {column}=ARGUMENT, one of {_list(defaults)}."
            )
    source = {column: column for column in columns if column in defaults and column != target}
    if target is not None:
        nones = [name for name, default in defaults.items() if default is None]
        goes_to = next((y for y in ("y", "Y") if y in defaults), target if target in nones else nones[0] if len(nones) == 1 else None)
        if goes_to is None:
            raise InputError(
                f"The model has no argument y: say where {target} goes by --rename {target}=ARGUMENT, one of {_list(defaults)}."
            )
        if goes_to in source:
            raise InputError(
                f"Both the target {target} and column {goes_to} would be the argument {goes_to}: --drop {goes_to}, or --rename it."
            )
        source[goes_to] = target
    return source


def _plurals(name: str) -> set[str]:
    """county, and what English makes of several: a plate or a number of groups may be named by either."""
    return {name, f"{name}s", re.sub("(s|x|z|ch|sh)$", r"\1es", name), re.sub("y$", "ies", name)}


def _coded(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Codes 0 ... K-1 and the K labels, sorted (a categorical keeps its own order), as numbers or strings, which netCDF can hold."""
    absent = np.flatnonzero(column.isna())
    if absent.size:
        raise InputError(
            f"Index column {column.name} lacks a label in {absent.size} rows, first in row {absent[0] + 1}: fill or drop them."
        )
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.cat.remove_unused_categories()
        codes, labels = column.cat.codes.to_numpy(), column.cat.categories
    else:
        codes, labels = pd.factorize(column, sort=True)
    labels = np.asarray(labels)
    return codes.astype(np.int64), labels if labels.dtype.kind in "iuf" else labels.astype(str)


KINDS = {
    "boolean": "bool",
    "integer": "integers",
    **dict.fromkeys(("floating", "mixed-integer-float", "decimal", "empty"), "floats"),
    **dict.fromkeys(("string", "mixed-integer", "mixed"), "text"),
    **dict.fromkeys(("date", "datetime", "datetime64", "time", "timedelta", "timedelta64", "period"), "dates"),
    "categorical": "categories",
}
"""What `pandas.api.types.infer_dtype` says -> what we say."""


def _kind(column: pd.Series) -> str:
    return KINDS.get(pd.api.types.infer_dtype(column, skipna=True), "other")


def _is_feature(column: pd.Series) -> bool:
    """Numeric. Text that is partly numbers counts, so that a damaged column is reported and not passed over."""
    kind = _kind(column)
    damaged = kind == "text" and any(_is_number(value) for value in column.dropna())
    return not str(column.name).startswith(UNNAMED) and (kind in ("bool", "integers", "floats") or damaged)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _numbers(column: pd.Series, argument: str, *, whole: bool, target: bool = False) -> np.ndarray:
    """A column as float64, or where `whole` as int64 or bool; a target is no bool, since likelihoods subtract."""
    kind, name = _kind(column), column.name
    if kind == "text":
        row, value = next(((i, v) for i, v in enumerate(column, 1) if not (pd.isna(v) or _is_number(v))), (1, column.iloc[0]))
        remedy = f"mend it, or --index {name} if the column names groups" if whole and not target else f"mend it, or --drop {name}"
        raise InputError(f"Column {name} should hold numbers for {argument}, and row {row} holds {value!r}: {remedy}.")
    if kind in ("dates", "categories", "other"):
        remedy = {"dates": "turn them into days since the first, say", "categories": f"--index {name} codes them"}.get(kind, "convert it")
        raise InputError(
            f"Column {name} should hold numbers for {argument}, and holds {kind if kind != 'other' else column.dtype}: {remedy}."
        )
    if whole and kind in ("bool", "integers") and not column.hasnans:
        return column.to_numpy(bool if kind == "bool" and not target else np.int64)
    return column.to_numpy(np.float64, na_value=np.nan)


def _complete(data: Mapping, defaults: Mapping, spare: list[str]) -> None:
    """Every argument without a default has a column, and something is observed."""
    one_of = f", one of {_list(spare)}" if spare else ""
    nones = [name for name, default in defaults.items() if default is None]
    for argument in [a for a in defaults if a not in data]:
        if argument in ("y", "Y") or (argument in nones and not data.keys() & set(nones)):
            raise InputError(f"No column is the model's {argument}: name it by --target COLUMN{one_of}.")
        if defaults[argument] is inspect.Parameter.empty:
            near = _nearest(argument, spare)
            by = f"--rename {near}={argument}" if near else f"--rename COLUMN={argument}{one_of}"
            raise InputError(f"No column is the model's {argument}: name it by {by}, or give one number by --set {argument}=NUMBER.")


def _finite(columns: list[pd.Series], missing: bool) -> None:
    """Refuse infinities always, and NaN unless the model is said to mask it: all columns in one sentence."""
    checks = [("infinite", np.isinf, "mend or drop these rows")]
    if not missing:
        checks += [("missing (NaN)", np.isnan, "fill or drop these rows, or --allow-missing if the model masks NaN")]
    for what, find, remedy in checks:
        rows = {c.name: np.flatnonzero(find(c.to_numpy(np.float64, na_value=np.nan))) for c in columns}
        told = [f"{c} has {at.size} {what} value{'s' * (at.size > 1)}, first in row {at[0] + 1}" for c, at in rows.items() if at.size]
        if told:
            raise InputError(f"Column {'; column '.join(told)}: {remedy}.")


def _varies(features: list[pd.Series]) -> None:
    """Refuse features that hold one value, or none, in all of several rows."""
    for column in features:
        distinct = column.dropna().unique()
        if len(distinct) < 2 <= len(column):
            what = f"holds only {distinct[0]}" if len(distinct) else "holds no value"
            raise InputError(
                f"Column {column.name} {what}, so its effect cannot be told from the intercept: leave it out by --drop {column.name}."
            )


def _exists(column: str, columns: Iterable[str]) -> str:
    if column not in columns:
        near = _nearest(column, columns)
        raise InputError(f"There is no column {column}{f' (did you mean {near}?)' if near else ''}: the table has {_list(columns)}.")
    return column


def _distinct(names: list[str], where: str) -> None:
    twice = sorted({c for c in names if names.count(c) > 1})
    if twice:
        raise InputError(f"Several columns of {where} are named {_list(twice)}: give each a name of its own.")


def _nearest(name: str, names: Iterable[str]) -> str | None:
    lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    return lower[near[0]] if near else None


def _list(names: Iterable[str], limit: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
