"""The compact backward of linear layers. The forward is the plain layer's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tgdsurgery.surgery.compact.channels import quick
from tgdsurgery.surgery.compact.weight_cache import Kept, is_still


@quick
class Linear(torch.autograd.Function):
    """`F.linear` with the compact backward; the arguments are those of `Convolution`, x is (*, C)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        rows: Tensor | None,
        bias_rows: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        trainable: Tensor,
        needs: Tensor | None,
        kept: Kept | None,
        stops_gradient: bool,
    ) -> Tensor:
        y = linear(x, weight, bias)
        # The same entries, but no view: an in-place activation may follow, and a view would not allow it.
        unviewed: Tensor = torch.ops.aten._unsafe_view(y, y.shape)
        return unviewed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, rows, _, weight, _, trainable, needs, ctx.kept, ctx.stops_gradient = inputs
        input_needed, rows_needed, *_ = ctx.needs_input_grad
        used = (rows, None if ctx.stops_gradient else weight) if input_needed else (None, None)
        ctx.count = x.shape[-1]
        ctx.save_for_backward(x if rows_needed else None, *used, trainable, needs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, weight, trainable, needs = ctx.saved_tensors
        input_needed, rows_needed, bias_needed, *_ = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        own = flat.index_select(1, trainable)
        by_input = by_rows = by_bias = None
        if input_needed:
            if ctx.stops_gradient:
                used, through = rows, own
            else:
                still = rows is None or is_still(ctx.kept)
                used, through = weight if still else weight.index_copy(0, trainable, rows), flat
            used = used if needs is None else used.index_select(1, needs)
            by_input = through @ used
            if needs is not None:
                by_input = flat.new_zeros(len(flat), ctx.count).index_copy_(1, needs, by_input)
            by_input = by_input.view(*gradient.shape[:-1], ctx.count)
        if rows_needed:
            by_rows = own.t() @ x.reshape(-1, ctx.count)
        if bias_needed:
            by_bias = own.sum(0)
        return by_input, by_rows, by_bias, *[None] * 6


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, rounded as for a weight that needs a gradient: torch then multiplies a matrix of all rows.

    Of a plain layer's weight that is true, even without grad mode; of the one that is put together here, not.
    """
    if x.dim() <= 2 or x.is_contiguous() or torch.compiler.is_exporting():
        return F.linear(x, weight, bias)
    y = (x.reshape(-1, x.shape[-1]) @ weight.t()).view(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias
