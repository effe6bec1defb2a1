"""A network measured by the user's own function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tgdsurgery.core.copying import own_randomness
from tgdsurgery.core.errors import PlanError

FINITE = "It has to return one finite number."


def measured(
    evaluate: Callable[[nn.Module], Any],
    net: nn.Module,
    where: str,
    *,
    name: str = "evaluate",
    remedy: str = FINITE,
) -> float:
    """The one finite number that `evaluate` returns for a network; every network sees the same random numbers.

    Args:
        evaluate: takes the network.
        net: the network.
        where: says in an error which network it was.
        name: of the function, for an error.
        remedy: what the user can do then.

    Raises:
        PlanError: it returned something else.
    """
    with own_randomness(net):
        found = evaluate(net)
    try:
        value = found.item() if isinstance(found, Tensor) else found.__float__()
        if math.isfinite(value):
            return float(value)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        value = found
    raise PlanError(f"{name} returned {value!r} {where}.", remedy)
