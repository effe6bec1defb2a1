"""Kernel Sparsity and Entropy (KSE): how much a layer makes of each input channel, from its weights alone.

The score of Li et al., "Exploiting Kernel Sparsity and Entropy for Interpretable CNN Compression" (CVPR
2019), as used by Chen et al., "Targeted Gradient Descent" (MICCAI 2021), whose equation numbers are given.

Axis letters: N filters, C input channels, D weights of one kernel (its spatial sizes K flattened), g groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.plan import check_kse

Variant = Literal["paper", "released-code"]
# Most numbers that one temporary tensor holds (2 MiB in float64), or one channel's N x (D + 2) numbers, or one
# kernel's N distances where these are more. Up to a dozen live at a time; larger ones leave the caches.
CHUNK_ELEMENTS = 2**18
# Products of matrices round. Squared distances below NEAR (D + 2) |x|^2 are computed again, by differences; the others
# are right to 1e-10.
NEAR = 5e-6
# From this many values for each wanted one on, groups of values are left out by their minima first. Measured.
LONG = 256
# A range below this share of the largest value is rounding, which min-max would blow up to [0, 1].
SAME = 1e-9


def kse(
    weight: Tensor,
    *,
    k: int = 5,
    alpha: float = 1.0,
    groups: int = 1,
    transposed: bool = False,
    variant: Variant = "paper",
) -> Tensor:
    """Score every input channel of a conv, transposed conv or linear layer; low means hardly used.

    `KSE_c = sqrt(s_c / (1 + alpha e_c))` (eq. 3), with the sparsity `s`, the entropy `e` and the result each
    min-max normalised over the layer. Where nothing tells the channels apart, `s` counts as 1, `e` as 0 and
    the result as 1. The scores depend neither on the order of the filters nor on the weights' scale or sign.

    Time is O(C N log N) for scalar kernels and O(C N^2 D) for others. Memory is up to a
    dozen tensors of `CHUNK_ELEMENTS`, and a copy of the weight where it is grouped or not contiguous.

    Args:
        weight: (N, C/g, *K), or (C, N/g, *K) if `transposed`; a linear layer's (N, C) has scalar kernels. For
            a linear layer after a flatten, pass its weight reshaped to (N, C, H*W). Any floating dtype, any
            device that has float64.
        k: number of nearest neighbours, at least 1; where there are fewer others, all of them are taken.
        alpha: weight of the entropy, at least 0.
        groups: groups g of the conv; a channel meets the kernels of its own group only.
        transposed: whether the weight is a transposed conv's.
        variant: "paper" for the published equations. "released-code" for the scores of the program that the
            authors of KSE released (github.com/yuchaoli/KSE), which takes the entropy over kernels of mixed
            channels; for comparison only.

    Returns:
        (C,) float64 scores in [0, 1], on the device of `weight`.

    Raises:
        PlanError: a setting or shape that makes no sense, weights that are not finite, or a layer on which
            the released code fails.

    Example:
        The second channel has as much weight as the first, less evenly spread; the third has none.

        >>> weight = torch.tensor([[4.0, 1.0, 0.0], [4.0, 2.0, 0.0], [4.0, 4.0, 0.0], [4.0, 9.0, 0.0]])
        >>> kse(weight)
        tensor([1.0000, 0.7071, 0.0000], dtype=torch.float64)
    """
    weight = weight.detach()
    _check(weight, groups)
    weight = weight.float() if weight.element_size() == 1 else weight  # float8 has no arithmetic of its own
    check_kse(k, alpha)
    _check_variant(variant)
    kernels = channel_kernels(weight, groups=groups, transposed=transposed)
    scale = _scale(weight)
    if variant == "released-code":
        plain = weight.ndim == 4 and groups == 1 and not transposed and k == 5 and alpha == 1
        return _released_code(kernels, scale, plain)
    # Written in place: small results kept between large temporaries would fragment the heap.
    s, e = torch.empty(2, len(kernels), dtype=torch.float64, device=weight.device)
    for where, part in _chunks(kernels, scale):
        s[where] = sparsity(part)
        e[where] = entropy(neighbour_distances(part, k))
    return normalise(indicator(normalise(s, same=1.0), normalise(e, same=0.0), alpha), same=1.0)


def channel_kernels(weight: Tensor, *, groups: int = 1, transposed: bool = False) -> Tensor:
    """The kernels that each input channel meets, (C, N/g, D); a view of the weight where that is possible."""
    if transposed:
        return weight.reshape(*weight.shape[:2], -1)
    filters, channels = weight.shape[:2]
    grouped = weight.reshape(groups, filters // groups, channels, -1)
    return grouped.transpose(1, 2).reshape(groups * channels, filters // groups, -1)


def sparsity(kernels: Tensor) -> Tensor:
    """Sum of absolute weights per channel (eq. 1): (C, N, D) to (C,)."""
    return kernels.abs().sum(dim=(1, 2))


def neighbour_distances(kernels: Tensor, k: int) -> Tensor:
    """Sum of the Euclidean distances from each kernel to its k nearest of the same channel (eq. 2, `dm`).

    Args:
        kernels: (C, N, D) float64.
        k: number of neighbours; where there are fewer than k others, all of them are taken.

    Returns:
        (C, N). Those of scalar kernels come in another order, which the entropy does not depend on.

    Example:
        >>> neighbour_distances(torch.tensor([[[0.0], [1.0], [3.0]]], dtype=torch.float64), k=1)
        tensor([[1., 1., 2.]], dtype=torch.float64)
    """
    n, size = kernels.shape[1:]
    k = min(k, n - 1)
    if k == 0:
        return kernels.new_zeros(kernels.shape[:2])
    if size == 1:
        return _scalar_neighbour_distances(kernels.squeeze(2), k)
    rows = min(n, max(1, CHUNK_ELEMENTS // n))
    channels = max(1, CHUNK_ELEMENTS // (n * rows))
    return torch.cat([_nearest(part, rows, k) for part in kernels.split(channels)])


def entropy(distances: Tensor) -> Tensor:
    """Entropy in bits of `p_i = dm_i / sum dm` over each channel's kernels (eq. 2): (C, N) to (C,).

    It is 0 where all kernels of a channel are equal, and so all distances 0.

    Example:
        >>> entropy(torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
        tensor([2., 0., 0.])
    """
    total = distances.sum(dim=1, keepdim=True)
    density = distances / torch.where(total > 0, total, 1.0)
    nats: Tensor = torch.special.entr(density).sum(dim=1)
    return nats / math.log(2)


def normalise(values: Tensor, *, same: float) -> Tensor:
    """Min-max normalise non-negative values to [0, 1]; all become `same` if they are equal up to rounding.

    Example:
        >>> normalise(torch.tensor([2.0, 3.0, 4.0]), same=1.0)
        tensor([0.0000, 0.5000, 1.0000])
        >>> normalise(torch.tensor([2.0, 2.0, 2.0]), same=1.0)
        tensor([1., 1., 1.])
    """
    low, high = torch.aminmax(values)
    if high - low <= SAME * high:
        return torch.full_like(values, same)
    return (values - low) / (high - low)


def indicator(s: Tensor, e: Tensor, alpha: float = 1.0) -> Tensor:
    """KSE of normalised s and e, itself not yet normalised: `sqrt(s / (1 + alpha e))` (eq. 3)."""
    return (s / (1 + alpha * e)).sqrt()


def _nearest(kernels: Tensor, rows: int, k: int) -> Tensor:
    """`neighbour_distances` of kernels that are no scalars, `rows` of them at a time."""
    squares = kernels.square().sum(dim=2, keepdim=True)
    one = torch.ones_like(squares)
    # |x - y|^2 = |x|^2 - 2 x y + |y|^2 in one product of matrices.
    x = torch.cat([kernels, squares, one], dim=2)
    y = torch.cat([-2 * kernels, one, squares], dim=2).transpose(1, 2).contiguous()
    sums = kernels.new_empty(kernels.shape[:2])
    for first in range(0, kernels.shape[1], rows):
        where = slice(first, first + rows)
        near = _smallest(_squared_distances(x[:, where], y, first), k)
        sums[:, where] = near.clamp(min=0).sqrt().sum(dim=2)
        rounded = near.amin(dim=2) < NEAR * x.shape[2] * squares[:, where, 0]
        for channel in rounded.any(dim=1).nonzero().flatten().tolist():
            which = rounded[channel].nonzero().flatten() + first
            sums[channel, which] = _exact(kernels[channel, which], kernels[channel], k)
    return sums


def _squared_distances(x: Tensor, y: Tensor, first: int) -> Tensor:
    """All products of rows of x with columns of y; infinite between a kernel, from `first` on, and itself."""
    distances = x @ y
    distances.diagonal(first, dim1=1, dim2=2).fill_(math.inf)
    return distances


def _exact(queries: Tensor, kernels: Tensor, k: int) -> Tensor:
    """Distance sums from differences of kernels, which lose no digits."""
    distances = torch.cdist(queries, kernels, compute_mode="donot_use_mm_for_euclid_dist")
    # A kernel is exactly 0 from itself, so that it can be let through as one neighbour more.
    return _smallest(distances, k + 1).sum(dim=1)


def _smallest(values: Tensor, k: int) -> Tensor:
    """The k smallest along the last axis, in no order; `values` may be overwritten."""
    if values.shape[-1] >= LONG * k:
        values = _candidates(values, k)
    if values.device.type == "cpu":  # where NumPy's selection is vectorised, and torch's is not
        values.numpy().partition(k - 1, axis=-1)
        return values[..., :k]
    return values.topk(k, largest=False, sorted=False).values


def _candidates(values: Tensor, k: int) -> Tensor:
    """Fewer of the values, the k smallest among them: the k groups with the smallest minima, and a rest."""
    length = values.shape[-1]
    per_group = math.isqrt(length) // 2
    whole = length - length % per_group
    groups = values[..., :whole].unflatten(-1, (per_group, -1))  # one group a column: minima of rows are fast
    chosen = groups.amin(dim=-2, keepdim=True).topk(k, largest=False, sorted=False).indices
    chosen = chosen.expand(*groups.shape[:-1], k)
    return torch.cat([groups.gather(-1, chosen).flatten(-2), values[..., whole:]], dim=-1)


def _scalar_neighbour_distances(values: Tensor, k: int) -> Tensor:
    """`neighbour_distances` of scalar kernels (C, N), from small to large: the nearest are next to each."""
    n = values.shape[1]
    ranked = _ranked(values)
    edge = ranked.new_full((len(ranked), k), math.inf)
    padded = torch.cat([-edge, ranked, edge], dim=1)
    total = torch.zeros_like(ranked)
    below, above = torch.empty_like(ranked), torch.empty_like(ranked)
    for step in range(1, k + 1):
        # Distances grow with the step on either side. The k smallest of two rising lists of k are the smaller
        # ones of each pair of one list with the other reversed.
        torch.sub(ranked, padded.narrow(1, k - step, n), out=below)
        torch.sub(padded.narrow(1, 2 * k + 1 - step, n), ranked, out=above)
        total += torch.minimum(below, above, out=below)
    return total


def _ranked(values: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    # Without the order, which torch works out too, NumPy's sorting is vectorised.
    ranked = values.clone()
    ranked.numpy().sort(axis=1)
    return ranked


def _chunks(kernels: Tensor, scale: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The kernels (C, N, D) in float64, divided by the scale, some channels at a time, and which these are."""
    filters, size = kernels.shape[1:]
    columns = 1 if size == 1 else size + 2  # with those that `_nearest` adds
    count = max(1, CHUNK_ELEMENTS // (filters * columns))
    for first in range(0, len(kernels), count):
        where = slice(first, first + count)
        yield where, kernels[where].double().contiguous() / scale


def _scale(weight: Tensor) -> Tensor:
    """The power of two that brings the largest weight to [1, 2): exact, and no square overflows."""
    largest = torch.linalg.vector_norm(weight, ord=math.inf).double()
    if not largest.isfinite():
        raise PlanError(
            "KSE cannot score weights that are infinite or NaN.",
            "Give a network from before the training broke down.",
        )
    mantissa, _ = torch.frexp(largest)
    return torch.where(largest > 0, largest / (2 * mantissa), 1.0)


def _check(weight: Tensor, groups: int) -> None:
    shape = tuple(weight.shape)
    if weight.ndim < 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise PlanError(
            f"KSE needs a real weight with filters and channels, not {weight.dtype} of shape {shape}.",
            "Pass the weight of a conv, transposed conv or linear layer, with no axis of length 0.",
        )
    if groups < 1 or shape[0] % groups:
        raise PlanError(
            f"The first axis of a weight of shape {shape} cannot be cut into {groups} groups.",
            "Pass the groups of the layer itself, and transposed=True for a transposed conv.",
        )


def _check_variant(variant: str) -> None:
    if variant not in get_args(Variant):
        raise PlanError(
            f"There is no KSE variant {variant!r}.", f"The variants are: {', '.join(get_args(Variant))}."
        )


def _released_code(kernels: Tensor, scale: Tensor, plain: bool) -> Tensor:
    channels, filters, size = kernels.shape
    remedy = "Use variant='paper', which scores every layer."
    if not plain:
        raise PlanError(
            "The released KSE code only has 2-d convs of one group, with k=5 and alpha=1.", remedy
        )
    if filters <= 5:
        raise PlanError(f"The released KSE code fails here: {filters} filters have no 5 neighbours.", remedy)
    # It means to transpose (C, N, D) to (N, C, D), but reshapes; the transposition back does not undo that.
    mixed = kernels.reshape(filters, channels, size).transpose(0, 1)
    distances = torch.cat([neighbour_distances(part, 5) for _, part in _chunks(mixed, scale)])
    if (distances == 0).any():
        raise PlanError(
            "The released KSE code fails here: it takes the logarithm of a distance of 0.", remedy
        )
    s = torch.cat([sparsity(part) for _, part in _chunks(kernels, scale)])
    scores = indicator(normalise(s, same=math.nan), normalise(entropy(distances), same=math.nan))
    scores = normalise(scores, same=math.nan)
    if scores.isnan().any():
        raise PlanError("The released KSE code gives NaN here: it cannot normalise equal values.", remedy)
    return scores
