"""Questions about one node of a captured graph: its op, the memory it shares, what it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import getitem
from typing import Any

from torch import fx

from tgdsurgery.core.norm_statistics import STATISTICS
from tgdsurgery.core.torch_private import OpOverload, tree_leaves


def op_of(node: fx.Node) -> OpOverload:
    """The op that a `call_function` node of a captured graph calls."""
    assert isinstance(node.target, OpOverload)
    return node.target


def place_of(node: fx.Node) -> str:
    """The module that was running, for messages."""
    return repr(node.meta["module"] or "the model itself")


@dataclass(frozen=True)
class _Facts:
    """What the schema of an op says about its arguments, each by its place and name.

    Args:
        names: of all arguments.
        written: the arguments that it writes to.
        shown: those whose memory its (first) output looks at.
    """

    names: tuple[str, ...]
    written: tuple[tuple[int, str], ...]
    shown: tuple[tuple[int, str], ...]


@cache
def _facts(op: OpOverload) -> _Facts:
    schema = op._schema
    returned = schema.returns[0].alias_info if schema.returns else None
    shared = returned.before_set if returned is not None else set()
    known = [(place, a.name, a.alias_info) for place, a in enumerate(schema.arguments)]
    return _Facts(
        tuple(name for _, name, _ in known),
        tuple((place, name) for place, name, alias in known if alias is not None and alias.is_write),
        tuple(
            (place, name) for place, name, alias in known if alias is not None and alias.before_set & shared
        ),
    )


def writes(op: OpOverload) -> bool:
    """Whether the op writes to an argument."""
    return bool(_facts(op).written)


def written_of(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Of the arguments given to an op those that it writes to."""
    return _given(_facts(op).written, args, kwargs)


def aliases(node: fx.Node) -> fx.Node | None:
    """The node whose memory `node` looks at, if it is a view of it or was written in place; else None."""
    if node.op != "call_function":
        return None
    if node.target is getitem:
        parent = node.args[0]
        assert isinstance(parent, fx.Node)
        return aliases(parent)
    shown = _facts(op_of(node)).shown
    given = _given(shown, node.args, node.kwargs) if shown else ()
    return given[0] if given and isinstance(given[0], fx.Node) else None


def written(node: fx.Node) -> list[fx.Node]:
    """The arguments that the op of `node` writes to."""
    if node.op != "call_function" or node.target is getitem or not writes(op_of(node)):
        return []
    targets = tree_leaves(written_of(op_of(node), node.args, node.kwargs))
    return [target for target in targets if isinstance(target, fx.Node)]


def updated(node: fx.Node) -> list[fx.Node]:
    """The running statistics that a batch norm of torch in train mode moves, which its schema may not say."""
    if node.op != "call_function" or node.target is getitem:
        return []
    names = _facts(op_of(node)).names
    if "training" not in names:
        return []
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    statistics = [given.get(name) for name in STATISTICS] if given.get("training") else []
    return [target for target in statistics if isinstance(target, fx.Node)]


def _given(wanted: Sequence[tuple[int, str]], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Those of the wanted arguments that a call gives."""
    by_place = [args[place] for place, _ in wanted if place < len(args)]
    return by_place + [kwargs[name] for _, name in wanted if name in kwargs]


def alias_root(node: fx.Node) -> fx.Node:
    """The node that first made the memory `node` looks at."""
    while (parent := aliases(node)) is not None:
        node = parent
    return node
