"""ONNX files as files of weights: what from_onnx would name them, without a graph that torch can run."""

from __future__ import annotations

from pathlib import Path

from tgdsurgery.onnx_graph.flatten import Flat, flatten
from tgdsurgery.onnx_graph.layers import Layers, find_layers
from tgdsurgery.onnx_graph.names import Names
from tgdsurgery.onnx_graph.reading import Constant, read_model
from tgdsurgery.storage.tensor_file import StoredWeight, TensorFile, described


def open_onnx(path: Path) -> TensorFile:
    """The tensors of an ONNX file: those of layers by torch's names and in torch's layout, then all others.

    Raises:
        CheckpointError: it is damaged, or keeps data outside of its folder.
    """
    flat, layers = _read(path)
    held: dict[str, Constant] = {}
    for layer in layers.nodes.values():
        held |= {f"{layer.name}.{name}": constant for name, constant in layer.held.items()}
    of_layers = {constant.name for constant in held.values()}
    names = Names()
    for name in held:
        names.unique(name)
    for constant in flat.constants.values():
        if constant.name and constant.name not in of_layers and _is_weight(constant):
            held[names.unique(constant.name)] = constant
            of_layers.add(constant.name)
    tensors = {name: described(constant.shape, constant.dtype, path, name) for name, constant in held.items()}
    size = path.stat().st_size + sum(constant.outside for constant in held.values())
    return TensorFile(path, tensors, lambda name: held[name].read().contiguous(), size)


def onnx_filters(path: Path) -> dict[str, StoredWeight]:
    """The weights of convolutions and linear layers by name, with what the file says of them.

    Raises:
        CheckpointError: it is damaged, or keeps data outside of its folder.
    """
    _, layers = _read(path)
    return {
        layer.name: StoredWeight(
            layer.held["weight"].shape, layer.held["weight"].read, layer.groups, layer.transposed
        )
        for layer in layers.nodes.values()
        if layer.filter
    }


def _read(path: Path) -> tuple[Flat, Layers]:
    """Branches and loops too: their weights are weights, whether they run or not."""
    flat = flatten(read_model(path), path, deep=True)
    return flat, find_layers(flat)


def _is_weight(constant: Constant) -> bool:
    return constant.stored or (constant.floating and constant.numel > 1)
