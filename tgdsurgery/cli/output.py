"""What a command shows: tables and text on stdout, progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tgdsurgery.cli.options import ArgumentError
from tgdsurgery.core.tables import BARS, as_text

T = TypeVar("T")
# For a stdout that has no box-drawing characters, such as one with the code page cp1252.
ASCII = str.maketrans(BARS + "─…±", "_.:-=+*#" + "-.~")


def show(shown: Table) -> None:
    """Print a table as wide as the terminal, or as it needs where the output goes to a file."""
    console = Console()
    if console.is_terminal and _can_show(BARS):
        console.print(shown)
    else:
        say(as_text(shown, width=160))


def say(text: str) -> None:
    """Print text; in plain ASCII where stdout cannot show all of it."""
    if not _can_show(text):
        text = text.translate(ASCII).encode("ascii", "backslashreplace").decode("ascii")
    click.echo(text)


def progress(items: Iterable[T], total: int | None = None, *, what: str) -> Iterable[T]:
    """The items, with a bar on stderr while they are worked on; silent if stderr is not a terminal.

    Args:
        items: one after the other.
        total: how many there are, if they have no length.
        what: is done with them.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        return items
    return track(items, what, total=total, console=console, transient=True)


def refuse_input(output: Path | None, *inputs: Path | str | None) -> None:
    """Raise if a command would replace one of the files that it reads.

    Args:
        output: where the command writes, if anywhere.
        inputs: what it reads: files, or `path/to/file.py:name`.
    """
    for given in inputs:
        read = Path(given.rpartition(":")[0] if isinstance(given, str) else given) if given else None
        if (
            output is not None
            and read is not None
            and read.exists()
            and output.exists()
            and output.samefile(read)
        ):
            raise ArgumentError(
                f"{output} is read by this command, and would be replaced.", "Name another file."
            )


def refuse_one_file(outputs: Mapping[str, Path | None]) -> None:
    """Raise if a command would write two results to one file.

    Args:
        outputs: option to where it writes, if anywhere.
    """
    options: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is not None and (other := options.setdefault(path.resolve(), option)) != option:
            raise ArgumentError(f"{other} and {option} name one file.", "Name two.")


def _can_show(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
