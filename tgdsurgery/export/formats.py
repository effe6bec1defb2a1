"""The formats: how a traced program becomes a file, and how that file is run again."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tgdsurgery.export.check import ExportError, Runner, tensors

LARGEST_PROTOBUF = 2**31 - 1
ONNX_PACKAGES = ("onnxruntime", "onnxscript")  # runs, writes; an extra


class Format(NamedTuple):
    """A file format.

    Args:
        suffix: what its files end in.
        written: the file's bytes.
        loaded: a function that runs the network in these bytes.
    """

    suffix: str
    written: Callable[[ExportedProgram], bytes]
    loaded: Callable[[bytes], Runner]


def require_onnx() -> None:
    """Raise unless what writes and runs ONNX is installed.

    Raises:
        ExportError: it is not.
    """
    try:
        for package in ONNX_PACKAGES:
            importlib.import_module(package)
    except ImportError as error:
        raise ExportError(
            f"ONNX needs onnxruntime and onnxscript ({error}).",
            'Install them: pip install "tgdsurgery[onnx]".',
        ) from error


def _onnx(program: ExportedProgram) -> bytes:
    import onnx  # noqa: PLC0415 (slow, and seldom needed)

    made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None  # with dynamo it is the program
    proto = made.model_proto
    if proto.ByteSize() > LARGEST_PROTOBUF:
        raise ExportError("The network is larger than 2 GB, which one ONNX file cannot hold.", "Export pt2.")
    onnx.checker.check_model(proto, full_check=True)
    written: bytes = proto.SerializeToString()
    return written


def _in_onnxruntime(content: bytes) -> Runner:
    onnxruntime = importlib.import_module(ONNX_PACKAGES[0])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        given = {name: tensor.cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, given)]

    return run


def _archive(program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _in_torch(content: bytes) -> Runner:
    net: Any = torch.export.load(io.BytesIO(content)).module()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return tensors(net(*(tensor.clone() for tensor in inputs)))

    return run


FORMATS = {"onnx": Format(".onnx", _onnx, _in_onnxruntime), "pt2": Format(".pt2", _archive, _in_torch)}
