"""Streams of rows from files larger than memory: Parquet, and arrays that are mapped."""

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from vipatterns.draws import as_count
from vipatterns.errors import InputError

WINDOW = 16_384
"""Rows of a chunk."""
BLOCKS = 16
"""Pieces of an array file that make a window."""


class Rows:
    """Rows of files larger than memory, which are read piece by piece: what `Parquet` and `ArrayFile` share.

    An epoch takes the pieces in an order drawn anew and puts them into a pool. Once the pool has twice `window` rows it is shuffled, and
    chunks of `window` rows are taken from it, until less than twice as many are left to be mixed with the pieces that come next. So a chunk
    is drawn from at least twice its rows, and rows of one piece part. In memory are at most three times `window` rows and one piece, and as
    many again while they are put in order. Everything is decided by the `rng` of the epoch.
    """

    def __init__(self, lengths: np.ndarray, window: int):
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.left_out = np.zeros(0, np.int64)
        self.window = window

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return int(self.starts[-1]) - len(self.left_out)

    def split(self, rng: np.random.Generator, num: int) -> tuple[Self, dict[str, np.ndarray]]:
        """The stream without `num` of its rows, drawn at random, and these rows, argument -> (num, ...). The file is read through."""
        out = np.sort(rng.choice(np.setdiff1d(np.arange(self.starts[-1]), self.left_out), num, replace=False))
        with self._opened() as read:
            parts = [rows for piece in range(len(self.starts) - 1) if (rows := self._of(read, piece, out, keep=True))]
        rest = copy.copy(self)
        rest.left_out = np.union1d(self.left_out, out)
        return rest, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def chunks(self, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
        """Chunks of `window` rows; the last one has what is left."""
        pool, held = [], 0
        with self._opened() as read:
            for piece in rng.permutation(len(self.starts) - 1):
                if not (rows := self._of(read, int(piece), self.left_out, keep=False)):
                    continue
                pool.append(rows)
                held += _length(rows)
                if held >= 2 * self.window:
                    mixed = _shuffled(pool, rng)
                    pool.clear()
                    del rows  # a piece is a part of the pool, not to be held beside it
                    for start in range(0, (held // self.window - 1) * self.window, self.window):
                        yield {name: value[start : start + self.window].copy() for name, value in mixed.items()}
                    held = self.window + held % self.window
                    pool.append({name: value[len(value) - held :].copy() for name, value in mixed.items()})
                    del mixed
        if pool:
            mixed = _shuffled(pool, rng)
            pool.clear()
            for start in range(0, held, self.window):
                yield {name: value[start : start + self.window] for name, value in mixed.items()}

    def where(self, chunk: dict[str, np.ndarray], row: int) -> str:
        """A row of a chunk, as the beginning of a sentence; it is found in the file, which is read through, by its values."""
        wanted = {name: value[row] for name, value in chunk.items()}
        with self._opened() as read:
            for piece, start in enumerate(self.starts[:-1]):
                arrays = read(piece)
                same = [(value == wanted[name]).reshape(len(value), -1).all(1) for name, value in arrays.items()]
                if (at := np.flatnonzero(np.logical_and.reduce(same))).size:
                    return _in_file(self._path(next(iter(arrays))), start + at[0])
        return "A row of the file that has changed since it was read"

    def _of(self, read: Callable, piece: int, rows: np.ndarray, keep: bool) -> dict[str, np.ndarray]:
        """A piece's rows that are among `rows`, or are not; empty where none is left."""
        start, end = self.starts[piece], self.starts[piece + 1]
        among = np.zeros(end - start, bool)
        among[rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)] - start] = True
        if not (chosen := among == keep).any():
            return {}
        arrays = read(piece)
        for name, value in arrays.items():
            if value.dtype.kind == "f" and not (finite := np.isfinite(value)).all():
                told = _in_file(self._path(name), start + np.argwhere(~finite)[0][0])
                raise InputError(f"{told} holds NaN or infinity for {name}: drop or fill such rows.")
        return arrays if chosen.all() else {name: value[chosen] for name, value in arrays.items()}

    def _opened(self) -> AbstractContextManager[Callable[[int], dict[str, np.ndarray]]]:
        """A function that reads a piece, while the files are open."""
        raise NotImplementedError

    def _path(self, argument: str) -> Path:
        raise NotImplementedError


class Parquet(Rows):
    """Rows of a Parquet file, whose pieces are its row groups.

    A file with few, large row groups needs as much memory as they do: write it anew with `row_group_size=10_000`, say.

    Args:
        path: the file.
        columns: argument of the model -> a column, of numbers or of lists of one length, or several columns that are stacked, (N, P).
            The argument x is made floats.
        window: rows of a chunk, which should be some times the size of a minibatch.
        scale: what x is divided by, such as 255 for pixels of 8 bits.
    """

    def __init__(self, path: str | Path, columns: Mapping[str, str | Sequence[str]], *, window: int = WINDOW, scale: float = 1.0):
        self.path, self.scale = Path(path), scale
        self.columns = {name: [given] if isinstance(given, str) else list(given) for name, given in columns.items()}
        with self._sentences():
            import pyarrow.parquet as pq

            with pq.ParquetFile(self.path) as file:
                there, metadata = file.schema_arrow.names, file.metadata
                lengths = np.array([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], np.int64)
        for column in [column for columns in self.columns.values() for column in columns]:
            if column not in there:
                near = difflib.get_close_matches(column, there, n=1)
                hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(there[:12])}{' ...' * (len(there) > 12)}."
                raise InputError(f"{self.path} has no column {column}: {hint}")
        if not lengths.sum() or not self.columns:
            raise InputError(
                f"{self.path} gives no rows to train on: it has {lengths.sum()}, of which {len(self.columns)} arguments were asked."
            )
        super().__init__(lengths, as_count(window, "window"))

    def whole(self, argument: str) -> np.ndarray:
        """One argument's rows, in the order of the file; no other column is read.

        Args:
            argument: of the model, one that `columns` names.

        Returns:
            (N, ...).
        """
        narrow = Parquet(self.path, {argument: self.columns[argument]}, window=self.window, scale=self.scale)
        with narrow._opened() as read:
            return np.concatenate([read(piece)[argument] for piece in range(len(self.starts) - 1)])

    @contextmanager
    def _opened(self) -> Iterator[Callable[[int], dict[str, np.ndarray]]]:
        import pyarrow.parquet as pq

        def read(piece: int) -> dict[str, np.ndarray]:
            with self._sentences():
                names = sorted({column for columns in self.columns.values() for column in columns})
                table = file.read_row_group(piece, columns=names)
                found = {name: self._numbers(table.column(name), name, piece) for name in names}
            made = {name: found[c[0]] if len(c) == 1 else np.column_stack([found[k] for k in c]) for name, c in self.columns.items()}
            return {name: _as_x(value, self.scale) if name in ("x", "X") else value for name, value in made.items()}

        with self._sentences():
            file = pq.ParquetFile(self.path)
        with file:
            yield read

    def _numbers(self, column: Any, name: str, piece: int) -> np.ndarray:
        """A column of one row group, (n,), or (n, P) where it holds lists."""
        import pyarrow as pa

        column = column.combine_chunks()
        kind = column.type
        values = column
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            values, kind = column.flatten(), kind.value_type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise InputError(
                f"Column {name} of {self.path} should hold numbers, or lists of one length, and holds {column.type}: convert it."
            )
        missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        if missing.size or values.null_count:
            where = f", the first in row {self.starts[piece] + missing[0]} (counted from 0)" if missing.size else " within lists"
            raise InputError(f"Column {name} of {self.path} has missing values{where}: drop or fill such rows.")
        array = values.to_numpy(zero_copy_only=False)
        if values is column:
            return array
        size = getattr(column.type, "list_size", 0)  # of lists that have one length by their type
        lengths = np.full(len(column), size) if size else np.diff(column.offsets.to_numpy())
        if (odd := np.flatnonzero(lengths != lengths[0])).size:
            raise InputError(
                f"The lists of column {name} of {self.path} should have one length, and row {self.starts[piece] + odd[0]} (counted from 0) "
                f"has {lengths[odd[0]]} where others have {lengths[0]}: mend or drop it."
            )
        return array.reshape(len(column), -1)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except (InputError, MemoryError):
            raise
        except FileNotFoundError as error:
            raise InputError(f"There is no file {self.path}: check its name and folder.") from error
        except Exception as error:  # Arrow raises whatever it likes; the file is at fault
            raise InputError(f"{self.path} is no whole Parquet file ({_first_line(error)}): write it again.") from error

    def _path(self, argument: str) -> Path:
        return self.path


class ArrayFile(Rows):
    """Rows of .npy files, which are mapped and not loaded; a piece is a block of rows.

    Args:
        files: argument of the model -> file, all of as many rows; or the file of x.
        window: rows of a chunk, which should be some times the size of a minibatch.
        scale: what x is divided by, such as 255 for pixels of 8 bits.
    """

    def __init__(self, files: str | Path | Mapping[str, str | Path], *, window: int = WINDOW, scale: float = 1.0):
        files = files if isinstance(files, Mapping) else {"x": files}
        self.files, self.scale = {name: Path(path) for name, path in files.items()}, scale
        lengths = {str(self.files[name]): len(array) for name, array in self._mapped().items()}
        num = min(lengths.values(), default=0)
        if len(set(lengths.values())) != 1 or not num:
            told = ", ".join(f"{path} has {length:,}" for path, length in lengths.items())
            raise InputError(f"Array files need as many rows each, one or more; {told or 'no file was named'}.")
        block = max(as_count(window, "window") // BLOCKS, 1)
        super().__init__(np.diff([*range(0, num, block), num]), window)

    @contextmanager
    def _opened(self) -> Iterator[Callable[[int], dict[str, np.ndarray]]]:
        arrays = self._mapped()

        def read(piece: int) -> dict[str, np.ndarray]:
            rows = {name: np.array(array[self.starts[piece] : self.starts[piece + 1]]) for name, array in arrays.items()}
            return {name: _as_x(value, self.scale) if name in ("x", "X") else value for name, value in rows.items()}

        yield read

    def _mapped(self) -> dict[str, np.ndarray]:
        arrays = {}
        for name, path in self.files.items():
            try:
                arrays[name] = array = np.load(path, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError as error:
                raise InputError(f"There is no file {path}: check its name and folder.") from error
            except (OSError, ValueError, EOFError) as error:
                raise InputError(
                    f"{path} is no whole .npy file of numbers ({_first_line(error)}): write it again by numpy.save."
                ) from error
            if not isinstance(array, np.ndarray) or not array.ndim or array.dtype.kind not in "biuf":
                raise InputError(f"{path} should hold one array of numbers with one row a datum, as numpy.save writes it.")
        return arrays

    def _path(self, argument: str) -> Path:
        return self.files[argument]


def _shuffled(parts: list[dict[str, np.ndarray]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The rows of all parts in one random order."""
    order = rng.permutation(sum(map(_length, parts)))
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def _in_file(path: Path, row: int) -> str:
    return f"{path}, row {row} (counted from 0),"


def _as_x(value: np.ndarray, scale: float) -> np.ndarray:
    """Floats, of the file's own size where they are floats in it."""
    value = value if value.dtype.kind == "f" else value.astype(np.float32)
    return value if scale == 1.0 else value / value.dtype.type(scale)


def _length(rows: dict[str, np.ndarray]) -> int:
    return len(next(iter(rows.values())))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
