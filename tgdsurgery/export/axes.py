"""Which axes of a network's inputs may have other sizes: batch and space, tried on the network itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tgdsurgery.core.copying import own_randomness

CHANNELS = 1  # the axis that is neither batch nor space


@dataclass(frozen=True)
class Axis:
    """One axis, of all inputs that have the same size along it: images that go in together change together.

    Args:
        number: 0 is the batch, 2 and up are space.
        size: of the example.
        other: another size that the network accepts.
        inputs: numbers of the inputs.
    """

    number: int
    size: int
    other: int
    inputs: tuple[int, ...]

    def __str__(self) -> str:
        return "batch" if self.number == 0 else f"axis {self.number}"

    def resized(self, inputs: Sequence[Tensor], size: int) -> tuple[Tensor, ...]:
        """The inputs with that size along this axis: repeated, or cut."""
        return tuple(
            along(tensor, self.number, size) if index in self.inputs else tensor
            for index, tensor in enumerate(inputs)
        )


def along(tensor: Tensor, axis: int, size: int) -> Tensor:
    """The tensor repeated or cut to a size along an axis.

    >>> along(torch.tensor([1, 2]), 0, 3).tolist()
    [1, 2, 1]
    """
    index = torch.arange(size, device=tensor.device) % tensor.shape[axis]
    return tensor.index_select(axis, index)


def free_axes(net: nn.Module, inputs: Sequence[Tensor]) -> tuple[list[Axis], list[str]]:
    """The axes along which the network accepts another size, and the names of those along which it does not.

    A batch of one more, and twice or half the size in space, are tried.
    """
    free, fixed = [], []
    for number, size, which in _axes(inputs):
        for other in (size + 1,) if number == 0 else (2 * size, size // 2):
            axis = Axis(number, size, other, which)
            if other and _accepts(net, axis.resized(inputs, other)):
                free.append(axis)
                break
        else:
            fixed.append(str(axis))
    return free, fixed


def run(net: nn.Module | Any, inputs: Sequence[Tensor]) -> Any:
    """The output of a network for its own copy of the inputs; the same random numbers every time."""
    with torch.no_grad(), own_randomness(net):
        return net(*(tensor.clone() for tensor in inputs))


def _axes(inputs: Sequence[Tensor]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Number, size, and the inputs that share both."""
    found: dict[tuple[int, int], list[int]] = {}
    for index, tensor in enumerate(inputs):
        for number, size in enumerate(tensor.shape):
            if number != CHANNELS:
                found.setdefault((number, size), []).append(index)
    yield from ((number, size, tuple(which)) for (number, size), which in sorted(found.items()))


def _accepts(net: nn.Module, inputs: Sequence[Tensor]) -> bool:
    try:
        run(net, inputs)
    except Exception:  # whatever the user's forward raises means: not this size
        return False
    return True
