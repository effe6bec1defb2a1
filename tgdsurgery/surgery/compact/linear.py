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
            return linear(x, self.whole("weight"), self.whole("bias"))
        x = self.stopped(x)
        if self._is_plain():
            return linear(x, *self._plain_tensors())
        return run(
            Linear, *self._tensors(x), self.index("rows"), self.index("needs"), self.compaction.stops_gradient
        )
