"""`tgd delta show` and `diff`: what is in deltas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from torch import Tensor

from tgdsurgery.cli.options import debug_option
from tgdsurgery.cli.output import show
from tgdsurgery.core.bits import differing
from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.masking import collapsed
from tgdsurgery.core.norm_statistics import held_statistics
from tgdsurgery.core.plan import LayerPlan
from tgdsurgery.core.tables import spans, table
from tgdsurgery.storage.delta_file import Delta, full_size, read_delta

FILE = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def size(delta: Delta, path: Path) -> str:
    """The size of a delta's file, and its share of the whole network's."""
    own, full = path.stat().st_size, full_size(delta)
    return f"{own:,} bytes; {own / full:.1%} of the network's {full:,}"


@click.command("show")
@click.argument("delta", type=FILE)
@json_option
@debug_option
def show_command(*, delta: Path, as_json: bool) -> None:
    """Show what DELTA retrains, its size, and when it is chosen.

    \b
    Example:
        tgd delta show patient.safetensors
    """
    found = read_delta(delta)
    layers = [entry for entry in found.plan.entries if entry.trainable]
    if as_json:
        click.echo(json.dumps(_described(found, delta), indent=1))
        return
    rows = [
        (
            entry.layer.name,
            entry.layer.type,
            f"{entry.trainable} of {entry.layer.channels}",
            f"{entry.trainable_entries():,}",
            f"{entry.trainable_entries() / max(entry.entries(), 1):.1%}",
        )
        for entry in layers
    ]
    plan = found.plan
    when = " and ".join(f"{tag}={value}" for tag, value in found.when.items())
    notes = (
        size(found, delta),
        f"{plan.share:.1%} of all parameters; {plan.criterion}, flow {plan.flow}, norm statistics {plan.norm_stats}",
        f"chosen when {when}" if when else "chosen for no scan by itself",
        "can be taken off" if found.before is not None else "the base's rows are not in it",
    )
    columns = ("layer", "type", "rows", "entries", "share")
    show(table(columns, rows, title=f"Delta {delta.name}", caption="\n".join(notes)))


def _described(delta: Delta, path: Path) -> dict[str, object]:
    return {
        "delta": str(path),
        "bytes": path.stat().st_size,
        "network_bytes": full_size(delta),
        "entries": sum(values.numel() for values in delta.values.values()),
        "reversible": delta.before is not None,
        "when": dict(delta.when),
        "layers": {
            entry.layer.name: [row for row, moves in enumerate(entry.mask) if moves]
            for entry in delta.plan.entries
            if entry.trainable
        },
        "plan": json.loads(delta.plan.to_json()),
    }


@dataclass(frozen=True)
class LayerDiff:
    """One layer in two deltas: rows of the first, of the second, and of both those that have other values."""

    layer: str
    first: list[int]
    second: list[int]
    differ: list[int]
    largest: float


@click.command("diff")
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@json_option
@debug_option
def diff_command(*, first: Path, second: Path, as_json: bool) -> None:
    """Show which rows two deltas share, and how far apart they are.

    \b
    Example:
        tgd delta diff patient_a.safetensors patient_b.safetensors
    """
    a, b = read_delta(first), read_delta(second)
    if _shapes(a) != _shapes(b):
        raise CheckpointError(
            f"{first} and {second} are of different networks.", "Compare deltas over one base."
        )
    found = list(diff(a, b))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in found], indent=1))
        return
    rows = [
        (
            row.layer,
            spans(row.first),
            spans(row.second),
            len({*row.first} & {*row.second}),
            spans(row.differ) or "-",
            f"{row.largest:.3g}" if row.differ else "-",
        )
        for row in found
    ]
    shared = sum(len({*row.first} & {*row.second}) for row in found)
    notes = f"{shared:,} rows are in both; {sum(len(row.differ) for row in found):,} of them differ."
    columns = (
        "layer",
        f"rows of {first.stem}",
        f"of {second.stem}",
        "in both",
        "differing",
        "largest difference",
    )
    show(table(columns, rows, title=f"{first.name} and {second.name}", caption=notes))


def _shapes(delta: Delta) -> dict[str, list[str]]:
    return {name: text.split(" ")[:2] for name, text in delta.base.items()}


def diff(a: Delta, b: Delta) -> Iterator[LayerDiff]:
    """Every layer that one of two deltas over a network writes to."""
    layers = {entry.layer.name: entry for entry in (*a.plan.entries, *b.plan.entries) if entry.trainable}
    masks = [_masks(delta) for delta in (a, b)]
    for name, entry in layers.items():
        first, second = (
            [row for row, moves in enumerate(delta.plan[name].mask) if moves]
            if name in delta.plan.layers
            else []
            for delta in (a, b)
        )
        rows, largest = set[int](), 0.0
        for tensor, owner in _owners(entry):
            if tensor in a.values and tensor in b.values:
                x, y, both = _shared(tensor, a, b, masks)
                changed = differing(x, y)
                rows |= set(owner.expand(both.shape)[both][changed].tolist())
                apart = (x.double() - y.double()).abs()[changed]
                largest = max([largest, *apart.max().view(-1).tolist()] if len(apart) else [largest])
        yield LayerDiff(name, first, second, sorted(rows), largest)


def _owners(entry: LayerPlan) -> Iterator[tuple[str, Tensor]]:
    """The layer's tensors, and the row that each of their entries belongs to."""
    yield from ((rows.name, rows.owner()) for rows in entry.layer.parameters)
    yield from ((name, torch.arange(entry.layer.channels)) for name in entry.layer.statistics)


def _masks(delta: Delta) -> dict[str, Tensor]:
    whole = {
        name: torch.ones(entry.layer.channels, dtype=torch.bool)
        for entry in delta.plan.entries
        for name in entry.layer.statistics
    }
    return {**whole, **delta.plan.parameter_masks(), **held_statistics(delta.plan)}


def _shared(
    name: str, a: Delta, b: Delta, masks: Sequence[dict[str, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The values of both deltas where both may write to a tensor, and where that is."""
    one, other = (found[name] for found in masks)
    for delta, mask in ((a, one), (b, other)):
        small = collapsed(mask)  # what a file claims may be too large to count
        if (
            delta.values[name].numel() * small.numel() != int(small.sum()) * mask.numel()
            or one.shape != other.shape
        ):
            raise CheckpointError(
                f"The deltas do not have the rows of their plans in {name!r}.", "Save them again."
            )
    both = one & other
    return a.values[name][both[one]], b.values[name][both[other]], both
