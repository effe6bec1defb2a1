"""Tensors compared by their bits, whatever the type means by them: 0.0 is not -0.0, and a NaN equals the same NaN."""

from __future__ import annotations

import torch
from torch import BoolTensor, Tensor

from tgdsurgery.core.masking import BITS


def differing(one: Tensor, other: Tensor) -> BoolTensor:
    """True at the entries whose bits differ.

    Args:
        one: a tensor on the CPU.
        other: another of the same shape and dtype.

    >>> differing(torch.tensor([0.0, torch.nan, 1.0]), torch.tensor([-0.0, torch.nan, 1.0])).tolist()
    [True, False, False]
    """
    if one.is_complex():
        one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
        return (as_bits(one) != as_bits(other)).any(-1)  # type: ignore[return-value]
    return as_bits(one) != as_bits(other)  # type: ignore[return-value]


def differs(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors on the CPU differ in shape, dtype or any bit."""
    if one is other:
        return False
    return one.shape != other.shape or one.dtype != other.dtype or bool(differing(one, other).any())


def as_bits(tensor: Tensor) -> Tensor:
    """Integers of the same shape with the same bits; no copy where the tensor is contiguous."""
    return tensor.contiguous().view(BITS[tensor.element_size()])
