"""Trainable rows that torch would broadcast against a whole parameter without a word: one row of sixteen, say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tgdsurgery.core.errors import RowsError
from tgdsurgery.core.torch_private import without_torch_function_of_subclasses
from tgdsurgery.surgery.compact.weight_cache import Rows

# What takes rows for what they are, whatever the shapes of its other arguments: functions of torch, and ATen ops.
BY_ROW = frozenset({"index_copy", "index_copy_", "index_put_", "custom_function_call"})
# Sums of products, which broadcast nothing: an activation may happen to have the whole weight's shape.
PRODUCTS = frozenset(
    {"convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm", "matmul", "linear"}
)


class AmbiguousRows(Rows):
    """Rows that cannot be combined with a tensor of the whole parameter's shape.

    A penalty on the distance to pretrained weights of the same name does that (L2-SP). With other shapes torch
    itself raises an error.
    """

    whole = torch.Size([0])  # the shape of the whole parameter; nothing meets this one

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with without_torch_function_of_subclasses():  # which asking for a shape would call, too
            if not torch.compiler.is_compiling():
                _refuse_whole(func.__name__.partition(".")[0], args)
            return func(*args, **(kwargs or {}))


def _refuse_whole(call: str, args: Any) -> None:
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    for rows in tensors if call not in BY_ROW | PRODUCTS else ():
        if isinstance(rows, AmbiguousRows) and any(other.shape == rows.whole for other in tensors):
            raise RowsError(
                f"In a call of {call!r}, {tuple(rows.shape)} met {tuple(rows.whole)}: the Parameters of a TGD network "
                "hold its trainable rows only.",
                "Compare with a TGD network made with the same plan, such as a copy of this one before training, or "
                "call remove_tgd first.",
            )


def mark_if_ambiguous(rows: Any, whole: tuple[int, ...]) -> None:
    """Make trainable rows `AmbiguousRows`, in place, if torch would broadcast them against the whole."""
    if type(rows) in (nn.Parameter, Rows, AmbiguousRows) and _broadcasts(rows.shape, whole):
        rows.__class__ = AmbiguousRows
        rows.whole = torch.Size(whole)


def _broadcasts(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    pairs = zip(reversed(shape), reversed(whole), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)
