"""What a command line asks for: a model with its arguments, and methods with their settings."""

import ast
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import vipatterns as vip
from vipatterns import catalogue
from vipatterns.catalogue import line_of, said
from vipatterns.errors import InputError

STREAMED = 256 * 2**20
"""Bytes of a Parquet file: a larger one is streamed from disk to a model that learns, and read whole for any other."""
FIRST_ROWS = 1_000
"""Rows of it that say which column goes where."""


@dataclass(frozen=True)
class Columns:
    """What is said of a table's columns; pairs are `old=new` and `name=value`."""

    target: str | None = None
    index: list[str] | None = None
    rename: list[str] | None = None
    drop: list[str] | None = None
    allow_missing: bool = False


@dataclass(frozen=True)
class Job:
    """A model with the arguments it will be called with."""

    path: Path
    """The file of the model."""
    module: ModuleType
    model: Callable
    data: dict[str, Any]
    args: tuple
    """Values of positional-only arguments."""
    coords: dict
    dims: dict
    stream: Any = None
    """Rows of a file that is not read whole; `data` then has its first ones, and what is no column."""
    shown: Any = None
    """Labels of images that the model does not ask for: pictures are coloured by them."""

    def run(self, function: Callable, seed: int, **options: Any) -> Any:
        """vip.fit or vip.compare on this model. What the user's code raises is said with its line."""
        import jax

        with self._saying():
            return function(jax.random.key(seed), self.model, self.data, args=self.args, **self._labels(), **options)

    def learns(self) -> bool:
        """Whether the model has parameters of its own, such as a network's, and the file a guide: then it is trained, and not fitted."""
        import jax
        from numpyro import handlers

        kinds = set()

        def look() -> None:
            trace = handlers.trace(handlers.seed(self.model, jax.random.key(0))).get_trace(*self.args, **self.data)
            kinds.update(site["type"] for site in trace.values())

        if callable(getattr(self.module, "guide", None)):
            with suppress(Exception), redirect_stdout(sys.stderr):  # what is wrong with the model is said when it is run
                jax.eval_shape(look)
        return "param" in kinds

    def train(self, seed: int, **settings: Any) -> Any:
        """vip.train on this model and the guide of its file, with the settings that the file's training() gives, and then these."""
        import jax

        if not callable(getattr(self.module, "guide", None)):
            raise InputError(f"train needs the function guide() of the model's file, and {self.path} has none: write one.")
        known = [name for name, p in inspect.signature(vip.train).parameters.items() if p.kind is p.KEYWORD_ONLY]
        for name in settings:
            if name not in known:
                raise InputError(f"train has no setting {name}: it has {', '.join(known)}.")
        with self._saying():
            own = self.module.training() if hasattr(self.module, "training") else {}
            rows, static = self.data, None
            if self.stream is not None:
                rows, static = self.stream, {name: value for name, value in self.data.items() if name not in self.stream.columns}
            return vip.train(jax.random.key(seed), self.model, self.module.guide, rows, static=static, **{**own, **settings})

    def labels(self) -> Any:
        """The images' own labels, or what the file's labels() says of each row, for pictures of them; None where there are none."""
        if self.shown is not None:
            return self.shown
        with self._saying():
            return self.module.labels(*self.args, **self.data) if hasattr(self.module, "labels") else None

    @contextmanager
    def _saying(self) -> Iterator[None]:
        """An error of the user's code becomes a sentence with its line; a model that prints does not spoil --json."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except InputError:
            raise
        except (FloatingPointError, MemoryError) as error:
            raise InputError(said(error)) from error
        except Exception as error:
            if (line := line_of(error, self.path)) is None:
                raise
            raise InputError(f"The model raised an error in {self.path}, line {line}: {said(error)}.") from error

    def answer(self, name: str) -> Any:
        """What the file's own exact_posterior or log_evidence says of this data; None where there is none for this model."""
        function = getattr(self.module, name, None)
        if function is None or self.model is not getattr(self.module, "model", None):
            return None
        try:
            with redirect_stdout(sys.stderr):
                return function(*self.args, **self.data)
        except Exception as error:
            print(f"not used: {name}() of {self.path}, which raised {said(error)} on this data", file=sys.stderr)
            return None

    def _labels(self) -> dict[str, dict]:
        """The coords and dims that fit the model's axes: a plate may share a name with a column and mean something else."""
        from vipatterns import density

        if not self.coords:
            return {}
        try:
            with density.precision("float64"):
                target = density.read(self.model, self.data, args=self.args)
        except InputError:  # the method says it, or can do more than most
            return {"coords": self.coords}
        sites = {**target.latents, **target.deterministics, **target.observations}
        sizes = {dim: size for site in sites.values() for dim, size in zip(site.dims, site.shape, strict=True)}
        coords = {dim: labels for dim, labels in self.coords.items() if sizes.get(dim, len(labels)) == len(labels)}
        return {"coords": coords, "dims": {name: dims for name, dims in self.dims.items() if name in target.constant}}


def read(what: str, table: Path | None, columns: Columns, constants: list[str]) -> Job:
    """The model that `what` names with the arguments that a table gives it, or its module's data().

    Args:
        what: NAME or path/to/file.py[:MODEL].
        table: a file that `tables.read` or `amortized.images.read` reads.
        columns: where its columns go.
        constants: name=value, for arguments that are no columns.
    """
    known = {name: _literal(text) for name, text in (_pair("--set", text) for text in constants)}
    if table is None:
        loaded = _load(what)
        return _job(loaded, _own_data(*loaded[:2], columns), known)
    from vipatterns import tables

    suffixes = {suffix.lower() for suffix in table.suffixes}
    if table.is_dir() or (table.exists() and not suffixes & tables.SUFFIXES):
        return _of_images(what, table, columns, known)
    large = table.is_file() and bool(suffixes & {".parquet", ".pq"}) and table.stat().st_size > STREAMED
    return _of_table(what, table, columns, known, first=FIRST_ROWS if large and not (columns.index or columns.allow_missing) else None)


def _job(loaded: tuple, data: dict[str, Any], known: dict[str, Any], coords: dict | None = None, dims: dict | None = None) -> Job:
    path, module, model = loaded
    data = {**data, **known}
    positional = [p.name for p in inspect.signature(model).parameters.values() if p.kind is p.POSITIONAL_ONLY and p.name in data]
    return Job(path, module, model, data, tuple(data.pop(name) for name in positional), coords or {}, dims or {})


def _of_table(what: str, table: Path, columns: Columns, known: dict[str, Any], first: int | None = None) -> Job:
    """A table's columns as arguments; `first` rows of it where the rest will be streamed, if the model is one that learns."""
    from vipatterns import tables

    frame = tables.read(table, first)  # before the model, which brings JAX
    loaded = _load(what)
    parameters = inspect.signature(loaded[2]).parameters
    rename = dict(_pair("--rename", text) for text in columns.rename or ())
    found = tables.arguments(
        frame,
        loaded[2],
        target=columns.target,
        index=columns.index or (),
        rename=rename,
        drop=columns.drop or (),
        known=known,
        missing=columns.allow_missing,
        constant=first is not None or ("x" in parameters and parameters["x"].default is None),  # what is observed may be constant
    )
    made = _job(loaded, {**_sizes(parameters, found.data), **found.data}, known, found.coords, found.dims)
    if first is not None:
        if not made.learns():
            return _of_table(what, table, columns, known)
        made = replace(made, stream=_stream(table, frame, found, rename, columns.target))
        if "label" in made.stream.columns and "num_labels" in {*parameters} - {*known}:
            made.data.update(_sizes(parameters, {"label": made.stream.whole("label")}))
    if found.left_out:
        print(f"not used: {', '.join(f'{column} ({why})' for column, why in found.left_out.items())}", file=sys.stderr)
    return made


def _stream(table: Path, frame: Any, found: Any, rename: dict[str, str], target: str | None) -> Any:
    """The rows of a Parquet file, whose columns go where those of its first rows went."""
    from vipatterns import tables
    from vipatterns.amortized import Parquet

    old = {rename.get(column, column): column for column in frame.columns}
    columns = {}
    for name in (name for name, value in found.data.items() if getattr(value, "ndim", 0)):
        given = [str(c) for c in found.coords[tables.FEATURE]] if name in found.dims else [name if name in old else str(target)]
        columns[name] = [old.get(column, column) for column in given]
    return Parquet(table, columns)


def _of_images(what: str, source: Path, columns: Columns, known: dict[str, Any]) -> Job:
    """Images as x; their labels and shape go to the arguments `label` and `image_shape`, where the model has them."""
    from vipatterns.amortized import given, images

    found = images.read(source)
    if asked := [name for name, value in asdict(columns).items() if value]:
        raise InputError(f"--{asked[0].replace('_', '-')} speaks of a table's columns, and {source} holds images: leave it out.")
    loaded = _load(what)
    parameters = inspect.signature(loaded[2]).parameters
    if "x" not in parameters:
        raise InputError(
            f"The images of {source} go to an argument x, and the model in {loaded[0]} has none: it has {', '.join(parameters)}."
        )
    if "label" in {*parameters} - {*known} and found.labels is None and parameters["label"].default is inspect.Parameter.empty:
        raise InputError(
            f"The model needs a label for each image, and {source} has none: put the images into sub-folders named by their labels."
        )
    data = {"x": found.x, "image_shape": found.image_shape, "label": found.labels}
    data = {name: value for name, value in data.items() if name in parameters and value is not None}
    print(f"read: {found.source}", file=sys.stderr)
    made = replace(_job(loaded, {**data, **_sizes(parameters, data)}, known), shown=found.labels)
    with redirect_stdout(sys.stderr):
        if (inked := given.ink(made.model, made.data)) is not None:
            print("pixels above half of full ink are made 1 and all others 0, for the model has no density for grey ones", file=sys.stderr)
            made.data["x"] = inked
    return made


def _sizes(parameters: Mapping[str, Any], data: dict[str, Any]) -> dict[str, int]:
    if not {"num_pixels", "num_columns", "num_labels"} & {*parameters}:
        return {}
    from vipatterns.amortized import given

    return given.sizes(parameters, data)


def _load(what: str) -> tuple[Path, ModuleType, Callable]:
    with redirect_stdout(sys.stderr):
        return catalogue.load(what)


def _own_data(path: Path, module: ModuleType, columns: Columns) -> dict[str, Any]:
    given = [name for name, value in asdict(columns).items() if value]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} speaks of a table: name it by --data FILE.")
    function = getattr(module, "data", None)
    if not callable(function):
        raise InputError(f"{path} has no function data(), so there is nothing to fit the model to: give a table by --data FILE.")
    try:
        with redirect_stdout(sys.stderr):
            data = function()
    except Exception as error:
        raise InputError(f"data() raised an error in {path}, line {line_of(error, path)}: {said(error)}.") from error
    if not isinstance(data, dict):
        raise InputError(f"data() of {path} should return a dict, argument of the model -> value; it returned {type(data).__name__}.")
    return data


def _pair(option: str, text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise InputError(
            f"{option} takes NAME=VALUE, such as {option} {'Dose=dose' if option == '--rename' else 'num_groups=8'}; got {text!r}."
        )
    return old, new


def _literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def method_names() -> list[str]:
    """The methods that there are, by the table of contents; nothing is imported."""
    return [name for name, room in vip._ROOMS.items() if room.startswith("methods.")]


TRAINING = "train"
"""What --method calls vip.train."""


def parse_methods(text: str) -> list[tuple[str, dict[str, Any]]]:
    """'MeanField,NUTS(num_samples=500)' -> names and settings. Nothing is imported, so that a slip is answered at once."""
    asked = f"Methods are names separated by commas, such as MeanField,NUTS(num_samples=500); got {text!r}."
    try:
        parsed = ast.parse(f"({text},)", mode="eval").body
    except SyntaxError:
        raise InputError(asked) from None
    chosen = []
    for part in parsed.elts if isinstance(parsed, ast.Tuple) else []:
        name, keywords = (part.func, part.keywords) if isinstance(part, ast.Call) and not part.args else (part, [])
        if not isinstance(name, ast.Name):
            raise InputError(asked)
        if name.id not in (*method_names(), TRAINING):
            raise InputError(f"There is no method {name.id}: choose from {', '.join(method_names())}.")
        try:
            chosen.append((name.id, {str(k.arg): ast.literal_eval(k.value) for k in keywords}))
        except ValueError:
            raise InputError(f"A setting on the command line is a number, a string or True or False; got {ast.unparse(part)}.") from None
    return chosen


def make_methods(chosen: list[tuple[str, dict[str, Any]]], asked: Job) -> list[Any]:
    """The methods themselves; a guide that one needs is the function `guide` of the model's file."""
    made = []
    for name, settings in chosen:
        if name == TRAINING:
            raise InputError("train is for fit: compare sets posteriors of one model side by side, and training changes the model.")
        method = getattr(vip, name)
        known = {field.name: field for field in fields(method)}
        for setting in settings:
            if setting not in known:
                raise InputError(f"{name} has no setting {setting}: it has {', '.join(known)}.")
        if "guide" in known and "guide" not in settings:
            if not callable(getattr(asked.module, "guide", None)):
                raise InputError(f"{name} trains the function guide() of the model's file, and {asked.path} has none: write one.")
            settings = {**settings, "guide": asked.module.guide}
        made.append(method(**settings))
    return made
