"""PReLU with a backward of vectorised ops: torch's own (2.13, 2.14) is far slower on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tgdsurgery.surgery.compact.channels import quick


@quick
class PReLU(torch.autograd.Function):
    """`F.prelu`; its backward is written in differentiable ops.

    Args of `apply`:
        x: (B, C, *), or of any shape where the weight is one number.
        weight: (C,) or (1,).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return F.prelu(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        input_needed, weight_needed = ctx.needs_input_grad
        of_positive = torch.ops.aten.threshold_backward(gradient, x, 0)
        of_others = gradient - of_positive
        by_input = by_weight = None
        if input_needed:
            shaped = weight.view(-1, *[1] * (x.dim() - 2)) if len(weight) > 1 else weight
            by_input = torch.addcmul(of_positive, of_others, shaped)
        if weight_needed:
            by_weight = of_others * x
            by_weight = by_weight.sum([0, *range(2, x.dim())]) if len(weight) > 1 else by_weight.sum().view(1)
        return by_input, by_weight
