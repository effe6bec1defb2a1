"""The nodes of a graph that are layers: those with weights of their own, their names, and torch's layers for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from tgdsurgery.onnx_graph.flatten import Flat, plain_attributes
from tgdsurgery.onnx_graph.names import Names, module_name
from tgdsurgery.onnx_graph.reading import Constant

# Op -> torch's names of its constant inputs, by their place.
HELD = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {1: "weight", 2: "bias"},
    "MatMul": {1: "weight"},
    "BatchNormalization": {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"},
    "InstanceNormalization": {1: "weight", 2: "bias"},
    "LayerNormalization": {1: "weight", 2: "bias"},
    "GroupNormalization": {1: "weight", 2: "bias"},
    "PRelu": {1: "weight"},
}
CONVOLUTIONS = ("Conv", "ConvTranspose")
LINEAR = ("Gemm", "MatMul")


@dataclass(frozen=True)
class LayerNode:
    """A node whose weights are constants of the file.

    Args:
        name: the module's name; filters with the same weights and settings are one module, called several times.
        node: the first such node.
        held: its tensors by torch's names and in torch's layout.
    """

    name: str
    node: ir.Node
    held: Mapping[str, Constant]

    @property
    def filter(self) -> bool:
        """Whether it is a convolution or a linear layer."""
        return self.node.op_type in (*CONVOLUTIONS, *LINEAR)

    @property
    def groups(self) -> int:
        """Groups of a convolution."""
        return int(plain_attributes(self.node).get("group", 1))

    @property
    def transposed(self) -> bool:
        """Whether the weight is laid out (C, N/g, *K)."""
        return self.node.op_type == "ConvTranspose"


@dataclass
class Layers:
    """The layers of a graph.

    Args:
        nodes: the layer that each node runs.
        added: nodes that add the bias of the MatMul before them.
    """

    nodes: dict[ir.Node, LayerNode] = field(default_factory=dict)
    added: dict[ir.Node, ir.Node] = field(default_factory=dict)


def find_layers(flat: Flat) -> Layers:
    """The layers among the nodes."""
    found = Layers()
    known: dict[tuple[object, ...], LayerNode] = {}
    names = Names()
    for node in flat.nodes:
        held = _held(node, flat)
        if held is None:
            continue
        adding = _bias_after(node, held, flat)
        if adding is not None:
            after, held["bias"] = adding
            found.added[after] = node
        # Exporters keep equal tensors once: norms that have the same are not one norm.
        filters = node.op_type in (*CONVOLUTIONS, *LINEAR)
        key = (node.op_type, *map(_identity, held.values()), str(sorted(plain_attributes(node).items())))
        if not filters or key not in known:
            name = module_name(held["weight"].name, node.name or "", node.outputs[0].name or "")
            known[key] = LayerNode(names.unique(name), node, held)
        found.nodes[node] = known[key]
    return found


def _identity(constant: Constant) -> object:
    return (constant.name, constant.shape) if constant.name else id(constant.read)


def _held(node: ir.Node, flat: Flat) -> dict[str, Constant] | None:
    """The tensors of a node that is a layer, in torch's layout; None if it is none."""
    places = HELD.get(node.op_type)
    if places is None or node.domain not in ("", "ai.onnx"):
        return None
    inputs = flat.inputs(node)
    held: dict[str, Constant] = {}
    for place, name in places.items():
        if place < len(inputs) and inputs[place] is not None:
            found = flat.constant(inputs[place])
            if found is None or not found.floating:
                return None
            held[name] = found
    if "weight" not in held or not held["weight"].numel:
        return None
    return LAYOUTS.get(node.op_type, _as_it_is)(held, plain_attributes(node), flat.opset)


def _as_it_is(held: dict[str, Constant], _: Mapping[str, Any], __: int) -> dict[str, Constant] | None:
    return held


def _convolution(held: dict[str, Constant], _: Mapping[str, Any], __: int) -> dict[str, Constant] | None:
    """torch.onnx writes zeros, at times of two axes, where there is no bias."""
    bias = held.get("bias")
    if bias is not None and not bias.stored and not bias.read().any():
        del held["bias"]
    return held if 3 <= len(held["weight"].shape) <= 5 else None


def _batch_norm(held: dict[str, Constant], given: Mapping[str, Any], _: int) -> dict[str, Constant] | None:
    whole = len(held) == 4 and not given.get("training_mode") and given.get("spatial", 1)
    return held if whole else None


def _group_norm(held: dict[str, Constant], _: Mapping[str, Any], opset: int) -> dict[str, Constant] | None:
    return held if opset >= 21 else None  # before, a scale for each group


def _prelu(held: dict[str, Constant], _: Mapping[str, Any], __: int) -> dict[str, Constant] | None:
    """One slope, or one for each channel: an axis of channels before those of space."""
    shape = held["weight"].shape
    channels = shape[0] if len(shape) > 1 and math.prod(shape) == shape[0] else 1
    if math.prod(shape) != channels:
        return None
    return {"weight": _viewed(held["weight"], (channels,))}


def _matmul(held: dict[str, Constant], _: Mapping[str, Any], __: int) -> dict[str, Constant] | None:
    return {"weight": _turned(held["weight"])} if len(held["weight"].shape) == 2 else None


def _gemm(held: dict[str, Constant], given: Mapping[str, Any], _: int) -> dict[str, Constant] | None:
    plain = not given.get("transA") and given.get("alpha", 1.0) == 1
    if not plain or len(held["weight"].shape) != 2:
        return None
    turned = {"weight": held["weight"] if given.get("transB") else _turned(held["weight"])}
    if "bias" in held:
        outputs = turned["weight"].shape[0]
        if (
            held["bias"].numel != outputs
            or given.get("beta", 1.0) != 1
            or held["bias"].shape[-1:] != (outputs,)
        ):
            return None
        turned["bias"] = _viewed(held["bias"], (outputs,))
    return turned


Layout = Callable[[dict[str, Constant], Mapping[str, Any], int], "dict[str, Constant] | None"]
LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "PRelu": _prelu,
    "MatMul": _matmul,
    "Gemm": _gemm,
}


def _turned(constant: Constant) -> Constant:
    """(C, N) as (N, C)."""
    return replace(constant, shape=constant.shape[::-1], read=lambda: constant.read().t().contiguous())


def _viewed(constant: Constant, shape: tuple[int, ...]) -> Constant:
    return replace(constant, shape=shape, read=lambda: constant.read().reshape(shape))


def _bias_after(node: ir.Node, held: Mapping[str, Constant], flat: Flat) -> tuple[ir.Node, Constant] | None:
    """The node that does nothing but add a bias to the result of a filter layer without one, and the bias."""
    output = node.outputs[0]
    uses = [use.node for use in output.uses()]
    if node.op_type not in ("MatMul", "Conv") or "bias" in held or output.is_graph_output():
        return None
    if len(uses) != 1 or uses[0].op_type != "Add":
        return None
    others = [flat.constant(value) for value in uses[0].inputs if flat.value(value) is not output]
    bias = others[0] if len(others) == 1 else None
    filters, *kernel = held["weight"].shape
    space = (1,) * (len(kernel) - 1)  # the axes after that of the channels
    fits = bias is not None and bias.floating and bias.shape in ((filters, *space), (1, filters, *space))
    plain = bias is not None and (node.op_type == "Conv" or bias.shape == (filters,))
    return (uses[0], _viewed(bias, (filters,))) if bias is not None and fits and plain else None
