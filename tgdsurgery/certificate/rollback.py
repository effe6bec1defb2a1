"""Whether a change can be taken back: done, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tgdsurgery.certificate.record import Rollback
from tgdsurgery.certificate.rules import rule_for, rules_of
from tgdsurgery.core.bits import differing
from tgdsurgery.core.plan import TGDPlan


def rolled_back(
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    plan: TGDPlan,
    adapted: Mapping[str, Tensor] | None = None,
) -> Rollback:
    """Put the base's values into the entries of the tuned network that may move, and see whether it is the base.

    Args:
        base: tensors by name before training, on the CPU.
        tuned: the same after.
        plan: what was allowed to move.
        adapted: base and delta together, if there is a delta to check as well.

    Raises:
        PlanError: the plan was made for another network than the base.
    """
    rules = rules_of(plan, base)
    restored = dict(tuned)
    for name in base.keys() & tuned.keys():
        before, after = base[name], tuned[name]
        if (before.shape, before.dtype) == (after.shape, after.dtype):
            restored[name] = torch.where(rule_for(name, rules, base, tuned).movable, before, after)
    unlike = _unlike(restored, base)
    other = _unlike(adapted, tuned) if adapted is not None else []
    return Rollback(
        restores_base=not unlike,
        delta_makes_tuned=None if adapted is None else not other,
        differing=tuple(dict.fromkeys([*unlike, *other])),
    )


def _unlike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not the same in both, bit for bit."""
    return [
        name
        for name in {**other, **one}
        if name not in one
        or name not in other
        or one[name].shape != other[name].shape
        or one[name].dtype != other[name].dtype
        or differing(one[name], other[name]).any()
    ]
