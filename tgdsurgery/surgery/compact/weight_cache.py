"""When the whole weight must be rebuilt: counters that see what torch does not count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tgdsurgery.core.optimizer_hooks import after_every_step


class Rows(nn.Parameter):
    """Trainable rows, which know how often they were handed out as `.data`: torch does not count what is written there.

    Where torch makes a plain Parameter of them (in a file, say), only speed is lost.
    """

    handed_out = 0

    @property
    def data(self) -> Tensor:
        """As of any Parameter."""
        self.handed_out += 1
        return Tensor.data.__get__(self)  # type: ignore[attr-defined, no-any-return]

    @data.setter
    def data(self, value: Tensor) -> None:
        self.handed_out += 1
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]


class Kept:
    """A whole weight that a backward keeps, and whether its memory was written to since.

    What wrote to it may have been other trainable rows, which were there for a while (averages of weights).
    """

    def __init__(self, written: Tensor) -> None:
        self.written, self.version = written, written._version


def is_still(kept: Kept | None) -> bool:
    """Whether a backward can use a whole weight that it has kept, or has to make it of the rows.

    It has to, differentiably, where gradients of gradients are asked for.
    """
    return not torch.is_grad_enabled() and (kept is None or kept.written._version == kept.version)


def state_of(trainable: Tensor, frozen: Tensor) -> tuple[Any, ...] | None:
    """What `as_it_was` compares; None where a change would not be seen."""
    if not isinstance(trainable, Rows) or trainable.is_inference() or frozen.is_inference():
        return None
    after_every_step(_count)
    return trainable, frozen, trainable._version, frozen._version, trainable.handed_out, _steps


def as_it_was(written: tuple[Any, ...], trainable: Any, frozen: Any) -> bool:
    """Whether these are the tensors that were written, and not changed since."""
    if written[0] is not trainable or written[1] is not frozen:
        return False
    present: tuple[int, ...] = (trainable._version, frozen._version, trainable.handed_out, _steps)
    return written[2:] == present


_steps = 0  # of all optimizers; torch does not count what their fused ops write


def _count(optimizer: Any, args: Any, kwargs: Any) -> None:
    global _steps  # noqa: PLW0603
    _steps += 1
