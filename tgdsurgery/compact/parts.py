"""Some channels of a tensor taken out, and put back among others, in either memory format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tgdsurgery.compact.rows import memory_format


class Select(torch.autograd.Function):
    """`select`, whose own backward would add up the channels one by one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, channels: Tensor) -> Tensor:  # noqa: D102
        return select(x, channels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: D102
        x, channels = inputs
        ctx.count, ctx.format = x.shape[1], memory_format(x)
        ctx.save_for_backward(channels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        (channels,) = ctx.saved_tensors
        return spread(gradient, channels, ctx.count, ctx.format), None


class Merge(torch.autograd.Function):
    """`merge`; the backward takes from the gradient only what is needed.

    Norms in training need it, and these cannot run under vmap: they write to their statistics.
    """

    @staticmethod
    def forward(  # noqa: D102
        one: Tensor, here: Tensor, other: Tensor, there: Tensor, form: torch.memory_format
    ) -> Tensor:
        # No view of what was computed: an in-place activation may follow, and a view would not allow it.
        return merge(one, here, other, there, form).data

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: D102
        ctx.save_for_backward(inputs[1], inputs[3])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        here, there = ctx.saved_tensors
        one = select(gradient, here) if ctx.needs_input_grad[0] else None
        other = select(gradient, there) if ctx.needs_input_grad[2] else None
        return one, None, other, None, None


def select(x: Tensor, channels: Tensor) -> Tensor:
    """The given channels of x (B, C, *), in its memory format."""
    if memory_format(x) is torch.contiguous_format:
        return x.index_select(1, channels)
    # index_select itself would lose the format, and is several times slower on it than on a matrix.
    return _from_matrix(_matrix(x).index_select(1, channels), x)


def spread(part: Tensor, channels: Tensor, count: int, form: torch.memory_format) -> Tensor:
    """(B, count, *): `part` at the given channels, zero at the others."""
    if form is torch.contiguous_format:
        whole = part.new_zeros(len(part), count, *part.shape[2:])
        return whole.index_copy_(1, channels, part)
    # Again faster than writing single columns: each takes its own, or the zeros behind the last.
    source = channels.new_full((count,), len(channels))
    source.index_copy_(0, channels, torch.arange(len(channels), device=channels.device))
    return _from_matrix(F.pad(_matrix(part), (0, 1)).index_select(1, source), part)


def merge(one: Tensor, here: Tensor, other: Tensor, there: Tensor, form: torch.memory_format) -> Tensor:
    """(B, C, *) of two parts: `one` at channels `here`, `other` at channels `there`."""
    if form is torch.contiguous_format:
        whole = one.new_empty(len(one), len(here) + len(there), *one.shape[2:])
        return whole.index_copy_(1, here, one).index_copy_(1, there, other)
    order = torch.cat((here, there)).argsort()
    return _from_matrix(torch.cat((_matrix(one), _matrix(other)), 1).index_select(1, order), one)


def _matrix(x: Tensor) -> Tensor:
    """(B * pixels, C) of x (B, C, *); a view of a channels-last tensor."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _from_matrix(matrix: Tensor, like: Tensor) -> Tensor:
    return matrix.view(len(like), *like.shape[2:], -1).movedim(-1, 1)


def run(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """`function.apply`, typed."""
    y: Tensor = function.apply(*args)
    return y
