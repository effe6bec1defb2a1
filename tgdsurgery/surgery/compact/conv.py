"""Compact twins of convolutions, plain and transposed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tgdsurgery.core.torch_private import ConvNd, ConvTransposeNd
from tgdsurgery.surgery.compact.backward_conv import Convolution, Geometry
from tgdsurgery.surgery.compact.base import Part, Parts
from tgdsurgery.surgery.compact.channels import run
from tgdsurgery.surgery.compact.filter_base import CompactFilter
from tgdsurgery.surgery.compact.gain import Gain, gain
from tgdsurgery.surgery.compact.twin import Compaction

# What the backward needs to know of the channels.
INDICES = ("rows", "read", "needs", "passing", "reached")
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class CompactConv(CompactFilter, ConvNd):
    """Conv1d, Conv2d, Conv3d."""

    _tgd_gain: Gain | None

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        if not torch.is_grad_enabled():
            return self._conv_forward(x, self._tgd_whole("weight"), self._tgd_whole("bias"))
        x = self._tgd_stopped(x)
        spatial = len(self.kernel_size)
        if self._tgd_is_plain() or x.dim() not in (spatial + 1, spatial + 2) or not self._tgd_gathers(x):
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
        indices = (self._tgd_index(name) for name in INDICES)
        y = run(Convolution, *tensors, *indices, geometry, kept, self._tgd_compaction.stops_gradient)
        return y if batched else y.squeeze(0)

    def _tgd_index_tensors(self) -> dict[str, Any]:
        """With what the backward needs to know of the channels."""
        needs, indices = self._tgd_compaction.needs, super()._tgd_index_tensors()
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

    def _tgd_gathers(self, x: Tensor) -> bool:
        """Whether the backward is compact: else it is the plain one, of all channels."""
        known = self._tgd_gain
        return known is not None and known.pays(x.numel() // self.in_channels, x.requires_grad)

    def _tgd_compact(
        self, compaction: Compaction, parts: dict[str, Part], known: Parts | None = None
    ) -> None:
        super()._tgd_compact(compaction, parts, known)
        # A compact backward cannot be, if groups have unequal numbers of trainable channels.
        possible = len({count for count in self._tgd_rows_per_group() if count}) <= 1
        vars(self)["_tgd_gain"] = gain(self, compaction, "read" not in self._tgd_kept) if possible else None

    def _tgd_unite(self, known: dict[str, nn.Parameter] | None = None) -> None:
        super()._tgd_unite(known)
        del vars(self)["_tgd_gain"]


class CompactConvTranspose(CompactConv, ConvTransposeNd):
    """ConvTranspose1d, ConvTranspose2d, ConvTranspose3d."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The plain layer's output."""
        x = self._tgd_stopped(x)
        spatial = len(self.kernel_size)
        args: Any = (self.stride, self.padding, self.kernel_size, spatial, self.dilation)
        output_padding: Any = self._output_padding(x, output_size, *args)
        compact = not self._tgd_is_plain() and x.dim() in (spatial + 1, spatial + 2)
        if compact and self._tgd_gathers(x):
            return self._tgd_convolve(x, self.padding, output_padding)
        args = (self.stride, self.padding, output_padding, self.groups, self.dilation)
        return self._tgd_masked(_TRANSPOSED[spatial](x, *self._tgd_plain_tensors(), *args))
