"""Attention that torch runs as one op."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tgdsurgery.mapping.rules.call import Call, Traced
from tgdsurgery.mapping.rules.registry import rule_for


@rule_for("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention")
@rule_for("_scaled_dot_product_flash_attention", "_scaled_dot_product_attention_math")
@rule_for("_scaled_dot_product_cudnn_attention")
def attention(call: Call, query: Traced, key: Traced, value: Traced, *args: Any, **kwargs: Any) -> Tensor:
    """Output (..., L, E): every value over all positions, weighted by the position's query and all keys."""
    union, over = call.table.union, call.table.reduce
    weights = union(over(query.labels, [-1]), over(key.labels, [-1, -2]))
    return union(over(value.labels, [-2]), weights)
