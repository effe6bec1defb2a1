"""The compact backward of convolutions.

The forward is the plain layer's: one op on the whole weight. The backward computes the gradients of the
trainable rows only, and passes on to the input only what comes through those rows. It is written in
differentiable ops, so gradients of gradients work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tgdsurgery.core.masking import zeroed
from tgdsurgery.surgery.compact.channels import quick, select, spread
from tgdsurgery.surgery.compact.layout import memory_format, swapped
from tgdsurgery.surgery.compact.weight_cache import Kept, is_still


class Geometry(NamedTuple):
    """The arguments of `torch.convolution` that are not tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


@quick
class Convolution(torch.autograd.Function):
    """Convolution, plain or transposed, with the compact backward.

    Args of `apply`:
        x: (B, C, *).
        rows: (n, C/g, *K) the trainable rows of the weight, channels first; None if there are none. As many in each
            group as in the others that have any.
        bias_rows: (n,) or None.
        weight: the whole weight, as `torch.convolution` takes it. Its own gradient is not computed.
        bias: (N,) the whole bias, or None.
        trainable: (n,) which output channels the rows make.
        read: the input channels that the rows read, or None for all.
        needs: the input channels to compute the gradient for (the others get zero), or None for all.
        passing, reached: which of the rows, and which input channels, are those of the groups that hand a gradient
            on to the input; None for those of `trainable` and `read`.
        geometry: see there.
        kept: what says whether the weight was written to after the forward, if it can be.
        stops_gradient: whether the gradient at frozen output channels counts as zero.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        rows: Tensor | None,
        bias_rows: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        trainable: Tensor,
        read: Tensor | None,
        needs: Tensor | None,
        passing: Tensor | None,
        reached: Tensor | None,
        geometry: Geometry,
        kept: Kept | None,
        stops_gradient: bool,
    ) -> Tensor:
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, rows, _, weight, _, *indices, ctx.geometry, ctx.kept, ctx.stops_gradient = inputs
        ctx.input_shape, ctx.weight_shape, ctx.format = x.shape, weight.shape, memory_format(x)
        input_needed, rows_needed, *_ = ctx.needs_input_grad
        used = (rows, None if ctx.stops_gradient else weight) if input_needed else (None, None)
        ctx.save_for_backward(x if rows_needed else None, *used, *indices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input_needed, rows_needed, bias_needed, *_ = ctx.needs_input_grad
        # Unpacked once: activation checkpointing allows no more.
        x, rows, weight, trainable, read, needs, passing, reached = ctx.saved_tensors
        own = gradient
        if rows_needed or bias_needed or ctx.stops_gradient:
            own = select(gradient, trainable)
        by_input = by_rows = by_bias = None
        if input_needed and not ctx.stops_gradient:
            by_input = _input_gradient(ctx, gradient, _weight_of(ctx, weight, rows, trainable), None, needs)
        elif input_needed and passing is not None:
            passed = select(own, passing), rows.index_select(0, passing)
            by_input = _input_gradient(ctx, *passed, reached, needs)
        elif input_needed:
            by_input = _input_gradient(ctx, own, rows, read, needs)
        if rows_needed:
            by_rows = _row_gradient(ctx, own, x if read is None else select(x, read))
        if bias_needed:
            by_bias = own.sum([0, *range(2, own.dim())])
        return by_input, by_rows, by_bias, *[None] * 10


def _row_gradient(ctx: Any, gradient: Tensor, x: Tensor) -> Tensor:
    """(n, C/g, *K), from the gradient of the trainable channels (B, n, *) and the input channels that they read."""
    geometry: Geometry = ctx.geometry
    groups = x.shape[1] * geometry.groups // ctx.input_shape[1]
    if geometry.transposed:
        shape = (x.shape[1], gradient.shape[1] // groups, *ctx.weight_shape[2:])
    else:
        shape = (gradient.shape[1], x.shape[1] // groups, *ctx.weight_shape[2:])
    like = _empty(ctx, gradient, shape)
    _, weight = _backward(gradient, x, like, geometry._replace(groups=groups), [False, True])
    return swapped(weight, groups) if geometry.transposed else weight


def _input_gradient(
    ctx: Any, gradient: Tensor, weight: Tensor, read: Tensor | None, needs: Tensor | None
) -> Tensor:
    """(B, C, *), from the gradient of some channels and their rows, which read `read`; or of all and the weight."""
    geometry: Geometry = ctx.geometry
    batch, count, *size = ctx.input_shape
    per_group = count // geometry.groups
    groups = geometry.groups if read is None else len(read) // per_group
    if not groups:
        return _empty(ctx, gradient, ctx.input_shape).zero_()
    if geometry.transposed and ctx.stops_gradient:
        weight = swapped(weight, groups)
    channels = read  # of the input, that the gradient is computed for; None for all
    if geometry.groups == 1 and needs is not None:
        weight = weight.index_select(0 if geometry.transposed else 1, needs)
        channels = needs
    like = _empty(ctx, gradient, (batch, count if channels is None else len(channels), *size))
    result, _ = _backward(gradient, like, weight, geometry._replace(groups=groups), [True, False])
    if channels is not None:
        result = spread(result, channels, count, ctx.format)
    if geometry.groups > 1 and needs is not None and (per_group > 1 or not ctx.stops_gradient):
        result = zeroed(result, _among(needs, result))
    return result


def _weight_of(ctx: Any, weight: Tensor, rows: Tensor | None, trainable: Tensor) -> Tensor:
    """The whole weight of the forward."""
    if rows is None or is_still(ctx.kept):
        return weight
    if not ctx.geometry.transposed:
        return weight.index_copy(0, trainable, rows)
    groups = ctx.geometry.groups
    return swapped(swapped(weight, groups).index_copy(0, trainable, rows), groups)


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight by torch's op; an argument that is not needed only supplies its shape."""
    found = torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, [*wanted, False])
    return found[0], found[1]  # None, where not wanted


def _among(channels: Tensor, x: Tensor) -> Tensor:
    """(C, 1, ...) True at the given channels of x (B, C, *)."""
    mask = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device).index_fill_(0, channels, True)
    return mask.view(-1, *[1] * (x.dim() - 2))


def _empty(ctx: Any, like: Tensor, shape: Any) -> Tensor:
    """Room in the memory format of the forward's input."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=ctx.format)
