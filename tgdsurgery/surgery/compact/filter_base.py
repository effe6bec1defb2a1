"""What the compact convolutions and linear layers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tgdsurgery.core.torch_private import in_forward_mode, is_traced
from tgdsurgery.surgery.compact.twin import Compact
from tgdsurgery.surgery.compact.weight_cache import Kept


class CompactFilter(Compact):
    """Conv, transposed conv, linear: the backward is compact."""

    def _tgd_stopped(self, x: Tensor) -> Tensor:
        """The input; detached if no gradient has to get to it."""
        needs = self._tgd_compaction.needs
        return super()._tgd_stopped(x) if needs is None or any(needs) else x.detach()

    def _tgd_index_tensors(self) -> dict[str, Any]:
        """With the input channels that need a gradient."""
        needs = self._tgd_compaction.needs
        needed = None if needs is None or all(needs) else torch.tensor(needs).nonzero().flatten()
        return {**super()._tgd_index_tensors(), "needs": needed}

    def _tgd_is_plain(self) -> bool:
        """Whether the plain layer's forward and backward can be used unchanged."""
        nothing = not self._tgd_compaction.trainable and self._tgd_index("needs") is None
        return nothing or not torch.is_grad_enabled() or is_traced() or in_forward_mode()

    def _tgd_tensors(self, x: Tensor) -> tuple[list[Tensor | None], Kept | None]:
        """x, rows, bias rows, weight and bias, as the compact functions take them, and what is kept of the weight."""
        rows = self._tgd_rows("weight"), self._tgd_rows("bias")
        if self._tgd_compaction.stops_gradient:  # then the backward needs the rows alone
            weight, kept = self._tgd_whole("weight"), None
        else:
            weight, kept = self._tgd_whole_kept("weight")
        return autocasted([x, *rows, weight, self._tgd_whole("bias")]), kept

    def _tgd_plain_tensors(self) -> tuple[Any, Any]:
        """Weight and bias for the plain layer's op."""
        tensor = self._tgd_full if torch.is_grad_enabled() else self._tgd_whole
        return tensor("weight"), tensor("bias")


def autocasted(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """What autocast makes of the arguments of a conv: torch does not look into our own functions."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]
