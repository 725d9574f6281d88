"""The command line: list, show, copy, fit, compare. Nothing heavy is imported before a command needs it."""

import ast
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

import vipatterns as vip
from vipatterns import catalogue, job
from vipatterns.errors import InputError

INTERRUPTED = 130
MOST_ROWS = 20
"""Scalars of a posterior that the terminal shows; --json has them all."""


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a file or a pipe does not wrap
    return console


class _Sentences(TyperGroup):
    """Bad input ends in one sentence and exit status 2, Ctrl-C in 130."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except InputError as error:
            _note("error", str(error))
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            _note("interrupted", "Nothing was finished that could be kept.")
            raise typer.Exit(INTERRUPTED) from error


def _note(kind: str, sentence: str) -> None:
    """One line on stderr, whatever the width: it may be searched for or copied."""
    _console(stderr=True).print(f"[bold red]{kind}[/]: " if kind != "note" else "[dim]note[/]: ", end="")
    _console(stderr=True).print(sentence, markup=False, soft_wrap=True)


def _rule() -> str:
    """How a table becomes arguments, as tables.py states it (read, not imported: it brings pandas)."""
    return ast.get_docstring(ast.parse(Path(__file__).with_name("tables.py").read_text(encoding="utf-8"))) or ""


app = typer.Typer(
    cls=_Sentences,
    help="Variational-inference patterns to read, run, trust and copy, and one comparison of VI with NUTS on your own model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.command("list")
def list_() -> None:
    """List the patterns: what each is, how it is fitted, what it is checked against."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("pattern", no_wrap=True, min_width=max(len(p.name) for p in catalogue.patterns()) + 2)
    for column in ("technique", "checked against", "what it is"):
        table.add_column(column)
    for p in catalogue.patterns():
        table.add_row(("" if p.name == p.family else "  ") + p.name, p.technique, p.checked_against, p.title)
    _console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="A pattern.")]) -> None:
    """Print the file of a pattern."""
    source = catalogue.find(name).read_text(encoding="utf-8")
    console = _console()
    if console.is_terminal:
        from rich.syntax import Syntax

        console.print(Syntax("", "python", theme="ansi_dark").highlight(source), soft_wrap=True)
    else:
        sys.stdout.write(source)


@app.command()
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A pattern.")],
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to; made if it is not there.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False,
) -> None:
    """Copy a pattern's file, to edit its data() and run it with nothing but NumPyro installed."""
    source = catalogue.find(name)
    path = folder / source.name
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder to copy {source.name} into.")
    if path.exists() and not force:
        raise InputError(f"{path} exists: --force overwrites it.")
    _make(folder)
    path.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    _console().print(f"{path}: edit data(), then run it: uv run {path}", markup=False, soft_wrap=True)


Model = Annotated[
    str, typer.Argument(metavar="NAME|FILE.py[:MODEL]", help="A pattern, or a Python file with a NumPyro model.", show_default=False)
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="A table: CSV, TSV or Parquet. Or images, for x: a folder of PNG or JPEG files (sub-folders are labels), an IDX file "
        "as MNIST's, .npy or .npz. Without it, the module's data() is used."
    ),
]
Target = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that is explained, y.")]
Index = Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="A column that names groups. Repeatable.")]
Rename = Annotated[list[str] | None, typer.Option(metavar="OLD=NEW", help="Column OLD goes to the argument NEW. Repeatable.")]
Drop = Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Leave a column out. Repeatable.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An argument that is no column. Repeatable.")]
Missing = Annotated[bool, typer.Option("--allow-missing", help="Keep NaN, for a model that masks it.")]
Seed = Annotated[int, typer.Option(help="Every random number comes from it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there; inf as a string, nan as null.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Write the results there.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Write into --out although it exists.")]


@app.command(epilog=_rule())
def fit(
    model: Model,
    data: Data = None,
    target: Target = None,
    index: Index = None,
    rename: Rename = None,
    drop: Drop = None,
    set_: Set = None,
    allow_missing: Missing = False,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "--methods",
            help="One method, with settings if need be: MeanField(num_steps=5000), train(num_epochs=50). By default the Ladder, or train.",
        ),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """Fit a model: the cheapest posterior that earns a certificate, or what --method says.

    A model with parameters of its own, such as a network's, is trained with the guide of its file; --out then gets report.html, and keeps
    a checkpoint, from which the same command with --force goes on. It uses the pattern's own data, or a table by the rule below.
    """
    chosen = job.parse_methods("Ladder" if method is None else method)
    if len(chosen) != 1:
        raise InputError(f"fit takes one method, got {len(chosen)}: compare sets several side by side.")
    with _folder(out, force):
        asked = job.read(model, data, job.Columns(target, index, rename, drop, allow_missing), set_ or [])
        if chosen[0][0] == job.TRAINING or (method is None and asked.learns()):
            kept = None if out is None else out / "run.safetensors"
            fitted = asked.train(seed, checkpoint=kept, **({} if method is None else chosen[0][1]))
            return _end_training(asked, model, seed, fitted, as_json, out)
        [made] = job.make_methods(chosen, asked)
        if isinstance(made, vip.Ladder):
            made = _telling(made)
        fitted = asked.run(vip.fit, seed, method=made)
        if out is not None:
            fitted.save(out / "fit.nc")
    if as_json:
        _print_json(model, seed, fitted)
    else:
        _print_fit(fitted)
    _finish(out, fitted.stopped_because.startswith("interrupted"))


@app.command(epilog=_rule())
def compare(
    model: Model,
    data: Data = None,
    target: Target = None,
    index: Index = None,
    rename: Rename = None,
    drop: Drop = None,
    set_: Set = None,
    allow_missing: Missing = False,
    methods: Annotated[
        str, typer.Option(help="Separated by commas, with settings if need be: MeanField,NUTS(num_samples=2000).")
    ] = "MeanField,NUTS",
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """Set methods side by side on one model, against its exact posterior where the file has one, else against NUTS.

    It uses the pattern's own data, or a table by the rule below. --out gets report.html, table.csv and one netCDF a method.
    """
    chosen = job.parse_methods(methods)
    with _folder(out, force):
        asked = job.read(model, data, job.Columns(target, index, rename, drop, allow_missing), set_ or [])
        if asked.learns() and not {"Guide", job.TRAINING} & {name for name, _ in chosen}:
            raise InputError(
                f"The model of {model} has parameters of its own (numpyro.param), which these methods would leave at their start: "
                f"`vipatterns fit {model}` trains them with the guide."
            )
        exact = {"reference": asked.answer("exact_posterior"), "log_evidence": asked.answer("log_evidence")}
        compared = asked.run(vip.compare, seed, methods=job.make_methods(chosen, asked), **exact)
        if out is not None:
            _save(compared, out)
    if as_json:
        _print_json(model, seed, compared)
    else:
        from vipatterns import report

        report.print(compared, _console())
    ends = [getattr(f, "stopped_because", None) or f.sentence for f in compared.fits.values()]
    _finish(out, any(end.lower().startswith("interrupted") for end in ends))


def _end_training(asked: job.Job, model: str, seed: int, trained: Any, as_json: bool, out: Path | None) -> None:
    if as_json:
        _print_json(model, seed, trained)
    else:
        for line in repr(trained).splitlines():
            _console().print(line, markup=False, soft_wrap=True)
    interrupted = trained.stopped_because.startswith("interrupted")
    if out is not None:
        try:
            _report_training(asked, seed, trained, out / "report.html", Path(model).stem)
        except KeyboardInterrupt:  # of the measuring, which may take as long as the training that is over
            interrupted = True
    _finish(out, interrupted)


def _report_training(asked: job.Job, seed: int, trained: Any, path: Path, title: str) -> None:
    import jax

    from vipatterns import keys
    from vipatterns.amortized import report, stream

    labels, rows = asked.labels(), None
    if labels is not None:  # the pictures with labels are of all rows, since only those have them
        rows = {name: value for name, value in stream.parted(asked.data)[0].items() if name in trained.held_out}
    report.write(keys.fold_in(jax.random.key(seed), 0), trained, path, rows=rows, labels=labels, title=title)


def _telling(ladder: Any) -> Any:
    """The ladder, saying how each rung ended as soon as it has."""

    class Telling(vip.Ladder):
        def climb(self, method: Any, *args: Any, **options: Any) -> Any:
            try:
                fitted = super().climb(method, *args, **options)
            except InputError as error:
                tell(method, "[red]refused[/]", str(error))
                raise
            tell(method, "[green]ok[/]" if fitted.certificate.ok else "[red]refused[/]", fitted.certificate.verdict)
            return fitted

    def tell(method: Any, outcome: str, sentence: str) -> None:
        _console(stderr=True).print(f"{type(method).__name__}: {outcome}. {escape(sentence)}", soft_wrap=True)

    return Telling(**{field.name: getattr(ladder, field.name) for field in dataclasses.fields(ladder)})


@contextmanager
def _folder(out: Path | None, force: bool) -> Iterator[None]:
    """--out, made before the long part so that it is known to be writable, and taken back if nothing came of it."""
    if out is None:
        yield
        return
    if out.exists() and (not force or not out.is_dir()):
        raise InputError(f"{out} exists: {'--force writes into it' if out.is_dir() else 'it is a file, and --out names a folder'}.")
    existed = out.exists()
    _make(out)
    try:
        yield
    except BaseException:
        if not existed and not any(out.iterdir()):
            out.rmdir()
        raise


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from error


def _save(compared: Any, out: Path) -> None:
    """Into a folder of its own first: files that --force writes over are replaced whole."""
    new = Path(tempfile.mkdtemp(dir=out, prefix="new-"))
    compared.save(new)
    for path in new.iterdir():
        path.replace(out / path.name)
    new.rmdir()


def _finish(out: Path | None, interrupted: bool) -> None:
    if out is not None:
        _note("note", f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if interrupted:
        _note("interrupted", "what was finished is above" + (" and in --out." if out is not None else "; --out DIR would have kept it."))
        raise typer.Exit(INTERRUPTED)


def _print_json(model: str, seed: int, result: Any) -> None:
    from vipatterns import records

    kinds = {vip.Fit: records.of_fit, vip.Comparison: records.of_comparison, vip.Trained: records.of_training}
    record = kinds[type(result)](result)
    sys.stdout.write(records.to_json({"model": model, "seed": seed, **record}) + "\n")


def _print_fit(fitted: Any) -> None:
    from vipatterns.records import scalars

    console = _console()
    for line in repr(fitted).splitlines():
        style = ("green" if fitted.certificate.ok else "red") if line.startswith("verdict") else None
        console.print(line, style=style, markup=False, soft_wrap=True)
    rows, number = scalars(fitted, MOST_ROWS)
    table = Table("", box=None, pad_edge=False, header_style="bold")
    for name in ("mean", "sd", "q5", "q95"):
        table.add_column(name, justify="right")
    for label, row in rows.items():
        table.add_row(escape(label), *(f"{value:.5g}" for value in row.values()))
    console.print(table)
    if number > len(rows):
        console.print(f"and {number - len(rows)} more: --json prints every one, --out keeps the draws")


def main() -> None:
    """The command `vipatterns`."""
    app(prog_name="vipatterns")
