"""torch's layer for each layer of the file, with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from tgdsurgery.onnx_graph.flatten import plain_attributes
from tgdsurgery.onnx_graph.layers import LayerNode
from tgdsurgery.onnx_graph.ops.pooling import both_ends
from tgdsurgery.onnx_graph.reading import Constant

CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM: dict[int, type[nn.Module]] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
SAME = ("SAME_UPPER", "SAME_LOWER")


class Weights:
    """Parameters of constants, each read once; one that several layers have is one Parameter."""

    def __init__(self) -> None:
        self._made: dict[object, nn.Parameter] = {}

    def parameter(self, constant: Constant) -> nn.Parameter:
        """The Parameter; tensors of one axis are not shared, since exporters keep equal ones once."""
        key = (constant.name, constant.shape) if constant.name and len(constant.shape) > 1 else object()
        if key not in self._made:
            self._made[key] = nn.Parameter(constant.read().clone(memory_format=torch.contiguous_format))
        return self._made[key]

    def put(self, module: nn.Module, held: Mapping[str, Constant]) -> nn.Module:
        """A layer made on the meta device, with its tensors."""
        for name, _ in list(module.named_parameters()):
            setattr(module, name, self.parameter(held[name]))
        for name, _ in list(module.named_buffers()):
            setattr(module, name, held[name].read().clone() if name in held else torch.tensor(0))
        return module.eval()


def make_layer(layer: LayerNode, rank: int) -> nn.Module:
    """The layer on the meta device, without weights.

    Args:
        layer: what the file says.
        rank: axes of its input.
    """
    return MAKERS[layer.node.op_type](layer, plain_attributes(layer.node), rank)


def extra_padding(layer: LayerNode) -> list[tuple[int, int]] | None:
    """What is padded before a convolution, or cut off after a transposed one, as torch's layer cannot do it."""
    given = plain_attributes(layer.node)
    pads = both_ends(given.get("pads"), len(layer.held["weight"].shape) - 2)
    return pads if any(begin != end for begin, end in pads) else None


def _spatial(layer: LayerNode, given: Mapping[str, Any]) -> dict[str, Any]:
    axes = len(layer.held["weight"].shape) - 2
    pads = both_ends(given.get("pads"), axes)
    own = extra_padding(layer) is None and given.get("auto_pad", "NOTSET") not in SAME
    return {
        "kernel_size": layer.held["weight"].shape[2:],
        "stride": tuple(given.get("strides") or [1] * axes),
        "dilation": tuple(given.get("dilations") or [1] * axes),
        "padding": tuple(begin for begin, _ in pads) if own else (0,) * axes,
        "groups": layer.groups,
        "bias": "bias" in layer.held,
        "device": "meta",
    }


def _conv(layer: LayerNode, given: Mapping[str, Any], _: int) -> nn.Module:
    weight = layer.held["weight"]
    filters, inputs = weight.shape[0], weight.shape[1] * layer.groups
    return CONV[len(weight.shape) - 2](inputs, filters, **_spatial(layer, given))


def _conv_transpose(layer: LayerNode, given: Mapping[str, Any], _: int) -> nn.Module:
    if given.get("auto_pad", "NOTSET") in SAME or given.get("output_shape"):
        raise NotImplementedError("auto_pad or output_shape")
    weight = layer.held["weight"]
    inputs, filters = weight.shape[0], weight.shape[1] * layer.groups
    axes = len(weight.shape) - 2
    more = tuple(given.get("output_padding") or [0] * axes)
    return TRANSPOSED[axes](inputs, filters, output_padding=more, **_spatial(layer, given))


def _linear(layer: LayerNode, _: Mapping[str, Any], __: int) -> nn.Module:
    filters, inputs = layer.held["weight"].shape
    return nn.Linear(inputs, filters, bias="bias" in layer.held, device="meta")


def _batch_norm(layer: LayerNode, given: Mapping[str, Any], rank: int) -> nn.Module:
    (channels,) = layer.held["weight"].shape
    kept = 1 - given.get("momentum", 0.9)  # ONNX counts what stays, torch what is new
    return BATCH_NORM[max(rank - 2, 1)](channels, given.get("epsilon", 1e-5), kept, device="meta")


def _instance_norm(layer: LayerNode, given: Mapping[str, Any], rank: int) -> nn.Module:
    (channels,) = layer.held["weight"].shape
    # Group norms are exported as instance norms with ones and zeros in place of a scale.
    weight, bias = layer.held["weight"], layer.held["bias"]
    trivial = not ("." in weight.name and weight.stored)
    trivial = trivial and bool((weight.read() == 1).all()) and not bias.read().any()
    return INSTANCE_NORM[rank - 2](channels, given.get("epsilon", 1e-5), affine=not trivial, device="meta")


def _layer_norm(layer: LayerNode, given: Mapping[str, Any], rank: int) -> nn.Module:
    shape = layer.held["weight"].shape
    if len(shape) != rank - given.get("axis", -1) % rank:
        raise NotImplementedError("a scale of other axes than the norm's")
    return nn.LayerNorm(shape, given.get("epsilon", 1e-5), bias="bias" in layer.held, device="meta")


def _group_norm(layer: LayerNode, given: Mapping[str, Any], _: int) -> nn.Module:
    (channels,) = layer.held["weight"].shape
    return nn.GroupNorm(given["num_groups"], channels, given.get("epsilon", 1e-5), device="meta")


def _prelu(layer: LayerNode, _: Mapping[str, Any], __: int) -> nn.Module:
    return nn.PReLU(layer.held["weight"].numel, device="meta")


MAKERS: dict[str, Callable[[LayerNode, Mapping[str, Any], int], nn.Module]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _linear,
    "MatMul": _linear,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "PRelu": _prelu,
}
