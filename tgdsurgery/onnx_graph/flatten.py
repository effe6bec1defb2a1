"""A graph without what is known already: constants read, identities followed, what is constant computed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import Tensor

from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.onnx_graph.ops import OPS, Op
from tgdsurgery.onnx_graph.reading import Constant, constant

# Ops of one tensor, whose result is that tensor in other words.
SAME_TENSOR = ("Transpose", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "DequantizeLinear")
# Layers, also where they see nothing but constants (codes of positions).
KEPT = ("Conv", "ConvTranspose", "Gemm", "BatchNormalization", "LayerNormalization")
MOST_ENTRIES = 2**24  # that a computed constant may have, if it is not as large as its inputs
MOST_NUMBERS = 2**16  # entries of a shape or a list of axes


@dataclass
class Flat:
    """What is left of a graph.

    Args:
        path: the file.
        opset: its version of the ops.
        nodes: the nodes that depend on inputs, in order.
        constants: values that do not.
        same: values that are another value.
    """

    path: Path
    opset: int
    nodes: list[ir.Node] = field(default_factory=list)
    constants: dict[ir.Value, Constant] = field(default_factory=dict)
    same: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def value(self, value: ir.Value | None) -> ir.Value | None:
        """The value itself, where it is passed on under several names."""
        while value is not None and value in self.same:
            value = self.same[value]
        return value

    def inputs(self, node: ir.Node) -> list[ir.Value | None]:
        """The inputs of a node, themselves; None where one is left out."""
        return [self.value(value) for value in node.inputs]

    def constant(self, value: ir.Value | None) -> Constant | None:
        """The constant that a value is, if it is one."""
        found = self.value(value)
        return None if found is None else self.constants.get(found)


def flatten(model: ir.Model, path: Path, *, deep: bool = False) -> Flat:
    """The nodes of a model that depend on its inputs.

    Args:
        model: the model; it is not changed.
        path: its file.
        deep: also those in the branches and loops of a graph, which may never run.

    Raises:
        CheckpointError: its nodes go round in a circle, or a tensor is damaged.
    """
    flat = Flat(path, model.opset_imports.get("", 0))
    try:
        model.graph.sort()
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: its nodes form a circle.", "Export it again.") from error
    _visit(model.graph, flat, deep)
    return flat


def attributes(node: ir.Node) -> dict[str, ir.Attr]:
    """A node's attributes by name."""
    return {name: attr for name, attr in node.attributes.items() if isinstance(attr, ir.Attr)}


def plain_attributes(node: ir.Node) -> dict[str, Any]:
    """Those that are numbers, texts and lists of them."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR)
    return {
        name: list(attr.value) if isinstance(attr.value, tuple) else attr.value
        for name, attr in attributes(node).items()
        if attr.type not in kinds
    }


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Branches and loop bodies."""
    return [attr.value for attr in attributes(node).values() if attr.type == ir.AttributeType.GRAPH]


def _visit(graph: ir.Graph, flat: Flat, deep: bool) -> None:
    for value in graph.initializers.values():
        found = constant(value.const_value, flat.path, value.name or "", stored=True)
        if found is not None:
            flat.constants[value] = found
    for node in graph:
        if node.op_type == "Constant":
            _literal(node, flat)
        elif node.op_type == "Identity":
            _alias(flat, node.outputs, node.inputs)
        elif node.op_type == "If" and (branch := _branch(node, flat)) is not None:
            _visit(branch, flat, deep)
            _alias(flat, node.outputs, branch.outputs)
        elif not _computed(node, flat):
            flat.nodes.append(node)
            for inner in subgraphs(node) if deep else ():
                _visit(inner, flat, deep)


def _alias(flat: Flat, new: Iterable[ir.Value], old: Iterable[ir.Value | None]) -> None:
    flat.same.update((a, b) for a, b in zip(new, old, strict=True) if b is not None)


def _literal(node: ir.Node, flat: Flat) -> None:
    """A Constant node: a tensor, or numbers."""
    for attr in attributes(node).values():
        name = node.outputs[0].name or ""
        if attr.type == ir.AttributeType.TENSOR:
            found = constant(attr.value, flat.path, name, stored=False)
        elif attr.name in ("value_float", "value_floats", "value_int", "value_ints"):
            kind = torch.float32 if "float" in attr.name else torch.int64
            found = computed(torch.tensor(attr.value, dtype=kind), name)
        else:
            found = None
        if found is not None:
            flat.constants[node.outputs[0]] = found


def computed(tensor: Tensor, name: str = "") -> Constant:
    """A tensor that is in memory."""
    return Constant(tuple(tensor.shape), tensor.dtype, lambda: tensor, name)


def _branch(node: ir.Node, flat: Flat) -> ir.Graph | None:
    """The branch that is always taken, if the condition is constant."""
    condition = flat.constant(node.inputs[0])
    if condition is None or condition.numel != 1:
        return None
    taken = attributes(node)["then_branch" if condition.read().item() else "else_branch"]
    return taken.value if taken.type == ir.AttributeType.GRAPH else None


def _computed(node: ir.Node, flat: Flat) -> bool:
    """Compute the node's results if its inputs are constant; whether they were."""
    found = [flat.constant(value) for value in node.inputs if value is not None]
    if node.op_type == "CastLike" and found[0] is not None and (like := node.inputs[1]) is not None:
        return _cast(node, flat, found[0], like.dtype)
    op = OPS.get(node.op_type)
    if op is None or node.domain not in ("", "ai.onnx") or None in found or not node.inputs:
        return False
    if node.op_type in KEPT:
        return False
    constants = [constant for constant in found if constant is not None]
    if node.op_type == "Transpose" and constants[0].floating:
        flat.constants[node.outputs[0]] = _transposed(constants[0], plain_attributes(node).get("perm"))
        return True
    results = _results(node, op, flat, constants)
    if results is None or len(results) < len(node.outputs):
        return False
    name = constants[0].name if node.op_type in SAME_TENSOR else ""
    for value, result in zip(node.outputs, results, strict=False):
        flat.constants[value] = replace(computed(result.contiguous(), name), stored=constants[0].stored)
    return True


def _cast(node: ir.Node, flat: Flat, constant: Constant, kind: ir.DataType | None) -> bool:
    """A constant in the type of a value that is none, whose type is known."""
    if kind is None:
        return False
    dtype = tensor_adapters.to_torch_dtype(kind)
    read = constant.read if dtype == constant.dtype else lambda: constant.read().to(dtype)
    flat.constants[node.outputs[0]] = replace(constant, dtype=dtype, read=read)
    return True


def _transposed(constant: Constant, perm: list[int] | None) -> Constant:
    """Read when it is needed: weights are large, and most of them are transposed."""
    axes = perm if perm is not None else list(range(len(constant.shape)))[::-1]
    shape = tuple(constant.shape[axis] for axis in axes)
    return replace(constant, shape=shape, read=lambda: constant.read().permute(axes).contiguous())


def _results(node: ir.Node, op: Op, flat: Flat, constants: list[Constant]) -> list[Tensor] | None:
    """What torch computes, first without data: a small file can ask for a large result."""
    most = max(MOST_ENTRIES, 2 * sum(constant.numel for constant in constants))
    with contextlib.suppress(Exception):  # an op that fails here fails, with its name, where it is run
        for device in ("meta", "cpu"):
            args, kwargs = _arguments(node, op, flat, device)
            found = op.function(*args, **kwargs, **op.fixed)
            results = list(found) if op.several else [found]
            if sum(result.numel() for result in results) > most:
                return None
        return results
    return None


def _arguments(node: ir.Node, op: Op, flat: Flat, device: str) -> tuple[list[Any], dict[str, Any]]:
    args: list[Any] = []
    for value, name in zip(node.inputs, slots(op, len(node.inputs)), strict=False):
        found = flat.constant(value)
        if found is None:
            args.append(None)
        elif name in op.host or (name in op.soft and not found.shape):
            args.append(numbers(found))
        elif device == "meta":
            args.append(torch.empty(found.shape, dtype=found.dtype, device="meta"))
        else:
            args.append(found.read())
    return args, keywords(node, op, flat.opset, torch.empty(0, device=device))


def numbers(constant: Constant) -> Any:
    """A shape, axes or a scalar as Python's own numbers."""
    if constant.numel > MOST_NUMBERS:
        raise ValueError("a shape of so many entries")
    found = constant.read()
    return found.item() if found.numel() == 1 and found.dim() == 0 else found.tolist()


def scalar(constant: Constant) -> Any:
    """The one entry of a tensor."""
    return constant.read().reshape(()).item()


def slots(op: Op, count: int) -> Iterator[str]:
    """The names of a node's inputs."""
    yield from op.inputs
    yield from [""] * (count - len(op.inputs))


def keywords(node: ir.Node, op: Op, opset: int, like: object) -> dict[str, Any]:
    """A node's attributes, and what else the function of its op asks for."""
    given = plain_attributes(node)
    known: Mapping[str, Any] = {"opset": opset, "outputs": len(node.outputs), "like": like}
    given |= {name: value for name, value in known.items() if name in op.attributes}
    for name, attr in attributes(node).items():
        if attr.type == ir.AttributeType.TENSOR and "dtype" in op.attributes:
            tensor = constant(attr.value, Path(), name, stored=False)
            if tensor is not None and tensor.numel == 1:
                given |= {name: scalar(tensor), "dtype": tensor.dtype}
    return given
