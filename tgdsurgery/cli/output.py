"""What a command shows: tables on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table

T = TypeVar("T")


def show(shown: Table) -> None:
    """Prints a table as wide as the terminal, or as it needs where the output goes to a file."""
    console = Console()
    console.print(shown, width=None if console.is_terminal else 160)


def progress(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, with a bar on stderr while they are worked on; silent where that is no terminal."""
    console = Console(stderr=True)
    return track(items, what, console=console, transient=True) if console.is_terminal else items
