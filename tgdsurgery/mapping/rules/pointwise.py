"""Ops that work element by element but are not marked so by torch, and gates."""

from __future__ import annotations

import torch
from torch import Tensor

from tgdsurgery.mapping.labels import EMPTY
from tgdsurgery.mapping.rules.call import Call, Traced
from tgdsurgery.mapping.rules.registry import is_known, rule_for, unite_elementwise

rule_for(
    *("_prelu_kernel", "_to_copy", "native_dropout", "alpha_dropout", "rrelu_with_noise", "clone"),
    *("hardswish", "hardsigmoid", "log_sigmoid_forward", "lerp", "nan_to_num", "complex", "polar"),
)(unite_elementwise)


@rule_for("where")
def chosen(call: Call, condition: Traced, *branches: Traced | float) -> Tensor:
    """A fixed condition takes the one or the other; any other may take both."""
    return _chosen(call, condition, *branches)


@rule_for("masked_fill")
def masked(call: Call, tensor: Traced, mask: Traced, value: Traced | float) -> Tensor:
    """The value where the mask is set."""
    return _chosen(call, mask, value, tensor)


def _chosen(call: Call, condition: Traced, *branches: Traced | float) -> Tensor:
    if condition.value is None or not is_known(condition):
        return unite_elementwise(call, condition, *branches)
    labels = [branch.labels if isinstance(branch, Traced) else torch.tensor(EMPTY) for branch in branches]
    return torch.where(condition.value.cpu(), labels[0], labels[1])


@rule_for("view_as_real")
def parts(call: Call, tensor: Traced) -> Tensor:
    """Real and imaginary part, on an axis of their own."""
    return tensor.labels.unsqueeze(-1)


@rule_for("view_as_complex")
def joined(call: Call, tensor: Traced) -> Tensor:
    """One number of two."""
    return call.table.union(tensor.labels[..., 0], tensor.labels[..., 1])


@rule_for("glu")
def gated(call: Call, tensor: Traced, dim: int = -1) -> Tensor:
    """One half of the channels, each multiplied by its gate in the other half."""
    values, gates = tensor.labels.chunk(2, dim)
    return call.table.union(values, gates)
