"""What would a step gain if the trainable rows of every layer lay in one block?

Then channels would be taken out, and put back, as slices instead of by their numbers, and the weight that the forward
reads would have the trainable rows in it as they are. Every such move of one step is recorded, and done again in both
ways on numbers of the same shapes. The multiplications in between stay the same: torch's kernels copy a slice of the
channels before they use it, so a slice is counted as a copy.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from benchmarks.measuring import cpu_seconds
from tgdsurgery.surgery.compact import backward_conv, backward_norm, channels, layout, twin

ROUNDS = 11
# What moves channels or rows, and the modules that have it by name.
MOVES: dict[Callable[..., Tensor], tuple[Any, ...]] = {
    channels.select: (channels, backward_conv, backward_norm),
    channels.spread: (channels, backward_conv),
    channels.place_: (backward_norm,),
    layout.fill_: (twin,),
}


class Move(NamedTuple):
    """One call of what moves channels or rows."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]

    def by_numbers(self) -> None:
        """As it is."""
        self.function(*self.args)

    def as_block(self) -> None:
        """With the same channels, but the first ones."""
        if self.function is channels.select:
            x, numbers = self.args
            x.narrow(1, 0, len(numbers)).clone(memory_format=layout.memory_format(x))
        elif self.function is channels.spread:
            part, _, count, form = self.args
            shape = len(part), count, *part.shape[2:]
            whole = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=form).zero_()
            whole.narrow(1, 0, part.shape[1]).copy_(part)
        elif self.function is channels.place_:
            whole, _, part, _ = self.args
            whole.narrow(1, 0, part.shape[1]).copy_(part)


@contextlib.contextmanager
def recorded() -> Iterator[list[Move]]:
    """All moves while it lasts, with tensors of their own."""
    found: list[Move] = []
    with contextlib.ExitStack() as stack:
        for function, places in MOVES.items():

            def noted(*args: Any, function: Callable[..., Tensor] = function) -> Tensor:
                found.append(Move(function, tuple(a.clone() if isinstance(a, Tensor) else a for a in args)))
                return function(*args)

            for place in places:
                stack.enter_context(mock.patch.object(place, function.__name__, noted))
        yield found


@torch.no_grad()
def moved(
    step: Callable[[], None], seconds: Callable[[Callable[[], None]], float] = cpu_seconds
) -> dict[str, float]:
    """What the moves of a step take: channels by their numbers, as blocks, and rows into weights."""
    with recorded() as moves, torch.enable_grad():
        step()
    weights = [move for move in moves if move.function is layout.fill_]
    rest = [move for move in moves if move.function is not layout.fill_]
    ways = {
        "numbers": lambda: _all(Move.by_numbers, rest),
        "blocks": lambda: _all(Move.as_block, rest),
        "weights": lambda: _all(Move.by_numbers, weights),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            taken[name].append(seconds(way))
    return {name: statistics.median(found) for name, found in taken.items()}


def saved(found: Mapping[str, float]) -> float:
    """What blocks would save of that at most: the weights would need no writing at all."""
    return found["numbers"] - found["blocks"] + found["weights"]


def _all(way: Callable[[Move], None], moves: list[Move]) -> None:
    for move in moves:
        way(move)
