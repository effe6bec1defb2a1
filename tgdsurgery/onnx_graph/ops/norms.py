"""Norms whose scales are no constants of the file, and those that have none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tgdsurgery.onnx_graph.ops.registry import op


@op("BatchNormalization")
def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> Tensor:
    """By statistics that are given."""
    return F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


@op("InstanceNormalization")
def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Every channel of every sample by its own statistics."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@op("LayerNormalization")
def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """By the statistics of all axes from `axis` on."""
    shape = x.shape[axis % x.dim() :]
    return F.layer_norm(
        x, shape, scale.expand(shape), bias.expand(shape) if bias is not None else None, epsilon
    )


@op("RMSNormalization")
def rms_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Over the root of the mean square of all axes from `axis` on."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale


@op("GroupNormalization")
def group_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    opset: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """By the statistics of groups of channels; before opset 21 with a scale for each group."""
    if opset < 21:
        repeats = x.shape[1] // num_groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@op("MeanVarianceNormalization")
def mean_variance_norm(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """To a mean of 0 and a variance of 1."""
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred / (centred.square().mean(tuple(axes), keepdim=True).sqrt() + 1e-9)


@op("LpNormalization")
def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """To a length of 1."""
    length: Tensor = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / length


@op("LRN")
def local_response_norm(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Over what neighbouring channels hold."""
    return F.local_response_norm(x, size, alpha, beta, bias)
