"""Small ONNX files, made node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Arrays = Mapping[str, np.ndarray]
Sizes = Sequence[int | str]


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node; inputs and outputs are names with spaces between, `-` for one that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attributes)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sizes],
    weights: Arrays | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    kinds: Mapping[str, int] | None = None,
    literal: bool = False,
) -> Path:
    """Write a model.

    Args:
        path: the file.
        nodes: in order.
        inputs: sizes by name; a text is a size that is left open.
        weights: initialisers by name.
        outputs: names of the results.
        opset: version of the ops.
        kinds: types of inputs that are not float32.
        literal: whether weights are in Constant nodes in place of initialisers.
    """
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
    graph = helper.make_graph(
        [*(constants if literal else []), *nodes],
        "graph",
        [
            helper.make_tensor_value_info(name, (kinds or {}).get(name, TensorProto.FLOAT), list(sizes))
            for name, sizes in inputs.items()
        ],
        [
            helper.make_value_info(name, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
            for name in outputs
        ],
        initializer=[] if literal else tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    """A list of whole numbers."""
    return np.array(numbers, dtype=np.int64)
