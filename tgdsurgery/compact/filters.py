"""Compact twins of convolutions and linear layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tgdsurgery.compact.gradients import Convolution, Geometry, Linear, Slicing, linear
from tgdsurgery.compact.parts import run
from tgdsurgery.compact.rows import Compact

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class CompactFilter(Compact):
    """Conv, transposed conv, linear: the backward is compact."""

    weight: Any  # the trainable rows, or all where none is trainable
    bias: Any
    slicing: Slicing

    def divide(self) -> None:
        """And settle how the backward is cut down."""
        super().divide()
        vars(self)["slicing"] = self._slicing()

    def unite(self) -> None:
        """Undo `divide`."""
        super().unite()
        del vars(self)["slicing"]

    def stopped(self, x: Tensor) -> Tensor:
        """The input; detached if no gradient has to get to it."""
        needs = self.compaction.needs
        return super().stopped(x) if needs is None or any(needs) else x.detach()

    def _index_tensors(self) -> dict[str, Any]:
        """With the input channels that trainable rows read, and those that need a gradient."""
        needs = self.compaction.needs
        needed = None if needs is None or all(needs) else torch.tensor(needs).nonzero().flatten()
        return {**super()._index_tensors(), "read": self._read(), "needs": needed}

    def _read(self) -> Tensor | None:
        return None

    def _slicing(self) -> Slicing:
        return Slicing(self.compaction.stops_gradient)

    def _is_plain(self) -> bool:
        """Whether the plain layer's forward and backward are just right."""
        nothing = not self.compaction.trainable and self.index("needs") is None
        return nothing or not torch.is_grad_enabled() or torch.compiler.is_exporting()

    def _tensors(self, x: Tensor) -> list[Tensor | None]:
        """x, rows, bias rows, weight and bias, as the compact functions take them."""
        rows = [self.weight, self.bias] if self.compaction.trainable else [None, None]
        # Where the backward needs the weight, autograd keeps it: it must be one that is not written to later.
        weight = self.whole("weight") if self.slicing.by_rows else self.full("weight")
        return _autocast([x, *rows, weight, self.whole("bias")])

    def _plain_tensors(self) -> tuple[Any, Any]:
        """Weight and bias for the plain layer's kernel."""
        kept = torch.is_grad_enabled()
        return (self.full if kept else self.whole)("weight"), (self.full if kept else self.whole)("bias")


class CompactConv(CompactFilter, _ConvNd):
    """Conv1d, Conv2d, Conv3d."""

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        x = self.stopped(x)
        spatial = len(self.kernel_size)
        if self._is_plain() or x.dim() not in (spatial + 1, spatial + 2):
            return self._conv_forward(x, *self._plain_tensors())
        x, padding = self._padded(x)
        return self._convolve(x, padding, self.output_padding)

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The input with all padding that the kernel itself cannot do, and the padding that it does."""
        none = (0,) * len(self.kernel_size)
        if self.padding_mode != "zeros":
            return F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), none
        if isinstance(self.padding, tuple):
            return x, self.padding
        pads = self._reversed_padding_repeated_twice  # left and right, the last axis first
        both = [min(pair) for pair in zip(pads[::2], pads[1::2], strict=True)]
        rest = [pad - both[i // 2] for i, pad in enumerate(pads)]
        return F.pad(x, rest) if any(rest) else x, tuple(reversed(both))

    def _convolve(self, x: Tensor, padding: Any, output_padding: Any) -> Tensor:
        batched = x.dim() == len(self.kernel_size) + 2
        tensors = self._tensors(x if batched else x.unsqueeze(0))
        geometry = Geometry(
            self.stride, padding, self.dilation, self.transposed, tuple(output_padding), self.groups
        )
        indices = (self.index(name) for name in ("rows", "read", "needs"))
        y = run(Convolution, *tensors, *indices, geometry, self.slicing)
        return y if batched else y.squeeze(0)

    def _rows_per_group(self) -> list[int]:
        mask, size = self.compaction.mask, self.out_channels // self.groups
        return [sum(mask[start : start + size]) for start in range(0, self.out_channels, size)]

    def _slicing(self) -> Slicing:
        """Channels are gathered, unless some groups have more trainable rows than others.

        Measured on one CPU core, the plain kernels and a selection afterwards were never faster, whatever the
        share of trainable rows; neither form gains anything from about 0.9 of them on.
        """
        filled = [count for count in self._rows_per_group() if count]
        gathers = len(set(filled)) <= 1
        return Slicing(self.compaction.stops_gradient, gathers, len(filled) if gathers else self.groups)

    def _read(self) -> Tensor | None:
        counts = torch.tensor(self._rows_per_group())
        if counts.all() or not counts.any():
            return None
        return (counts > 0).repeat_interleave(self.in_channels // self.groups).nonzero().flatten()


class CompactConvTranspose(CompactConv, _ConvTransposeNd):
    """ConvTranspose1d, ConvTranspose2d, ConvTranspose3d."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The plain layer's output."""
        x = self.stopped(x)
        spatial = len(self.kernel_size)
        args: Any = (self.stride, self.padding, self.kernel_size, spatial, self.dilation)
        output_padding: Any = self._output_padding(x, output_size, *args)
        if not self._is_plain() and x.dim() in (spatial + 1, spatial + 2):
            return self._convolve(x, self.padding, output_padding)
        args = (self.stride, self.padding, output_padding, self.groups, self.dilation)
        y: Tensor = _TRANSPOSED[spatial](x, *self._plain_tensors(), *args)
        return y


class CompactLinear(CompactFilter, nn.Linear):
    """Linear."""

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        x = self.stopped(x)
        if self._is_plain():
            return linear(x, *self._plain_tensors())
        return run(Linear, *self._tensors(x), self.index("rows"), self.index("needs"), self.slicing)


def _autocast(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """What autocast makes of the arguments of a conv: torch does not look into our own functions."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]
