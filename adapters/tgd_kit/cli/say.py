"""Words for the terminal."""

from __future__ import annotations

import click

from tgd_kit.errors import printable

LONGEST_LINE = 2000


def say(text: object) -> None:
    """Print; names of files and what stands in them cannot send control characters."""
    click.echo("\n".join(printable(line, LONGEST_LINE) for line in str(text).split("\n")))
