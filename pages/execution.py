"""A tutorial's source, executed: code cells give outputs, and `{python} expression` in prose becomes its value.

The inline syntax is Quarto's, the cells are jupytext's percent format: another builder can take the sources over.
"""

import ast
import os
import re
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

INLINE = re.compile(r"`\{python\}\s+(.+?)`", re.DOTALL)
SECONDS = 300
"""A cell that takes longer has gone wrong; a whole tutorial should take under a minute."""


class BuildError(Exception):
    """A page cannot be built, and why."""


def executed(source: str, folder: Path, name: str) -> nbformat.NotebookNode:
    """The notebook of a source, its cells run in order in a kernel of its own.

    Args:
        source: Percent-format Python.
        folder: Where it runs: what stands there can be imported and read.
        name: What it is called in an error.

    Raises:
        BuildError: A cell raised (its own check, it may be), took too long or wrote to stderr.
    """
    notebook = jupytext.reads(source, fmt="py:percent")
    notebook.cells = [new for cell in notebook.cells for new in _with_values(cell)]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", "PYTHONHASHSEED": "0", "COLUMNS": "110"}
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
    )
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", error.traceback).splitlines() if line.startswith("---->")]
        where = f" at {lines[-1].removeprefix('---->').split(maxsplit=1)[-1]!r}" if lines else ""
        raise BuildError(f"{name}: {error.ename}{where}: {error.evalue or 'no message'}") from error
    except CellTimeoutError as error:
        raise BuildError(f"{name}: a cell ran for more than {SECONDS} seconds.") from error
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise BuildError(f"{name}: a cell wrote to stderr, which no reader should meet: {output.text.strip()[:500]}")
    return _with_prose(notebook)


def _with_values(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cell, and before it, where its prose has expressions, one that works them out."""
    expressions = INLINE.findall(cell.source) if cell.cell_type == "markdown" else []
    if not expressions:
        return [cell]
    values = nbformat.v4.new_code_cell(f"[str(value) for value in ({', '.join(expressions)},)]", metadata={"tags": ["values"]})
    return [values, cell]


def _with_prose(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with each expression in its prose replaced by its value."""
    cells, values = [], []
    for cell in notebook.cells:
        if "values" in cell.metadata.get("tags", []):
            values = ast.literal_eval(cell.outputs[0].data["text/plain"])
            continue
        if values:
            remaining = iter(values)
            cell.source = INLINE.sub(lambda _: next(remaining), cell.source)  # noqa: B023  used at once
            values = []
        cells.append(cell)
    notebook.cells = cells
    return notebook
