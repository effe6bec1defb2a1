"""How the trainable part of a parameter lies in memory: taken out, put back, in either memory format.

It is `rows` of the parameter, with the channels first; or, with None for `rows`, single entries of it, flat.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tgdsurgery.core.records import ParameterRows


def taken(rows: ParameterRows | None, whole: Tensor, at: Tensor) -> Tensor:
    """A copy of the part `at` of a parameter in its own layout; differentiable."""
    if rows is None:
        return whole.flatten().index_select(0, at)
    part, form = by_row(rows, whole).index_select(0, at), memory_format(whole)
    return part if form is torch.contiguous_format else in_format(part, form)


def filled(rows: ParameterRows | None, whole: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """A copy of `whole`, a parameter in its own layout, with `values` (n, ...) in the part `at`; differentiable."""
    if rows is None:
        full = whole.flatten().index_copy(0, at, values).view(whole.shape)
    elif rows.groups > 1:
        full = swapped(swapped(whole, rows.groups).index_copy(0, at, values), rows.groups)
    else:
        full = whole.movedim(rows.axis, 0).index_copy(0, at, values).movedim(0, rows.axis)
    # Torch reads the format of what it computes from the strides, also where others would mean the same entries.
    return full if full.stride() == whole.stride() else torch.empty_like(whole).copy_(full)


def fill_(rows: ParameterRows | None, whole: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """`filled` in place; returns `whole`."""
    if rows is None:
        whole.copy_(filled(rows, whole, values, at))
    elif rows.groups > 1:
        by_group = whole.unflatten(0, (rows.groups, -1)).transpose(1, 2)
        by_group.index_put_((at // whole.shape[1], at % whole.shape[1]), values)
    else:
        whole.movedim(rows.axis, 0).index_copy_(0, at, values)
    return whole


def by_row(rows: ParameterRows, full: Tensor) -> Tensor:
    """(N, ...): a parameter with its channels first."""
    return full.movedim(rows.axis, 0) if rows.groups == 1 else swapped(full, rows.groups)


def swapped(weight: Tensor, groups: int) -> Tensor:
    """The weight of a transposed conv (C, N/g, *K) as rows (N, C/g, *K), and back."""
    by_group = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    result: Tensor = by_group.transpose(1, 2).flatten(0, 1)
    return result


def memory_format(tensor: Tensor) -> torch.memory_format:
    """How the entries lie in memory; the formats of a single entry per row are the same."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}
    if tensor.dim() not in channels_last or tensor.shape.numel() == len(tensor):
        return torch.contiguous_format
    lies_last = tensor.stride(1) == 1 and tensor.stride(-1) == tensor.size(1)
    return channels_last[tensor.dim()] if lies_last else torch.contiguous_format


def in_format(tensor: Tensor, form: torch.memory_format) -> Tensor:
    """A copy in a memory format."""
    # Not `contiguous`: it returns the weight of a 1x1 conv as it is, whose strides torch reads the format from.
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=form)
    empty.copy_(tensor)
    return empty
