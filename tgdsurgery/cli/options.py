"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from tgdsurgery.core.errors import TGDError

if TYPE_CHECKING:
    from tgdsurgery.core.plan import Override  # imports torch

_DEBUG = "tgdsurgery.debug"
MODEL = (
    "The network: package.module:factory or path/to/file.py:factory, called without arguments; an .onnx file; "
    "torchvision:NAME, timm:NAME or monai:NAME, without pretrained weights."
)


class ArgumentError(TGDError):
    """An argument of a command that does not fit."""


def is_onnx(path: str | Path) -> bool:
    """Whether a file is one of ONNX, by its name."""
    return Path(path).suffix.lower() == ".onnx"


@dataclass(frozen=True)
class InputShape:
    """One input of a model: its sizes, batch first, and whether it takes whole numbers (indices, tokens)."""

    sizes: tuple[int, ...]
    whole: bool = False


def parse_shape(value: str) -> InputShape:
    """The sizes in `1x3x64x64`, or those of whole numbers in `2x128:int`."""
    shape, _, kind = value.lower().partition(":")
    sizes = shape.split("x")
    if kind not in ("", "int") or not all(size.isdecimal() and 0 < int(size) < 2**31 for size in sizes):
        raise ArgumentError(
            f"{value!r} is not an input shape.",
            "Write it like 1x3x64x64, batch first; for whole numbers like 2x128:int.",
        )
    return InputShape(tuple(int(size) for size in sizes), whole=kind == "int")


def parse_override(value: str) -> tuple[str, Override]:
    """The layer's name or prefix, and what holds for it: `NAME=train`, `NAME=freeze` or `NAME=phi`."""
    name, equals, rule = value.rpartition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name, cast("Override", rule) if rule in ("train", "freeze") else float(rule)
    except ValueError:
        raise ArgumentError(
            f"{value!r} is not an override.", "Write NAME=train, NAME=freeze or NAME=0.5 (a phi of its own)."
        ) from None


def refuse_idle(remedy: str, **options: object) -> None:
    """Raise if options were given that would do nothing.

    Args:
        remedy: what they need.
        options: their names, with underscores, and their values; empty or None if not given.
    """
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value]:
        raise ArgumentError(f"{' and '.join(given)} would do nothing here.", remedy)


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
    metavar="NxCxHxW[:int]",
    multiple=True,
    help="Shape of the model's input, batch first; repeat for several inputs. Found by trial if not given.",
)
model_option = click.option("--model", required=True, metavar="MODEL", help=MODEL)
checkpoint_option = click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="The model's weights; as the factory made it if not given.",
)
override_option = click.option(
    "--override",
    "overrides",
    type=parse_override,
    metavar="NAME=VALUE",
    multiple=True,
    help="train, freeze or a phi of its own for a layer or prefix; repeatable.",
)
