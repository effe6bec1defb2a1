"""How each op carries labels from its inputs to its outputs; an op without a rule is an error, never a guess."""

from tgdsurgery.rules import carriers, creation, kernels, movement, pointwise, reduction
from tgdsurgery.rules.registry import Call, KernelCall, Traced, find_rule, mix_all, register_rule

__all__ = [
    "Call",
    "KernelCall",
    "Traced",
    "carriers",
    "creation",
    "find_rule",
    "kernels",
    "mix_all",
    "movement",
    "pointwise",
    "reduction",
    "register_rule",
]
