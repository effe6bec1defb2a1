"""Ops that work element by element but are not marked so by torch, and gates."""

from __future__ import annotations

from torch import Tensor

from tgdsurgery.mapping.rules.call import Call, Traced
from tgdsurgery.mapping.rules.registry import rule_for, unite_elementwise

rule_for(
    *("_prelu_kernel", "_to_copy", "native_dropout", "alpha_dropout", "rrelu_with_noise", "clone"),
    *("hardswish", "hardsigmoid", "log_sigmoid_forward", "where", "lerp", "masked_fill", "nan_to_num"),
)(unite_elementwise)


@rule_for("glu")
def gated(call: Call, tensor: Traced, dim: int = -1) -> Tensor:
    """One half of the channels, each multiplied by its gate in the other half."""
    values, gates = tensor.labels.chunk(2, dim)
    return call.table.union(values, gates)
