"""What a command line asks for: a model with its arguments, and methods with their settings."""

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import vipatterns as vip
from vipatterns import catalogue
from vipatterns.catalogue import line_of, said
from vipatterns.errors import InputError


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
            return vip.train(jax.random.key(seed), self.model, self.module.guide, self.data, **{**own, **settings})

    def labels(self) -> Any:
        """What the file's labels() says of each row of its data, for pictures of them; None where it has none."""
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
        table: a file that `tables.read` reads.
        columns: where its columns go.
        constants: name=value, for arguments that are no columns.
    """
    known = {name: _literal(text) for name, text in (_pair("--set", text) for text in constants)}
    if table is None:
        path, module, model = _load(what)
        data, coords, dims = _own_data(path, module, columns), {}, {}
    else:
        from vipatterns import tables

        frame = tables.read(table)  # before the model, which brings JAX
        path, module, model = _load(what)
        found = tables.arguments(
            frame,
            model,
            target=columns.target,
            index=columns.index or (),
            rename=dict(_pair("--rename", text) for text in columns.rename or ()),
            drop=columns.drop or (),
            known=known,
            missing=columns.allow_missing,
        )
        data, coords, dims = found.data, found.coords, found.dims
        if found.left_out:
            print(f"not used: {', '.join(f'{column} ({why})' for column, why in found.left_out.items())}", file=sys.stderr)
    data = {**data, **known}
    positional = [p.name for p in inspect.signature(model).parameters.values() if p.kind is p.POSITIONAL_ONLY and p.name in data]
    return Job(path, module, model, data, tuple(data.pop(name) for name in positional), coords, dims)


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
