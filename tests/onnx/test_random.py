"""Random networks, exported by torch.onnx: the file computes the same, and its channel map is the network's own."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tests.strategies import Case, cases
from tgdsurgery import channel_map, from_onnx

# One network in four and more goes through: these are the faults of exporters.
FAULTS = (torch.onnx.errors.OnnxExporterError, torch.onnx.errors.SymbolicValueError, RuntimeError)


def exported(case: Case, path: Path) -> bool:
    """Write the network; whether the exporter can do it, and onnxruntime takes what it wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            # Norms and weights as they are, not folded into each other.
            kept = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
            torch.onnx.export(case.model, (case.inputs,), path, dynamo=False, opset_version=17, **kept)
            onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except (*FAULTS, *_refusals()):
            return False
        finally:
            logging.disable(logging.NOTSET)
    return True


def _refusals() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for perms of -1 and the like, which the exporter that traces writes."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    return state.Fail, state.InvalidGraph, state.InvalidArgument, state.RuntimeException


def assert_same_network(case: Case, path: Path) -> None:
    """Raise unless the network in the file computes the same, and has the same map."""
    found = from_onnx(path)
    with torch.no_grad():
        # Norms by hand and bias in other orders of summation.
        torch.testing.assert_close(found(case.inputs), case.model(case.inputs), rtol=1e-3, atol=1e-4)
    own, read = channel_map(case.model, case.inputs), channel_map(found)
    assert set(read.consumers) == set(own.consumers)
    for consumer in own.consumers:
        assert read.producers(consumer) == own.producers(consumer), consumer


@settings(max_examples=20, deadline=None)
@given(case=cases())
def test_a_file_is_its_network(tmp_path_factory, case):
    path = tmp_path_factory.mktemp("random") / "net.onnx"
    if exported(case, path):
        assert_same_network(case, path)


class Pyramid(nn.Module):
    """Skips, a split, a group norm, a transposed conv and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 8, 3, 2, 1, groups=2)
        self.group = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2, bias=False)
        self.slope = nn.PReLU(8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.out = nn.Conv2d(8, 2, 1)
        self.fc = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.norm(self.stem(x)).relu()
        a, b = self.group(self.down(first)).chunk(2, 1)
        second = torch.cat([self.up(a * b.sigmoid()), first], 1)
        return self.fc(self.out(self.slope(second) * self.scale).mean((2, 3)))


# torch's exporter copies a deprecated class.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "dynamo"])
@pytest.mark.parametrize("folded", [False, True], ids=["as it is", "folded"])
def test_both_exporters(tmp_path, dynamo, folded):
    torch.manual_seed(0)
    case = Case(Pyramid().eval(), torch.randn(2, 1, 8, 8))
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(case.model, (case.inputs,), path, dynamo=True, optimize=folded, verbose=False)
        else:
            how = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
            torch.onnx.export(
                case.model, (case.inputs,), path, dynamo=False, do_constant_folding=folded, training=how
            )
    found = from_onnx(path)
    with torch.no_grad():
        torch.testing.assert_close(found(case.inputs), case.model(case.inputs))
    own, read = channel_map(case.model, case.inputs), channel_map(found)
    if not folded or dynamo:
        assert {name: own.producers(name) for name in own.consumers} == {
            name: read.producers(name) for name in read.consumers
        }
    else:  # the norm went into the conv before it, which has a name of its own now
        assert len(read.consumers) == len(own.consumers)
