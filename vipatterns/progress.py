"""What a long run says of itself on stderr: a rich bar on a terminal, plain lines in CI, nothing elsewhere."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def shown(progress: bool | None) -> bool:
    """Whether a run says anything: on a terminal and in CI, unless it was forced either way."""
    return bool(os.environ.get("CI")) or sys.stderr.isatty() if progress is None else progress


def say(sentence: str, progress: bool | None) -> None:
    """One line on stderr, of a step that is over or about to begin."""
    if shown(progress):
        print(sentence, file=sys.stderr, flush=True)


@contextmanager
def reporting(title: str, num_steps: int, progress: bool | None) -> Iterator[Callable[[int, str], None]]:
    """Yields report(step, what), to be called once a compiled chunk.

    Args:
        title: what is running.
        num_steps: the most steps it may take.
        progress: None for automatic, True or False to force.
    """
    if not shown(progress):
        yield lambda step, what: None
    elif os.environ.get("CI") or not sys.stderr.isatty():
        next_shown = 0

        def report(step: int, what: str) -> None:
            nonlocal next_shown
            if step >= next_shown:  # at doubling steps, so that a long run does not fill the log
                next_shown = 2 * step
                print(f"{title}: step {step} of at most {num_steps}, {what}", file=sys.stderr, flush=True)

        yield report
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=num_steps, what="compiling")
            yield lambda step, what: bar.update(task, completed=step, what=what)
