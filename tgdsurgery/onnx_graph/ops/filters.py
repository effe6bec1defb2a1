"""Convolutions whose weights are no constants of the file, and paddings of convolutions that torch's layers lack."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from tgdsurgery.onnx_graph.ops.pooling import both_ends, pad_same, pad_space
from tgdsurgery.onnx_graph.ops.registry import op

Sizes = Sequence[int]
CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@op("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
    dilations: Sizes | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """A convolution with a weight that is computed."""
    axes = weight.dim() - 2
    steps, spread = list(strides or [1] * axes), list(dilations or [1] * axes)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        x = pad_same(x, weight.shape[2:], steps, spread, lower=auto_pad == "SAME_LOWER")
    elif pads is not None and any(pads):
        x = pad_space(x, both_ends(pads, axes))
    return CONV[axes](x, weight, bias, steps, 0, spread, group)


def crop_space(x: Tensor, ends: Sequence[tuple[int, int]]) -> Tensor:
    """Without so many entries at both ends of each axis of space."""
    return pad_space(x, [(-begin, -end) for begin, end in ends])
