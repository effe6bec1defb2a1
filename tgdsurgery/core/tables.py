"""Tables and pictures for people: plain rows in, `rich` tables or text out. Knows nothing of networks."""

from __future__ import annotations

import difflib
import io
import itertools
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
MAX_NAME = 200  # characters of a name that are shown
MAX_MESSAGE = 2000  # characters of a message or a caption


def shortened(text: str, most: int = MAX_NAME) -> str:
    r"""Text from a file or a user, made fit for a terminal: printable characters only, and not too many.

    Control characters could move the cursor, set the window's title or clear the screen. They are shown by their
    escape codes instead.

    >>> shortened("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    start = text[: most + 1]
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in start)
    return clean if len(clean) <= most else f"{clean[: most - 3]}..."


def nearest(name: str, names: Iterable[str]) -> str:
    """A remedy that lists the names most like `name`, or the first few where none is alike."""
    known = list(names)
    shown = difflib.get_close_matches(name, known, n=3)
    if shown:
        return f"Did you mean {' or '.join(shown)}?"
    more = ", ..." if len(known) > 5 else ""
    return f"There are: {', '.join(known[:5])}{more}." if known else "There is none."


def counted(number: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "tensor"), counted(2_000, "tensor")
    ('1 tensor', '2,000 tensors')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", caption: str = ""
) -> Table:
    """A `rich` table: the first column is left-aligned, all others right-aligned.

    Cells are shown as they are: square brackets in a layer's name do not count as markup.

    Args:
        columns: headings, one per column.
        rows: cells, turned into text with `str` (a `rich.text.Text` stays as it is).
        title: shown above; none if empty.
        caption: shown below; none if empty.
    """
    shown = Table(
        title=_heading(title), caption=_heading(caption), box=box.SIMPLE_HEAD, caption_justify="left"
    )
    for index, column in enumerate(columns):
        shown.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else Text(_clean(str(cell))) for cell in row))
    return shown


def _heading(text: str) -> Text | None:
    """As Text, so that square brackets in a file's name do not count as markup."""
    return Text(_clean(text, MAX_MESSAGE)) if text else None


def _clean(text: str, most: int = MAX_NAME) -> str:
    return "\n".join(shortened(line, most) for line in text.split("\n"))


def as_text(shown: Table, *, width: int = 110) -> str:
    """The table as plain text without colour, at most `width` characters wide."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, legacy_windows=False).print(shown)
    lines = (line.rstrip() for line in buffer.getvalue().splitlines())
    return "\n".join(lines).strip("\n")


def histogram(counts: Sequence[int]) -> str:
    """Counts as a row of bars, the tallest bar for the largest count and a blank for zero.

    >>> histogram([0, 1, 4, 8])
    ' ▁▄█'
    """
    largest = max(counts, default=0)
    return "".join(
        " " if count == 0 else BARS[max(0, -(-count * len(BARS) // largest) - 1)] for count in counts
    )


def span(first: int, last: int) -> str:
    """A run of numbers: 0-3, or 7 where it is a single one."""
    return f"{first}-{last}" if last > first else f"{first}"


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers with runs folded.

    >>> spans([0, 1, 2, 3, 7])
    '0-3,7'
    """
    runs = itertools.groupby(enumerate(numbers), key=lambda item: item[1] - item[0])
    parts = ([number for _, number in group] for _, group in runs)
    return ",".join(span(part[0], part[-1]) for part in parts)
