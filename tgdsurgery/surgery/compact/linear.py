"""The compact twin of nn.Linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tgdsurgery.surgery.compact.backward_linear import Linear, linear
from tgdsurgery.surgery.compact.channels import run
from tgdsurgery.surgery.compact.filter_base import CompactFilter


class CompactLinear(CompactFilter, nn.Linear):
    """Linear."""

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        if not torch.is_grad_enabled():
            return linear(x, self._tgd_whole("weight"), self._tgd_whole("bias"))
        x = self._tgd_stopped(x)
        if self._tgd_is_plain():
            return self._tgd_masked(linear(x, *self._tgd_plain_tensors()))
        tensors, kept = self._tgd_tensors(x)
        indices = self._tgd_index("rows"), self._tgd_index("needs")
        return run(Linear, *tensors, *indices, kept, self._tgd_compaction.stops_gradient)
