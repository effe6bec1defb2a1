"""How each op carries labels from its inputs to its outputs; an op without a rule is an error, never a guess."""

from tgdsurgery.mapping.rules import (
    attention,
    creation,
    detection,
    filters,
    movement,
    norms,
    pointwise,
    reduction,
)
from tgdsurgery.mapping.rules.call import Call, FilterCall, Traced
from tgdsurgery.mapping.rules.registry import find_rule, mix_all, register_rule

__all__ = [
    "Call",
    "FilterCall",
    "Traced",
    "attention",
    "creation",
    "detection",
    "filters",
    "find_rule",
    "mix_all",
    "movement",
    "norms",
    "pointwise",
    "reduction",
    "register_rule",
]
