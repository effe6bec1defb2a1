"""Zeroes the gradients of frozen parameter entries; alone, it is `flow="full"` of the layers form."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tgdsurgery.core.constants import Constants
from tgdsurgery.core.masking import zeroed

PARAMETERS = "tgd_parameters"  # name of the child module


class ParameterMask(Constants):
    """Zeroes the gradient of frozen parameter entries; a child of the module that owns the parameters.

    The masking is done by hooks on the Parameter objects. Those are lost when a Parameter is copied, pickled
    or replaced, so this module remembers which objects it has hooked: it hooks the copies as soon as they
    exist (`__setstate__`), and `follow`, run before each forward of the network, finds those that were
    replaced (`load_state_dict(assign=True)`). It remembers them weakly: they have hooks that have this module,
    and a circle would keep a network in memory until Python looks for circles. As in the TGD layer, frozen
    entries are replaced by zero.

    Args:
        masks: for each parameter of the owner, by its own name: True at trainable entries, broadcastable.
        device: where the network is.
    """

    def __init__(self, masks: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        super().__init__()
        for name, mask in masks.items():
            self.keep(name, mask.clone(), device)
        self.names = tuple(masks)
        self.hooked: dict[str, tuple[weakref.ref[nn.Parameter], RemovableHandle]] = {}

    def follow(self, owner: nn.Module) -> None:
        """Hook the owner's parameters, unless they are hooked already."""
        for name in self.names:
            parameter: nn.Parameter = getattr(owner, name)
            known = self.hooked[name][0]() if name in self.hooked else None
            if parameter.requires_grad and parameter is not known:
                self._hook(name, parameter)

    def release(self) -> None:
        """Take the hooks off the parameters."""
        for _, handle in self.hooked.values():
            handle.remove()
        self.hooked = {}

    def forward(self, x: Any) -> Any:
        """`x` itself, so that an owner which calls all its children is not disturbed."""
        return x

    def _hook(self, name: str, parameter: nn.Parameter) -> None:
        handle = parameter.register_hook(functools.partial(self._masked, name))
        self.hooked[name] = weakref.ref(parameter), handle

    def _masked(self, name: str, gradient: Tensor) -> Tensor:
        return zeroed(gradient, self.constant(name, gradient.device))

    def __getstate__(self) -> dict[str, Any]:
        hooked = {name: parameter() for name, (parameter, _) in self.hooked.items()}
        return {**vars(self), "hooked": {name: there for name, there in hooked.items() if there is not None}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "hooked": {}})  # type: ignore[no-untyped-call]
        for name, parameter in state["hooked"].items():
            self._hook(name, parameter)


def follow_parameters(net: nn.Module, args: object = None) -> None:
    """Let every parameter mask in `net` hook the parameters that are there now; also a forward pre-hook."""
    if torch.compiler.is_compiling():
        return
    for module in net.modules():
        if isinstance(mask := module._modules.get(PARAMETERS), ParameterMask):
            mask.follow(module)
