"""Frozen entries of whole Parameters, kept where they are while an optimizer steps."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tgdsurgery.core.optimizer_hooks import after_every_step, before_every_step
from tgdsurgery.core.sharding import is_sharded, like, local

Index = tuple[Tensor, ...]


class FrozenEntries(Protocol):
    """What knows the frozen entries of some parameters."""

    def masks(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """The parameters as they are now, each with a mask of its shape, True at trainable entries."""


class Kept:
    """A copy of the frozen entries that an optimizer holds.

    Args:
        param_groups: the optimizer's.
        sources: what knows which entries are frozen.
    """

    @torch.no_grad()
    def __init__(self, param_groups: Iterable[Mapping[str, Any]], sources: Iterable[FrozenEntries]) -> None:
        held = {parameter for group in param_groups for parameter in group["params"]}
        self._kept: list[tuple[Tensor, Index, Tensor]] = []
        for source in sources:
            for parameter, mask in source.masks():
                if parameter in held:
                    own, index = local(parameter), frozen_index(mask, parameter)
                    self._kept.append((own, index, own[index].clone()))

    @torch.no_grad()
    def put_back(self) -> None:
        """Write the copy to where it was taken from."""
        for own, index, values in self._kept:
            own[index] = values


def frozen_index(trainable: Tensor, parameter: Any) -> Index:
    """Index of the False entries over the leading axes only, as many as the mask varies along.

    Of a parameter in pieces, in this process's piece.
    """
    while trainable.ndim and (trainable.shape[-1] == 1 or trainable.stride(-1) == 0):
        trainable = trainable.select(-1, 0)
    if trainable.ndim and is_sharded(parameter):
        trainable = local(like(trainable.contiguous().to(parameter.device), parameter))
    index = (~trainable).nonzero(as_tuple=True) if trainable.ndim else ()
    return tuple(axis.to(local(parameter).device) for axis in index)


_protected: weakref.WeakSet[Any] = weakref.WeakSet()
_kept: weakref.WeakKeyDictionary[Optimizer, Kept] = weakref.WeakKeyDictionary()


def protect(source: FrozenEntries) -> None:
    """From now on every step of an optimizer of torch leaves these entries bit for bit where they are.

    A frozen entry's gradient is zero, but weight decay, momentum, and the state of an optimizer that was used before
    move it all the same. Nothing is kept alive.
    """
    _protected.add(source)
    before_every_step(_keep)
    after_every_step(_put_back)


def release(source: FrozenEntries) -> None:
    """Stop protecting these entries."""
    _protected.discard(source)


def _keep(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    _kept[optimizer] = Kept(optimizer.param_groups, list(_protected))


def _put_back(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if (kept := _kept.pop(optimizer, None)) is not None:
        kept.put_back()
