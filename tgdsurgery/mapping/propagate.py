"""The captured graph, run once more on labels instead of numbers.

Views are run on the labels and share their memory, as in the real run; what an op writes in place is
written into the labels of its argument. So any order of channels comes out right without a rule for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from itertools import chain
from operator import getitem
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef

from tgdsurgery.core.errors import UnsupportedOpError
from tgdsurgery.core.norm_statistics import STATISTICS
from tgdsurgery.core.records import ParameterRows
from tgdsurgery.core.torch_private import tree_leaves, tree_map_only
from tgdsurgery.mapping.capture import Capture
from tgdsurgery.mapping.exits import refuse_exit
from tgdsurgery.mapping.fixed import value_at
from tgdsurgery.mapping.labels import MAX_MEMBERS, LabelTable, TableFullError, any_in, collapse
from tgdsurgery.mapping.nodes import alias_root, aliases, op_of, place_of, written
from tgdsurgery.mapping.rules.call import Call, FilterCall, Traced
from tgdsurgery.mapping.rules.check import fits, labels_by
from tgdsurgery.mapping.rules.registry import find_rule, mix_all
from tgdsurgery.mapping.unwritten import refuse_unwritten
from tgdsurgery.settings import OnUnknown


@dataclass
class Propagation:
    """What a run on labels found.

    Args:
        capture: the run it belongs to.
        table: the sets behind all labels; the same for all runs of a model, which are mostly alike.
        parameters: every parameter, and every running statistic, that the run read, with the rows that write.
        rows: names of the parameters that share a block of rows, by the block's name.
        filter_calls: the calls of filter layers, in execution order.
        returned: labels of the nodes that some module returned, collapsed (axes of length 1 where constant).
        mixed: ops without a rule that were let through.
        kept: at the end of the run, the labels of what the model keeps, and of all else that was left behind.
        moved: names of the running statistics that the run has changed.
    """

    capture: Capture
    table: LabelTable
    parameters: dict[str, ParameterRows] = field(default_factory=dict)
    rows: dict[str, list[str]] = field(default_factory=dict)
    filter_calls: list[FilterCall] = field(default_factory=list)
    returned: dict[fx.Node, Tensor] = field(default_factory=dict)
    mixed: set[str] = field(default_factory=set)
    kept: dict[fx.Node, Tensor] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)

    def at_places(self) -> dict[str, Tensor]:
        """The labels of what the model keeps, by where it is."""
        places = self.capture.places.items()
        return {place: self.kept[node] for place, node in places if node in self.kept}

    def left(self) -> list[StorageWeakRef]:
        """The memory that the run has left behind and that filters have a part in."""
        kept = {node for node, labels in self.kept.items() if any_in(labels)}
        return [memory for memory, nodes in self.capture.left.items() if kept.intersection(nodes)]

    def after(self, earlier: Propagation) -> Propagation:
        """This run and an earlier one in the same mode, as one."""
        return replace(
            self,
            parameters={**earlier.parameters, **self.parameters},
            rows={**earlier.rows, **self.rows},
            filter_calls=[*earlier.filter_calls, *self.filter_calls],
            returned={**earlier.returned, **self.returned},
            mixed=earlier.mixed | self.mixed,
            moved=earlier.moved | self.moved,
        )

    def still(self) -> set[str]:
        """The running statistics that were read and not changed: those of norms that are frozen by nature."""
        return {name for name in self.parameters if name.rpartition(".")[2] in STATISTICS} - self.moved


def propagate(
    capture: Capture,
    table: LabelTable,
    on_unknown: OnUnknown = "raise",
    before: Mapping[str, Tensor] = MappingProxyType({}),
) -> Propagation:
    """Run `capture` on the labels of `table`.

    Args:
        capture: the run.
        table: the sets behind the labels.
        on_unknown: what to do at an op without a rule.
        before: the labels of what the model kept before the run, by where it is.

    Raises:
        UnsupportedOpError: an op on labelled tensors has no rule (unless `on_unknown="mix"`), or values go
            where torch does not see them.
    """
    refuse_unwritten(capture.graph)
    none = torch.zeros((), dtype=torch.int64)
    first = {start: before.get(place, none) for start, (place, _) in capture.carried.items()}
    first = {start: _read_again(start, labels, table) for start, labels in first.items()}
    carried = first
    while True:
        found = Propagation(capture, table, moved=set(capture.moved))
        _Interpreter(found, on_unknown, carried).run()
        # What is read at the start is what was there at the end of a run like this one, too.
        again = dict(carried)
        for start, (_, end) in capture.carried.items():
            if end in found.kept:
                again[start] = table.union(first[start], _read_again(start, found.kept[end], table))
        if all(torch.equal(labels, carried[start]) for start, labels in again.items()):
            return found
        carried = again


def _read_again(start: fx.Node, labels: Tensor, table: LabelTable) -> Tensor:
    return (labels if fits(labels, start.meta["val"]) else table.mix(labels)).expand(start.meta["val"].shape)


class _Interpreter:
    def __init__(self, found: Propagation, on_unknown: OnUnknown, carried: Mapping[fx.Node, Tensor]) -> None:
        self.found = found
        self.on_unknown = on_unknown
        self.carried = carried
        self.labels: dict[fx.Node, Any] = {}
        # Tensors without elements, with the label of the op that picked none.
        self.picked_nothing: dict[fx.Node, Tensor] = {}
        self.laid_out = _laid_out(found.capture.graph)

    def run(self) -> None:
        """Go through the nodes; labels are dropped after their last use.

        Raises:
            UnsupportedOpError: an op without a rule, or sets that outgrow the memory.
        """
        last_use = {
            parent: node for node in self.found.capture.graph.nodes for parent in node.all_input_nodes
        }
        kept = {*self.found.capture.places.values(), *chain(*self.found.capture.left.values())}
        for node in self.found.capture.graph.nodes:
            if node.op == "output":
                continue
            try:
                self.labels[node] = self._labels(node)
            except TableFullError:
                raise UnsupportedOpError(
                    f"At the op {node.target} (node {node.name}, in module {place_of(node)}) too much has mixed: "
                    f"the sets of filters behind the channels have over {MAX_MEMBERS:,} members together.",
                    "Apply TGD to the parts of the model before and behind it (net.stem = apply_tgd(net.stem, ...)).",
                ) from None
            self._follow_nothing(node)
            if "exit" in node.meta:
                refuse_exit(node, self.labels[node])
            if node.meta["returned_by"] and isinstance(self.labels[node], Tensor):
                self.found.returned[node] = collapse(self.labels[node]).clone()
            for parent in node.all_input_nodes:
                if last_use[parent] is node and parent not in kept:
                    del self.labels[parent]
        self.found.kept = {node: labels for node in kept if (labels := self.labels.get(node)) is not None}

    def _labels(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._kept(node, torch.zeros((), dtype=torch.int64))
        if node.op == "get_attr":
            return self._seeds(node)
        if node.target is getitem:
            return self._part(node) if node.users or node.meta["returned_by"] else None
        if node.meta["fixed"] and all(self.labels[parent] is None for parent in node.all_input_nodes):
            return None
        return self._op(node)

    def _follow_nothing(self, node: fx.Node) -> None:
        """Where features choose elements and the example picks none, what is computed from them is unknown."""
        picked = self.picked_nothing
        known = [picked[parent] for parent in node.all_input_nodes if parent in picked]
        spec, labels = node.meta["val"], self.labels[node]
        if not known and node.op == "call_function" and node.target is not getitem and _chooses(op_of(node)):
            parts = [part for part in tree_leaves(spec) if isinstance(part, Tensor)]
            chosen = any(self._is_labelled(parent) for parent in node.all_input_nodes)
            if chosen and parts and not parts[0].numel():
                where = f"the op {node.target} (node {node.name}, in module {place_of(node)})"
                known = [self.found.table.block("nothing", where, 1)[0]]
        if not known:
            return
        label = reduce(self.found.table.union, known)
        if not isinstance(spec, Tensor) or not spec.numel():
            picked[node] = label
        elif labels is not None:
            self._write(node, self.found.table.union(labels, label))

    def _is_labelled(self, node: fx.Node) -> bool:
        labels = self.labels[node]
        return isinstance(labels, Tensor) and any_in(labels)

    def _seeds(self, node: fx.Node) -> Tensor | None:
        """The rows of a parameter are writers, and so are those of a norm's running statistics."""
        name: str = node.meta.get("parameter") or node.meta.get("buffer", "")
        owner, _, leaf = name.rpartition(".")
        if not ("parameter" in node.meta or leaf in STATISTICS):
            # A buffer that the run writes its input to starts with what the run before has left there.
            before = self.carried.get(node, torch.zeros((), dtype=torch.int64))
            return None if node.meta["fixed"] else self._kept(node, before)
        seeded = ParameterRows(name, tuple(node.meta["val"].shape), axis=_seed_axis(node))
        # What a norm has per channel is written and frozen together: one writer stands for it all.
        of_norm = len(seeded.shape) == 1 and leaf in ("weight", "bias", *STATISTICS)
        block = f"{owner}:{seeded.channels}" if of_norm else name
        if name not in self.found.parameters:
            self.found.parameters[name] = seeded
            self.found.rows.setdefault(block, []).append(name)
        labels = self.found.table.block("row", block, seeded.channels)
        rank = len(seeded.shape)
        labels = labels.view([-1 if dim == seeded.axis else 1 for dim in range(rank)]).expand(seeded.shape)
        return _own_memory(labels, node.meta["val"]) if node in self.laid_out else labels

    def _part(self, node: fx.Node) -> Any:
        parent, index = node.args
        assert isinstance(parent, fx.Node)
        assert isinstance(index, int)
        labels = self.labels[parent]
        if labels is None or aliases(node) is not None:
            return None if labels is None else labels[index]
        if isinstance(labels, (tuple, list)):
            return self._kept(node, labels[index])
        # A rule that knows one set of labels for several outputs: they are good where the shape fits.
        return self._kept(node, labels if fits(labels, node.meta["val"]) else self.found.table.mix(labels))

    def _op(self, node: fx.Node) -> Any:
        op = op_of(node)
        call = Call(node, self.found.table, self.found.parameters, self.found.rows, self.found.filter_calls)
        if (op.is_view or torch.Tag.inplace_view in op.tags) and not _changes_dtype(node):
            return self._view(node)
        if op.is_view and alias_root(node) in self.laid_out:
            raise UnsupportedOpError(
                f"Memory is written to and looked at as another type by the op {node.target} (node {node.name}, "
                f"in module {place_of(node)}), which cannot be followed.",
                "Look at a copy instead (clone()), or write before the type is changed.",
            )
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), partial(self._traced, reader=node))
        rule = find_rule(op)
        if rule is None and not any(traced.labelled for traced in _traced_leaves(args, kwargs)):
            rule = mix_all  # Nothing is written there: nothing comes out.
        if rule is None:
            rule = self._without_rule(node)
        result = labels_by(rule, call, args, kwargs)
        if _works_in_place(node):
            (target,) = written(node)
            if target.meta["val"].shape != node.meta["val"].shape:  # out=, which makes the room it needs
                return self._kept(node, result)
            self._write(target, result)
            return self.labels[target]
        targets = written(node)
        if targets:  # What comes out is of the moment before.
            result = tree_map_only(Tensor, torch.clone, result)
        for target in targets:
            # A norm's own update of its running statistics is no way from one channel to another.
            if target.meta.get("buffer", "").rpartition(".")[2] not in STATISTICS:
                # Where an op writes to one argument and returns nothing, that is what its rule describes.
                described = not op._schema.returns and len(targets) == 1
                self._write(target, result if described else mix_all(call, *args, **kwargs))
        return self._kept(node, result) if isinstance(node.meta["val"], Tensor) else result

    def _kept(self, node: fx.Node, labels: Tensor) -> Tensor:
        """The labels of a new tensor: small where it may be, laid out as the real one where it must be."""
        if alias_root(node) in self.laid_out:
            return _own_memory(labels, node.meta["val"])
        return collapse(labels).clone().expand(node.meta["val"].shape)

    def _view(self, node: fx.Node) -> Any:
        op: Any = op_of(node)
        if torch.Tag.inplace_view in op.tags:  # The labels' own shape stays: other nodes look at it.
            op = getattr(torch.ops.aten, op._schema.name.removeprefix("aten::").removesuffix("_"))
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda parent: self.labels[parent])
        try:
            result = op(*args, **kwargs)
        except RuntimeError:
            # Labels are kept expanded, which not every view can take.
            whole = [arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args]
            result = op(*whole, **kwargs)
        if alias_root(node) in self.laid_out:
            return result
        return tree_map_only(Tensor, lambda part: collapse(part).expand(part.shape), result)

    def _write(self, target: fx.Node, result: Any) -> None:
        labels = self.labels[target]
        if labels is None or not isinstance(result, Tensor):
            return
        if not fits(result, labels):
            result = self.found.table.mix(result)
        if alias_root(target) in self.laid_out:
            labels.copy_(result.clone())  # it may be another view of the same memory
        else:
            self.labels[target] = self._kept(target, result)

    def _traced(self, node: fx.Node, reader: fx.Node) -> Any:
        labels, spec = self.labels[node], node.meta["val"]
        value = value_at(node, reader)
        if node.meta.get("random") and not (spec.is_floating_point() or spec.is_complex()):
            value = None  # Whole numbers may be places: those drawn by chance are others in the next run.
        empty = torch.zeros((), dtype=torch.int64)
        shown = empty.expand(spec.shape) if labels is None else labels
        labelled = labels is not None and any_in(labels)
        return Traced(shown, labelled, value, spec.shape, spec.dtype, node)

    def _without_rule(self, node: fx.Node) -> Any:
        if self.on_unknown == "mix":
            self.found.mixed.add(str(node.target))
            return mix_all
        raise UnsupportedOpError(
            f"No rule says how the op {node.target} carries channels "
            f"(node {node.name}, in module {place_of(node)}).",
            f'Describe it with tgdsurgery.register_rule("{op_of(node)._schema.name}", ...), '
            'pass on_unknown="mix" to keep more kernels than needed, or apply TGD to the part of the model '
            "that comes before it (model.backbone = apply_tgd(model.backbone, ...)).",
        )


def _seed_axis(node: fx.Node) -> int:
    """The axis whose rows are a parameter's writers: its only long one, else the first.

    A table from which the same entries are read again and again (relative positions in attention) has its
    writers along the other axis: the places in it are no channels.
    """
    shape = node.meta["val"].shape
    long = [axis for axis, size in enumerate(shape) if size > 1]
    axis = long[0] if len(long) == 1 else 0
    others = [other for other in long if other != axis]
    return others[-1] if others and any(_looks_up(user, node, axis) for user in node.users) else axis


def _looks_up(user: fx.Node, table: fx.Node, axis: int) -> bool:
    if getattr(user.target, "_opname", "") not in ("index", "_unsafe_index", "index_select", "embedding"):
        return False
    data = user.args[0]
    along = user.args[1] if user.target._opname == "index_select" else 0  # type: ignore[union-attr]
    if isinstance(user.args[1], (tuple, list)):
        along = next(dim for dim, index in enumerate(user.args[1]) if index is not None)
    return bool(data is table and along == axis and user.meta["val"].numel() > table.meta["val"].numel())


def _laid_out(graph: fx.Graph) -> set[fx.Node]:
    """The tensors whose labels need the memory layout of the real run.

    Those that are written to while views look at them, and those that are looked at by strides. All others
    can be kept small, with every axis along which the labels do not change expanded.
    """
    calls = [node for node in graph.nodes if node.op == "call_function"]
    targets = {alias_root(target) for node in calls for target in written(node)}
    viewed = {alias_root(node) for node in calls if _is_view(node)}
    by_strides = {alias_root(node) for node in calls if getattr(node.target, "_opname", "") in _BY_STRIDES}
    return targets & viewed | by_strides


def _chooses(op: Any) -> bool:
    """Whether the elements decide how many come out."""
    return torch.Tag.dynamic_output_shape in op.tags or op._opname == "nms"


_BY_STRIDES = ("as_strided", "as_strided_", "_reshape_alias", "resize_", "set_")


def _is_view(node: fx.Node) -> bool:
    if aliases(node) is None or node.target is getitem:
        return aliases(node) is not None
    return not _works_in_place(node) or torch.Tag.inplace_view in op_of(node).tags


def _own_memory(labels: Tensor, spec: Tensor) -> Tensor:
    """Labels laid out in memory as the real tensor was, so that later views of it work on them."""
    own = torch.empty_strided(spec.shape, spec.stride(), dtype=torch.int64)
    return own.copy_(labels)


def _changes_dtype(node: fx.Node) -> bool:
    """Views as another dtype (complex) cannot be run on integers."""
    parent = node.all_input_nodes[0].meta["val"]
    val = node.meta["val"]
    return isinstance(val, Tensor) and val.dtype != parent.dtype


def _works_in_place(node: fx.Node) -> bool:
    """Whether the op returns the one argument that it writes to."""
    returns = op_of(node)._schema.returns
    return len(returns) == 1 and returns[0].alias_info is not None and len(written(node)) == 1


def _traced_leaves(*containers: Any) -> list[Traced]:
    return [leaf for leaf in tree_leaves(containers) if isinstance(leaf, Traced)]
