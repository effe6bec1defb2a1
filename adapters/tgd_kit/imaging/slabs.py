"""Volumes larger than memory: float32 voxels in a temporary file, a few slices at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from tgd_kit.arrays import FloatArray

LARGEST_IN_MEMORY = 2**30  # bytes of a volume; a larger one lives in a file
LARGEST_SLAB = 2**26  # bytes that are read or checked at once


def scratch(shape: Sequence[int]) -> FloatArray:
    """Room for a volume, (I, J, K), whose slices along K are contiguous; the values are arbitrary.

    Above `LARGEST_IN_MEMORY` bytes it is a memory map of a nameless file in the temporary folder (`TMPDIR`).
    The file is gone when the array is. Values are the same either way.
    """
    if 4 * prod(shape) <= LARGEST_IN_MEMORY:
        return np.empty(shape, np.float32, order="F")
    with tempfile.TemporaryFile(prefix="tgd-") as file:
        return np.memmap(file, np.float32, "w+", shape=tuple(shape), order="F")


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Ranges of the last axis, in order, of at most `LARGEST_SLAB` bytes of float32 each (but one slice at least).

    >>> list(slabs((2**12, 2**11, 5)))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, LARGEST_SLAB // max(1, 4 * prod(shape[:-1])))
    yield from (slice(start, min(start + step, shape[-1])) for start in range(0, shape[-1], step))
