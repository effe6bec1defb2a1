"""Volumes larger than memory: float32 voxels in a file that vanishes, reached a few slices at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import numpy.typing as npt

IN_MEMORY = 2**30  # bytes: a volume above this lives in a file
CHUNK = 2**26  # bytes read or checked at once
Voxels = npt.NDArray[np.float32]


def scratch(shape: Sequence[int]) -> Voxels:
    """Room for a volume, (I, J, K), whose slices along K are contiguous; the values are arbitrary.

    Above `IN_MEMORY` bytes it is a memory map of a nameless file in the temporary folder (`TMPDIR`), which
    is gone when the array is: only what is being worked on needs memory, and every value is the same.
    """
    if 4 * prod(shape) <= IN_MEMORY:
        return np.empty(shape, np.float32, order="F")
    with tempfile.TemporaryFile(prefix="tgd_pet-") as file:
        return np.memmap(file, np.float32, "w+", shape=tuple(shape), order="F")


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Ranges of the last axis, in order, of at most `CHUNK` bytes of float32 each (but one slice at least).

    >>> list(slabs((2**12, 2**11, 5)))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, CHUNK // max(1, 4 * prod(shape[:-1])))
    yield from (slice(start, min(start + step, shape[-1])) for start in range(0, shape[-1], step))
