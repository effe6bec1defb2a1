"""Ops that bring several elements together: sets unite over the axes concerned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from tgdsurgery.mapping.labels import EMPTY, collapse
from tgdsurgery.mapping.rules.call import Call, Traced
from tgdsurgery.mapping.rules.registry import mix_all, rule_for, tensors, unite_elementwise

_ADAPTIVE = ("adaptive_avg", "_adaptive_avg", "adaptive_max")


def _dims(dim: int | Sequence[int] | None, rank: int) -> list[int]:
    dims = [dim] if isinstance(dim, int) else list(dim or range(rank))
    return [d % max(rank, 1) for d in dims]


def _over(call: Call, tensor: Traced, dim: int | Sequence[int] | None) -> Tensor:
    """The union over `dim` (all axes if None), in the shape of the output: kept or dropped axes alike."""
    return call.table.reduce(tensor.labels, _dims(dim, tensor.labels.dim())).reshape(call.shape)


@rule_for(
    "sum", "mean", "amax", "amin", "prod", "all", "any", "median", "mode", "max", "min", "nanmean", "aminmax"
)
@rule_for("argmax", "argmin", "logsumexp", "count_nonzero", "var", "std", "var_mean", "std_mean")
def over_dim(
    call: Call, tensor: Traced, dim: int | Sequence[int] | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """`dim` comes first in all of these."""
    return _over(call, tensor, dim)


@rule_for("linalg_vector_norm", "norm")
def norm(call: Call, tensor: Traced, order: Any = 2, dim: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """`dim` comes after the order of the norm."""
    return _over(call, tensor, dim)


@rule_for(
    "_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"
)
@rule_for("softmax", "log_softmax", "sort", "msort")
def along(call: Call, tensor: Traced, dim: int = -1, *args: Any, **kwargs: Any) -> Tensor:
    """Along `dim`, each output element may depend on every input element."""
    return call.table.reduce(tensor.labels, [dim])


@rule_for("topk", "kthvalue")
def select_largest(call: Call, tensor: Traced, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> Tensor:
    """Any element along `dim` may come out at any of the k places."""
    united = call.table.reduce(tensor.labels, [dim])
    return united if united.dim() == len(call.shape) else united.squeeze(dim)


@rule_for(*(f"{name}_pool{rank}d" for name in ("max", "mkldnn_max") for rank in (1, 2, 3)))
@rule_for(*(f"max_pool{rank}d_with_indices" for rank in (1, 2, 3)))
def max_pool(
    call: Call, tensor: Traced, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *args: Any
) -> Tensor:
    """The largest of each window."""
    return _over_windows(call, tensor, kernel, stride, padding, dilation)


@rule_for(*(f"avg_pool{rank}d" for rank in (1, 2, 3)))
def avg_pool(
    call: Call, tensor: Traced, kernel: Any, stride: Any = (), padding: Any = 0, *args: Any, **kwargs: Any
) -> Tensor:
    """The mean of each window."""
    return _over_windows(call, tensor, kernel, stride, padding)


@rule_for(*(f"{name}_pool{rank}d" for name in _ADAPTIVE for rank in (1, 2, 3)), "mkldnn_adaptive_avg_pool2d")
def adaptive_pool(call: Call, tensor: Traced, *args: Any) -> Tensor:
    """As many windows as there are places in the output."""
    return _over_windows(call, tensor)


def _over_windows(call: Call, tensor: Traced, *settings: Any) -> Tensor:
    """The union over every window; settings are those of the windows, one for each axis or one for all."""
    rank, labels = _rank(call), collapse(tensor.labels)
    for axis in range(-rank, 0):
        if labels.shape[axis] == 1:
            continue
        united = labels.amax(axis, keepdim=True)
        if bool(((labels == united) | (labels == EMPTY)).all()):
            labels = united  # A channel of its own along this axis, but for padding: nothing else to unite.
            continue
        own = [_setting(setting, axis) for setting in settings]
        windows = _windows(labels.shape[axis], call.shape[axis], *own)
        lines = torch.nn.functional.pad(
            labels.movedim(axis, -1), (0, 1)
        )  # what lies outside is written by nobody
        labels = call.table.reduce(lines[..., windows], [-1]).squeeze(-1).movedim(-1, axis)
    return labels


def _setting(setting: Any, axis: int) -> Any:
    """The setting of one of the last axes; strides that are not given are those of the kernel."""
    if not isinstance(setting, (tuple, list)):
        return setting
    return setting[axis] if len(setting) > 1 else next(iter(setting), None)


def _windows(
    size: int,
    count: int,
    kernel: int | None = None,
    stride: int | None = None,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """(count, longest window): the places that each window of an axis looks at, -1 where there is none."""
    if kernel is None:  # adaptive
        starts = torch.arange(count) * size // count
        ends = -(-(torch.arange(count) + 1) * size // count)
        places = starts[:, None] + torch.arange(int((ends - starts).max()))
        return places.where(places < ends[:, None], -1)
    starts = torch.arange(count) * (stride or kernel) - padding
    places = starts[:, None] + dilation * torch.arange(kernel)
    return places.where((places >= 0) & (places < size), -1)


def _rank(call: Call) -> int:
    """Number of spatial axes, from the op's name."""
    return next(int(letter) for letter in call.op._schema.name if letter.isdigit())


@rule_for(*(f"fractional_max_pool{rank}d" for rank in (2, 3)))
@rule_for(
    *(f"{name}{rank}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for rank in (1, 2, 3))
)
@rule_for("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d")
@rule_for("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa")
def over_space(call: Call, tensor: Traced, *args: Any, **kwargs: Any) -> Tensor:
    """Resampling, and windows by chance, per channel."""
    return call.table.reduce(tensor.labels, range(-_rank(call), 0))


@rule_for("max_unpool2d", "max_unpool3d")
def unpool(call: Call, tensor: Traced, indices: Traced, *args: Any, **kwargs: Any) -> Tensor:
    """Elements go to places within their channel that the input decides."""
    spatial = range(2, len(call.shape))
    return call.table.union(
        call.table.reduce(tensor.labels, spatial), call.table.reduce(indices.labels, spatial)
    )


@rule_for("grid_sampler_2d", "grid_sampler_3d")
def sample(call: Call, tensor: Traced, grid: Traced, *args: Any, **kwargs: Any) -> Tensor:
    """Each channel is read anywhere in space, and every value depends on the grid."""
    spatial = range(2, len(call.shape))
    everywhere = call.table.reduce(grid.labels, range(grid.labels.dim()))
    return call.table.union(
        call.table.reduce(tensor.labels, spatial), everywhere.reshape([1] * len(call.shape))
    )


@rule_for("col2im")
def fold(call: Call, tensor: Traced, size: Any, kernel: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
    """Overlapping patches add up: a channel unites its patches, wherever they go."""
    channels = tensor.labels.unflatten(-2, (-1, kernel[0] * kernel[1]))
    return call.table.reduce(channels, [-1, -2])


@rule_for("linalg_matrix_exp", "linalg_inv_ex", "linalg_qr", "_linalg_solve_ex", "linalg_lu_factor_ex")
def of_matrices(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    """(..., M, N): within each matrix anything may depend on anything."""
    united = [call.table.reduce(matrix.labels, [-1, -2]) for matrix in tensors(*args, **kwargs)]
    return reduce(call.table.union, united)


@rule_for("linalg_householder_product")
def householder(call: Call, reflectors: Traced, tau: Traced) -> Tensor:
    """(..., M, N) with tau (..., N)."""
    return call.table.union(
        call.table.reduce(reflectors.labels, [-1, -2]), call.table.reduce(tau.labels, [-1]).unsqueeze(-1)
    )


@rule_for("_cdist_forward", "_euclidean_dist")
def distances(call: Call, first: Traced, second: Traced, *args: Any) -> Tensor:
    """(..., P, M) and (..., R, M): every row of the one from every row of the other."""
    over = call.table.reduce
    return call.table.union(over(first.labels, [-1]), over(second.labels, [-1]).transpose(-1, -2))


@rule_for("mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss")
@rule_for("binary_cross_entropy", "binary_cross_entropy_with_logits")
def loss(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    """Element by element, then added up where it is asked for."""
    return _added_up(call, unite_elementwise(call, *args, **kwargs))


@rule_for("nll_loss_forward", "nll_loss2d_forward")
def class_loss(
    call: Call, scores: Traced, target: Traced, weight: Traced | None, *args: Any
) -> tuple[Tensor, Tensor]:
    """(B, C, *) or (C,): the target picks the class and its weight."""
    mix, union = call.table.mix, call.table.union
    axis = min(1, scores.labels.dim() - 1)
    picked = union(call.table.reduce(scores.labels, [axis]).squeeze(axis), target.labels)
    weights = mix(*([] if weight is None else [weight.labels]))
    return _added_up(call, union(picked, weights)), union(weights, mix(target.labels))


def _added_up(call: Call, labels: Tensor) -> Tensor:
    return labels if labels.dim() <= len(call.shape) else call.table.mix(labels)


# Anything may depend on anything.
rule_for("renorm", "_linalg_svd", "dist", "_pdist_forward", "_ctc_loss")(mix_all)
rule_for("multi_margin_loss", "multilabel_margin_loss_forward")(mix_all)


@rule_for("_fft_r2c", "_fft_c2r", "_fft_c2c")
def transform(call: Call, tensor: Traced, dims: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
    """Along the transformed axes everything depends on everything."""
    return call.table.reduce(tensor.labels, dims)


@rule_for("_weight_norm_interface", "_weight_norm")
def weight_norm(call: Call, direction: Traced, gain: Traced, dim: int = 0) -> Tensor:
    """Each slice along `dim` is divided by its own norm and scaled by its own gain."""
    others = [d for d in range(len(direction.shape)) if d != dim % len(direction.shape)]
    return call.table.union(call.table.reduce(direction.labels, others), gain.labels)
