"""`tgd plot`: a figure of the scores for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click

from tgdsurgery.cli.options import (
    InputShape,
    checkpoint_option,
    debug_option,
    input_shape_option,
    override_option,
    refuse_idle,
)
from tgdsurgery.cli.output import refuse_input
from tgdsurgery.cli.report import content_of
from tgdsurgery.core.plan import Override, check_share
from tgdsurgery.report.figure import Kind, draw


@click.command("plot")
@click.argument("target", metavar="MODEL|CHECKPOINT")
@click.option(
    "--kind",
    type=click.Choice(get_args(Kind)),
    default="histogram",
    show_default=True,
    help="histogram of all scores; layers: a map by layer and channel; moved: each filter's change over its norm.",
)
@checkpoint_option
@click.option(
    "--against", type=click.Path(path_type=Path), help="Another checkpoint of the network, for moved."
)
@input_shape_option
@click.option("--phi", type=float, default=0.3, show_default=True, help="The threshold shown.")
@override_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The figure: .png, .svg or .pdf."
)
@debug_option
def plot_command(
    target: str,
    *,
    kind: Kind,
    checkpoint: Path | None,
    against: Path | None,
    input_shape: Sequence[InputShape],
    phi: float,
    overrides: Sequence[tuple[str, Override]],
    output: Path,
) -> None:
    """Draw the scores of a model or a checkpoint, as `tgd report` shows them, into a file for a paper.

    \b
    Example:
        tgd plot base.pt --kind layers -o scores.svg
    """
    refuse_input(output, checkpoint, against, Path(target) if Path(target).is_file() else target)
    check_share("phi", phi)
    if kind != "moved":
        refuse_idle("Give --kind moved, which shows what moved from it.", against=against)
    draw(content_of(target, checkpoint, against, input_shape, phi, dict(overrides)), kind, output)
    click.echo(f"Written to {output}.", err=True)
