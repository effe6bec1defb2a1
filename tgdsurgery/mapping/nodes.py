"""Questions about one node of a captured graph: its op, the memory it shares, what it writes."""

from __future__ import annotations

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


def aliases(node: fx.Node) -> fx.Node | None:
    """The node whose memory `node` looks at, if it is a view of it or was written in place; else None."""
    if node.op != "call_function":
        return None
    if node.target is getitem:
        parent = node.args[0]
        assert isinstance(parent, fx.Node)
        return aliases(parent)
    schema = op_of(node)._schema
    returned = schema.returns[0].alias_info if schema.returns else None
    if returned is None:
        return None
    for argument, value in _given(node):
        if argument.alias_info is not None and argument.alias_info.before_set & returned.before_set:
            return value if isinstance(value, fx.Node) else None
    return None


def written(node: fx.Node) -> list[fx.Node]:
    """The arguments that the op of `node` writes to."""
    if node.op != "call_function" or node.target is getitem:
        return []
    targets = tree_leaves([value for argument, value in _given(node) if argument.is_write])
    return [target for target in targets if isinstance(target, fx.Node)]


def updated(node: fx.Node) -> list[fx.Node]:
    """The running statistics that a batch norm of torch in train mode moves, which its schema may not say."""
    if node.op != "call_function" or node.target is getitem:
        return []
    given = {argument.name: value for argument, value in _given(node)}
    statistics = [given.get(name) for name in STATISTICS] if given.get("training") else []
    return [target for target in statistics if isinstance(target, fx.Node)]


def _given(node: fx.Node) -> list[tuple[Any, Any]]:
    """The arguments of the op in its schema, and what this call gives for them."""
    arguments = op_of(node)._schema.arguments
    named = [(argument, node.kwargs[argument.name]) for argument in arguments if argument.name in node.kwargs]
    return [*zip(arguments, node.args, strict=False), *named]


def alias_root(node: fx.Node) -> fx.Node:
    """The node that first made the memory `node` looks at."""
    while (parent := aliases(node)) is not None:
        node = parent
    return node
