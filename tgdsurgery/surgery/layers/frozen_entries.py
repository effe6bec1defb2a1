"""Frozen entries of whole Parameters, kept where they are whatever writes to the parameter."""

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


class FrozenEntries:
    """A copy of the frozen entries of one parameter, which it does not keep alive.

    Args:
        parameter: the parameter; of one in pieces, it is about this process's piece.
        trainable: a mask of its shape, True at trainable entries.
    """

    @torch.no_grad()
    def __init__(self, parameter: nn.Parameter, trainable: Tensor) -> None:
        own = local(parameter)
        self._index = frozen_index(trainable, parameter)
        self._values = own[self._index].clone()
        self._parameter: weakref.ref[nn.Parameter] | None = weakref.ref(parameter)
        self._right = _version(own)  # the parameter's version when all of its frozen entries were

    def follow(self, parameter: nn.Parameter) -> None:
        """From now on it is the copy of this one, which is to have the same values."""
        self._parameter, self._right = weakref.ref(parameter), None

    def is_of(self, parameter: nn.Parameter) -> bool:
        """Whether it is the copy of this parameter."""
        return self._parameter is not None and self._parameter() is parameter

    def is_alive(self) -> bool:
        """Whether its parameter is still there."""
        return self._parameter is not None and self._parameter() is not None

    @torch.no_grad()
    def put_back(self, parameter: nn.Parameter, *, uncounted: bool) -> None:
        """Write the copy to the parameter, if it was written to.

        Args:
            parameter: the parameter.
            uncounted: also if it can have been written to in a way that torch does not count.
        """
        own = local(parameter)
        if uncounted or self._right is None or _version(own) != self._right:
            own.data[self._index] = (
                self._values
            )  # not counted: a backward that needs the parameter can still come
            self._right = _version(own)

    def doubt(self) -> None:
        """Write in any case the next time: torch does not count what is written through `.data`."""
        self._right = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_parameter": None, "_right": None}


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


class Protected(Protocol):
    """What keeps copies of the frozen entries of some parameters."""

    def parameters_of_owner(self) -> Iterator[nn.Parameter]:
        """The parameters as they are now."""

    def put_back(self, *, uncounted: bool = False) -> None:
        """Write the copies to them, as `FrozenEntries.put_back`."""


class Kept:
    """The frozen entries of the parameters that an optimizer holds, over one of its steps.

    Args:
        param_groups: the optimizer's.
        sources: what keeps copies of frozen entries.
    """

    def __init__(self, param_groups: Iterable[Mapping[str, Any]], sources: Iterable[Protected]) -> None:
        # By `id`: torch.compile looks for a tensor in a set by comparing its values with those of all others.
        held = {id(parameter) for group in param_groups for parameter in group["params"]}
        self._sources = [
            one for one in sources if any(id(parameter) in held for parameter in one.parameters_of_owner())
        ]
        for source in self._sources:
            source.put_back()

    def put_back(self) -> None:
        """Write the copies back."""
        for source in self._sources:
            source.put_back(uncounted=True)  # torch does not count what its fused ops write


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


def protect(source: Protected) -> None:
    """From now on every step of an optimizer of torch leaves these entries bit for bit where they are.

    A frozen entry's gradient is zero, but weight decay, momentum, and the state of an optimizer that was used before
    move it all the same. Nothing is kept alive.
    """
    _protected.add(source)
    before_every_step(_keep)
    after_every_step(_put_back)


def release(source: Protected) -> None:
    """Stop protecting these entries."""
    _protected.discard(source)


def _keep(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    _kept[optimizer] = Kept(optimizer.param_groups, list(_protected))


def _put_back(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if (kept := _kept.pop(optimizer, None)) is not None:
        kept.put_back()
