"""Any norm that keeps running statistics, with those of its frozen channels held in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tgdsurgery.core.constants import Constants
from tgdsurgery.core.masking import along
from tgdsurgery.core.norm_statistics import mixed
from tgdsurgery.surgery.derived import Derived, derive, original_class
from tgdsurgery.surgery.held_statistics import Held, HoldsStatistics

HOLD = "tgd_hold"  # name of the child module


class Hold(Constants):
    """What a `HeldNorm` needs to know; its child module.

    Args:
        mask: (N,) bool, True where the channel is trainable; on the CPU.
        channel_axis: axis of the channels in the norm's output, counted from the end.
        statistics: names of the norm's buffers (N,) that hold its running statistics.
        device: where the network is.
    """

    def __init__(
        self, mask: Tensor, channel_axis: int, statistics: Sequence[str], device: torch.device | str
    ) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.statistics = tuple(statistics)
        self.any_trainable = bool(mask.any())
        self._tgd_keep("mask", mask.clone(), device)


class HeldNorm(HoldsStatistics, Derived):
    """A norm whose frozen channels use, and keep, their stored statistics also in training.

    Works for any class that keeps running statistics in buffers, whatever else its forward does: the class's
    own forward runs once in training and once in evaluation mode, and each channel takes its result from one
    of the two. Where all channels are frozen it runs in evaluation mode only, and no buffer moves. In
    evaluation mode nothing is different from the original class.

    Instances are made by `hold`, which swaps a module's class for a subclass of this one and its own class.
    """

    _tgd_prefix = "Held"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward; in training, each channel by its own mode."""
        self._tgd_put_back()
        if not self.training:
            return super().forward(*args, **kwargs)
        hold: Hold = getattr(self, HOLD)
        stored = {name: self.get_buffer(name) for name in hold.statistics}
        try:
            # Both runs get copies: autograd saves the statistics it used, and would refuse a backward
            # after the write below.
            self._tgd_use({name: buffer.clone() for name, buffer in stored.items()}, training=False)
            by_stored = super().forward(*args, **kwargs)
            if not hold.any_trainable:
                return by_stored
            self._tgd_use({name: buffer.clone() for name, buffer in stored.items()}, training=True)
            by_batch = super().forward(*args, **kwargs)
            moved = {name: self.get_buffer(name) for name in stored}
        finally:
            self._tgd_use(stored, training=True)
        mask = hold._tgd_constant("mask", by_batch.device)
        with torch.no_grad():
            for name, buffer in stored.items():
                buffer.copy_(mixed(buffer, moved[name], mask))
        self._tgd_confirm()
        return torch.where(along(mask, hold.channel_axis), by_batch, by_stored)

    def _tgd_use(self, statistics: Mapping[str, Tensor], *, training: bool) -> None:
        self.training = training
        for name, buffer in statistics.items():
            setattr(self, name, buffer)


def hold(norm: nn.Module, mask: Tensor, channel_axis: int, statistics: Sequence[str]) -> None:
    """Make `norm` hold the statistics of its frozen channels, in place; `release` undoes it.

    Args:
        norm: any module that normalises with running statistics.
        mask: (N,) bool, True where the channel is trainable.
        channel_axis: axis of the channels in the norm's output, counted from the end.
        statistics: names of the norm's buffers (N,) that hold its running statistics.
    """
    norm.add_module(HOLD, Hold(mask, channel_axis, statistics, norm.get_buffer(statistics[0]).device))
    norm.__class__ = derive(HeldNorm, type(norm))
    vars(norm)["_tgd_statistics"] = Held(norm, statistics, mask)


def release(norm: nn.Module) -> None:
    """Give a `HeldNorm` its original class back, in place."""
    if isinstance(norm, HeldNorm):
        norm._tgd_let_go()
        delattr(norm, HOLD)
        norm.__class__ = original_class(type(norm))
