"""Options that several commands share, and how their values are read. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click

from tgdsurgery.core.errors import TGDError

_DEBUG = "tgdsurgery.debug"


class ArgumentError(TGDError):
    """An argument of a command that does not fit."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A remedy that lists the names most like `name`, or the first few where none is alike."""
    known = list(names)
    shown = difflib.get_close_matches(name, known, n=3)
    if shown:
        return f"Did you mean {' or '.join(shown)}?"
    more = ", ..." if len(known) > 5 else ""
    return f"There are: {', '.join(known[:5])}{more}." if known else "There is none."


def parse_shape(value: str) -> tuple[int, ...]:
    """The sizes in `1x3x64x64`."""
    sizes = value.lower().split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ArgumentError(f"{value!r} is not an input shape.", "Write it like 1x3x64x64, batch first.")
    return tuple(int(size) for size in sizes)


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_DEBUG] = True  # shared by all contexts of this run


def debugging(ctx: click.Context) -> bool:
    """Whether `--debug` was given, before or after the command's name."""
    return _DEBUG in ctx.meta


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,  # so that it counts for errors in the other options
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of an error.",
)
input_shape_option = click.option(
    "--input-shape",
    type=parse_shape,
    metavar="NxCxHxW",
    multiple=True,
    help="Shape of the model's input, batch first; repeat for several inputs. Found by trial if not given.",
)
MODEL = "The network: package.module:factory or path/to/file.py:factory, called without arguments."
