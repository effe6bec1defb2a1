"""`tgd plan`: which channels of a model are retrained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import click

from tgdsurgery import plan_tgd
from tgdsurgery.cli.models import example_inputs, load_model
from tgdsurgery.cli.options import (
    ArgumentError,
    InputShape,
    checkpoint_option,
    debug_option,
    input_shape_option,
    model_option,
    override_option,
)
from tgdsurgery.cli.output import refuse_input, say
from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.plan import Flow, NormStats, Override


@click.command("plan")
@model_option
@checkpoint_option
@input_shape_option
@click.option("--phi", type=float, help="Channels that score below are retrained; 0.3 without --budget.")
@click.option(
    "--budget", type=float, help="Share of the filters' parameters to retrain at most, in place of phi."
)
@override_option
@click.option(
    "--align",
    type=int,
    default=1,
    show_default=True,
    help="Round the trainable channels of a layer up to a multiple of this (down with --budget).",
)
@click.option(
    "--flow",
    type=click.Choice(get_args(Flow)),
    default="full",
    show_default=True,
    help="masked: nothing flows back through a frozen filter; full: only its own gradient is zero.",
)
@click.option(
    "--norm-stats",
    type=click.Choice(get_args(NormStats)),
    default="hold",
    show_default=True,
    help="Frozen channels of a norm use their stored statistics (hold) or the batch's (batch).",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the plan to this file, as JSON.")
@debug_option
def plan_command(
    *,
    model: str,
    checkpoint: Path | None,
    input_shape: Sequence[InputShape],
    phi: float | None,
    budget: float | None,
    overrides: Sequence[tuple[str, Override]],
    align: int,
    flow: Flow,
    norm_stats: NormStats,
    output: Path | None,
) -> None:
    """Decide which channels of a model are retrained, and show or write the plan.

    \b
    Example:
        tgd plan --model torchvision.models:resnet18 \\
            --checkpoint pretrained.pt --budget 0.25 -o plan.json
    """
    if phi is not None and budget is not None:
        raise ArgumentError("--phi and --budget are both given.", "Give one; the budget finds its own phi.")
    settings: dict[str, Any] = {} if phi is None else {"phi": phi}
    refuse_input(output, checkpoint, model)
    net = load_model(model, checkpoint)
    # Opened first, so that a path that cannot be written to fails before the work.
    with nullcontext() if output is None else replacing(output) as temporary:
        plan = plan_tgd(
            net,
            example_inputs(net, input_shape),
            budget=budget,
            overrides=dict(overrides),
            align=align,
            flow=flow,
            norm_stats=norm_stats,
            **settings,
        )
        if temporary is not None:
            temporary.write_text(plan.to_json(), encoding="utf-8")
    say(str(plan))
    if output is not None:
        click.echo(f"Written to {output}.", err=True)
