"""Memory that no op of a run has written: whatever is in it came from outside torch's dispatcher.

A kernel that torch does not know (pybind, Triton, Numba) fills the memory it is given by its address. In the
graph nothing leads there, and channels would silently end.
"""

from __future__ import annotations

from operator import getitem

from torch import fx

from tgdsurgery.core.errors import UnsupportedOpError
from tgdsurgery.mapping.nodes import alias_root, aliases, op_of, place_of, written
from tgdsurgery.mapping.rules import creation
from tgdsurgery.mapping.rules.registry import find_rule, unite_elementwise

_FRESH = ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
_COPIES = ("clone", "_to_copy")
# In place and element by element, but without a look at what is replaced.
_REPLACES = ("masked_fill_",)


def refuse_unwritten(graph: fx.Graph) -> None:
    """Raise an UnsupportedOpError if an op reads memory that none has written to.

    One write anywhere in it is enough: memory is often filled piece by piece, in places that the input decides.
    """
    unwritten: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function" or node.target is getitem:
            continue
        name = op_of(node)._opname
        if unwritten and any(alias_root(parent) in unwritten for parent in _read(node)):
            if name not in _COPIES:
                raise _error(node)
            unwritten.add(node)
        unwritten.difference_update([alias_root(target) for target in written(node)] if unwritten else ())
        if name in _FRESH and node.meta["val"].numel():
            unwritten.add(node)


def _read(node: fx.Node) -> list[fx.Node]:
    """The arguments whose elements the op of `node` looks at: not those of views, and not only for their shape."""
    op, targets = op_of(node), written(node)
    rule = find_rule(op)
    if rule is creation.unwritten or (aliases(node) is not None and not targets):
        return []
    modifies = op._opname.endswith("_") and op._opname not in _REPLACES and rule is unite_elementwise
    return [parent for parent in node.all_input_nodes if modifies or parent not in targets]


def _error(node: fx.Node) -> UnsupportedOpError:
    return UnsupportedOpError(
        f"The op {node.target} (node {node.name}, in module {place_of(node)}) reads memory that no op of torch "
        "has written: a kernel that torch does not know has filled it, or nobody has.",
        "Wrap that kernel in torch.library.custom_op and describe it with tgdsurgery.register_rule "
        "(docs/custom_ops.md); memory that nobody fills should be torch.zeros.",
    )
