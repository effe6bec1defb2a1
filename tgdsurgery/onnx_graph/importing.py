"""An ONNX file to a torch module: read, built, and compared with the file."""

from __future__ import annotations

from pathlib import Path

from torch import fx

from tgdsurgery.onnx_graph.build import build
from tgdsurgery.onnx_graph.check import compare, working_inputs
from tgdsurgery.onnx_graph.reading import read_model


def import_onnx(path: Path, *, check: bool) -> fx.GraphModule:
    """The network in the file.

    `meta["example_inputs"]` are inputs that it takes; `meta["largest_difference"]` is how far its outputs are from
    the file's on them, if that was checked.
    """
    model = read_model(path)
    net = build(model, path)
    if check:
        net.meta["example_inputs"], net.meta["largest_difference"] = compare(net, model, path)
    else:
        net.meta["example_inputs"] = working_inputs(net, model)
    return net
