"""A Comparison for people: what a terminal shows at a glance, and one HTML file that opens from disk."""

import io
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vipatterns.wording import SCALAR_HEADINGS, method_rows, reference_line, remarks, scalar_rows

__all__ = ["fragment", "html", "print", "text"]

WIDTH = 100
LINES = 18
"""Rows that the scalars may take in a terminal, all methods together."""
STANDINGS = {"safe": "green", "reference": "cyan", "partly": "yellow", "unsafe": "red", "failed": "red", "unknown": "magenta"}


def print(comparison: Any, console: Console | None = None) -> None:
    """Prints a `vip.Comparison`: the answer, a row a method, the most wrong scalars beside the reference, a verdict a method."""
    console = console or Console()
    for part in _parts(comparison, console.width):
        console.print(part)


def text(comparison: Any, width: int = WIDTH) -> str:
    """The same as plain text."""
    buffer = io.StringIO()
    print(comparison, Console(file=buffer, width=width, color_system=None))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def html(comparison: Any) -> str:
    """The same, whole, as one HTML page with figures."""
    from vipatterns import page  # Matplotlib is slow to import, and a terminal needs none

    return page.html(comparison)


def fragment(comparison: Any) -> str:
    """What a notebook shows of it, as HTML."""
    from vipatterns import page

    return page.fragment(comparison)


def _parts(comparison: Any, width: int) -> list[Any]:
    parts: list[Any] = [Text.assemble((comparison.title or "Comparison", "bold"), f". {comparison.summary}")]
    parts.append(Text(reference_line(comparison)))
    parts.append(_methods(comparison, width))
    if comparison.finished:
        parts.append(_scalars(comparison))
    for label, judged in comparison.verdicts.items():
        style = STANDINGS[judged.standing]
        parts.append(Text.assemble((label, "bold"), "  ", (judged.standing, f"bold {style}"), f"  {judged.sentence}"))
        parts.extend(Text(f"  {line}", style="dim") for line in remarks(comparison, label))
    return parts


def _methods(comparison: Any, width: int) -> Table:
    rows = method_rows(comparison)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    hidden = {"distance"} if width >= 96 else {"distance", "log evidence", "ess"}
    headings = [h for h in next(iter(rows.values())) if h not in hidden and any(row[h] for row in rows.values())]
    table.add_column("method", overflow="fold", min_width=9)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for label, row in rows.items():
        table.add_row(Text(label), *(row[heading] or "-" for heading in headings))
    return table


def _scalars(comparison: Any) -> Table:
    names, total = comparison.worst(max(1, LINES // (1 + len(comparison.finished))))
    left = f"{len(names)} of {total} scalars; the HTML report has more" if total > len(names) else None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption=left, caption_justify="left")
    table.add_column(
        "scalar" if total == len(names) else "most wrong scalars" if comparison.agreement else "first scalars", overflow="fold"
    )
    table.add_column("by", overflow="fold", min_width=9)
    for heading in SCALAR_HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, rows in scalar_rows(comparison, names).items():
        for i, (label, row) in enumerate(rows.items()):
            table.add_row(Text(name if i == 0 else ""), Text(label), *row)
    return table
