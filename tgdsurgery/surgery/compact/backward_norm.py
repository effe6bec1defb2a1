"""The compact backward of norms that normalise each channel by itself: batch norm, instance norm.

The forward is the plain layer's: one op on all channels. The backward is that of the trainable channels,
which need no other; where they are most of them, it is computed for all and replaced at the others. It is
written in differentiable ops, so gradients of gradients work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tgdsurgery.surgery.compact.channels import place_, quick, select
from tgdsurgery.surgery.compact.layout import memory_format


@quick
class Normalised(torch.autograd.Function):
    """`y`, all channels normalised, with the gradient of the trainable ones.

    Args of `apply`:
        y: (B, C, *) what the plain layer's op gave; not to be used again.
        part: (B, n, *) the trainable channels of its input, or all of it; gets the gradient where `x` does not.
        rows, bias_rows: (n,) their affine parameters, or None.
        mean, var: (n,) or, of an instance norm, (B n,): what the channels of `part` were normalised by.
        trainable: (n,) which channels are trainable.
        frozen: (C - n,) the others, if `part` is all of the input; else None.
        x: (B, C, *) the input, which gets the gradient if `part` is not all of it and frozen channels have one.
        slope: (C,) for the frozen channels, the derivative of y by x (stored statistics); None where they have no
            gradient.
        by_batch: whether mean and variance are those of this batch, so that they depend on the input.
        by_sample: whether it is an instance norm.
        eps: added to the variance.
    """

    @staticmethod
    def forward(
        y: Tensor,
        part: Tensor,
        rows: Tensor | None,
        bias_rows: Tensor | None,
        mean: Tensor,
        var: Tensor,
        trainable: Tensor,
        frozen: Tensor | None,
        x: Tensor,
        slope: Tensor | None,
        by_batch: bool,
        by_sample: bool,
        eps: float,
    ) -> Tensor:
        # No view of an argument: an in-place activation may follow, and a view would not allow it.
        return y.data

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, part, rows, _, mean, var, trainable, frozen, _, slope, *settings = inputs
        ctx.by_batch, ctx.by_sample, ctx.eps = settings
        ctx.format = memory_format(part)
        ctx.save_for_backward(part, rows, mean, var, trainable, frozen, slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        part, rows, mean, var, trainable, frozen, slope = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[1:4])
        by_x = None
        if frozen is None:
            own = select(gradient, trainable)
            by_part, by_rows, by_bias = _backward(ctx, own, part, rows, mean, var, wanted)
            if slope is not None and by_part is not None:
                by_x, by_part = place_(_sloped(gradient, slope), trainable, by_part, ctx.format), None
        else:
            if rows is not None:
                rows = rows.new_ones(part.shape[1]).index_copy(0, trainable, rows)
            by_part, *by_affine = _backward(ctx, gradient, part, rows, mean, var, wanted)
            by_rows, by_bias = (None if t is None else t.index_select(0, trainable) for t in by_affine)
            if by_part is not None and slope is None:
                by_part = by_part.index_fill_(1, frozen, 0.0)
            elif by_part is not None:
                others = _sloped(select(gradient, frozen), slope.index_select(0, frozen))
                by_part = place_(by_part, frozen, others, ctx.format)
        return None, by_part, by_rows, by_bias, None, None, None, None, by_x, *[None] * 4


def _sloped(gradient: Tensor, slope: Tensor) -> Tensor:
    """The gradient (B, C, *), times a number for each channel."""
    return gradient * slope.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 2))


def _backward(
    ctx: Any,
    gradient: Tensor,
    part: Tensor,
    rows: Tensor | None,
    mean: Tensor,
    var: Tensor,
    wanted: list[bool],
) -> list[Tensor | None]:
    """torch's op; an instance norm is a batch norm of one sample with more channels, as in torch itself."""
    batch, count = part.shape[:2]
    if ctx.by_sample:
        gradient, part = (t.reshape(1, batch * count, *t.shape[2:]) for t in (gradient, part))
        rows = None if rows is None else rows.repeat(batch)
    stored = (None, None) if ctx.by_batch else (mean, var)
    of_batch = mean, (var + ctx.eps).rsqrt()  # only vmap asks for them where it is by stored ones
    op = torch.ops.aten.native_batch_norm_backward
    found = list(op(gradient, part, rows, *stored, *of_batch, ctx.by_batch, ctx.eps, wanted))
    if ctx.by_sample:
        shapes = (batch, count, *part.shape[2:]), (batch, count), (batch, count)
        found = [t.view(shape) if w else None for t, shape, w in zip(found, shapes, wanted, strict=True)]
        found[1:] = [None if t is None else t.sum(0) for t in found[1:]]
    return [t if w else None for t, w in zip(found, wanted, strict=True)]
