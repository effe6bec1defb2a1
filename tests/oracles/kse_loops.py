"""KSE in plain loops, one line per equation of the papers; slow, and meant to be obviously right.

Chen et al., "Targeted Gradient Descent" (MICCAI 2021), eqs. 1-3. Nothing here is shared with the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Kernel = Sequence[float]


def kse_loops(
    weight: np.ndarray, *, k: int = 5, alpha: float = 1.0, groups: int = 1, transposed: bool = False
) -> list[float]:
    """The score of every input channel of a (N, C/g, *K) weight, or (C, N/g, *K) if `transposed`."""
    per_channel = kernels_by_channel(weight, groups, transposed)
    s = min_max([sparsity(kernels) for kernels in per_channel], same=1.0)
    e = min_max([entropy(kernels, k) for kernels in per_channel], same=0.0)
    return min_max([math.sqrt(s_c / (1 + alpha * e_c)) for s_c, e_c in zip(s, e, strict=True)], same=1.0)


def kernels_by_channel(weight: np.ndarray, groups: int, transposed: bool) -> list[list[Kernel]]:
    """For each input channel, every kernel that reads it, flattened."""
    if transposed:
        channels, filters_per_group = weight.shape[:2]
        return [[_flat(weight[c, n]) for n in range(filters_per_group)] for c in range(channels)]
    filters, channels_per_group = weight.shape[:2]
    filters_per_group = filters // groups
    result = []
    for group in range(groups):
        first = group * filters_per_group
        for c in range(channels_per_group):
            result.append([_flat(weight[n, c]) for n in range(first, first + filters_per_group)])
    return result


def sparsity(kernels: list[Kernel]) -> float:
    """Eq. 1: the sum of all absolute weights."""
    return sum(abs(value) for kernel in kernels for value in kernel)


def entropy(kernels: list[Kernel], k: int) -> float:
    """Eq. 2: entropy in bits of each kernel's share of the summed distances to nearest neighbours."""
    sums = []
    for i, kernel in enumerate(kernels):
        others = sorted(math.dist(kernel, other) for j, other in enumerate(kernels) if j != i)
        sums.append(sum(others[:k]))
    total = sum(sums)
    return -sum(dm / total * math.log2(dm / total) for dm in sums if dm > 0)


def min_max(values: list[float], same: float) -> list[float]:
    """Min-max normalisation; all become `same` if nothing but rounding tells them apart."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * high:
        return [same] * len(values)
    return [(value - low) / (high - low) for value in values]


def _flat(kernel: np.ndarray) -> Kernel:
    return [float(value) for value in np.ravel(kernel)]
