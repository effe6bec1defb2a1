"""Pooling, and paddings that torch's layers do not know."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tgdsurgery.onnx_graph.ops.registry import op

Sizes = Sequence[int]
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def same_pads(
    x: Tensor, kernel: Sizes, strides: Sizes, dilations: Sizes, *, lower: bool
) -> list[tuple[int, int]]:
    """What "SAME" adds at both ends of each axis of space, so that the output has ceil(size / stride) entries."""
    pads = []
    for size, window, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
        small = total // 2
        pads.append((total - small, small) if lower else (small, total - small))
    return pads


def pad_space(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """A constant at both ends of each axis of space."""
    return F.pad(x, [amount for both in reversed(pads) for amount in both], value=value)


def pad_same(
    x: Tensor, kernel: Sizes, strides: Sizes, dilations: Sizes, *, lower: bool, value: float = 0.0
) -> Tensor:
    """Padded as "SAME_UPPER" and "SAME_LOWER" say."""
    return pad_space(x, same_pads(x, kernel, strides, dilations, lower=lower), value)


def both_ends(pads: Sizes | None, axes: int) -> list[tuple[int, int]]:
    """ONNX's begins and ends as pairs, one for each axis."""
    pads = pads or [0] * (2 * axes)
    return [(pads[axis], pads[axis + axes]) for axis in range(axes)]


def _window(
    x: Tensor,
    kernel_shape: Sizes,
    pads: Sizes | None,
    strides: Sizes | None,
    dilations: Sizes | None,
    auto_pad: str,
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    axes = len(kernel_shape)
    steps, spread = list(strides or [1] * axes), list(dilations or [1] * axes)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return steps, spread, same_pads(x, kernel_shape, steps, spread, lower=auto_pad == "SAME_LOWER")
    return steps, spread, both_ends(pads, axes)


@op("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
    dilations: Sizes | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> Tensor:
    """The largest entry of each window."""
    steps, spread, ends = _window(x, kernel_shape, pads, strides, dilations, auto_pad)
    padding = [begin for begin, _ in ends]
    if not all(begin == end <= size // 2 for (begin, end), size in zip(ends, kernel_shape, strict=True)):
        x, padding = pad_space(x, ends, -math.inf), [0] * len(ends)
    return MAX_POOL[len(kernel_shape)](
        x, list(kernel_shape), steps, padding, spread, ceil_mode=bool(ceil_mode)
    )


@op("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
    dilations: Sizes | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Tensor:
    """The mean of each window; entries of the padding count if `count_include_pad` says so."""
    steps, spread, ends = _window(x, kernel_shape, pads, strides, dilations, auto_pad)
    if any(dilation != 1 for dilation in spread):
        raise NotImplementedError("dilations")
    pool, kernel = AVG_POOL[len(kernel_shape)], list(kernel_shape)
    if all(begin == end <= size // 2 for (begin, end), size in zip(ends, kernel, strict=True)):
        padding = [begin for begin, _ in ends]
        return pool(x, kernel, steps, padding, bool(ceil_mode), bool(count_include_pad))
    padded = pool(pad_space(x, ends), kernel, steps, 0, bool(ceil_mode))
    if count_include_pad:
        return padded
    return padded / pool(pad_space(torch.ones_like(x), ends), kernel, steps, 0, bool(ceil_mode))


@op("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """The mean over space."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """The largest entry over space."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)
