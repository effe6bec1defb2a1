"""Tensors that FSDP2 keeps in pieces, one in each process: put together, and taken apart again."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor, as the parameters of a network after `fully_shard` are."""
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """This process's piece; the tensor itself if it is not sharded."""
    piece: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return piece


def gathered(tensor: Any) -> Tensor:
    """The whole tensor; if it is in pieces, all processes must call this."""
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return whole


def like(whole: Tensor, other: Any) -> Tensor:
    """`whole`, which every process has, in pieces if `other` is in pieces; nothing is sent."""
    if not is_sharded(other):
        return whole
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 (slow, and seldom needed)

    return distribute_tensor(whole, other.device_mesh, other.placements, src_data_rank=None)
