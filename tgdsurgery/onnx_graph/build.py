"""A graph as a torch.fx module: layers become torch's modules, all other ops torch's functions."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ShapeInferencePass
from torch import Tensor, fx, nn

from tgdsurgery.core.errors import CheckpointError, UnsupportedOpError
from tgdsurgery.core.tables import shortened
from tgdsurgery.onnx_graph import shapes
from tgdsurgery.onnx_graph.flatten import Flat, flatten, keywords, numbers, plain_attributes, scalar, slots
from tgdsurgery.onnx_graph.layers import LayerNode, find_layers
from tgdsurgery.onnx_graph.modules import SAME, Weights, extra_padding, make_layer
from tgdsurgery.onnx_graph.names import Names
from tgdsurgery.onnx_graph.ops import OPS, Op, filters, pooling
from tgdsurgery.onnx_graph.reading import Constant
from tgdsurgery.onnx_graph.recurrent import KINDS, make_recurrent, outputs

REMEDY = (
    "Ask for the op in an issue; or take the model's own code, and the file as its --checkpoint; "
    "`tgd inspect` reads the weights as they are."
)
CONTROL = {
    "If": "Its condition is not constant: export the model with one branch, or fix the input that it depends on.",
    "Loop": "Export the model without loops over data.",
    "Scan": "Export the model without loops over data.",
}
MOST_LITERAL = 4096  # whole numbers that are written into the graph


class Builder:
    """Puts the nodes of a flat graph, one after the other, into a torch.fx graph.

    Args:
        flat: the graph.
        inputs: its inputs.
    """

    def __init__(self, flat: Flat, inputs: list[ir.Value]) -> None:
        self.flat, self.layers = flat, find_layers(flat)
        self.root, self.graph = nn.Module(), fx.Graph()
        self.weights, self.names = Weights(), Names()
        self.values: dict[ir.Value, fx.Node] = {}
        self.host: set[fx.Node] = set()  # nodes that give Python's own numbers
        self.placed: dict[str, str] = {}  # where each layer is in the module
        self.kept: dict[ir.Value, fx.Node] = {}  # constants that are parameters or buffers
        self.current: ir.Node | None = None
        given = Names()
        for value in inputs:
            self.values[value] = self.graph.placeholder(given.unique(value.name or "x").replace(".", "_"))
        self._add_modules()

    def _add_modules(self) -> None:
        """By name, so that a layer within a layer is put where the outer one is already."""
        made = {layer.name: layer for layer in self.layers.nodes.values()}
        for name in sorted(made):
            layer = made[name]
            with self._at(layer.node):
                module = make_layer(layer, self._rank(layer.node))
            self.names.unique(name)
            self.placed[name] = _put(self.root, name, self.weights.put(module, layer.held))

    def run(self, results: list[ir.Value]) -> fx.GraphModule:
        """The module that computes these values."""
        for node in self.flat.nodes:
            self.current = node
            with self._at(node):
                self._node(node)
        found = [self._tensor(value) for value in results]
        self.graph.output(found[0] if len(found) == 1 else tuple(found))
        network = fx.GraphModule(self.root, self.graph, "OnnxNetwork")
        network.graph.eliminate_dead_code()
        network.recompile()
        return network.eval()

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any = None) -> fx.Node:
        return self._told(self.graph.call_function(function, args, kwargs or {}))

    def _run(self, name: str, x: fx.Node) -> fx.Node:
        return self._told(self.graph.call_module(name, (x,)))

    def _told(self, made: fx.Node) -> fx.Node:
        """With the name of the op that it was made for, if that fails."""
        if self.current is not None:
            made.meta["onnx"] = (self.current.op_type, _named(self.current))
        return made

    def _node(self, node: ir.Node) -> None:
        if node in self.layers.added:
            self.values[node.outputs[0]] = self.values[self.layers.added[node].outputs[0]]
        elif node in self.layers.nodes:
            self.values[node.outputs[0]] = self._layer(node, self.layers.nodes[node])
        elif node.op_type == "Dropout":
            self.values[node.outputs[0]] = self._dropout(node)
        elif node.op_type in KINDS:
            self._recurrent(node)
        elif (found := self._of_shapes(node)) is not None:
            self.values[node.outputs[0]] = found
            self.host.add(found)
        else:
            self._function(node)

    # ---- layers

    def _layer(self, node: ir.Node, layer: LayerNode) -> fx.Node:
        x = self._tensor(node.inputs[0])
        given, kind = plain_attributes(node), node.op_type
        axes = len(layer.held["weight"].shape) - 2
        ends = extra_padding(layer) if kind in ("Conv", "ConvTranspose") else None
        if kind == "Conv" and given.get("auto_pad", "NOTSET") in SAME:
            ones = [1] * axes
            window = list(layer.held["weight"].shape[2:])
            sizes = (window, given.get("strides") or ones, given.get("dilations") or ones)
            lower = {"lower": given["auto_pad"] == "SAME_LOWER"}
            x = self._call(pooling.pad_same, (x, *sizes), lower)
        elif kind == "Conv" and ends is not None:
            x = self._call(pooling.pad_space, (x, ends))
        found = self._run(self.placed[layer.name], x)
        if kind == "ConvTranspose" and ends is not None:
            return self._call(filters.crop_space, (found, ends))
        return found

    def _dropout(self, node: ir.Node) -> fx.Node:
        inputs = self.flat.inputs(node)
        ratio = self.flat.constant(inputs[1]) if len(inputs) > 1 else None
        share = scalar(ratio) if ratio is not None else plain_attributes(node).get("ratio", 0.5)
        name = self.names.unique(node.name or node.outputs[0].name or "dropout")
        name = _put(self.root, name, nn.Dropout(float(share)))
        return self._run(name, self._tensor(node.inputs[0]))

    def _recurrent(self, node: ir.Node) -> None:
        name = self.names.unique(node.name or node.outputs[0].name or node.op_type)
        name = _put(self.root, name, make_recurrent(node, self.flat))
        states = [self._tensor(value) for value in self.flat.inputs(node)[5:7] if value is not None]
        args = (self._tensor(node.inputs[0]), states[0] if len(states) == 1 else tuple(states) or None)
        found = self._told(self.graph.call_module(name, args))
        self._several(node, self._call(outputs, (found,)))

    def _several(self, node: ir.Node, found: fx.Node) -> None:
        for place, value in enumerate(node.outputs):
            self.values[value] = self._call(_item, (found, place))

    def _rank(self, node: ir.Node) -> int:
        """Axes of a node's first input."""
        value = self.flat.value(node.inputs[0])
        shape = value.shape if value is not None else None
        return 4 if shape is None else len(shape)

    # ---- numbers computed from shapes

    def _of_shapes(self, node: ir.Node) -> fx.Node | None:
        """The node as arithmetic of Python's numbers, if it computes with shapes alone."""
        kind, inputs = node.op_type, self.flat.inputs(node)
        if kind in ("Shape", "Size"):
            x = self.values.get(inputs[0]) if inputs[0] is not None else None
            function = shapes.shape if kind == "Shape" else shapes.size
            return self._call(function, (x,), plain_attributes(node)) if x is not None else None
        on_host = [self._on_host(value) for value in inputs]
        decides = on_host[:1] if kind in shapes.MOVED else on_host
        known = kind in shapes.MOVED or kind in shapes.MIXED or kind in shapes.NUMBERS
        if not known or not any(decides) or not all(self._countable(value) for value in inputs):
            return None
        given = keywords(node, OPS[kind], self.flat.opset, None)
        if kind == "ConstantOfShape" and given.get("dtype", torch.float32).is_floating_point:
            return None
        given = {name: value for name, value in given.items() if name not in ("like", "dtype", "opset")}
        args = tuple(self._number(value) for value in inputs)
        if kind in shapes.NUMBERS:
            return self._call(shapes.number, args, {"kind": kind, **given})
        return self._call({**shapes.MOVED, **shapes.MIXED}[kind], args, given)

    def _on_host(self, value: ir.Value | None) -> bool:
        return value is not None and self.values.get(value) in self.host

    def _countable(self, value: ir.Value | None) -> bool:
        found = self.flat.constant(value)
        if found is None:
            return value is None or self._on_host(value)
        few = found.numel <= (64 if found.floating else MOST_LITERAL)
        return few and not (found.floating and found.stored and found.numel > 1)

    def _number(self, value: ir.Value | None) -> Any:
        if value is None:
            return None
        found = self.flat.constant(value)
        return numbers(found) if found is not None else self.values[value]

    # ---- functions

    def _function(self, node: ir.Node) -> None:
        kind = node.op_type
        if kind == "Resize" and self.flat.opset < 11:
            kind = "Upsample"  # its inputs and its way of counting
        op = OPS.get(kind)
        if op is None or node.domain not in ("", "ai.onnx"):
            raise self._unsupported(node, "is not supported", CONTROL.get(kind, REMEDY))
        args = tuple(
            self._argument(node, op, name, value)
            for name, value in zip(slots(op, len(node.inputs)), self.flat.inputs(node), strict=False)
        )
        given = keywords(node, op, self.flat.opset, self._any_tensor())
        if unknown := sorted(given.keys() - op.attributes):
            raise self._unsupported(node, f"has the attribute {unknown[0]!r}, which is not supported", REMEDY)
        found = self._call(op.function, args, {**given, **op.fixed})
        if op.several:
            self._several(node, found)
        else:
            self.values[node.outputs[0]] = found

    def _argument(self, node: ir.Node, op: Op, name: str, value: ir.Value | None) -> Any:
        if value is None:
            return None
        found = self.flat.constant(value)
        if name in op.host:
            if found is None and not self._on_host(value):
                raise self._unsupported(
                    node, f"takes its {name} from data", "Export the model with fixed sizes; shapes may vary."
                )
            return self._number(value)
        if name in op.soft and found is not None and not found.shape and _is_number(found):
            return scalar(found)
        return self._tensor(value)

    def _any_tensor(self) -> fx.Node | None:
        """What has the network's device."""
        return next(iter(self.values.values()), None)

    def _tensor(self, value: ir.Value | None) -> fx.Node:
        """A value as a tensor: computed, or of the module."""
        value = self.flat.value(value)
        assert value is not None
        found = self.flat.constant(value)
        if found is not None:
            return self._kept(value, found)
        if value not in self.values:
            raise CheckpointError(
                f"{self.flat.path} is damaged: nothing computes {shortened(str(value.name))!r}.",
                "Export or download it again.",
            )
        node = self.values[value]
        if node in self.host:
            return self._call(shapes.as_tensor, (node, self._any_tensor()))
        return node

    def _kept(self, value: ir.Value, constant: Constant) -> fx.Node:
        """A parameter if training could move it; numbers that stand alone are buffers, and so are integers."""
        if value not in self.kept:
            name = self.names.unique(constant.name or value.name or "constant")
            trainable = constant.floating and (
                constant.numel > 1 or (constant.stored and "." in constant.name)
            )
            owner, leaf, name = _owner(self.root, name)
            if trainable:
                owner.register_parameter(leaf, self.weights.parameter(constant))
            else:
                owner.register_buffer(leaf, constant.read().clone())
            # Before all that uses it, wherever that is.
            first = next(iter(self.graph.nodes), None)
            with self.graph.inserting_before(first) if first is not None else contextlib.nullcontext():
                self.kept[value] = self.graph.get_attr(name)
        return self.kept[value]

    # ---- errors

    @contextlib.contextmanager
    def _at(self, node: ir.Node) -> Iterator[None]:
        """What fails in here is told with the node's name."""
        try:
            yield
        except NotImplementedError as error:
            raise self._unsupported(node, f"uses {error}, which is not supported", REMEDY) from error
        except (KeyError, ValueError, TypeError, IndexError, RuntimeError, AttributeError) as error:
            raise self._unsupported(
                node, f"cannot be read: {type(error).__name__}: {error}", "Export the model again."
            ) from error

    def _unsupported(self, node: ir.Node, problem: str, remedy: str) -> UnsupportedOpError:
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        return UnsupportedOpError(
            f"{self.flat.path}: the op {shortened(kind)} (node {_named(node)!r}) {problem}.", remedy
        )


def _named(node: ir.Node) -> str:
    return shortened(node.name or str(node.outputs[0].name if node.outputs else ""))


def _is_number(constant: Constant) -> bool:
    """One number, which is no parameter of a module."""
    parameter = constant.floating and constant.stored and "." in constant.name
    return constant.numel == 1 and len(constant.shape) <= 1 and not parameter


def _item(values: tuple[Tensor, ...], place: int) -> Tensor:
    return values[place]


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str, str]:
    """The module that a name is put into, made if there is none, the last part, and the whole as it is free there."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    while hasattr(root, leaf):
        leaf += "_"
    return root, leaf, ".".join([*path, leaf])


def _put(root: nn.Module, name: str, module: nn.Module) -> str:
    owner, leaf, free = _owner(root, name)
    owner.add_module(leaf, module)
    return free


def build(model: ir.Model, path: Path) -> fx.GraphModule:
    """The graph of a model as a torch.fx module in evaluation mode.

    Raises:
        UnsupportedOpError: an op, or a setting of one, that torch has nothing for here.
        CheckpointError: the file is damaged.
    """
    _infer_shapes(model)
    flat = flatten(model, path)
    held = set(model.graph.initializers.values())
    inputs = [value for value in model.graph.inputs if value not in held]
    return Builder(flat, inputs).run(list(model.graph.outputs))


def _infer_shapes(model: ir.Model) -> None:
    """How many axes a value has decides which batch norm it gets; what cannot be inferred is left out."""
    log = logging.getLogger("onnx_ir.passes.common.shape_inference")
    before, log.disabled = log.disabled, True
    try:
        ShapeInferencePass(strict_mode=False, check_type=False)(model)
    finally:
        log.disabled = before
