"""What does not depend on the network's input: weights that are computed, indices that are looked up."""

from __future__ import annotations

from torch import Tensor, fx

from tgdsurgery.mapping.nodes import alias_root, written

Kept = dict[fx.Node, tuple[str, fx.Node]]


def settle_fixed(graph: fx.Graph, state: Kept) -> Kept:
    """Mark the nodes that do not depend on the input; the others forget their values.

    Memory that ever takes in something from the input (``out = zeros(...); out[:, :4] = x``) is not fixed
    from its first node on, hence the repetition until nothing changes.

    Args:
        graph: all nodes.
        state: nodes that read what the model kept, each with the place and the node that is kept there at the end.

    Returns:
        Those of `state` that keep something of the input, which the next run reads.
    """
    loose = {node for node in graph.nodes if node.op == "placeholder"}
    # What makes a node loose, and what it makes loose then.
    ways = [
        ({alias_root(node), *node.all_input_nodes}, [alias_root(target) for target in written(node)])
        for node in graph.nodes
    ]
    size = -1
    while size != len(loose):
        size = len(loose)
        loose.update(start for start, (_, end) in state.items() if alias_root(end) in loose)
        for node, (sources, targets) in zip(graph.nodes, ways, strict=True):
            if not loose.isdisjoint(sources):
                loose.update((node, *targets))
    for node in graph.nodes:
        node.meta["fixed"] = node not in loose
        if node in loose:
            node.meta.pop("value", None)
    return {start: kept for start, kept in state.items() if start in loose}


def value_at(node: fx.Node, reader: fx.Node) -> Tensor | None:
    """What `reader` found in a fixed `node`: memory may have been written to since. None if it is not fixed."""
    value: Tensor | None = node.meta.get("value")
    if value is not None:
        for writer, memory in alias_root(node).meta.get("overwritten", ()):
            if reader < writer or reader is writer:
                flat: Tensor = memory.view(value.dtype)
                return flat.as_strided(value.shape, value.stride(), value.storage_offset())
    return value
