"""What a rule returns, looked at before it is believed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tgdsurgery.core.errors import TGDError, UnsupportedOpError
from tgdsurgery.mapping.labels import LabelTable, TableFullError
from tgdsurgery.mapping.nodes import place_of, written
from tgdsurgery.mapping.rules.call import Call
from tgdsurgery.mapping.rules.registry import Rule


def labels_by(rule: Rule, call: Call, args: Any, kwargs: Any) -> Any:
    """What a rule says, which may be the user's: its failures and its slips are errors that name the op."""
    cause: Exception | None = None
    try:
        result = rule(call, *args, **kwargs)
        slip = _slip(result, call)
    except (TGDError, TableFullError):
        raise
    except Exception as error:  # a user's rule raises anything
        cause, slip = error, f"fails with {type(error).__name__}: {error}"
    if slip:
        raise UnsupportedOpError(
            f"The rule of the op {call.node.target} (node {call.node.name}, in module {place_of(call.node)}) {slip}.",
            "A rule takes the call and the op's arguments, and returns int64 labels that can be broadcast to the "
            "output's shape, or a tuple of them; register_rule replaces it (docs/custom_ops.md).",
        ) from cause
    return result


def _slip(result: Any, call: Call) -> str:
    """What is wrong with a rule's result; empty if nothing is."""
    expected = call.node.meta["val"]
    if expected is None:
        # The op only writes. What is written to several arguments mixes, whatever the rule says.
        targets = written(call.node)
        expected = targets[0].meta["val"] if len(targets) == 1 else ()
    if isinstance(expected, Tensor):
        result, expected = [result], [expected]
    elif isinstance(result, Tensor):  # one set of labels for several outputs, good where the shape fits
        result, expected = [result], [result]
    elif not isinstance(result, (tuple, list)) or len(result) != len(expected):
        return f"returns {result!r} for {len(expected)} outputs" if expected else ""
    outputs = [pair for pair in zip(result, expected, strict=True) if isinstance(pair[1], Tensor)]
    return next(filter(None, (_slip_of_one(*pair, call.table) for pair in outputs)), "")


def _slip_of_one(labels: Any, output: Tensor, table: LabelTable) -> str:
    if not isinstance(labels, Tensor):
        return f"returns {labels!r}, which are no labels"
    if labels.dtype != torch.int64:
        return f"returns labels of {labels.dtype}"
    if not fits(labels, output):
        return f"returns labels of shape {tuple(labels.shape)} for an output of shape {tuple(output.shape)}"
    return "" if table.knows(labels) else "returns numbers that are no labels"


def fits(labels: Tensor, to: Tensor) -> bool:
    """Whether `labels` can be expanded to the shape of `to`."""
    have, want = labels.shape, to.shape
    missing = len(want) - len(have)
    return missing >= 0 and all(
        size in (1, wanted) for size, wanted in zip(have, want[missing:], strict=True)
    )
