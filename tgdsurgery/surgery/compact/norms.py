"""Compact twins of norms and PReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tgdsurgery.core.masking import mask_gradient
from tgdsurgery.core.torch_private import BatchNorm, InstanceNorm, check_batch_size
from tgdsurgery.surgery.compact.backward_norm import Normalised
from tgdsurgery.surgery.compact.base import Compact
from tgdsurgery.surgery.compact.channels import Select, run

# Share of the channels up to which a norm's backward is that of the trainable ones alone.
GATHERED = 0.6


class CompactChannelLayer(Compact):
    """Layers that are cheap enough for the plain backward, or whose channels need each other in it."""

    def _index_tensors(self) -> dict[str, Any]:
        """With the mask of the output's gradient, if there is one."""
        masks = self.compaction.stops_gradient and self.compaction.trainable
        return {**super()._index_tensors(), "mask": torch.tensor(self.compaction.mask) if masks else None}

    def masked(self, y: Tensor) -> Tensor:
        """The output, with the gradient of frozen channels stopped."""
        if not y.requires_grad or (mask := self.index("mask")) is None:
            return y
        return mask_gradient(y, mask, self.compaction.channel_axis)

    def joined(self) -> tuple[Any, Any]:
        """Weight and bias for the plain layer's kernel."""
        full = self.full if torch.is_grad_enabled() else self.whole
        return full("weight"), full("bias")


class CompactGroupNorm(CompactChannelLayer, nn.GroupNorm):
    """GroupNorm."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        return self.masked(F.group_norm(self.stopped(x), self.num_groups, *self.joined(), self.eps))


class CompactLayerNorm(CompactChannelLayer, nn.LayerNorm):
    """LayerNorm."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        shape: Any = self.normalized_shape
        return self.masked(F.layer_norm(self.stopped(x), shape, *self.joined(), self.eps))


class CompactRMSNorm(CompactChannelLayer, nn.RMSNorm):
    """RMSNorm."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        shape: Any = self.normalized_shape
        return self.masked(F.rms_norm(self.stopped(x), shape, self.full("weight"), self.eps))


class CompactPReLU(CompactChannelLayer, nn.PReLU):
    """PReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        return self.masked(F.prelu(self.stopped(x), self.full("weight")))


class CompactNorm(CompactChannelLayer):
    """Norms that normalise each channel by itself: the backward is compact.

    They may keep running statistics. In training, frozen channels can use the stored ones.
    """

    running_mean: Any  # a tensor, or None
    running_var: Any
    weight: Any
    bias: Any
    eps: float
    by_sample = False  # whether each sample is normalised by itself: then statistics are (B C,), else (C,)

    def normalise(self, x: Tensor) -> Tensor:
        """The plain layer's output for x (B, C, *); where it holds, each channel by its own mode."""
        if not (self.training or torch.is_grad_enabled()):
            return self._run(x, self.whole("weight"), self.whole("bias"), training=False)
        x = self.stopped(x)
        holds = self.training and self.compaction.hold and self.running_mean is not None
        if not self.compaction.trainable:
            return self._run(x, *self.joined(), training=self.training and not holds)
        if (not holds or x.numel() == 0) and self._is_plain(x):
            return self.masked(self._run(x, *self.joined(), training=self.training))
        if holds and self._is_whole():
            return self._normalised(*self._held_whole(x), x, x.detach(), None)
        part = run(Select, x, self.index("rows"))
        y, mean, var = (self._held if holds else self._moved)(x, part.detach())
        if holds and not self.compaction.stops_gradient:
            return self._normalised(y, mean, var, part, x, self._slope())
        return self._normalised(y, mean, var, part, x.detach(), None)

    def _normalised(
        self, y: Tensor, mean: Tensor, var: Tensor, part: Tensor, x: Tensor, slope: Tensor | None
    ) -> Tensor:
        indices = self.index("rows"), self.index("frozen") if part.shape[1] == x.shape[1] else None
        settings = self._by_batch(), self.by_sample, self.eps
        return run(Normalised, y, part, self.weight, self.bias, mean, var, *indices, x, slope, *settings)

    def reset_running_stats(self) -> None:
        """Of the trainable channels only, where the others are held (torch's `update_bn` calls it)."""
        holds = self.compaction.hold and self.running_mean is not None
        if holds and not self.compaction.trainable:
            return
        before = [each.clone() for each in self._stored()] if holds else []
        super().reset_running_stats()  # type: ignore[misc]
        for each, values in zip(self._stored(), before, strict=False):
            each.copy_(values.index_copy(0, self.index("rows"), each[self.index("rows")]))

    def _index_tensors(self) -> dict[str, Any]:
        """With the frozen channels, where all are handed to the backward."""
        frozen = ~torch.tensor(self.compaction.mask)
        return {
            **super()._index_tensors(),
            "frozen": frozen.nonzero().flatten() if self._is_whole() else None,
        }

    def _is_whole(self) -> bool:
        """Whether the backward is that of all channels: with most of them trainable, gathering costs more."""
        most = self.compaction.trainable > GATHERED * len(self.compaction.mask)
        return most and self.compaction.stops_gradient and not self.by_sample

    def _is_plain(self, x: Tensor) -> bool:
        """Whether the plain backward is just right, or all there is (no statistics of nothing)."""
        wanted = torch.is_grad_enabled() and self.compaction.stops_gradient and x.numel() > 0
        return not wanted or self._is_whole() or torch.compiler.is_exporting()

    def _by_batch(self) -> bool:
        """Whether the plain layer uses the statistics of the batch."""
        return self.training or self.running_mean is None

    @torch.no_grad()
    def _moved(self, x: Tensor, part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The plain layer's output, and the mean and variance that its trainable channels are normalised by."""
        y = self._run(x, self.whole("weight"), self.whole("bias"), training=self.training)
        if self._by_batch():
            return y, *self._of_batch(part)
        mean, var = (self._repeated(each[self.index("rows")], x) for each in self._stored())
        return y, mean, var

    @torch.no_grad()
    def _held(self, x: Tensor, part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `_moved`, but frozen channels are normalised by the stored statistics, which stay."""
        check_batch_size(x.size())
        moving = [self._repeated(each[self.index("rows")], x) for each in self._stored()]
        mean, var = self._of_batch(part, *moving, momentum=self._momentum())
        mixed_mean = self._placed(self._repeated(self.running_mean, x), mean)
        mixed_var = self._placed(self._repeated(self.running_var, x), var)
        y = self._by_statistics(x, mixed_mean, mixed_var, self.whole("weight"), self.whole("bias"))
        for each, values in zip(self._stored(), moving, strict=True):
            each.index_copy_(0, self.index("rows"), values.view(-1, len(self.index("rows"))).mean(0))
        return y, mean, var

    @torch.no_grad()
    def _held_whole(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `_held`, with the mean and variance of all channels, of the frozen ones the stored."""
        check_batch_size(x.size())
        moving = [each.clone() for each in self._stored()]
        found = self._of_batch(x, *moving, momentum=self._momentum())
        rows = self.index("rows")
        mean, var = (
            each.index_copy(0, rows, values[rows]) for each, values in zip(self._stored(), found, strict=True)
        )
        y = self._by_statistics(x, mean, var, self.whole("weight"), self.whole("bias"))
        for each, values in zip(self._stored(), moving, strict=True):
            each.index_copy_(0, rows, values[rows])
        return y, mean, var

    def _stored(self) -> tuple[Tensor, Tensor]:
        return self.running_mean, self.running_var

    def _slope(self) -> Tensor:
        """(C,) by how much frozen channels grow with their input; 0 for the others."""
        weight = 1.0 if self.weight is None else self.whole("weight")
        slope: Tensor = weight * (self.running_var + self.eps).rsqrt()
        return slope.index_fill(0, self.index("rows"), 0.0)

    def _of_batch(self, part: Tensor, *moving: Tensor, momentum: float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel; running ones are moved in place.

        torch gives them in the type of the running ones, which may be finer than that of the images.
        """
        folded = self._folded(part)
        if not moving:
            like = part if self.weight is None else self.weight
            moving = like.new_zeros(folded.shape[1]), like.new_ones(folded.shape[1])
        if not torch.compiler.is_compiling():
            mean, var = torch.ops.aten.batch_norm_update_stats(folded, *moving, momentum)
            return mean, var
        # Compilers do not know that kernel.
        var, mean = torch.var_mean(folded.to(moving[0].dtype), [0, *range(2, folded.dim())], correction=0)
        count = folded.numel() // folded.shape[1]
        moving[0].lerp_(mean, momentum)
        moving[1].lerp_(var * (count / (count - 1)), momentum)
        return mean, var

    def _placed(self, stored: Tensor, values: Tensor) -> Tensor:
        """Statistics of all channels, with those of the trainable ones replaced."""
        by_channel = stored.view(-1, len(self.compaction.mask)), values.view(-1, len(self.index("rows")))
        return by_channel[0].index_copy(1, self.index("rows"), by_channel[1]).flatten()

    def _folded(self, x: Tensor) -> Tensor:
        """x, with the channels that have statistics of their own along axis 1."""
        return x.reshape(1, -1, *x.shape[2:]) if self.by_sample else x

    def _repeated(self, values: Tensor, x: Tensor) -> Tensor:
        """Values of each channel for all that have statistics of their own: a copy."""
        return values.repeat(len(x)) if self.by_sample else values.clone()

    def _by_statistics(self, x: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any) -> Tensor:
        """x normalised by the given statistics."""
        if self.by_sample:
            weight, bias = (None if v is None else self._repeated(v, x) for v in (weight, bias))
        y = F.batch_norm(self._folded(x), mean, var, weight, bias, False, 0.0, self.eps)
        return y.view(x.shape) if self.by_sample else y

    def _run(self, x: Tensor, weight: Any, bias: Any, *, training: bool) -> Tensor:
        """The plain layer's output; its statistics move in training."""
        raise NotImplementedError

    def _momentum(self) -> float:
        """By how much running statistics move in this step of training."""
        raise NotImplementedError


class CompactBatchNorm(CompactNorm, BatchNorm):
    """BatchNorm1d, BatchNorm2d, BatchNorm3d."""

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output, but for frozen channels that are held."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        return self.normalise(x)

    def _run(self, x: Tensor, weight: Any, bias: Any, *, training: bool) -> Tensor:
        statistics = self.running_mean, self.running_var
        momentum = self._momentum() if training else 0.0
        if training and not self.track_running_stats:
            statistics = None, None
        training = training or self.running_mean is None
        return F.batch_norm(x, *statistics, weight, bias, training, momentum, self.eps)

    def _momentum(self) -> float:
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum


class CompactInstanceNorm(CompactNorm, InstanceNorm):
    """InstanceNorm1d, InstanceNorm2d, InstanceNorm3d."""

    weight: Any
    bias: Any
    by_sample = True

    def _apply_instance_norm(self, x: Tensor) -> Tensor:
        return self.normalise(x)

    def _run(self, x: Tensor, weight: Any, bias: Any, *, training: bool) -> Tensor:
        by_batch = training or not self.track_running_stats
        statistics = self.running_mean, self.running_var
        return F.instance_norm(x, *statistics, weight, bias, by_batch, self._momentum(), self.eps)

    def _momentum(self) -> float:
        return 0.0 if self.momentum is None else self.momentum
