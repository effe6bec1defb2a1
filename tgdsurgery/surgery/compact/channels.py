"""Some channels of a tensor taken out, and put back among others, in either memory format."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from tgdsurgery.core.torch_private import under_functorch
from tgdsurgery.surgery.compact.layout import memory_format

FunctionT = TypeVar("FunctionT", bound=type[torch.autograd.Function])
_QUICK: dict[type[torch.autograd.Function], type[Any]] = {}


def quick(function: FunctionT) -> FunctionT:
    """The function, with another one that does the same outside of the transforms of torch.func.

    Where forward and `setup_context` are two, torch binds the arguments to the forward's signature in every call, which
    takes as long as a small layer.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    members = {"forward": forward, "setup_context": torch.autograd.Function.setup_context}
    _QUICK[function] = type(
        function.__name__, (function,), {name: staticmethod(member) for name, member in members.items()}
    )
    return function


@quick
class Select(torch.autograd.Function):
    """`select`, whose own backward would add up the channels one by one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, channels: Tensor) -> Tensor:
        return select(x, channels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, channels = inputs
        ctx.count, ctx.format = x.shape[1], memory_format(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(channels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        if gradient is None:
            return None, None
        (channels,) = ctx.saved_tensors
        return spread(gradient, channels, ctx.count, ctx.format), None


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
    matrix = _matrix(part)  # and scatter is several times faster than index_copy on it
    whole = matrix.new_zeros(len(matrix), count).scatter_(1, channels.expand(matrix.shape), matrix)
    return _from_matrix(whole, part)


def place_(whole: Tensor, channels: Tensor, part: Tensor, form: torch.memory_format) -> Tensor:
    """Write `part` (B, n, *) to the given channels of `whole` (B, C, *), in place; `form` is that of the part."""
    if form is torch.contiguous_format or memory_format(whole) is not form:
        return whole.index_copy_(1, channels, part)
    matrix = _matrix(part)
    _matrix(whole).scatter_(1, channels.expand(matrix.shape), matrix)
    return whole


def _matrix(x: Tensor) -> Tensor:
    """(B * pixels, C) of x (B, C, *); a view of a channels-last tensor."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _from_matrix(matrix: Tensor, like: Tensor) -> Tensor:
    return matrix.view(len(like), *like.shape[2:], -1).movedim(-1, 1)


def run(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """`function.apply`, of the quick one where that can be."""
    if not (torch.compiler.is_compiling() or under_functorch()):
        function = _QUICK[function]
    y: Tensor = function.apply(*args)
    return y
