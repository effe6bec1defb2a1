"""Compact twins of convolutions, plain and transposed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tgdsurgery.core.torch_private import ConvNd, ConvTransposeNd
from tgdsurgery.surgery.compact.backward_conv import Convolution, Geometry, WholeConvolution
from tgdsurgery.surgery.compact.channels import run
from tgdsurgery.surgery.compact.filter_base import CompactFilter

# What the backward needs to know of the channels, if it gathers the trainable ones, and if not.
GATHERING = ("rows", "read", "needs", "passing", "reached")
WHOLE = ("rows", "unneeded")
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class CompactConv(CompactFilter, ConvNd):
    """Conv1d, Conv2d, Conv3d."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        if not torch.is_grad_enabled():
            return self._conv_forward(x, self._tgd_whole("weight"), self._tgd_whole("bias"))
        x = self._tgd_stopped(x)
        spatial = len(self.kernel_size)
        if self._tgd_is_plain() or x.dim() not in (spatial + 1, spatial + 2):
            return self._tgd_masked(self._conv_forward(x, *self._tgd_plain_tensors()))
        x, padding = self._tgd_pad_input(x)
        return self._tgd_convolve(x, padding, self.output_padding)

    def _tgd_pad_input(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The input with all padding that torch's op cannot do itself, and the padding that it does."""
        none = (0,) * len(self.kernel_size)
        if self.padding_mode != "zeros":
            return F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), none
        if isinstance(self.padding, tuple):
            return x, self.padding
        pads = self._reversed_padding_repeated_twice  # left and right, the last axis first
        both = [min(pair) for pair in zip(pads[::2], pads[1::2], strict=True)]
        rest = [pad - both[i // 2] for i, pad in enumerate(pads)]
        return F.pad(x, rest) if any(rest) else x, tuple(reversed(both))

    def _tgd_convolve(self, x: Tensor, padding: Any, output_padding: Any) -> Tensor:
        batched = x.dim() == len(self.kernel_size) + 2
        tensors, kept = self._tgd_tensors(x if batched else x.unsqueeze(0))
        geometry = Geometry(
            self.stride, padding, self.dilation, self.transposed, tuple(output_padding), self.groups
        )
        whole = "unneeded" in self._tgd_placed
        way, names = (WholeConvolution, WHOLE) if whole else (Convolution, GATHERING)
        indices = (self._tgd_index(name) for name in names)
        y = run(way, *tensors, *indices, geometry, kept, self._tgd_compaction.stops_gradient)
        return y if batched else y.squeeze(0)

    def _tgd_index_tensors(self) -> dict[str, Any]:
        """With what the backward needs to know of the channels."""
        needs, indices = self._tgd_compaction.needs, super()._tgd_index_tensors()
        if not self._tgd_gathers():
            unneeded = [index for index, needed in enumerate(needs or ()) if not needed]
            return {**indices, "unneeded": torch.tensor(unneeded, dtype=torch.int64)}
        counts, size = torch.tensor(self._tgd_rows_per_group()), self.in_channels // self.groups
        filled = counts > 0
        if filled.any() and not filled.all():
            indices["read"] = filled.repeat_interleave(size).nonzero().flatten()
        if self.groups > 1 and needs is not None:
            reached = filled & torch.tensor(needs).view(-1, size).any(1)
            if not torch.equal(reached, filled):
                indices["passing"] = reached.repeat_interleave(counts).nonzero().flatten()
                indices["reached"] = reached.repeat_interleave(size).nonzero().flatten()
        return indices

    def _tgd_rows_per_group(self) -> list[int]:
        mask, size = self._tgd_compaction.mask, self.out_channels // self.groups
        return [sum(mask[start : start + size]) for start in range(0, self.out_channels, size)]

    def _tgd_gathers(self) -> bool:
        """Whether the backward gathers the trainable channels first: it cannot, if the groups have unequal numbers.

        On one CPU core the plain backward of all channels was not faster for any share of them, up to 0.9.
        """
        return len({count for count in self._tgd_rows_per_group() if count}) <= 1


class CompactConvTranspose(CompactConv, ConvTransposeNd):
    """ConvTranspose1d, ConvTranspose2d, ConvTranspose3d."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The plain layer's output."""
        x = self._tgd_stopped(x)
        spatial = len(self.kernel_size)
        args: Any = (self.stride, self.padding, self.kernel_size, spatial, self.dilation)
        output_padding: Any = self._output_padding(x, output_size, *args)
        if not self._tgd_is_plain() and x.dim() in (spatial + 1, spatial + 2):
            return self._tgd_convolve(x, self.padding, output_padding)
        args = (self.stride, self.padding, output_padding, self.groups, self.dilation)
        return self._tgd_masked(_TRANSPOSED[spatial](x, *self._tgd_plain_tensors(), *args))
