"""Ops whose output owes nothing to the elements they were given: fresh memory, and overwriting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tgdsurgery.mapping.rules.call import Call, Traced
from tgdsurgery.mapping.rules.registry import rule_for


@rule_for("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like")
@rule_for("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "zero", "bernoulli")
@rule_for("uniform", "normal", "random", "exponential", "log_normal", "cauchy", "geometric")
def unwritten(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    """Only shape, dtype or the place in memory are taken from the arguments."""
    return torch.zeros((), dtype=torch.int64)


@rule_for("copy", "fill")
def overwritten(call: Call, target: Traced, source: Traced | float, *args: Any, **kwargs: Any) -> Tensor:
    """Every element of the target is replaced."""
    return source.labels if isinstance(source, Traced) else torch.zeros((), dtype=torch.int64)
