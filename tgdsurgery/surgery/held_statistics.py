"""Running statistics of frozen channels, kept where nothing else writes to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tgdsurgery.core.torch_private import is_traced, under_functorch

HoldsT = TypeVar("HoldsT", bound="HoldsStatistics")


class Held:
    """A copy of the frozen entries of a norm's statistics.

    Averages of weights, resets and new estimates write to a norm's buffers, or put other tensors in their place.

    Args:
        norm: the norm.
        statistics: names of its buffers (N,).
        trainable: (N,) bool, on the CPU.
    """

    def __init__(self, norm: nn.Module, statistics: Sequence[str], trainable: Tensor) -> None:
        self._frozen = (
            (~trainable).nonzero().flatten()
        )  # on the CPU: `to_empty` loses what moves with a module
        self._placed = self._frozen
        self._kept: dict[str, Tensor] = dict.fromkeys(statistics, torch.empty(0))
        self._right: dict[
            str, tuple[Tensor, int]
        ] = {}  # the buffers, and when all of their frozen entries were
        self.take(norm)

    def take(self, norm: nn.Module) -> None:
        """From now on the buffers' present values are those that are held."""
        for name, buffer in self._present(norm):
            self._kept[name] = buffer.detach().index_select(0, self._on(buffer.device))
        self.confirm(norm)

    def is_right(self, norm: nn.Module) -> bool:
        """Whether nothing was written to the buffers, and they are the same."""
        for name, (buffer, version) in self._right.items():  # no generator: this is asked in every forward
            if buffer is not norm._buffers.get(name) or buffer._version != version:
                return False
        return len(self._right) == len(self._kept)

    @torch.no_grad()
    def put_back(self, norm: nn.Module) -> None:
        """Write the copy into the buffers that something was written to, or that are others now."""
        compiling = torch.compiler.is_compiling()  # compiled code sees no counters: it writes in any case
        for name, buffer in self._present(norm):
            if not compiling and _same_moment(self._right.get(name), buffer):
                continue
            at, values = self._on(buffer.device), self._kept[name].to(buffer.device, buffer.dtype)
            if compiling:
                buffer.index_copy_(0, at, values)
            elif buffer.is_inference() and not torch.is_inference_mode_enabled():  # allows no write
                norm._buffers[name] = buffer.index_copy(0, at, values)
            else:  # not counted: a backward that needs the buffer can still come
                buffer.data.index_copy_(0, at, values)
        if not compiling:
            self.confirm(norm)

    def confirm(self, norm: nn.Module) -> None:
        """The frozen entries of the buffers are right as they are."""
        for name, buffer in self._present(norm):
            if buffer.is_inference():
                self._right.pop(name, None)  # torch does not count what is written to it
            else:
                self._right[name] = buffer, buffer._version

    def doubt(self) -> None:
        """Look at nothing next time: what was written through `.data` is not counted by torch."""
        self._right.clear()

    def move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """To another device or type, as `nn.Module._apply` does it."""
        self._kept = {name: fn(kept) for name, kept in self._kept.items()}

    def _present(self, norm: nn.Module) -> list[tuple[str, Tensor]]:
        """The buffers; users set them to None to normalise by batches ever after."""
        found = ((name, norm._buffers.get(name)) for name in self._kept)
        return [(name, buffer) for name, buffer in found if buffer is not None]

    def _on(self, device: torch.device) -> Tensor:
        if self._placed.device != device:
            with torch.inference_mode(False):  # else it would be of no use in training
                self._placed = self._frozen.to(device)
        return self._placed

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_right": {}}  # copies count anew


def _same_moment(right: tuple[Tensor, int] | None, buffer: Tensor) -> bool:
    return right is not None and right[0] is buffer and right[1] == buffer._version


class HoldsStatistics(nn.Module):
    """A norm with a `Held`: a mixin, in front of the original's class. Frozen entries are right in every forward that
    calls `_tgd_put_back`, and in every `state_dict`; what `load_state_dict` brings is held from then on.
    """

    _tgd_statistics: Held | None = None

    def _tgd_put_back(self) -> None:
        """To be called before the statistics are read."""
        held = self._tgd_statistics
        if held is None or (not torch.compiler.is_compiling() and held.is_right(self)):
            return
        # What is exported or traced is a network as it is, and transforms of torch.func allow no write.
        if not (is_traced() or under_functorch()):
            held.put_back(self)

    def _tgd_confirm(self) -> None:
        """To be called after an update of the trainable ones."""
        if self._tgd_statistics is not None and not torch.compiler.is_compiling():
            self._tgd_statistics.confirm(self)

    def _tgd_let_go(self) -> None:
        """End the holding."""
        self._tgd_put_back()
        vars(self).pop("_tgd_statistics", None)

    def reset_running_stats(self) -> None:
        """Of the trainable channels only (torch's `update_bn` calls it)."""
        super().reset_running_stats()  # type: ignore[misc]
        self._tgd_put_back()

    def train(self: HoldsT, mode: bool = True) -> HoldsT:
        """Set the mode; the next forward sees to the statistics in any case."""
        if self._tgd_statistics is not None:
            self._tgd_statistics.doubt()
        return super().train(mode)

    def _apply(self: HoldsT, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HoldsT:
        if self._tgd_statistics is not None:
            self._tgd_statistics.move(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self._tgd_statistics is not None:
            self._tgd_statistics.doubt()
        self._tgd_put_back()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._tgd_put_back()  # a state_dict can be this module's own, written to
        super()._load_from_state_dict(*args)
        if self._tgd_statistics is not None:
            self._tgd_statistics.take(self)
