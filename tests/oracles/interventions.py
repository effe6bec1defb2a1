"""Law 2's oracle: which filters reach which input channels, found by changing one and watching.

A world gives every call of every filter layer a random output, whatever it reads, and norms random
statistics. In such a world a filter can only be felt by the consumers it reaches without passing another
filter. So: run the world, change the output of one filter, run again, and see which channels of which
consumers' inputs are not bit for bit what they were. Channel layers likewise, by changing the parameters of one of
their channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles.calls import FilterCall, FilterCalls
from tests.strategies import Case, leaves
from tgdsurgery.core.records import Layer, Producer

Influence = dict[str, tuple[frozenset[Producer], ...]]
READS_A_VALUE = (Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.tolist)
# Several worlds, because a maximum or a rectifier may hide a filter in one of them.
WORLDS = 3
# Wide enough to cross every threshold, and every offset that a norm may add before it, from both sides.
SPREAD = 10.0


class World:
    """The values that stay as they are while one filter changes: drawn once, then looked up."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._values: dict[Any, Any] = {}

    def noise(self, like: Tensor) -> Tensor:
        """Random numbers of both signs, large and small."""
        return SPREAD * self._normal(like) * self.factor(like)

    def factor(self, like: Tensor) -> Tensor:
        """Random positive numbers around 1."""
        return self._normal(like).exp()

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=self._generator)

    def fixed(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of that name, made on the first run."""
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]


class Run(FilterCalls):
    """One run of a model in a world, with at most one filter changed; keeps what every consumer read."""

    def __init__(self, model: nn.Module, world: World, changed: Producer | None = None) -> None:
        super().__init__(model)
        self.world, self.changed = world, changed
        self.read: dict[str, list[Tensor]] = defaultdict(list)
        self.channels: dict[str, int] = {}
        self._others = 0

    def filter_call(self, seen: FilterCall, compute: Callable[[], Tensor]) -> Tensor:
        self.watch(seen)
        # The shape is all that is needed of the true output.
        pinned = self.world.fixed((seen.name, seen.index), lambda: self.world.noise(compute().detach()))
        self.channels[seen.name] = pinned.shape[seen.axis]
        # Autograd is to tell what is made of it; an in-place op may follow, which a leaf does not allow.
        return self.intervene(pinned, seen).detach().requires_grad_().clone()

    def watch(self, seen: FilterCall) -> None:
        """Keep what the layer reads."""
        self.read[seen.name].append(seen.input.detach().movedim(seen.axis, 0).clone())

    def intervene(self, pinned: Tensor, seen: FilterCall) -> Tensor:
        """The pinned output, or a copy of it with the filter changed."""
        if not self.changed or self.changed.layer != seen.name:
            return pinned
        output = pinned.clone()
        row = output.select(seen.axis, self.changed.channel)
        row.copy_(self.world.noise(row))
        return output

    def other_call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._others += 1
        if func in READS_A_VALUE:
            return self.world.fixed(self._others, lambda: func(*args, **kwargs))
        if func in NORMS:
            return NORMS[func](self._statistics, *args, **kwargs)
        return func(*args, **kwargs)

    def _statistics(self, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        """Mean and variance over `axes`: drawn, as a norm of one value would else make a constant of it."""

        def draw() -> tuple[Tensor, Tensor]:
            like = x.detach().mean(axes, keepdim=True)
            return self.world.noise(like), self.world.factor(like)

        return self.world.fixed(self._others, draw)


def producers_by_intervention(case: Case) -> Influence:
    """For each input channel of every consumer, the filters that reach it; in the case's own mode."""
    model, inputs = prepared(case.double())  # a small influence is not rounded away
    found: dict[str, list[set[Producer]]] = {}
    for seed in range(WORLDS):
        world = World(seed)
        reference = Run(model, world)
        reference.run(model, inputs)
        for layer, channels in reference.channels.items():
            for channel in range(channels):
                producer = Producer(layer, channel)
                changed = Run(model, world, producer)
                changed.run(model, inputs)
                _note(found, producer, reference.read, changed.read)
    return _frozen(found)


def channel_layers_by_intervention(case: Case, layers: Mapping[str, Layer]) -> Influence:
    """For every consumer and each of its input channels, the channel layers' channels on the way, by experiment.

    Args:
        case: the network.
        layers: the map's layers; of a channel layer, only which entries belong to which channel is used.
    """
    model, inputs = prepared(case.double())  # a small influence is not rounded away
    found: dict[str, list[set[Producer]]] = {}
    for seed in range(WORLDS):
        world = World(seed)
        reference = Run(model, world)
        reference.run(model, inputs)
        _note(found, None, reference.read, reference.read)
        for layer in layers.values():
            if layer.role == "filter":
                continue
            for channel in range(layer.channels):
                changed = Run(model, world)
                with _channel_changed(model, layer, channel, world):
                    changed.run(model, inputs)
                _note(found, Producer(layer.name, channel), reference.read, changed.read)
    return _frozen(found)


def prepared(case: Case) -> tuple[nn.Module, Any]:
    """The case's model and inputs for an experiment; both are changed."""
    for module in case.model.modules():
        # A channel that is dropped in all worlds would look as if nothing reached it.
        module.training &= not isinstance(module, nn.modules.dropout._DropoutNd)
    # Autograd tells what is made of parameters alone.
    for leaf in leaves(case.inputs):
        leaf.requires_grad_(leaf.is_floating_point())
    return case.model.requires_grad_(True), case.inputs


def _note(
    found: dict[str, list[set[Producer]]],
    producer: Producer | None,
    reference: Mapping[str, list[Tensor]],
    changed: Mapping[str, list[Tensor]],
) -> None:
    if {name: len(calls) for name, calls in reference.items()} != {n: len(c) for n, c in changed.items()}:
        raise AssertionError("the model called other layers than in the reference run")
    for consumer, calls in reference.items():
        sets = found.setdefault(consumer, [set() for _ in range(calls[0].shape[0])])
        for before, after in zip(calls, changed[consumer], strict=True):
            if not torch.isfinite(before).all():
                raise AssertionError(f"the reference run is not finite at {consumer}")
            for channel in (before != after).flatten(1).any(1).nonzero().flatten().tolist():
                if producer:
                    sets[channel].add(producer)


def _frozen(found: dict[str, list[set[Producer]]]) -> Influence:
    return {consumer: tuple(frozenset(s) for s in sets) for consumer, sets in found.items()}


@contextmanager
def _channel_changed(model: nn.Module, layer: Layer, channel: int, world: World) -> Iterator[None]:
    """The entries of one channel of a channel layer changed: parameters, and statistics where it keeps them."""
    tensors = dict(
        [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    )
    owners = {rows.name: rows.owner() for rows in layer.parameters}
    owners |= {name: torch.arange(layer.channels) for name in layer.statistics}
    before = {name: tensors[name].detach().clone() for name in owners}
    try:
        for name, owner in owners.items():
            mine = owner == channel
            data = tensors[name].detach()
            if name in layer.statistics:
                data[mine] *= world.factor(data[mine])  # a variance stays positive
            else:
                data[mine] += world.noise(data[mine])
        yield
    finally:
        for name, value in before.items():
            tensors[name].detach().copy_(value)


Statistics = Callable[[Tensor, list[int]], tuple[Tensor, Tensor]]


def _layer_norm(
    statistics: Statistics,
    x: Tensor,
    shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Layer norm with its statistics given: they are no way for one channel to reach another."""
    mean, variance = statistics(x, list(range(-len(shape), 0)))
    return _affine((x - mean) / torch.sqrt(variance + eps), weight, bias, list(shape))


def _group_norm(
    statistics: Statistics,
    x: Tensor,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Group norm with its statistics given."""
    grouped = x.unflatten(1, (groups, -1))
    mean, variance = statistics(grouped, list(range(2, grouped.ndim)))
    y = ((grouped - mean) / torch.sqrt(variance + eps)).flatten(1, 2)
    return _affine(y, weight, bias, [-1] + [1] * (x.ndim - 2))


def _instance_norm(
    statistics: Statistics,
    x: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance norm; with its statistics given, unless it uses those it has stored."""
    if use_input_stats:
        return _group_norm(statistics, x, x.shape[1], weight, bias, eps)
    return F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int]) -> Tensor:
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


# Norms whose statistics are drawn. Batch norm in evaluation has its own, which are random too.
NORMS = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
}


def assert_same_influence(found: Influence, expected: Influence) -> None:
    """Raise unless both have the same consumers, and the same set for every input channel."""
    differences = [f"only in one: {name}" for name in found.keys() ^ expected.keys()]
    for consumer in found.keys() & expected.keys():
        if len(found[consumer]) != len(expected[consumer]):
            differences.append(f"{consumer}: {len(found[consumer])} channels, not {len(expected[consumer])}")
            continue
        for channel, (have, want) in enumerate(zip(found[consumer], expected[consumer], strict=True)):
            if have != want:
                more, less = sorted(have - want), sorted(want - have)
                differences.append(f"{consumer}, channel {channel}: too many {more}, missing {less}")
    if differences:
        raise AssertionError("\n".join(differences))
