"""Files appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tgd_kit.errors import RunError, printable, reason

LARGEST_TEXT = 2**26  # bytes of a record


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end of the block, or removed if the block fails.

    The temporary name keeps the suffixes, by which image and figure libraries choose the format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write plain data as JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_text(path: Path, remedy: str, *, most: int = LARGEST_TEXT) -> str:
    """A text file in UTF-8, of so many bytes at most.

    Raises:
        RunError: it is missing, too large, or no text.
    """
    shown = printable(path)
    try:
        if path.stat().st_size > most:
            raise RunError(f"{shown} has more than {most:,} bytes.", remedy)
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(f"{shown} cannot be read ({reason(error)}).", remedy) from error


def read_json(path: Path, remedy: str = "Delete it, and the work that made it is done again.") -> Any:
    """The data that a JSON file holds.

    Raises:
        RunError: it is missing, too large, or not JSON.
    """
    text = read_text(path, remedy)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{printable(path)} is damaged ({reason(error)}).", remedy) from error


def there(path: Path) -> bool:
    """Whether there is such a file or folder; a name that no file can have is refused.

    Raises:
        RunError: the name is too long for the system, or has a NUL in it.
    """
    try:
        path.lstat()
        return path.exists()
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise RunError(f"{printable(path)} cannot be used: {reason(error)}.", "Check the path.") from error
