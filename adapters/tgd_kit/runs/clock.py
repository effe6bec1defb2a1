"""The parts of a long command: announced, and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Clock:
    """Announces parts on standard error, and notes how long each took.

    Args:
        show: announce them.
    """

    def __init__(self, *, show: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True, quiet=not show)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A block of work with this name."""
        self._console.rule(name, align="left")
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
