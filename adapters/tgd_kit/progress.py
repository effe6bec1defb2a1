"""Progress on standard error: a bar in a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 5.0


class Task:
    """Something with a known number of steps, being done.

    Args:
        title: what is being done.
        total: number of steps.
        done: steps that were done before.
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done = title, total, done
        self.note = ""  # shown behind the count, such as the error so far

    def advance(self, steps: int = 1) -> None:
        """So many steps more are done."""
        self.done += steps


class _BarTask(Task):
    """A task that a bar follows."""

    def __init__(self, title: str, total: int, done: int, bar: Progress) -> None:
        super().__init__(title, total, done)
        self._bar, self._line = bar, bar.add_task(title, total=total, completed=done, note="")

    def advance(self, steps: int = 1) -> None:
        super().advance(steps)
        self._bar.update(self._line, completed=self.done, note=self.note)


@contextmanager
def progress(title: str, total: int, *, done: int = 0, show: bool = True) -> Iterator[Task]:
    """Show how far a task is while the block runs.

    Where standard error is not a terminal, a line is written every `SECONDS_BETWEEN_LINES`, even if no step was
    done in the meantime, and one at the end.

    Args:
        title: what is being done.
        total: number of steps.
        done: steps that were done before.
        show: show nothing if false.
    """
    if not show:
        yield Task(title, total, done)
    elif sys.stderr.isatty():
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bar:
            yield _BarTask(title, total, done, bar)
    else:
        with _lines(task := Task(title, total, done)):
            yield task


@contextmanager
def _lines(task: Task) -> Iterator[None]:
    begun, ended = time.monotonic(), threading.Event()

    def say() -> None:
        text = f"{task.title}: {task.done} of {task.total}, {time.monotonic() - begun:.0f} s"
        print(f"{text}, {task.note}" if task.note else text, file=sys.stderr, flush=True)

    def say_again() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            say()

    speaker = threading.Thread(target=say_again, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        ended.set()
        speaker.join()
        say()
