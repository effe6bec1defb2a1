"""What adapters refuse, and why."""

from __future__ import annotations

from tgdsurgery import TGDError

MOST_OF_A_PROBLEM, MOST_OF_A_REMEDY = 1500, 400  # characters of a message


def printable(text: object, most: int = 200) -> str:
    r"""Text from a file, made fit for a terminal: printable characters only, and at most so many of them.

    Control characters could move the cursor or set the window's title. They are shown by their escape codes.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    start = str(text)[: most + 1]
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in start)
    return clean if len(clean) <= most else f"{clean[: most - 3]}..."


def reason(error: Exception) -> str:
    """What a library's error says, in one short line."""
    said = getattr(error, "strerror", None) or str(error)
    return printable(next(iter(said.splitlines()), "") or type(error).__name__, 300)


class AdapterError(TGDError):
    """Base of the adapters' errors. Whatever a file puts into a message, it is one line and fit for a terminal."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(
            *(_line(*part) for part in ((problem, MOST_OF_A_PROBLEM), (remedy, MOST_OF_A_REMEDY)))
        )


def _line(text: str, most: int) -> str:
    return printable(" ".join(text[: 2 * most].split()), most)


class ImageError(AdapterError):
    """An image that cannot be read without guessing, or a result that cannot be written."""


class RunError(AdapterError):
    """A run that cannot start or continue as asked."""


class SimulationError(AdapterError):
    """A scanner, phantom or scan that cannot be simulated."""


class PatientError(AdapterError):
    """A file of a simulated patient that is missing or damaged, or an image that a patient does not have."""
