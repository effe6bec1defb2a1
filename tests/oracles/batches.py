"""Law 2's oracle for large networks: many filters are changed in one run, each in a sample of its own.

In evaluation no sample of a batch sees another. So one run of a world (see `interventions`) tells for as many
filters as there are samples which channels of which consumers each of them reaches. What a map claims is
compared run by run; filters that were not felt everywhere they should be are changed again in other worlds,
because a maximum or a rectifier may hide them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tests.oracles.calls import FilterCall
from tests.oracles.interventions import Influence, Run, World, prepared
from tests.strategies import Case
from tgdsurgery import Producer

# A hard sigmoid shuts a channel off in four of ten worlds.
WORLDS = 24

Place = tuple[str, int]  # a consumer, and an input channel of it


class _BatchRun(Run):
    """One run of a model in a world, in which sample b of the batch has filter b changed.

    A run beside a reference keeps, instead of what the consumers read, which channels moved in which sample:
    `felt[name]`, (C, batch).
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        batch: int,
        changed: Sequence[Producer] = (),
        reference: _BatchRun | None = None,
    ) -> None:
        super().__init__(model, world)
        self.samples: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for sample, producer in enumerate(changed):
            self.samples[producer.layer].append((sample, producer.channel))
        self.batch, self.reference = batch, reference
        self.felt: dict[str, Tensor] = {}

    def watch(self, seen: FilterCall) -> None:
        if self.reference is None:
            super().watch(seen)
            return
        before, after = self.reference.read[seen.name][seen.index], seen.input.detach().movedim(seen.axis, 0)
        moved = (before != after).unflatten(1, (self.batch, -1)).flatten(2).any(2)
        self.felt[seen.name] = moved | self.felt.get(seen.name, moved)

    def intervene(self, pinned: Tensor, seen: FilterCall) -> Tensor:
        if pinned.shape[0] % self.batch:
            raise AssertionError(f"the first axis of {tuple(pinned.shape)}, from {seen.name}, is no batch")
        if not self.samples[seen.name]:
            return pinned
        output = pinned.clone()
        by_sample = output.unflatten(0, (self.batch, -1))
        for sample, channel in self.samples[seen.name]:
            row = by_sample[sample].select(seen.axis, channel)
            row.copy_(self.world.noise(row))
        return output


class BatchedInterventions:
    """What changing the filters of a network does, beside what a channel map says that it does.

    Args:
        case: the network in evaluation mode, and an input that is one sample, or whose first is taken.
        found: for each input channel of every consumer, the filters that are said to reach it.
        batch: how many filters are changed in one run.

    In float32, for speed: an influence that is rounded away in one world is felt in another.
    """

    def __init__(self, case: Case, found: Influence, batch: int = 128) -> None:
        one = tree_map_only(Tensor, lambda leaf: leaf[:1].expand(batch, *leaf.shape[1:]).clone(), case.inputs)
        self.model, self.inputs = prepared(Case(case.model, one).train(False))
        self.batch = batch
        self.places = [(name, channel) for name, read in found.items() for channel in range(len(read))]
        self.claimed = _positions(found)
        self.checked = 0

    def differences(self) -> list[str]:
        """Every filter that reaches another set of input channels than the map says; and other consumers."""
        world = World(0)
        reference = self._run(world)
        read = {(name, len(calls[0])) for name, calls in reference.read.items()}
        if others := read ^ set(Counter(name for name, _ in self.places).items()):
            return [f"only in one: {name}, of {channels} channels" for name, channels in sorted(others)]
        waiting = [Producer(name, n) for name, count in reference.channels.items() for n in range(count)]
        self.checked = len(waiting)
        unknown = self.claimed.keys() - set(waiting)
        differences = [f"no such filter: {producer}" for producer in sorted(unknown)]
        unfelt: dict[Producer, set[Place]] = {}
        for seed in range(1, WORLDS + 1):
            for first in range(0, len(waiting), self.batch):
                part = waiting[first : first + self.batch]
                # Few filters get several samples each: other noise, other chances to be felt.
                part = [part[sample % len(part)] for sample in range(self.batch)]
                more, less = self._compare(part, self._run(world, part, reference))
                differences += [f"{p} reaches channel {channel} of {name} too" for p, name, channel in more]
                for producer, places in less.items():
                    unfelt[producer] = places & unfelt.get(producer, places)
            waiting = [producer for producer in waiting if unfelt.get(producer)]
            if not waiting:
                break
            world = World(seed)
            reference = self._run(world)
        lacking = [f"{p} does not reach {sorted(unfelt[p])[:5]}, as the map says" for p in waiting]
        return differences + lacking

    def _run(
        self, world: World, changed: Sequence[Producer] = (), reference: _BatchRun | None = None
    ) -> _BatchRun:
        run = _BatchRun(self.model, world, self.batch, changed, reference)
        run.run(self.model, self.inputs)
        return run

    def _compare(
        self, part: Sequence[Producer], run: _BatchRun
    ) -> tuple[list[tuple[Producer, str, int]], dict[Producer, set[Place]]]:
        """Where filters were felt against the map, and where each of them was not felt."""
        felt = torch.cat([run.felt[name] for name in dict(self.places)])
        expected = torch.zeros_like(felt)
        for sample, producer in enumerate(part):
            expected[self.claimed.get(producer, []), sample] = True
        more = [(part[sample], *self.places[at]) for at, sample in (felt & ~expected).nonzero().tolist()]
        unfelt: list[set[Place]] = [set() for _ in part]
        for at, sample in (expected & ~felt).nonzero().tolist():
            unfelt[sample].add(self.places[at])
        less: dict[Producer, set[Place]] = {}
        for producer, places in zip(part, unfelt, strict=True):
            less[producer] = places & less.get(producer, places)
        return more, less


def _positions(found: Influence) -> dict[Producer, list[int]]:
    """For every producer, where in the list of all consumers' input channels it is said to arrive."""
    positions: dict[Producer, list[int]] = defaultdict(list)
    for position, producers in enumerate(producers for read in found.values() for producers in read):
        for producer in producers:
            positions[producer].append(position)
    return dict(positions)
