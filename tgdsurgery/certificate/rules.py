"""What a plan says of each tensor of a `state_dict`: which of its entries may move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tgdsurgery.core.bits import differs
from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.records import ParameterRows
from tgdsurgery.core.tables import shortened
from tgdsurgery.storage.weights import tied_name

Kind = Literal["parameter", "statistic", "counter", "unknown"]
COUNTER = "num_batches_tracked"  # counts training batches; no output in evaluation mode depends on it


@dataclass(frozen=True)
class Rule:
    """What the plan says of a tensor: its kind, its layer, how its entries belong to channels, and which may move."""

    kind: Kind
    layer: str | None
    rows: ParameterRows
    movable: Tensor


def rules_of(plan: TGDPlan, base: Mapping[str, Tensor]) -> dict[str, Rule]:
    """For every tensor that the plan knows.

    Args:
        plan: what may move.
        base: the tensors that it was made for, by name.

    Raises:
        PlanError: the plan was made for another network.
    """
    _check_fit(plan, base)
    masks = plan.parameter_masks()
    rules = {name: _whole("parameter", name, base[name], movable=False) for name in plan.unmapped}
    for entry in plan.entries:
        for rows in entry.layer.parameters:
            rules.setdefault(rows.name, Rule("parameter", entry.layer.name, rows, masks[rows.name]))
        held = torch.tensor([plan.norm_stats == "batch" or trains for trains in entry.mask])
        for name in entry.layer.statistics:
            rows = ParameterRows(name, (entry.layer.channels,))
            rules[name] = Rule("statistic", entry.layer.name, rows, held)
    return rules


def rule_for(
    name: str, rules: Mapping[str, Rule], base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]
) -> Rule:
    """The rule of any tensor of the two states; all of one that the plan knows nothing of is frozen."""
    if name in rules:
        return rules[name]
    like = base.get(name, tuned.get(name))
    assert like is not None  # it is in one of them
    if name.rpartition(".")[2] == COUNTER:
        return _whole("counter", name, like, movable=True)
    both = name in base and name in tuned
    if both and differs(base[name], tuned[name]) and (tied := tied_name(name, rules, [base, tuned])):
        return rules[tied]
    return _whole("unknown", name, like, movable=False)


def _whole(kind: Kind, name: str, like: Tensor, *, movable: bool) -> Rule:
    """The rule of a tensor of no layer."""
    shape = tuple(like.shape)
    return Rule(kind, None, ParameterRows(name, shape), torch.tensor(movable).expand(shape))


def _check_fit(plan: TGDPlan, base: Mapping[str, Tensor]) -> None:
    sizes = [(rows.name, rows.shape) for entry in plan.entries for rows in entry.layer.parameters]
    sizes += [(name, (e.layer.channels,)) for e in plan.entries for name in e.layer.statistics]
    missing = [name for name in plan.tensors if name not in base]
    misfit = [name for name, shape in sizes if name in base and tuple(base[name].shape) != shape]
    misfit += [n for n, count in plan.unmapped.items() if n in base and base[n].numel() != count]
    if missing or misfit:
        name = shortened((missing or misfit)[0])
        problem = f"has no {name!r}" if missing else f"has {name!r} in another shape"
        raise PlanError(
            f"The plan was not made for this base, which {problem}.",
            "Make one: tgd plan --model ... --checkpoint BASE -o plan.json.",
        )
