"""An ONNX file, parsed and checked: nothing it says is believed before its size is compared with what is there.

Parsing runs no code. Tensors in other files ("external data") have to lie in the model's own folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from onnx_ir.passes.common import InlinePass
from torch import Tensor

from tgdsurgery.core.beside import beside
from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.tables import shortened

DAMAGED = "Copy or download it again."
OLDEST_OPSET = 7


@dataclass(frozen=True)
class Constant:
    """A tensor of the file, or computed from such alone; read when it is needed.

    Args:
        shape: its sizes.
        dtype: its type in torch.
        read: gives the tensor, on its own memory.
        name: what the file calls it, or the one tensor that it is computed from.
        stored: whether the file keeps it as an initialiser, and not as a number in the graph.
        outside: bytes of it in another file.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    name: str = ""
    stored: bool = False
    outside: int = 0

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether its entries are floating-point numbers."""
        return self.dtype.is_floating_point


def read_model(path: Path) -> ir.Model:
    """The model in an ONNX file, with functions written out where they are called.

    Raises:
        CheckpointError: the file is damaged, no ONNX model, or older than opset 7.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
        if not proto.HasField("graph") or not proto.opset_import:
            raise CheckpointError(f"{path} is not an ONNX model.", DAMAGED)
        model = ir.from_proto(proto)
        if not all(_is_text(node) for node in ir.traversal.RecursiveGraphIterator(model.graph)):
            raise CheckpointError(f"{path} is damaged: a name in it is no text.", DAMAGED)
        if model.functions:
            model = InlinePass()(model).model
    except CheckpointError:
        raise
    except Exception as error:  # protobuf and onnx-ir raise anything on damage
        raise CheckpointError(f"{path} is damaged, cut off or not an ONNX model.", DAMAGED) from error
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise CheckpointError(
            f"{path} is of ONNX opset {opset}; it is read from {OLDEST_OPSET} on.",
            "Convert it: onnx.version_converter.convert_version(model, 17).",
        )
    return model


def _is_text(node: ir.Node) -> bool:
    """Whether its names are text: protobuf gives those that are no UTF-8 as bytes."""
    values = (value.name for value in (*node.inputs, *node.outputs) if value is not None)
    return all(
        isinstance(name, str)
        for name in (node.op_type, node.domain, node.name or "", *values)
        if name is not None
    )


def constant(tensor: ir.TensorProtocol | None, path: Path, name: str, *, stored: bool) -> Constant | None:
    """What torch makes of a tensor of the file at `path`; None for text and other types that torch lacks.

    Raises:
        CheckpointError: its sizes are absurd, it has fewer or more entries than it claims, or lies elsewhere.
    """
    if tensor is None:
        return None
    try:
        dtype = tensor_adapters.to_torch_dtype(tensor.dtype)
    except (TypeError, ValueError):
        return None
    shape = _shape(tensor, path)
    claimed = math.prod(shape) * dtype.itemsize
    if isinstance(tensor, ir.ExternalTensor):
        place = _place(tensor, path, claimed)
        return Constant(shape, dtype, lambda: _read_external(*place, shape, dtype), name, stored, claimed)
    return Constant(shape, dtype, lambda: _read_inline(tensor, path, shape, dtype), name, stored)


def _shape(tensor: ir.TensorProtocol, path: Path) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in tensor.shape if isinstance(size, int))
    if len(sizes) != len(tensor.shape) or any(size < 0 for size in sizes) or math.prod(sizes) >= 2**62:
        raise _refusal(tensor, path, "has sizes that no tensor has")
    return sizes


def _place(tensor: ir.ExternalTensor, path: Path, claimed: int) -> tuple[Path, int]:
    """The file and offset of external data, which lies in the model's folder and is as large as it claims."""
    try:
        file = beside(path, str(tensor.location))
    except FileNotFoundError as error:
        raise _refusal(
            tensor, path, f"is in {shortened(str(tensor.location))}, which is not there"
        ) from error
    if file is None:
        raise CheckpointError(
            f"{path} keeps {shortened(str(tensor.name))!r} outside of its folder "
            f"({shortened(str(tensor.location))}).",
            "Put the model and its data into one folder.",
        )
    offset, length = tensor.offset or 0, tensor.length
    if offset < 0 or length not in (None, claimed) or offset + claimed > file.stat().st_size:
        raise _refusal(tensor, path, f"does not fit into {shortened(str(tensor.location))}")
    return file, offset


def _read_external(file: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    content = np.fromfile(file, np.uint8, math.prod(shape) * dtype.itemsize, offset=offset)
    return torch.from_numpy(content).view(dtype).view(shape)


def _read_inline(tensor: ir.TensorProtocol, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    try:
        found = np.array(tensor.numpy())  # a copy: the file's own memory is read-only
        if found.shape != shape:
            raise ValueError
    except Exception as error:  # what numpy and onnx make of too few bytes
        raise _refusal(tensor, path, "does not have the entries that it claims") from error
    if dtype.is_floating_point and dtype.itemsize <= 2 and dtype != torch.float16:
        return torch.from_numpy(found.view(f"i{dtype.itemsize}")).view(dtype)  # no types of numpy's own
    return torch.from_numpy(found)


def _refusal(tensor: ir.TensorProtocol, path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: its tensor {shortened(str(tensor.name))!r} {problem}.",
        "Copy or download it again, with its data.",
    )
