"""Parts of random networks. Each prints its settings, so that a failing network can be read off its repr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
DROPOUT = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
GLOBAL_POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
LINEAR_MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Residual(nn.Module):
    """x with body(x) added (also in place, or scaled), subtracted or multiplied."""

    FORMS: ClassVar = {
        "add": lambda y, x: y + x,
        "add in place": lambda y, x: y.add_(x),
        "add scaled": lambda y, x: x + 0.5 * y,
        "subtract": lambda y, x: x - y,
        "multiply": lambda y, x: x * y,
    }

    def __init__(self, body: nn.Module, form: str) -> None:
        super().__init__()
        self.body, self.form = body, form

    def forward(self, x: Tensor) -> Tensor:
        return self.FORMS[self.form](self.body(x), x)

    def extra_repr(self) -> str:
        return self.form


class Concat(nn.Module):
    """The outputs of branches side by side; a branch given twice is called twice."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Split(nn.Module):
    """Channels cut into parts, each through its own branch, put together in another order."""

    def __init__(self, sizes: Sequence[int], branches: Sequence[nn.Module], order: Sequence[int]) -> None:
        super().__init__()
        self.sizes, self.order = list(sizes), list(order)
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(part) for branch, part in zip(self.branches, x.split(self.sizes, 1), strict=True)]
        return torch.cat([parts[index] for index in self.order], 1)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, order={self.order}"


class Reorder(nn.Module):
    """Channels in the order of an index, or flipped, rolled or shuffled between groups."""

    def __init__(self, how: str, setting: int | Sequence[int] = 0) -> None:
        super().__init__()
        self.how, self.setting = how, setting

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "flip":
            return x.flip(1)
        if self.how == "roll":
            return x.roll(self.setting, 1)
        if self.how == "index":
            return x[:, self.setting]
        return x.unflatten(1, (self.setting, -1)).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"{self.how}, {self.setting}"


class ChannelGate(nn.Module):
    """Squeeze-excite: every channel multiplied by a number made from all channels."""

    def __init__(self, dims: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.pool = GLOBAL_POOL[dims](1)
        self.squeeze = CONV[dims](channels, hidden, 1)
        self.excite = CONV[dims](hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.silu(self.squeeze(self.pool(x)))))


class SpatialGate(nn.Module):
    """Every position multiplied by a number made from all channels: a gate of one channel."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.score = CONV[dims](channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.score(x))


class Writes(nn.Module):
    """Memory of which layers read parts, and write what they made to others, one after the other.

    Args:
        memory: what is written to: the input itself, or which kind of copy of it.
        steps: for every layer where it reads, where it writes, and how; see `VIEWS` and `WAYS`.
        layers: what is read goes through them.
        clones: whether layers are given copies, as autograd needs it.
    """

    MEMORY: ClassVar = {
        "input": lambda x: x,
        "clone": lambda x: x.clone(),
        "scratch": lambda x: x.new_zeros(x.shape).copy_(x),
        # A copy also where there is one channel, whose memory is in this order as it is.
        "channels last": lambda x: (
            x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
        ),
    }
    VIEWS: ClassVar = {
        "slice": lambda y, start, count: y[:, start : start + count],
        "strided": lambda y, start, count: y[:, start : start + 2 * count - 1 : 2],
        "permuted": lambda y, start, count: y.movedim(1, -1)[..., start : start + count].movedim(-1, 1),
        "nested": lambda y, start, count: y[:, start:].flatten(2)[:, :count].unflatten(2, y.shape[2:]),
    }
    WAYS: ClassVar = {
        "assigned": lambda target, made: target.__setitem__(..., made),
        "copied": lambda target, made: target.copy_(made),
        "added": lambda target, made: target.add_(made, alpha=0.5),
        "added in part": lambda target, made: target[..., 1:].add_(made[..., 1:]),
        "multiplied": lambda target, made: target.mul_(made),
    }

    def __init__(
        self, memory: str, steps: Sequence[tuple], layers: Sequence[nn.Module], *, clones: bool
    ) -> None:
        super().__init__()
        self.memory, self.steps, self.clones = memory, list(steps), clones
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.MEMORY[self.memory](x)
        for (read, write, way), layer in zip(self.steps, self.layers, strict=True):
            part = self._view(y, read)
            self.WAYS[way](self._view(y, write), layer(part.clone() if self.clones else part))
        return y

    def _view(self, y: Tensor, part: tuple[str, int, int]) -> Tensor:
        kind, *where = part
        return self.VIEWS[kind](y, *where)

    def extra_repr(self) -> str:
        return f"{self.memory}, {self.steps}, clones={self.clones}"


class Twice(nn.Module):
    """One module called two times in a row."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.body(x))


class LayerScale(nn.Module):
    """Every channel times a parameter of its own that belongs to no layer class."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma

    def extra_repr(self) -> str:
        return str(tuple(self.gamma.shape))


class ChannelsLast(nn.Module):
    """A module that works on the last axis (LayerNorm, Linear), given the channels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.movedim(1, -1)).movedim(-1, 1)


class Resize(nn.Module):
    """Twice as large, by interpolation."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode=self.mode)

    def extra_repr(self) -> str:
        return self.mode


class Pad(nn.Module):
    """Zeros beside the channels; one element around every spatial axis, cut off by an average of 3."""

    def __init__(self, dims: int, before: int, after: int, mode: str) -> None:
        super().__init__()
        self.spatial, self.channels, self.mode = [1, 1] * dims, [before, after], mode
        self.pool = AVG_POOL[dims](3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, [0, 0] * (len(self.spatial) // 2) + self.channels)
        return self.pool(F.pad(x, self.spatial, mode=self.mode))

    def extra_repr(self) -> str:
        return f"channels={self.channels}, {self.mode}"


class FrozenNorm(nn.Module):
    """As FrozenBatchNorm2d of torchvision and DETR: all four are buffers, and nothing writes to them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(channels) + 0.5)
        self.register_buffer("bias", torch.randn(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        shape = [-1, *[1] * (x.dim() - 2)]
        return x * scale.view(shape) + shift.view(shape)


class NormByHand(nn.Module):
    """A batch norm with an axis of its own; `way` is how it keeps its statistics."""

    affine, eps = True, 1e-5

    def __init__(self, channels: int, axis: int = 1, way: str = "assigned") -> None:
        super().__init__()
        self.axis, self.way = axis, way
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            others = [axis for axis in range(x.dim()) if axis != self.axis % x.dim()]
            mean, var = x.mean(others), x.var(others, correction=0)
            with torch.no_grad():
                if self.way == "assigned":
                    self.running_mean = 0.9 * self.running_mean + 0.1 * mean
                    self.running_var = 0.9 * self.running_var + 0.1 * var
                else:
                    self.running_mean.lerp_(mean, 0.1)
                    self.running_var.lerp_(var, 0.1)
        shape = [-1 if axis == self.axis % x.dim() else 1 for axis in range(x.dim())]
        y = (x - mean.view(shape)) * (var.view(shape) + self.eps).rsqrt()
        return y * self.weight.view(shape) + self.bias.view(shape)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, {self.axis}, {self.way}"
