"""A network exported with free axes, run again, and compared with PyTorch."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tgdsurgery.core.atomic import check_suffix, replacing
from tgdsurgery.core.copying import copy_model, own_randomness
from tgdsurgery.core.tables import shortened
from tgdsurgery.export.axes import Axis, free_axes, run
from tgdsurgery.export.check import ExportError, Runner, difference, tensors
from tgdsurgery.export.formats import FORMATS, Format, require_onnx

MAX_REASON = 200  # characters of another program's message


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        dynamic: the axes that may have other sizes, each run at another size.
        largest: largest difference from PyTorch's output, over all sizes that were run.
        notes: axes that may not, and why.
    """

    dynamic: tuple[str, ...]
    largest: float
    notes: tuple[str, ...]


def export_network(net: nn.Module, inputs: Sequence[Tensor], path: Path, form: str) -> Exported:
    """Write a network in evaluation mode, with batch and space free where it allows that.

    Axes are tried on the network itself. One along which the exported network fails, or computes something else, is
    fixed at the example's size instead.

    Args:
        net: a plain network; it is not touched.
        inputs: what it is called with, on the CPU.
        path: the file; replaced only when all is written and checked.
        form: "onnx" or "pt2".

    Raises:
        ExportError: the network does not take the inputs, cannot be exported, or computes something else afterwards;
            or a package is missing.
        CheckpointError: the file cannot be written.
    """
    check_suffix(path, FORMATS[form].suffix)
    if form == "onnx":
        require_onnx()
    plain = copy_model(net).eval().requires_grad_(False)
    _check_runs(plain, inputs)
    free, fixed = free_axes(plain, inputs)
    notes = [f"{name}: the network accepts no other size" for name in fixed]
    with replacing(path) as temporary, _quiet():
        content, exported = _settled(plain, inputs, FORMATS[form], free, notes)
        temporary.write_bytes(content)
    return exported


def _check_runs(net: nn.Module, inputs: Sequence[Tensor]) -> None:
    try:
        run(net, inputs)
    except Exception as error:  # whatever the user's forward raises
        shapes = " and ".join("x".join(map(str, tensor.shape)) for tensor in inputs)
        raise ExportError(
            f"The network's forward failed for inputs of shape {shapes}: {_reason(error)}.",
            "Give a shape that it takes, batch first: --input-shape.",
        ) from error


def _settled(
    net: nn.Module, inputs: Sequence[Tensor], form: Format, free: list[Axis], notes: list[str]
) -> tuple[bytes, Exported]:
    """Export, fix the axes that do not work, and export again, until all do."""
    while True:
        try:
            attempt = _attempt(net, inputs, form, free)
            failed = attempt.failed
            if not failed:
                constant = [f"{axis}: its size becomes a constant" for axis in attempt.constant]
                names = [str(axis) for axis in free if axis not in attempt.constant]
                names = list(dict.fromkeys(names))
                return attempt.content, Exported(tuple(names), attempt.largest, (*notes, *constant))
        except ExportError:
            raise
        except Exception as error:  # whatever torch.export, the converter or the program raises
            if not free:
                raise ExportError(
                    f"The network cannot be exported: {_reason(error)}.", "Export another format."
                ) from error
            failed = {axis: _reason(error) for axis in [axis for axis in free if axis.number] or free}
        free = [axis for axis in free if axis not in failed]
        notes = [*notes, *(f"{axis}: {reason}" for axis, reason in failed.items())]


class _Attempt(NamedTuple):
    """A file's content, the largest difference, axes that became constants, and those that fail with the reason."""

    content: bytes
    largest: float
    constant: list[Axis]
    failed: dict[Axis, str]


def _attempt(net: nn.Module, inputs: Sequence[Tensor], form: Format, free: Sequence[Axis]) -> _Attempt:
    example = tuple(inputs)
    for axis in free:  # a size of 1 would be taken for a constant
        example = axis.resized(example, axis.other) if axis.size == 1 else example
    program = _traced(net, example, free)
    content = form.written(program)
    runner = form.loaded(content)
    constant = _constants(program, free)
    largest, failed = _difference(net, runner, inputs), dict[Axis, str]()
    for axis in free:
        if axis not in constant:
            try:
                largest = max(largest, _difference(net, runner, axis.resized(inputs, axis.other)))
            except Exception as error:  # whatever the program raises at a size that it does not take
                failed[axis] = _reason(error)
    return _Attempt(content, largest, constant, failed)


def _difference(net: nn.Module, runner: Runner, inputs: Sequence[Tensor]) -> float:
    return difference(runner, tensors(run(net, inputs)), inputs)


def _traced(net: nn.Module, inputs: Sequence[Tensor], free: Sequence[Axis]) -> ExportedProgram:
    sizes = [{axis.number: Dim.AUTO for axis in free if i in axis.inputs} for i in range(len(inputs))]
    shapes = dict(inspect.signature(net.forward).bind(*sizes).arguments)  # by name, those of *args in a tuple
    with torch.no_grad(), own_randomness(net):
        return torch.export.export(net, tuple(inputs), dynamic_shapes=shapes)


def _constants(program: ExportedProgram, free: Sequence[Axis]) -> list[Axis]:
    """The free axes whose sizes the program has as numbers."""
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    return [axis for axis in free if any(isinstance(shapes[i][axis.number], int) for i in axis.inputs)]


def _reason(error: Exception) -> str:
    return shortened(" ".join(str(error).split()) or type(error).__name__, MAX_REASON)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice of exporters to those who write them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
