"""Is the torch module what the file says? Both run on the same random inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import Tensor, fx

from tgdsurgery.core.errors import CheckpointError, ExampleInputError, TGDError, UnsupportedOpError

BATCH = 2
SIZES = (64, 32, 48, 96, 128, 224, 256, 299, 320, 16, 8, 512, 1024)  # of axes that the file leaves open
# Of the largest output: sums of thousands of terms in another order; networks of float32 are off by about 1e-6.
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 2e-1}
STRICT = 1e-4
SIGMOID = 1e-6  # what onnxruntime's fast sigmoid is off by, near 0 too
REPORT = "Report it; the model's own code, with the file as its --checkpoint, needs no import."
T = TypeVar("T")


def example_inputs(model: ir.Model) -> Iterator[tuple[Tensor, ...]]:
    """Random inputs of sizes that the file allows, the usual ones first.

    Raises:
        ExampleInputError: an input is no tensor that torch knows.
    """
    held = set(model.graph.initializers.values())
    inputs = [value for value in model.graph.inputs if value not in held]
    open_axes = any(not isinstance(size, int) for value in inputs for size in _sizes(value)[1:])
    for size in SIZES if open_axes else SIZES[:1]:
        yield tuple(_example(value, size) for value in inputs)


def _sizes(value: ir.Value) -> Sequence[object]:
    return list(value.shape) if value.shape is not None else []


def _example(value: ir.Value, size: int) -> Tensor:
    shape = [
        given if isinstance(given, int) and given > 0 else BATCH if axis == 0 else size
        for axis, given in enumerate(_sizes(value))
    ]
    try:
        assert value.dtype is not None
        dtype = tensor_adapters.to_torch_dtype(value.dtype)
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator).to(dtype)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise ExampleInputError(
            f"No input for {value.name!r} of the ONNX model can be made: {error}.", "Give example inputs."
        ) from error


def reference(path: Path) -> Any:
    """onnxruntime where it is installed and takes the file, and else onnx's own evaluator: a function of arrays."""
    try:
        import onnxruntime  # noqa: PLC0415 (optional)

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:  # not installed; or newer ops than it knows
        from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 (slow, and seldom needed)

        session = ReferenceEvaluator(str(path))
        return lambda feed: session.run(None, feed)
    return lambda feed: session.run(None, feed)


class NamedRun(fx.Interpreter):
    """Runs the module node by node; a failure tells which op of the file it was."""

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node.

        Raises:
            UnsupportedOpError: it fails.
        """
        try:
            return super().run_node(n)
        except Exception as error:
            kind, name = n.meta.get("onnx", (n.op, n.name))
            raise UnsupportedOpError(
                f"The op {kind} (node {name!r}) fails: {type(error).__name__}: {' '.join(str(error).split())}.",
                "If the model runs elsewhere, report it; the model's own code, with the file as its "
                "--checkpoint, needs no import.",
            ) from error


def run(net: fx.GraphModule, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The module's outputs.

    Raises:
        UnsupportedOpError: an op fails.
    """
    with torch.no_grad():
        found = NamedRun(net).run(*(x.clone() for x in inputs))
    return [found] if isinstance(found, Tensor) else list(found)


def working_inputs(net: fx.GraphModule, model: ir.Model) -> tuple[Tensor, ...]:
    """Inputs that the module takes.

    Raises:
        UnsupportedOpError: it takes none of the usual sizes.
    """

    def attempt(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        run(net, inputs)
        return inputs

    return _first(model, attempt)


def compare(net: fx.GraphModule, model: ir.Model, path: Path) -> tuple[tuple[Tensor, ...], float]:
    """Run the file and the module on the same inputs.

    Returns:
        the inputs, and the largest difference of all outputs.

    Raises:
        UnsupportedOpError: the module, or the reference, takes none of the usual sizes.
        CheckpointError: their outputs differ.
    """
    expected_of = reference(path)
    names = [
        value.name for value in model.graph.inputs if value not in set(model.graph.initializers.values())
    ]

    def both(inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[Tensor], list[Any]]:
        found = run(net, inputs)
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return inputs, found, expected_of(feed)

    inputs, found, expected = _first(model, both)
    outputs = [value.name for value in model.graph.outputs]
    tolerance = max(TOLERANCE.get(tensor.dtype, STRICT) for tensor in (*found, *net.parameters()))
    differences = [
        _difference(path, str(name), a, torch.from_numpy(np.asarray(b)), tolerance)
        for name, a, b in zip(outputs, found, expected, strict=True)
    ]
    return inputs, max(differences, default=0.0)


def _first(model: ir.Model, attempt: Callable[[tuple[Tensor, ...]], T]) -> T:
    """The result for the first inputs that can be run; else the first failure."""
    failure: Exception | None = None
    for inputs in example_inputs(model):
        try:
            return attempt(inputs)
        except Exception as error:  # whatever the reference raises
            failure = failure or error
    if isinstance(failure, TGDError):
        raise failure
    raise UnsupportedOpError(
        f"The file does not run: {' '.join(str(failure).split())}.",
        "Give from_onnx(path, check=False) if you know that it is right.",
    ) from failure


def _difference(path: Path, name: str, found: Tensor, expected: Tensor, tolerance: float) -> float:
    """The largest difference of one output."""
    if found.shape != expected.shape:
        raise CheckpointError(
            f"{path} was read wrongly: its output {name!r} has shape {tuple(expected.shape)}, "
            f"and in torch {tuple(found.shape)}.",
            REPORT,
        )
    if not found.numel():
        return 0.0
    a, b = found.double(), expected.double()
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0.0, (a - b).abs()).max().item()
    scale = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0.0
    if not difference <= tolerance * scale + SIGMOID:
        raise CheckpointError(
            f"{path} was read wrongly: its output {name!r} is up to {scale:.3g}, and in torch off by "
            f"{difference:.3g}.",
            REPORT,
        )
    return difference
