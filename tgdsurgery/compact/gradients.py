"""The compact backward of convolutions and linear layers.

The forward is the plain layer's: one kernel on the whole weight. The backward computes the gradients of the
trainable rows only, and hands on to the input only what passes through those rows. It is written in
differentiable ops, so gradients of gradients work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tgdsurgery.compact.parts import prepared, select, spread
from tgdsurgery.compact.rows import memory_format, swapped
from tgdsurgery.layers import zeroed


class Geometry(NamedTuple):
    """The arguments of `torch.convolution` that are no tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class Slicing(NamedTuple):
    """How the backward of a layer is cut down.

    Args:
        stops_gradient: whether the gradient at frozen output channels counts as zero.
        gathers: whether the trainable channels are gathered first; else the plain kernels run on all
            channels, and the trainable rows are taken from what they give (where the groups of a conv have
            unequal numbers of them).
        groups: in how many groups of a conv the gathered channels are.
    """

    stops_gradient: bool
    gathers: bool = True
    groups: int = 1

    @property
    def by_rows(self) -> bool:
        """Whether the trainable rows are all of the weight that the input's gradient is computed from."""
        return self.stops_gradient and self.gathers


@prepared
class Convolution(torch.autograd.Function):
    """Convolution, plain or transposed, with the compact backward.

    Args of `apply`:
        x: (B, C, *).
        rows: (n, C/g, *K) the trainable rows of the weight, channels first; None if there are none.
        bias_rows: (n,) or None.
        weight: the whole weight, as `torch.convolution` takes it. Its own gradient is not computed. Unless
            `slicing.by_rows`, it must be made of `rows` differentiably, for gradients of gradients.
        bias: (N,) the whole bias, or None.
        trainable: (n,) which output channels the rows make.
        read: the input channels that the rows read, or None for all.
        needs: the input channels to compute the gradient for (the others get zero), or None for all.
        geometry: see there.
        slicing: see there.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: D102
        x: Tensor,
        rows: Tensor | None,
        bias_rows: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        trainable: Tensor,
        read: Tensor | None,
        needs: Tensor | None,
        geometry: Geometry,
        slicing: Slicing,
    ) -> Tensor:
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: D102
        x, rows, _, weight, _, trainable, read, needs, ctx.geometry, ctx.slicing = inputs
        ctx.input_shape, ctx.weight_shape, ctx.format = x.shape, weight.shape, memory_format(x)
        input_needed, rows_needed, *_ = ctx.needs_input_grad
        by_rows = ctx.slicing.by_rows
        ctx.save_for_backward(
            x if rows_needed else None,
            rows if input_needed and by_rows else None,
            weight if input_needed and not by_rows else None,
            trainable,
            read,
            needs,
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        input_needed, rows_needed, bias_needed, *_ = ctx.needs_input_grad
        # Unpacked once: activation checkpointing allows no more.
        x, rows, weight, trainable, read, needs = ctx.saved_tensors
        slicing = ctx.slicing
        own = gradient
        if slicing.gathers and (rows_needed or bias_needed or slicing.stops_gradient):
            own = select(gradient, trainable)
        by_input = by_rows = by_bias = None
        if input_needed and slicing.by_rows:
            by_input = _input_gradient(ctx, own, rows, trainable, read, needs)
        elif input_needed:
            by_input = _input_gradient(ctx, gradient, weight, trainable, None, needs)
        if rows_needed:
            by_rows = _row_gradient(ctx, own, x, trainable, read)
        if bias_needed:
            by_bias = own.sum([0, *range(2, own.dim())])
            by_bias = by_bias if slicing.gathers else by_bias.index_select(0, trainable)
        return by_input, by_rows, by_bias, *[None] * 7


def _row_gradient(ctx: Any, gradient: Tensor, x: Tensor, trainable: Tensor, read: Tensor | None) -> Tensor:
    """(n, C/g, *K), from the gradient of the trainable channels, or of all."""
    geometry: Geometry = ctx.geometry
    if not ctx.slicing.gathers:
        weight = _backward(gradient, x, _empty(ctx, gradient, ctx.weight_shape), geometry, of_input=False)
        rows = swapped(weight, geometry.groups) if geometry.transposed else weight
        return rows.index_select(0, trainable)
    groups = ctx.slicing.groups
    x = x if read is None else select(x, read)
    if geometry.transposed:
        shape = (x.shape[1], len(trainable) // groups, *ctx.weight_shape[2:])
    else:
        shape = (len(trainable), x.shape[1] // groups, *ctx.weight_shape[2:])
    weight = _backward(
        gradient, x, _empty(ctx, gradient, shape), geometry._replace(groups=groups), of_input=False
    )
    return swapped(weight, groups) if geometry.transposed else weight


def _input_gradient(
    ctx: Any, gradient: Tensor, weight: Tensor, trainable: Tensor, read: Tensor | None, needs: Tensor | None
) -> Tensor:
    """(B, C, *), from the gradient of the trainable channels and their rows, or of all and the whole weight."""
    geometry: Geometry = ctx.geometry
    channels = None  # of the input, that the gradient is computed for; None for all
    if ctx.slicing.by_rows:
        weight = swapped(weight, ctx.slicing.groups) if geometry.transposed else weight
        channels = read
    elif ctx.slicing.stops_gradient:
        gradient = zeroed(gradient, _among(trainable, gradient))
    if geometry.groups == 1 and needs is not None:
        weight = weight.index_select(0 if geometry.transposed else 1, needs)
        channels = needs
    batch, count, *size = ctx.input_shape
    like = _empty(ctx, gradient, (batch, count if channels is None else len(channels), *size))
    groups = ctx.slicing.groups if ctx.slicing.by_rows else geometry.groups
    result = _backward(gradient, like, weight, geometry._replace(groups=groups), of_input=True)
    if channels is not None:
        result = spread(result, channels, count, ctx.format)
    if geometry.groups > 1 and needs is not None:
        result = zeroed(result, _among(needs, result))
    return result


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, *, of_input: bool) -> Tensor:
    """The plain layer's kernel for one of the two gradients; what it is not computed from gives shapes only."""
    mask = [of_input, not of_input, False]
    by_input, by_weight, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, mask)
    result: Tensor = by_input if of_input else by_weight
    return result


@prepared
class Linear(torch.autograd.Function):
    """`F.linear` with the compact backward; the arguments are those of `Convolution`, x is (*, C)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: D102
        x: Tensor,
        rows: Tensor | None,
        bias_rows: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        trainable: Tensor,
        needs: Tensor | None,
        slicing: Slicing,
    ) -> Tensor:
        y = linear(x, weight, bias)
        # The same entries, but no view: an in-place activation may follow, and a view would not allow it.
        unviewed: Tensor = torch.ops.aten._unsafe_view(y, y.shape)
        return unviewed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: D102
        x, rows, _, weight, _, trainable, needs, ctx.slicing = inputs
        input_needed, rows_needed, *_ = ctx.needs_input_grad
        kernel = rows if ctx.slicing.by_rows else weight
        ctx.count = x.shape[-1]
        ctx.save_for_backward(x if rows_needed else None, kernel if input_needed else None, trainable, needs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight, trainable, needs = ctx.saved_tensors
        input_needed, rows_needed, bias_needed, *_ = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        own = flat.index_select(1, trainable)
        by_input = by_rows = by_bias = None
        if input_needed:
            weight = weight if needs is None else weight.index_select(1, needs)
            by_input = (own if ctx.slicing.by_rows else flat) @ weight
            if needs is not None:
                by_input = flat.new_zeros(len(flat), ctx.count).index_copy_(1, needs, by_input)
            by_input = by_input.view(*gradient.shape[:-1], ctx.count)
        if rows_needed:
            by_rows = own.t() @ x.reshape(-1, ctx.count)
        if bias_needed:
            by_bias = own.sum(0)
        return by_input, by_rows, by_bias, *[None] * 5


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, rounded as for a weight that needs a gradient: torch then multiplies a matrix of all rows.

    Of a plain layer's weight that is true, even without grad mode; of the one that is put together here, not.
    """
    if x.dim() <= 2 or x.is_contiguous() or torch.compiler.is_exporting():
        return F.linear(x, weight, bias)
    y = (x.reshape(-1, x.shape[-1]) @ weight.t()).view(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias


def _among(channels: Tensor, x: Tensor) -> Tensor:
    """(C, 1, ...) True at the given channels of x (B, C, *)."""
    mask = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device).index_fill_(0, channels, True)
    return mask.view(-1, *[1] * (x.dim() - 2))


def _empty(ctx: Any, like: Tensor, shape: Any) -> Tensor:
    """Room in the memory format of the forward's input."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=ctx.format)
