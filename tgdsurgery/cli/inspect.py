"""`tgd inspect`: the scores of a checkpoint's kernels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.text import Text

from tgdsurgery import plan_tgd
from tgdsurgery.cli.layer_rows import BINS, SORTS, LayerRow, chosen, open_weights, plan_rows, weight_row
from tgdsurgery.cli.models import example_inputs, load_model
from tgdsurgery.cli.options import (
    MODEL,
    ArgumentError,
    InputShape,
    debug_option,
    input_shape_option,
    is_onnx,
    refuse_idle,
)
from tgdsurgery.cli.output import progress, say, show
from tgdsurgery.core import tables
from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.plan import TGDPlan, check_share

GUESSED = " Every weight is taken as (filters, inputs, ...); for transposed and grouped convs give --model."


@click.command("inspect")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help=MODEL)
@input_shape_option
@click.option("--phi", type=float, default=0.3, show_default=True, help="Threshold of the scores.")
@click.option("--layer", "layers", multiple=True, help="Only this layer, prefix or pattern; repeatable.")
@click.option(
    "--sort", type=click.Choice(list(SORTS)), default="order", show_default=True, help="Order of the rows."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every score.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, one row per layer.")
@debug_option
def inspect_command(
    checkpoint: Path,
    *,
    model: str | None,
    input_shape: Sequence[InputShape],
    phi: float,
    layers: Sequence[str],
    sort: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Score the kernels in CHECKPOINT (KSE), layer by layer.

    CHECKPOINT is a state_dict or a whole checkpoint written by torch.save, a .safetensors file or the index of
    several, a .pt2 archive of torch.export, or an .onnx file, whose graph says what kind each layer is. Each
    layer's input channels are scored from its own kernels. With --model, the channel map carries the scores
    over to the filters that make those channels, and the plan is shown.

    \b
    Example:
        tgd inspect pretrained.pt --layer "layer4.*" --sort share
    """
    if as_json and as_csv:
        raise ArgumentError("--json and --csv are both given.", "Give one.")
    check_share("phi", phi)
    plan = None
    if model is None:
        refuse_idle("Give the network, too: --model MODEL.", input_shape=input_shape)
        rows = _rows_of_checkpoint(checkpoint, layers, phi)
    else:
        net = load_model(model, checkpoint)
        plan = plan_tgd(net, example_inputs(net, input_shape), phi=phi)
        found = {row.layer: row for row in plan_rows(plan)}
        rows = [found[name] for name in chosen(found, layers)]
    rows.sort(key=SORTS[sort])
    if as_json:
        click.echo(_as_json(checkpoint, phi, rows, plan))
    elif as_csv:
        say(_as_csv(rows).rstrip("\n"))
    else:
        _show(checkpoint, phi, rows, plan)


def _rows_of_checkpoint(checkpoint: Path, layers: Sequence[str], phi: float) -> list[LayerRow]:
    weights = open_weights(checkpoint)
    if not weights:
        raise CheckpointError(
            f"{checkpoint} holds no weights of filters, only tensors of one axis.", "Name another file."
        )
    names = chosen(weights, layers)
    return [weight_row(checkpoint, name, weights[name], phi) for name in progress(names, what="Scoring")]


def _as_json(checkpoint: Path, phi: float, rows: Sequence[LayerRow], plan: TGDPlan | None) -> str:
    data = {
        "checkpoint": str(checkpoint),
        "phi": phi,
        "scored": "inputs" if plan is None else "filters",
        "layers": [row.as_dict() for row in rows],
    }
    return json.dumps(data if plan is None else {**data, "plan": json.loads(plan.to_json())}, indent=1)


def _as_csv(rows: Sequence[LayerRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("layer", "shape", "filters", "inputs", "below", "share"))
    for row in rows:
        writer.writerow(
            (tables.shortened(row.layer), _sizes(row), row.filters, row.inputs, row.below, row.share)
        )
    return text.getvalue()


def _show(checkpoint: Path, phi: float, rows: Sequence[LayerRow], plan: TGDPlan | None) -> None:
    columns = ("layer", "shape", "filters", "inputs", f"< {phi:g}", "KSE 0 to 1")
    cells = [
        (row.layer, _sizes(row), row.filters, row.inputs, _percent(row.share), _bars(row, phi))
        for row in rows
    ]
    scored = sum(len(row.scores) for row in rows)
    share = _percent(sum(row.below for row in rows) / scored if scored else None)
    if plan is None:
        notes = (
            f"{share} of the {scored:,} input channels score below {phi:g}."
            f"{'' if is_onnx(checkpoint) else GUESSED}"
        )
    else:
        notes = (
            f"{share} of the {scored:,} filters that a layer reads score below {phi:g}, by the channel map."
        )
    shown = tables.table(columns, cells, title=f"KSE of {checkpoint.name}", caption=notes)
    shown.pad_edge = False  # so that the names of a ResNet-50 fit into 80 columns
    show(shown)
    if plan is not None:
        say(f"\n{plan}")


def _bars(row: LayerRow, phi: float) -> Text:
    """The histogram; the bins below phi stand out."""
    bars = Text(tables.histogram(row.histogram), style="dim")
    bars.stylize("not dim yellow", 0, sum(index / BINS < phi for index in range(BINS)))
    return bars


def _sizes(row: LayerRow) -> str:
    return "x".join(str(size) for size in row.shape)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
