"""The tensors of a file: what they are, at once; their entries, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.tables import shortened

MAX_EXPANSION = 8  # times its own size that a file may take in memory: names that share tensors are normal
SMALL_CLAIM = 2**26  # bytes that any file may take
AGAIN = "Copy or download it again."


@dataclass(frozen=True)
class TensorFile:
    """A file of weights, open.

    Args:
        path: the file.
        tensors: for every name a tensor on the meta device, which has a shape and a type and no entries; names of
            the same tensor have the same one.
        read: gives the entries of a name, on their own memory.
        size: bytes of the file, and of those that belong to it.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    read: Callable[[str], Tensor]
    size: int


@dataclass(frozen=True)
class StoredWeight:
    """The weight of a layer in a file.

    Args:
        shape: its sizes.
        read: gives it.
        groups: groups of a convolution.
        transposed: whether it is laid out (C, N/g, *K).
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    groups: int = 1
    transposed: bool = False


def described(shape: tuple[int, ...], dtype: torch.dtype, path: Path, name: str) -> Tensor:
    """A tensor without entries.

    Raises:
        CheckpointError: no tensor has such sizes.
    """
    try:
        return torch.empty(shape, dtype=dtype, device="meta")
    except (RuntimeError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is damaged: {shortened(name)!r} has sizes that no tensor has.", AGAIN
        ) from error


def check_claim(claimed: int, path: Path, what: str, size: int | None = None) -> None:
    """Refuse a file that would take far more memory than its size says."""
    size = path.stat().st_size if size is None else size
    if claimed > MAX_EXPANSION * size + SMALL_CLAIM:
        raise CheckpointError(
            f"{path} has {size:,} bytes, and claims {claimed:,} bytes of {what}.",
            "Save the weights without expanded views: {name: tensor.clone() for name, tensor in ...}.",
        )
