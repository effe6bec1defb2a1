"""A plain layer, its compact twin, and what autograd says the twin's gradients must be."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tgdsurgery.core.records import Layer, ParameterRows
from tgdsurgery.surgery.compact import Compact
from tgdsurgery.surgery.compact.layout import by_row
from tgdsurgery.surgery.compact.swap import compact

NORMS_WITH_STATISTICS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def described(module: nn.Module, name: str = "layer", channel_axis: int | None = None) -> Layer:
    """What a channel map says about a layer."""
    transposed = isinstance(module, _ConvNd) and module.transposed
    groups = module.groups if isinstance(module, _ConvNd) else 1
    parameters = tuple(
        ParameterRows(
            f"{name}.{own}",
            tuple(p.shape),
            *((1, groups) if transposed and p.dim() > 1 else (0, 1)),
            requires_grad=p.requires_grad,
        )
        for own, p in module.named_parameters()
    )
    statistics = tuple(
        f"{name}.{own}" for own in ("running_mean", "running_var") if getattr(module, own, None) is not None
    )
    channels = parameters[0].channels if parameters else module.num_features
    if channel_axis is None:
        channel_axis = -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1
    role: Any = "filter" if isinstance(module, _ConvNd | nn.Linear) else "channel"
    kind = type(module).__name__
    return Layer(
        name, role, kind, channels, parameters, statistics, (name,), channel_axis, groups, transposed
    )


def twin_of(module: nn.Module, mask: Any, *, channel_axis: int | None = None, **options: Any) -> Any:
    """A compact copy."""
    options = {"stops_gradient": True, **options}
    return compact(copy.deepcopy(module), described(module, channel_axis=channel_axis), mask, **options)


def rows_of(twin: nn.Module, name: str = "weight") -> nn.Parameter:
    """The Parameter itself, which holds the trainable rows; the attribute shows the whole."""
    return dict(twin.named_parameters())[name]


def run(
    module: nn.Module, x: Tensor, weight_of_output: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradients of the input ("x") and of the parameters; where there is none, nothing."""
    x = x.detach().requires_grad_()
    y = module(x)
    if y.requires_grad:
        # In place, as the activations that follow convs are; the gradient depends on the output.
        (
            y.clone().relu_() * (torch.ones_like(y) if weight_of_output is None else weight_of_output)
        ).sum().backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return y.detach(), found | ({} if x.grad is None else {"x": x.grad})


def by_hand(
    module: nn.Module, x: Tensor, layer: Layer, mask: Any, stops_gradient: bool, needs: Any, weight: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The plain layer's own gradients, masked by hand."""
    plain, mask = copy.deepcopy(module), torch.as_tensor(mask)
    if stops_gradient:
        shaped = mask.view(-1, *[1] * (-layer.channel_axis - 1))
        plain.register_forward_hook(lambda module, args, y: torch.where(shaped, y, y.detach()))
    y, found = run(plain, x, weight)
    for rows in layer.parameters:
        own = rows.name.rpartition(".")[2]
        found[own] = by_row(rows, found[own])[mask]
    if needs is not None:
        found["x"] = at_needed(found["x"], layer, needs)
    return y, found


def at_needed(gradient: Tensor, layer: Layer, needs: Any) -> Tensor:
    """The gradient of a layer's input where it is needed, and zero elsewhere."""
    channel = torch.as_tensor(needs).view(-1, *[1] * (-layer.channel_axis - 1))
    return torch.where(channel, gradient, 0)


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    """Raise unless all are close; a gradient that is missing counts as zero."""
    for name in found.keys() | expected.keys():
        one, other = found.get(name), expected.get(name)
        one = torch.zeros_like(other) if one is None else one
        other = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, other, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def is_compact(module: nn.Module) -> bool:
    return isinstance(module, Compact)
