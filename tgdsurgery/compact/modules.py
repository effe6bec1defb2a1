"""Compact twins of torch's own layers: each differs from its original only in where its rows are kept.

The class of a compact module is a subclass of its original's class, so `isinstance` still holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from tgdsurgery.compact.gradients import Convolution, Geometry, Linear, Slicing, linear
from tgdsurgery.compact.parts import Merge, Select, run
from tgdsurgery.compact.rows import Compact, memory_format
from tgdsurgery.layers import mask_gradient

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class CompactFilter(Compact):
    """Conv, transposed conv, linear: the backward is compact."""

    weight: Any  # the trainable rows, or all where none is trainable
    bias: Any
    read_inputs: Tensor | None
    needed_inputs: Tensor | None
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

    def indices(self) -> dict[str, Tensor | None]:
        """With the input channels that trainable rows read, and those that need a gradient."""
        needs = self.compaction.needs
        needed = None if needs is None or all(needs) else torch.tensor(needs).nonzero().flatten()
        return {**super().indices(), "read_inputs": self._read(), "needed_inputs": needed}

    def _read(self) -> Tensor | None:
        return None

    def _slicing(self) -> Slicing:
        return Slicing(self.compaction.stops_gradient)

    def _is_plain(self) -> bool:
        """Whether the plain layer's forward and backward are just right."""
        nothing = not self.compaction.trainable and self.needed_inputs is None
        return nothing or not torch.is_grad_enabled() or torch.compiler.is_exporting()

    def _tensors(self, x: Tensor) -> list[Tensor | None]:
        """x, rows, bias rows, weight and bias, as the compact functions take them."""
        rows = [self.weight, self.bias] if self.compaction.trainable else [None, None]
        with torch.set_grad_enabled(not self.slicing.by_rows):
            weight = self.full("weight")
        with torch.no_grad():
            bias = self.full("bias")
        return _autocast([x, *rows, weight, bias])


class CompactConv(CompactFilter, _ConvNd):
    """Conv1d, Conv2d, Conv3d."""

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        x = self.stopped(x)
        spatial = len(self.kernel_size)
        if self._is_plain() or x.dim() not in (spatial + 1, spatial + 2):
            return self._conv_forward(x, self.full("weight"), self.full("bias"))
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
        indices = self.trainable_rows, self.read_inputs, self.needed_inputs
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
        weight, bias = self.full("weight"), self.full("bias")
        args = (self.stride, self.padding, output_padding, self.groups, self.dilation)
        y: Tensor = _TRANSPOSED[spatial](x, weight, bias, *args)
        return y


class CompactLinear(CompactFilter, nn.Linear):
    """Linear."""

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        x = self.stopped(x)
        if self._is_plain():
            return linear(x, self.full("weight"), self.full("bias"))
        return run(Linear, *self._tensors(x), self.trainable_rows, self.needed_inputs, self.slicing)


class CompactCarrier(Compact):
    """Norms and PReLU: cheap enough for the plain backward; the affine parameters are joined on the way."""

    trainable_mask: Tensor | None

    def indices(self) -> dict[str, Tensor | None]:
        """With the mask of the output's gradient, if there is one."""
        masks = self.compaction.stops_gradient and self.compaction.trainable
        return {**super().indices(), "trainable_mask": torch.tensor(self.compaction.mask) if masks else None}

    def masked(self, y: Tensor) -> Tensor:
        """The output, with the gradient of frozen channels stopped."""
        mask = self.trainable_mask
        return y if mask is None else mask_gradient(y, mask, self.compaction.channel_axis)


class CompactGroupNorm(CompactCarrier, nn.GroupNorm):
    """GroupNorm."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        y = F.group_norm(self.stopped(x), self.num_groups, self.full("weight"), self.full("bias"), self.eps)
        return self.masked(y)


class CompactLayerNorm(CompactCarrier, nn.LayerNorm):
    """LayerNorm."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        shape: Any = self.normalized_shape
        return self.masked(
            F.layer_norm(self.stopped(x), shape, self.full("weight"), self.full("bias"), self.eps)
        )


class CompactRMSNorm(CompactCarrier, nn.RMSNorm):
    """RMSNorm."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        shape: Any = self.normalized_shape
        return self.masked(F.rms_norm(self.stopped(x), shape, self.full("weight"), self.eps))


class CompactPReLU(CompactCarrier, nn.PReLU):
    """PReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        return self.masked(F.prelu(self.stopped(x), self.full("weight")))


class CompactNorm(CompactCarrier):
    """Norms that may keep running statistics: in training, frozen channels can use the stored ones."""

    running_mean: Any  # a tensor, or None
    running_var: Any
    weight: Any
    bias: Any

    def normalise(self, x: Tensor) -> Tensor:
        """The plain layer's output for x (B, C, *); where it holds, each channel by its own mode."""
        x = self.stopped(x)
        statistics = self.running_mean, self.running_var
        if not (self.training and self.compaction.hold and self.running_mean is not None):
            y = self._run(x, *statistics, self.full("weight"), self.full("bias"), training=self.training)
            return self.masked(y)
        if not self.compaction.trainable:
            return self._run(x, *statistics, self.weight, self.bias, training=False)
        return self._run_parts(x)

    def _run_parts(self, x: Tensor) -> Tensor:
        at, elsewhere = self.trainable_rows, self.frozen_rows
        mean, var = _rows(self.running_mean, at), _rows(self.running_var, at)
        moving = self._run(run(Select, x, at), mean, var, self.weight, self.bias, training=True)
        with torch.no_grad():
            for buffer, moved in ((self.running_mean, mean), (self.running_var, var)):
                buffer.index_copy_(0, at, moved)
        mean, var = _rows(self.running_mean, elsewhere), _rows(self.running_var, elsewhere)
        affine = [getattr(self, f"frozen_{name}", None) for name in ("weight", "bias")]
        rest = x.detach() if self.compaction.stops_gradient else x
        held = self._run(run(Select, rest, elsewhere), mean, var, *affine, training=False)
        return run(Merge, held, elsewhere, moving, at, self._output_format(x))

    def _run(
        self,
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        training: bool,
    ) -> Tensor:
        raise NotImplementedError

    def _output_format(self, x: Tensor) -> torch.memory_format:
        return memory_format(x)


class CompactBatchNorm(CompactNorm, _BatchNorm):
    """BatchNorm1d, BatchNorm2d, BatchNorm3d."""

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output, but for frozen channels that are held."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        return self.normalise(x)

    def _run(self, x: Any, mean: Any, var: Any, weight: Any, bias: Any, *, training: bool) -> Tensor:
        factor = 0.0 if self.momentum is None else self.momentum
        if training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        if training and not self.track_running_stats:
            mean = var = None
        training = training or mean is None
        return F.batch_norm(x, mean, var, weight, bias, training, factor, self.eps)


class CompactInstanceNorm(CompactNorm, _InstanceNorm):
    """InstanceNorm1d, InstanceNorm2d, InstanceNorm3d."""

    weight: Any
    bias: Any

    def _apply_instance_norm(self, x: Tensor) -> Tensor:
        return self.normalise(x)

    def _run(self, x: Any, mean: Any, var: Any, weight: Any, bias: Any, *, training: bool) -> Tensor:
        training = training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        return F.instance_norm(x, mean, var, weight, bias, training, momentum, self.eps)

    def _output_format(self, x: Tensor) -> torch.memory_format:
        return torch.contiguous_format


def _rows(statistics: Tensor | None, index: Tensor) -> Tensor | None:
    return None if statistics is None else statistics.index_select(0, index)


def _autocast(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """What autocast makes of the arguments of a conv: torch does not look into our own functions."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


_TWINS: dict[type[Compact], tuple[type[nn.Module], ...]] = {
    CompactConv: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    CompactConvTranspose: (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    CompactLinear: (nn.Linear,),
    CompactBatchNorm: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    CompactInstanceNorm: (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    CompactGroupNorm: (nn.GroupNorm,),
    CompactLayerNorm: (nn.LayerNorm,),
    CompactRMSNorm: (nn.RMSNorm,),
    CompactPReLU: (nn.PReLU,),
}
TWINS: dict[type[nn.Module], type[Compact]] = {}
for _twin, _originals in _TWINS.items():
    for _original in _originals:
        _name = f"Compact{_original.__name__}"
        TWINS[_original] = _twin
        if _name != _twin.__name__:
            # A class of its own for each, under its name in this module, where pickle finds it.
            TWINS[_original] = type(_name, (_twin, _original), {"__module__": __name__})
            globals()[_name] = TWINS[_original]
        TWINS[_original].original_class = _original
