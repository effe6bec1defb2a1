"""`tgd report`: one offline HTML page on a network or a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import click
from torch import Tensor

from tgdsurgery import channel_map, plan_tgd
from tgdsurgery.cli.layer_rows import open_weights, weight_row
from tgdsurgery.cli.map import fold
from tgdsurgery.cli.models import example_inputs, is_weights, load_model
from tgdsurgery.cli.options import (
    InputShape,
    checkpoint_option,
    debug_option,
    input_shape_option,
    is_onnx,
    override_option,
    refuse_idle,
)
from tgdsurgery.cli.output import progress, refuse_input
from tgdsurgery.core.atomic import check_suffix
from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.plan import Override, TGDPlan, check_share
from tgdsurgery.core.records import ChannelMap
from tgdsurgery.report.content import Content, Feed, ReportLayer, from_plan, moved_filters
from tgdsurgery.report.render import write_page
from tgdsurgery.storage.checkpoints import open_tensors, read_state_dict
from tgdsurgery.storage.weights import check_finite

Found = TypeVar("Found")


@click.command("report")
@click.argument("target", metavar="MODEL|CHECKPOINT")
@checkpoint_option
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Another checkpoint of the network: show what moved from it.",
)
@input_shape_option
@click.option("--phi", type=float, default=0.3, show_default=True, help="The threshold to begin with.")
@override_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page.",
)
@debug_option
def report_command(
    target: str,
    *,
    checkpoint: Path | None,
    against: Path | None,
    input_shape: Sequence[InputShape],
    phi: float,
    overrides: Sequence[tuple[str, Override]],
    output: Path,
) -> None:
    """Write one HTML page on a network: scores, wiring, plan, and what moved. It works without a network connection.

    MODEL is package.module:factory or path/to/file.py:factory, called without arguments. For a CHECKPOINT alone the
    page shows the scores of each layer's input channels; wiring and plan need the model.

    \b
    Example:
        tgd report torchvision.models:resnet18 --checkpoint tuned.pt --against base.pt -o report.html
    """
    refuse_input(output, checkpoint, against, Path(target) if Path(target).is_file() else target)
    check_suffix(output, ".html")
    check_share("phi", phi)
    content = content_of(target, checkpoint, against, input_shape, phi, dict(overrides))
    write_page(content, output)
    click.echo(f"Written to {output}.", err=True)


def content_of(
    target: str,
    checkpoint: Path | None,
    against: Path | None,
    shapes: Sequence[InputShape],
    phi: float,
    overrides: Mapping[str, Override],
) -> Content:
    """What a report or a figure shows of a model (`module:factory`) or a checkpoint file."""
    named = against.name if against else ""
    if not is_onnx(target) and (Path(target).is_file() or is_weights(target)):
        refuse_idle(
            f"Give what makes the network, package.module:factory, in place of {target}.",
            checkpoint=checkpoint,
            input_shape=shapes,
            override=overrides,
        )
        return _of_checkpoint(Path(target), against, phi)
    net = load_model(target, checkpoint)
    inputs = example_inputs(net, shapes)
    plan, wiring = plan_tgd(net, inputs, phi=phi, overrides=overrides), channel_map(net, inputs)
    title = target if checkpoint is None else f"{target} with {checkpoint.name}"
    moved = _moved(plan, against, net.state_dict()) if against else {}
    return from_plan(title, plan, wiring, _feeds(wiring), moved, named)


def _of_checkpoint(path: Path, against: Path | None, phi: float) -> Content:
    """Layer by layer: a checkpoint may be larger than the memory."""
    weights = open_weights(path)
    if not weights:
        raise CheckpointError(f"{path} holds no weights of filters.", "Name another file.")
    before = open_weights(against) if against else {}
    layers = []
    for name in progress([*weights], what="Scoring"):
        weight, row = weights[name], weight_row(path, name, weights[name], phi)
        moved: list[float] = []
        if against:
            axis = 1 if weight.transposed else 0
            old = _there(before, name, against).read()
            check_finite({f"layer {name}": old}, against)
            moved = moved_filters(old, weight.read(), axis)
        entries = math.prod(weight.shape) / row.inputs
        layers.append(ReportLayer(name, "", row.shape, "filter", row.scores, entries, moved=tuple(moved)))
    note = "Scores are those of input channels: wiring and plan need the model"
    total = sum(tensor.numel() for tensor in open_tensors(path).tensors.values())
    return Content(path.name, "inputs", phi, tuple(layers), total, against.name if against else "", (note,))


def _moved(plan: TGDPlan, against: Path, after: Mapping[str, Tensor]) -> dict[str, list[float]]:
    before, found = read_state_dict(against), {}
    check_finite(before, against)
    for entry in plan.entries:
        rows = entry.layer.parameters[:1]
        if entry.layer.role == "filter" and rows and rows[0].groups == 1:
            name, axis = rows[0].name, rows[0].axis
            found[entry.layer.name] = moved_filters(_there(before, name, against), after[name], axis)
    return found


def _there(known: Mapping[str, Found], name: str, where: Path) -> Found:
    if name not in known:
        raise CheckpointError(f"{where} has no weight {name!r}.", "Compare two states of one network.")
    return known[name]


def _feeds(wiring: ChannelMap) -> dict[str, list[Feed]]:
    """Layer to what feeds its input channels, folded as `tgd map` does."""
    found = {}
    for name in wiring.consumers:
        pairs = zip(wiring.producers(name), wiring.channel_layers(name), strict=True)
        found[name] = [
            Feed(
                run.channels,
                tuple(
                    run.writers(n)
                    for n in wiring.layers
                    if n in run.first and wiring.layers[n].role == "filter"
                ),
                tuple(
                    run.writers(n)
                    for n in wiring.layers
                    if n in run.first and wiring.layers[n].role == "channel"
                ),
            )
            for run in fold(filters | channel_layers for filters, channel_layers in pairs)
        ]
    return found
