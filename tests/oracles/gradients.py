"""Law 3's oracle: what the gradients should be, by plain autograd with masks put in by hand.

Nothing here is clever. A masked output is `where(trainable, y, y.detach())`; a held statistic is the formula
of batch norm with the stored numbers; both are put into a copy of the model at the modules the plan names. A
layer that is no module (a function called on a parameter) has its parameters masked, and its output not.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.strategies import Case, call, scalar_loss
from tgdsurgery.core.plan import LayerPlan, TGDPlan


class Step(NamedTuple):
    """What one forward and backward pass gives.

    Args:
        output: the model's output.
        gradients: of every parameter, zero where it is frozen.
        buffers: after the pass.
    """

    output: Any
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def hand_masked_step(case: Case, plan: TGDPlan) -> Step:
    """One pass of the plan's method on the original model, in its own mode; the case stays as it is."""
    model = copy.deepcopy(case.model)
    if plan.norm_stats == "hold":
        for entry in plan.entries:
            for name in entry.layer.modules if entry.layer.statistics else ():
                _hold_statistics(
                    model.get_submodule(name), torch.tensor(entry.mask), entry.layer.channel_axis
                )
    # A layer that is frozen whole has no mask: the loss still reaches the layers before it (design 3.3).
    partly = [entry for entry in plan.entries if any(entry.mask)] if plan.flow == "masked" else []
    for entry in partly:
        for name in entry.layer.modules:
            model.get_submodule(name).register_forward_hook(
                lambda _module, _args, output, entry=entry: _masked(output, entry)
            )
    output = call(model, case.inputs)
    loss = scalar_loss(output)
    if loss.requires_grad:
        loss.backward()
    masks = plan.parameter_masks()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients[name] = gradient * masks[name] if name in masks else torch.zeros_like(gradient)
    return Step(output, gradients, dict(model.named_buffers()))


def _masked(output: Tensor, entry: LayerPlan) -> Tensor:
    """The output with its gradient cut off at the frozen channels."""
    axis = entry.layer.channel_axis % output.ndim
    shape = [-1 if d == axis else 1 for d in range(output.ndim)]
    return torch.where(torch.tensor(entry.mask).view(shape), output, output.detach())


def _hold_statistics(module: nn.Module, trainable: Tensor, axis: int) -> None:
    """Make a norm in training normalise its frozen channels with their stored statistics, and keep those.

    A norm of any class that has the names of torch's.
    """

    def forward(x: Tensor) -> Tensor:
        mean, variance = module.running_mean, module.running_var
        module.running_mean, module.running_var = mean.clone(), variance.clone()
        fresh = type(module).forward(module, x)
        if not module.training:
            module.running_mean, module.running_var = mean, variance
            return fresh
        per_channel = [-1] + [1] * (-axis - 1)
        stored = (x - mean.view(per_channel)) / torch.sqrt(variance.view(per_channel) + module.eps)
        if module.affine:
            stored = stored * module.weight.view(per_channel) + module.bias.view(per_channel)
        module.running_mean = torch.where(trainable, module.running_mean, mean)
        module.running_var = torch.where(trainable, module.running_var, variance)
        return torch.where(trainable.view(per_channel), fresh, stored)

    module.forward = forward  # type: ignore[method-assign]


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise unless both have the same parameters, with the same gradients up to rounding in float64."""
    if found.keys() != expected.keys():
        raise AssertionError(f"only in one: {found.keys() ^ expected.keys()}")
    for name, want in expected.items():
        # Sums of some thousand products in another order: about 1e-13 of the largest entry; 1e-10 leaves room
        # for badly scaled nets, and is far below any masking error.
        tolerance = 1e-10 * max(1.0, float(want.abs().max()))
        torch.testing.assert_close(
            found[name], want, rtol=1e-9, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )
