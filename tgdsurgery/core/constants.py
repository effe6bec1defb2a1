"""Masks and indices of a module: tensors that belong to the method, not to the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

ConstantsT = TypeVar("ConstantsT", bound="Constants")


class Constants(nn.Module):
    """A module with tensors that move with it and that nothing else changes.

    They are not buffers: averages of weights work on those (an index of 5 comes out of `AveragedModel` as a 4),
    DDP sends them in every step, and after `to_empty` they are lost. The class is also mixed into users' own
    classes, so its members have names that do not clash with theirs.

    >>> module = Constants()
    >>> module._tgd_keep("mask", torch.tensor([True, False]), "meta")
    >>> module.to_empty(device="cpu")._tgd_constant("mask", torch.device("cpu"))
    tensor([ True, False])
    """

    _tgd_kept: dict[str, Tensor]  # on the CPU
    _tgd_placed: dict[str, Tensor]  # where the module is

    def _tgd_keep(self, name: str, value: Tensor, device: torch.device | str) -> None:
        """Make `value`, which is on the CPU, the constant `name` of a module that is on `device`."""
        for place, tensor in (("_tgd_kept", value), ("_tgd_placed", value.to(device))):
            vars(self)[place] = {**vars(self).get(place, {}), name: tensor}

    def _tgd_constant(self, name: str, device: torch.device) -> Tensor:
        """The constant of that name, on a device; quick where the module is."""
        value = self._tgd_placed[name]
        if value.device != device:  # weights were assigned, or this is a replica that DataParallel made
            with torch.inference_mode(False):  # else it would be of no use in training
                value = self._tgd_kept[name].to(device)
            if not torch.compiler.is_compiling():
                self._tgd_placed[name] = value
        return value

    def _tgd_forget(self) -> None:
        """Remove all constants."""
        vars(self).pop("_tgd_kept", None)
        vars(self).pop("_tgd_placed", None)

    def _apply(self: ConstantsT, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConstantsT:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        placed: dict[str, Any] = vars(self).get("_tgd_placed", {})
        for name, value in placed.items():
            to = fn(torch.empty(0, dtype=torch.bool, device=value.device)).device
            placed[name] = self._tgd_kept[name].to(to)
        return self
