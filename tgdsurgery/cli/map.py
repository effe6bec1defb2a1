"""`tgd map`: which filters feed each input channel of a layer, and which channel layers are on the way."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import click

from tgdsurgery import channel_map
from tgdsurgery.cli.models import example_inputs, load_model
from tgdsurgery.cli.options import (
    ArgumentError,
    InputShape,
    debug_option,
    input_shape_option,
    model_option,
)
from tgdsurgery.cli.output import show
from tgdsurgery.core import tables
from tgdsurgery.core.records import ChannelMap, Producer

Writers = dict[str, tuple[int, ...]]  # layer -> its channels that reach one input channel


@dataclass(frozen=True)
class Run:
    """Consecutive input channels that are fed by one pattern: blocks of channels with the same writers.

    Args:
        start: the first input channel.
        size: input channels per block (1, or H*W after a flatten).
        first: what feeds the first block.
        blocks: number of blocks.
        steps: how far each layer's channel moves per block, 0 or 1; empty for a single block.
    """

    start: int
    size: int
    first: Writers
    blocks: int = 1
    steps: dict[str, int] = field(default_factory=dict)

    @property
    def channels(self) -> str:
        """The input channels, such as `0-63`."""
        each = f" ({self.size} each)" if self.size > 1 and self.blocks > 1 else ""
        return tables.span(self.start, self.start + self.size * self.blocks - 1) + each

    def writers(self, layer: str) -> str:
        """The channels of `layer` that feed them, such as `conv1[0-63]`, one each, or `all of conv1[0,2]`."""
        channels = self.first[layer]
        if self.steps.get(layer):
            return f"{layer}[{tables.span(channels[0], channels[0] + self.blocks - 1)}]"
        shared = len(channels) > 1 and self.size * self.blocks > 1
        return f"{'all of ' if shared else ''}{layer}[{tables.spans(channels)}]"


@click.command("map")
@model_option
@input_shape_option
@click.option("--layer", required=True, help="The layer whose input channels are shown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one entry per input channel.")
@debug_option
def map_command(*, model: str, input_shape: Sequence[InputShape], layer: str, as_json: bool) -> None:
    """Show which filters feed each input channel of a layer, and which channel layers are on the way.

    Filters reach the layer without passing another filter; channel layers (norms, PReLU, layer scale) are what
    they pass on the way.

    \b
    Example:
        tgd map --model torchvision.models:resnet18 \\
            --layer layer2.0.conv1
    """
    net = load_model(model)
    found = channel_map(net, example_inputs(net, input_shape))
    if layer not in found.inputs:
        raise ArgumentError(
            f"No layer that reads channels is called {layer!r}.", tables.nearest(layer, found.consumers)
        )
    if as_json:
        click.echo(_as_json(found, layer))
    else:
        _show(found, layer)


def fold(inputs: Iterable[frozenset[Producer]]) -> list[Run]:
    """Input channels with their writers, as few runs."""
    runs: list[Run] = []
    start = 0
    for reached, group in itertools.groupby(inputs):
        size, writers = len(list(group)), _by_layer(reached)
        last = runs[-1] if runs else None
        steps = _steps(last, writers) if last and last.size == size else None
        if last and steps is not None and last.steps in ({}, steps):
            runs[-1] = replace(last, blocks=last.blocks + 1, steps=steps)
        else:
            runs.append(Run(start, size, writers))
        start += size
    return runs


def _steps(run: Run, writers: Writers) -> dict[str, int] | None:
    """How the block after `run` differs from its last one; None if it does not go on with that pattern."""
    if run.first.keys() != writers.keys():
        return None
    steps = {}
    for layer, channels in writers.items():
        first = run.first[layer]
        if channels == first:
            steps[layer] = 0
        elif len(first) == 1 and channels == (first[0] + run.blocks,):
            steps[layer] = 1
        else:
            return None
    return steps


def _by_layer(reached: Iterable[Producer]) -> Writers:
    ordered = sorted(reached)
    grouped = itertools.groupby(ordered, key=lambda producer: producer.layer)
    return {layer: tuple(producer.channel for producer in group) for layer, group in grouped}


def _show(found: ChannelMap, layer: str) -> None:
    pairs = zip(found.producers(layer), found.channel_layers(layer), strict=True)
    rows = []
    for run in fold(producers | channel_layers for producers, channel_layers in pairs):
        ordered = [name for name in found.layers if name in run.first]
        filters = [run.writers(name) for name in ordered if found.layers[name].role == "filter"]
        channel_layers = [run.writers(name) for name in ordered if found.layers[name].role == "channel"]
        rows.append((run.channels, "\n".join(filters) or "network input", "\n".join(channel_layers) or "-"))
    shown = tables.table(("channel", "filters", "channel layers"), rows, title=f"Inputs of {layer}")
    for column in shown.columns:
        column.justify = "left"
    show(shown)


def _as_json(found: ChannelMap, layer: str) -> str:
    pairs = zip(found.producers(layer), found.channel_layers(layer), strict=True)
    inputs = [
        {
            "channel": channel,
            "producers": [producer._asdict() for producer in sorted(producers)],
            "channel_layers": [channel_layer._asdict() for channel_layer in sorted(channel_layers)],
        }
        for channel, (producers, channel_layers) in enumerate(pairs)
    ]
    return json.dumps({"layer": layer, "inputs": inputs}, indent=1)
