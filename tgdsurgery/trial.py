"""Whether two forms of a network are the same model: outputs and gradients, compared on example inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from tgdsurgery.compact import full_parameters
from tgdsurgery.copying import own_randomness

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
Outcome = tuple[list[Any], Any, dict[str, Tensor]]


def same_results(reference: nn.Module, other: nn.Module, arguments: Arguments) -> bool:
    """Whether both give exactly the same output, and the same gradients, in eval and in train mode.

    Runs both, so that their buffers move: hand in copies. An output that cannot be compared is not the same.
    """
    modes = (False, True)
    return all(_same(*(_run(net, arguments, mode) for net in (reference, other))) for mode in modes)


def outcome(net: nn.Module, arguments: Arguments, *, training: bool) -> Outcome:
    """The output in eval or train mode, and the gradients of parameters and inputs, of some loss.

    Runs the network, so that its buffers move: hand in a copy. The gradient of a compact layer's parameter
    is given in the parameter's full shape.
    """
    return _run(net, arguments, training, of_inputs=True)


def same_outcome(one: Outcome, other: Outcome) -> bool:
    """Whether both are the same up to rounding."""
    return _same(one, other, rounded=True)


def _run(net: nn.Module, arguments: Arguments, training: bool, *, of_inputs: bool = False) -> Outcome:
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), arguments)
    net.train(training)
    wanted: dict[str, Tensor] = {}
    if of_inputs:
        inputs, structure = tree_flatten((args, kwargs))
        for index, leaf in enumerate(inputs):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                wanted[f"input {index}"] = leaf.requires_grad_()
                inputs[index] = leaf.clone()  # some models write to them, which a leaf does not allow
        args, kwargs = structure.unflatten(inputs)
    with own_randomness(net), torch.enable_grad():
        wanted |= {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
        leaves, structure = tree_flatten(net(*args, **kwargs))
        terms = [leaf.square().sum() for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not terms or not wanted:
            return leaves, structure, {}
        found = torch.autograd.grad(terms, list(wanted.values()), allow_unused=True)
    gradients = {name: g for name, g in zip(wanted, found, strict=True) if g is not None}
    return leaves, structure, full_parameters(net, gradients)


def _same(one: Outcome, other: Outcome, *, rounded: bool = False) -> bool:
    return (
        one[1] == other[1]
        and all(_same_output(a, b, rounded) for a, b in zip(one[0], other[0], strict=True))
        and _same_gradients(one[2], other[2])
    )


def _same_output(a: object, b: object, rounded: bool) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.requires_grad != b.requires_grad or a.shape != b.shape:
            return False
        return _close(a, b, _largest(a)) if rounded and a.is_floating_point() else torch.equal(a, b)
    return type(a) is type(b) and isinstance(a, int | float | str | None) and a == b


def _same_gradients(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether all are the same but for the order of sums, which differs even between runs on some devices.

    Many gradients are zero but for rounding: that of a bias before a batch norm, say. So an entry may be off
    by a part of the largest of its module, or by a far smaller one of the largest of all.
    """
    if one.keys() != other.keys():
        return False
    scales: dict[str, float] = {}
    for name, gradient in one.items():
        module = name.rpartition(".")[0]
        scales[module] = max(scales.get(module, 0.0), _largest(gradient))
    most = max(scales.values(), default=0.0)
    return all(
        _close(gradient, other[name], scales[name.rpartition(".")[0]], most) for name, gradient in one.items()
    )


def _close(a: Tensor, b: Tensor, scale: float, background: float = 0.0) -> bool:
    # Half of the digits. An op that was lost, or a gradient that was not handed on, changes far more.
    precision = torch.finfo(a.dtype).eps
    absolute = 0.1 * precision**0.5 * scale + 10 * precision * background
    return torch.allclose(a, b, rtol=precision**0.5, atol=absolute, equal_nan=True)


def _largest(tensor: Tensor) -> float:
    finite = tensor.detach()[tensor.detach().isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
