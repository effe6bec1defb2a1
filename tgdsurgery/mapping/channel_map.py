"""model -> ChannelMap: both modes captured, labelled, collected and merged."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import get_args

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from tgdsurgery.core.arguments import Arguments, repeated
from tgdsurgery.core.copying import copy_model, refuse_unfit
from tgdsurgery.core.errors import CaptureError, MapConflictError
from tgdsurgery.core.records import ChannelMap, Layer, Producer
from tgdsurgery.mapping.capture import capture, refuse_inference_mode, refuse_left_behind
from tgdsurgery.mapping.collect import Collector, MappedModel
from tgdsurgery.mapping.example_inputs import arguments_for
from tgdsurgery.mapping.labels import LabelTable
from tgdsurgery.mapping.original import apart
from tgdsurgery.mapping.propagate import Propagation, propagate
from tgdsurgery.settings import OnUnknown, check_choice

# A model that keeps the features of its last frames is run until it has as many as it wants.
_MAX_RUNS = 20


def channel_map(
    model: nn.Module, example_inputs: object = None, *, on_unknown: OnUnknown = "raise"
) -> ChannelMap:
    """Find out which filters feed each input channel of each conv, transposed conv and linear layer.

    Args:
        model: any network whose forward runs; it is not modified.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments; found if None.
        on_unknown: "raise" stops at an op without a rule; "mix" lets every output of it depend on all inputs.

    Returns:
        The map, the same for train and eval mode.

    Raises:
        CaptureError: the model does not run, is TorchScript or uninitialised, or no example input could be found.
        UnsupportedOpError: an op without a rule.
        MapConflictError: train and eval mode map the same layer differently.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3))
        >>> found = channel_map(net)
        >>> found.consumers
        ('0', '2')
        >>> [sorted(s) for s in found.producers("2")]
        [[Producer(layer='0', channel=0)], [Producer(layer='0', channel=1)]]
    """
    return map_model(model, arguments_for(model, example_inputs), on_unknown=on_unknown).channels


def map_model(model: nn.Module, arguments: Arguments, *, on_unknown: OnUnknown = "raise") -> MappedModel:
    """The channel map of `model` in eval and in train mode, which must agree, and its consumers' weights."""
    check_choice("on_unknown", on_unknown, get_args(OnUnknown))
    refuse_inference_mode()
    refuse_unfit(model)
    with _without_cycle_collection():
        return _mapped(model, arguments, on_unknown)


def _mapped(model: nn.Module, arguments: Arguments, on_unknown: OnUnknown) -> MappedModel:
    runs = _Runs(model, LabelTable(), on_unknown)
    with apart(model, runs.trial):
        evaluated, trained = _both_modes(runs, arguments)
    still = trained.still()
    first = Collector(evaluated, runs.trial, still)
    return _merged(first.collect(), Collector(trained, runs.trial, still, after=first).collect(), model)


def _both_modes(runs: _Runs, arguments: Arguments) -> tuple[Propagation, Propagation]:
    evaluated = runs.settled(arguments, training=False)
    if runs.left:  # training starts without it, too
        runs.trial = copy_model(runs.model)
    try:
        return evaluated, runs.settled(arguments, training=True)
    except CaptureError:
        # Batch norm cannot train on one value per channel.
        return evaluated, runs.settled(repeated(arguments), training=True)


class _Runs:
    """Runs of one copy of the model, which may find in one what an earlier one has left behind."""

    def __init__(self, model: nn.Module, table: LabelTable, on_unknown: OnUnknown) -> None:
        self.model, self.trial = model, copy_model(model)
        self.table, self.on_unknown = table, on_unknown
        self.left: list[StorageWeakRef] = []
        self.runs = 0

    def settled(self, arguments: Arguments, *, training: bool) -> Propagation:
        """The model run in one mode until it keeps tensors in the same places, mostly once; all runs as one.

        Raises:
            UnsupportedOpError: it goes on reading what an earlier run has left behind.
        """
        whole: Propagation | None = None
        before: dict[str, Tensor] = {}
        while True:
            run = capture(self.trial, *arguments, training=training, earlier=self.left, original=self.model)
            found = propagate(run, self.table, self.on_unknown, before)
            before = found.at_places()
            first, whole = whole is None, found.after(whole) if whole else found
            left = found.left()
            self.left += left
            self.runs += 1
            if not left or (run.settled and not first) or self.runs >= _MAX_RUNS:
                refuse_left_behind(run)
                return whole


@contextlib.contextmanager
def _without_cycle_collection() -> Iterator[None]:
    """Large networks make a million small objects, none of them in a cycle: looking for cycles doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _merged(evaluated: MappedModel, trained: MappedModel, model: nn.Module) -> MappedModel:
    """Both runs together: heads that only one of them has are added, what both have must agree.

    The sets of the second run begin with those of the first.
    """
    first, second = evaluated.channels, trained.channels
    for name in first.inputs.keys() & second.inputs.keys():
        for channel, (a, b) in enumerate(zip(first.inputs[name], second.inputs[name], strict=True)):
            if a != b:
                only_trained, only_evaluated = (
                    second.sets[b] - second.sets[a],
                    second.sets[a] - second.sets[b],
                )
                raise MapConflictError(
                    f"Input channel {channel} of {name!r} has other producers in train mode than in eval mode: "
                    f"{_short(only_trained)} only in train, {_short(only_evaluated)} only in eval.",
                    "Remove the difference between the two modes, or apply TGD to the submodules that agree.",
                )
    layers = _with_flags({**second.layers, **first.layers}, model)
    mapped = {rows.name for layer in layers.values() for rows in layer.parameters}
    whole = ChannelMap(
        layers={name: layers[name] for name in dict.fromkeys([*first.layers, *second.layers])},
        inputs={**second.inputs, **first.inputs},
        sets=second.sets,
        unmapped={name: p.numel() for name, p in model.named_parameters() if name not in mapped},
        mixed=tuple(sorted({*first.mixed, *second.mixed})),
    )
    return MappedModel(whole, {**trained.weights, **evaluated.weights})


def _with_flags(layers: Mapping[str, Layer], model: nn.Module) -> dict[str, Layer]:
    """The layers, with the parameters marked that the user has frozen."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    marked = dict(layers)
    for name, layer in layers.items() if frozen else ():
        rows = (replace(rows, requires_grad=rows.name not in frozen) for rows in layer.parameters)
        marked[name] = replace(layer, parameters=tuple(rows))
    return marked


def _short(producers: frozenset[Producer]) -> str:
    names = [f"{producer.layer}[{producer.channel}]" for producer in sorted(producers)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "none"
