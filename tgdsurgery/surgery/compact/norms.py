"""Compact twins of norms and PReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tgdsurgery.core.masking import along
from tgdsurgery.core.norm_statistics import STATISTICS, mixed
from tgdsurgery.core.torch_private import (
    BatchNorm,
    InstanceNorm,
    check_batch_size,
    in_forward_mode,
    is_traced,
    under_vmap,
)
from tgdsurgery.surgery.compact.backward_norm import Normalised
from tgdsurgery.surgery.compact.backward_prelu import PReLU
from tgdsurgery.surgery.compact.base import Part, Parts
from tgdsurgery.surgery.compact.channels import Select, run
from tgdsurgery.surgery.compact.twin import Compact, Compaction
from tgdsurgery.surgery.held_statistics import Held, HoldsStatistics

# Share of the channels up to which a norm's backward is that of the trainable ones alone.
MAX_GATHERED_SHARE = 0.6


class CompactChannelLayer(Compact):
    """Layers that are cheap enough for the plain backward, or whose channels need each other in it."""

    def _tgd_affine(self) -> tuple[Any, Any]:
        """Weight and bias for the plain layer's op."""
        full = self._tgd_full if torch.is_grad_enabled() else self._tgd_whole
        return full("weight"), full("bias")


class CompactGroupNorm(CompactChannelLayer, nn.GroupNorm):
    """GroupNorm."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        return self._tgd_masked(
            F.group_norm(self._tgd_stopped(x), self.num_groups, *self._tgd_affine(), self.eps)
        )


class CompactLayerNorm(CompactChannelLayer, nn.LayerNorm):
    """LayerNorm."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        shape: Any = self.normalized_shape
        return self._tgd_masked(F.layer_norm(self._tgd_stopped(x), shape, *self._tgd_affine(), self.eps))


class CompactRMSNorm(CompactChannelLayer, nn.RMSNorm):
    """RMSNorm."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        shape: Any = self.normalized_shape
        return self._tgd_masked(F.rms_norm(self._tgd_stopped(x), shape, self._tgd_full("weight"), self.eps))


class CompactPReLU(CompactChannelLayer, nn.PReLU):
    """PReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        x, weight = self._tgd_stopped(x), self._tgd_full("weight")
        return self._tgd_masked(F.prelu(x, weight) if self._tgd_is_plain(x) else run(PReLU, x, weight))

    def _tgd_is_plain(self, x: Tensor) -> bool:
        """Whether torch's own backward is used, which is slow on a CPU only."""
        slow = (
            x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and torch.is_grad_enabled()
        )
        return not slow or torch.compiler.is_compiling() or is_traced() or in_forward_mode()


class CompactNorm(HoldsStatistics, CompactChannelLayer):
    """Norms that normalise each channel by itself: the backward is compact.

    They may keep running statistics. In training, frozen channels can use the stored ones.
    """

    running_mean: Any  # a tensor, or None
    running_var: Any
    weight: Any
    bias: Any
    eps: float
    _tgd_by_sample = (
        False  # whether each sample is normalised by itself: then statistics are (B C,), else (C,)
    )

    def _tgd_normalise(self, x: Tensor) -> Tensor:
        """The plain layer's output for x (B, C, *); where it holds, each channel by its own mode."""
        self._tgd_put_back()
        if not (self.training or torch.is_grad_enabled()):
            return self._tgd_run(x, self._tgd_whole("weight"), self._tgd_whole("bias"), training=False)
        x = self._tgd_stopped(x)
        holds = self.training and self._tgd_statistics is not None and self.running_mean is not None
        if not self._tgd_compaction.trainable:
            return self._tgd_run(x, *self._tgd_affine(), training=self.training and not holds)
        if is_traced() or in_forward_mode() or under_vmap():
            return self._tgd_masked(self._tgd_by_mode(x) if holds else self._tgd_run_plain(x))
        if (not holds or x.numel() == 0) and self._tgd_is_plain(x):
            return self._tgd_masked(self._tgd_run_plain(x))
        if holds and self._tgd_is_whole():
            return self._tgd_normalised(*self._tgd_held_whole(x), x, x.detach(), self._tgd_slope())
        part = run(Select, x, self._tgd_index("rows"))
        y, mean, var = (self._tgd_held if holds else self._tgd_moved)(x, part.detach())
        slope = self._tgd_slope() if holds else None
        return self._tgd_normalised(y, mean, var, part, x.detach() if slope is None else x, slope)

    def _tgd_run_plain(self, x: Tensor) -> Tensor:
        return self._tgd_run(x, *self._tgd_affine(), training=self.training)

    def _tgd_by_mode(self, x: Tensor) -> Tensor:
        """The output where frozen channels are held, by ops that torch differentiates in any mode and any batch."""
        stored, affine = dict(zip(STATISTICS, self._tgd_stored(), strict=True)), self._tgd_affine()
        mean, var = (self._tgd_repeated(each, x).clone() for each in stored.values())  # they will move
        by_stored = self._tgd_by_statistics(x, mean, var, *affine)
        moved = {name: each.clone() for name, each in stored.items()}  # autograd keeps what this run uses
        try:
            self._buffers.update(moved)
            by_batch = self._tgd_run(x, *affine, training=True)
        finally:
            self._buffers.update(stored)
        trainable = self._tgd_trainable(x)
        with torch.no_grad():
            for name, each in stored.items():
                each.copy_(mixed(each, moved[name], trainable))
        self._tgd_confirm()
        return torch.where(along(trainable, self._tgd_compaction.channel_axis), by_batch, by_stored)

    def _tgd_trainable(self, x: Tensor) -> Tensor:
        """(C,) True at the trainable channels."""
        frozen = torch.zeros(len(self._tgd_compaction.mask), dtype=torch.bool, device=x.device)
        return frozen.index_fill(0, self._tgd_index("rows"), True)

    def _tgd_normalised(
        self, y: Tensor, mean: Tensor, var: Tensor, part: Tensor, x: Tensor, slope: Tensor | None
    ) -> Tensor:
        indices = self._tgd_index("rows"), self._tgd_index("frozen") if part.shape[1] == x.shape[1] else None
        rows = self._tgd_rows("weight"), self._tgd_rows("bias")
        settings = self._tgd_by_batch(), self._tgd_by_sample, self.eps
        return run(Normalised, y, part, *rows, mean, var, *indices, x, slope, *settings)

    def _tgd_compact(
        self, compaction: Compaction, parts: dict[str, Part], known: Parts | None = None
    ) -> None:
        super()._tgd_compact(compaction, parts, known)
        if compaction.hold and self.running_mean is not None:
            self._tgd_statistics = Held(self, STATISTICS, torch.tensor(compaction.mask))

    def _tgd_unite(self, known: dict[str, nn.Parameter] | None = None) -> None:
        self._tgd_let_go()
        super()._tgd_unite(known)

    def _tgd_index_tensors(self) -> dict[str, Any]:
        """With the frozen channels, where all are handed to the backward."""
        frozen = ~torch.tensor(self._tgd_compaction.mask)
        return {
            **super()._tgd_index_tensors(),
            "frozen": frozen.nonzero().flatten() if self._tgd_is_whole() else None,
        }

    def _tgd_is_whole(self) -> bool:
        """Whether the backward is that of all channels: with most of them trainable, gathering costs more."""
        most = self._tgd_compaction.trainable > MAX_GATHERED_SHARE * len(self._tgd_compaction.mask)
        return most and not self._tgd_by_sample

    def _tgd_is_plain(self, x: Tensor) -> bool:
        """Whether the plain backward is just right, or all there is (no statistics of nothing)."""
        wanted = torch.is_grad_enabled() and self._tgd_compaction.stops_gradient and x.numel() > 0
        return not wanted or self._tgd_is_whole()

    def _tgd_by_batch(self) -> bool:
        """Whether the plain layer uses the statistics of the batch."""
        return self.training or self.running_mean is None

    @torch.no_grad()
    def _tgd_moved(self, x: Tensor, part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The plain layer's output, and the mean and variance that its trainable channels are normalised by."""
        y = self._tgd_run(x, self._tgd_whole("weight"), self._tgd_whole("bias"), training=self.training)
        if self._tgd_by_batch():
            return y, *self._tgd_of_batch(part)
        rows = self._tgd_index("rows")
        mean, var = (self._tgd_repeated(each.index_select(0, rows), x) for each in self._tgd_stored())
        return y, mean, var

    @torch.no_grad()
    def _tgd_held(self, x: Tensor, part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `_tgd_moved`, but frozen channels are normalised by the stored statistics, which stay."""
        check_batch_size(x.size())
        rows, stored = self._tgd_index("rows"), self._tgd_stored()
        moving = [self._tgd_repeated(each.index_select(0, rows), x) for each in stored]
        found = self._tgd_of_batch(part, *moving, momentum=self._tgd_momentum())
        mean, var = (
            self._tgd_placed_among(self._tgd_repeated(each, x), values, rows)
            for each, values in zip(stored, found, strict=True)
        )
        y = self._tgd_by_statistics(x, mean, var, self._tgd_whole("weight"), self._tgd_whole("bias"))
        for each, values in zip(stored, moving, strict=True):
            each.index_copy_(0, rows, self._tgd_averaged(values, x))
        self._tgd_confirm()
        return y, *found

    @torch.no_grad()
    def _tgd_held_whole(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `_tgd_held`, with the mean and variance of all channels, of the frozen ones the stored."""
        check_batch_size(x.size())
        moving = [each.clone() for each in self._tgd_stored()]
        found = self._tgd_of_batch(x, *moving, momentum=self._tgd_momentum())
        trainable = self._tgd_trainable(x)
        mean, var = (
            mixed(each, values, trainable) for each, values in zip(self._tgd_stored(), found, strict=True)
        )
        whole = self._tgd_whole("weight"), self._tgd_whole("bias")
        y = self._tgd_by_statistics(x, mean, var, *whole)
        for each, values in zip(self._tgd_stored(), moving, strict=True):
            each.copy_(mixed(each, values, trainable))
        self._tgd_confirm()
        return y, mean, var

    def _tgd_stored(self) -> tuple[Tensor, Tensor]:
        return self.running_mean, self.running_var

    def _tgd_slope(self) -> Tensor | None:
        """(C,) by how much frozen channels that are held grow with their input; None if their gradient is stopped."""
        if self._tgd_compaction.stops_gradient:
            return None
        slope: Tensor = (self.running_var + self.eps).rsqrt()
        weight = self._tgd_whole("weight")
        return slope if weight is None else slope * weight

    def _tgd_of_batch(self, part: Tensor, *moving: Tensor, momentum: float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel; running ones are moved in place.

        torch gives them in the type of the running ones, which may be finer than that of the images.
        """
        folded = self._tgd_folded(part)
        if not moving:
            like = self._tgd_rows("weight")
            like = part if like is None else like
            moving = like.new_zeros(folded.shape[1]), like.new_ones(folded.shape[1])
        if not torch.compiler.is_compiling():
            mean, var = torch.ops.aten.batch_norm_update_stats(folded, *moving, momentum)
            return mean, var
        # Compilers do not know that op.
        var, mean = torch.var_mean(folded.to(moving[0].dtype), [0, *range(2, folded.dim())], correction=0)
        count = folded.numel() // folded.shape[1]
        moving[0].lerp_(mean, momentum)
        moving[1].lerp_(var * (count / (count - 1)), momentum)
        return mean, var

    def _tgd_placed_among(self, stored: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        """Statistics of all channels, with those of the trainable ones replaced."""
        if not self._tgd_by_sample:
            return stored.index_copy(0, rows, values)
        by_channel = stored.view(-1, len(self._tgd_compaction.mask)), values.view(-1, len(rows))
        return by_channel[0].index_copy(1, rows, by_channel[1]).flatten()

    def _tgd_folded(self, x: Tensor) -> Tensor:
        """x, with the channels that have statistics of their own along axis 1."""
        return x.reshape(1, -1, *x.shape[2:]) if self._tgd_by_sample else x

    def _tgd_repeated(self, values: Tensor, x: Tensor) -> Tensor:
        """Values of each channel for all that have statistics of their own."""
        return values.repeat(len(x)) if self._tgd_by_sample else values

    def _tgd_averaged(self, values: Tensor, x: Tensor) -> Tensor:
        """Back from there: the means over the samples."""
        return values.view(len(x), -1).mean(0) if self._tgd_by_sample else values

    def _tgd_by_statistics(self, x: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any) -> Tensor:
        """x normalised by the given statistics."""
        if self._tgd_by_sample:
            weight, bias = (None if v is None else self._tgd_repeated(v, x) for v in (weight, bias))
        y = F.batch_norm(self._tgd_folded(x), mean, var, weight, bias, False, 0.0, self.eps)
        return y.view(x.shape) if self._tgd_by_sample else y

    def _tgd_run(self, x: Tensor, weight: Any, bias: Any, *, training: bool) -> Tensor:
        """The plain layer's output; its statistics move in training."""
        raise NotImplementedError

    def _tgd_momentum(self) -> float:
        """By how much running statistics move in this step of training."""
        raise NotImplementedError


class CompactBatchNorm(CompactNorm, BatchNorm):
    """BatchNorm1d, BatchNorm2d, BatchNorm3d."""

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output, but for frozen channels that are held."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        return self._tgd_normalise(x)

    def _tgd_run(self, x: Tensor, weight: Any, bias: Any, *, training: bool) -> Tensor:
        statistics = self.running_mean, self.running_var
        momentum = self._tgd_momentum() if training else 0.0
        if training and not self.track_running_stats:
            statistics = None, None
        training = training or self.running_mean is None
        return F.batch_norm(x, *statistics, weight, bias, training, momentum, self.eps)

    def _tgd_momentum(self) -> float:
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum


class CompactInstanceNorm(CompactNorm, InstanceNorm):
    """InstanceNorm1d, InstanceNorm2d, InstanceNorm3d."""

    weight: Any
    bias: Any
    _tgd_by_sample = True

    def _apply_instance_norm(self, x: Tensor) -> Tensor:
        return self._tgd_normalise(x)

    def _tgd_run(self, x: Tensor, weight: Any, bias: Any, *, training: bool) -> Tensor:
        by_batch = training or not self.track_running_stats
        statistics = self.running_mean, self.running_var
        return F.instance_norm(x, *statistics, weight, bias, by_batch, self._tgd_momentum(), self.eps)

    def _tgd_momentum(self) -> float:
        return 0.0 if self.momentum is None else self.momentum
