"""Keeps frozen parameter entries: their gradients are zero, and what is written to them does not stay.

Alone, it is `flow="full"` of the layers form.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tgdsurgery.core.constants import Constants
from tgdsurgery.core.errors import RewriteError
from tgdsurgery.core.masking import zeroed
from tgdsurgery.core.torch_private import in_forward_mode, under_functorch
from tgdsurgery.surgery.layers import frozen_entries
from tgdsurgery.surgery.layers.frozen_entries import FrozenEntries
from tgdsurgery.surgery.layers.tgd_layer import HOOK

PARAMETERS = "tgd_parameters"  # name of the child module


class ParameterMask(Constants):
    """Keeps the frozen entries of a module's parameters; a child of the module that owns them.

    The gradients are masked by hooks on the Parameter objects. Those are lost when a Parameter is copied, pickled
    or replaced, so this module remembers which objects it has hooked: it hooks the copies as soon as they
    exist (`__setstate__`), and `follow`, run before each forward of the network, finds those that were
    replaced (`load_state_dict(assign=True)`). It remembers them and the owner weakly: they have this module, and a
    circle would keep a network in memory until Python looks for circles. As in the TGD layer, frozen
    entries are replaced by zero. A parameter that is frozen whole gets `requires_grad=False`.

    Optimizers also write outside of `step`, and averages to the tensors of a `state_dict`. So frozen entries have a
    copy, which goes back after every step, before every forward and before every `state_dict`; what
    `load_state_dict` brings is kept from then on.

    Args:
        masks: for each parameter of the owner, by its own name: True at trainable entries, broadcastable.
        device: where the network is.
    """

    def __init__(self, masks: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        super().__init__()
        for name, mask in masks.items():
            self._tgd_keep(name, mask.clone(), device)
        self.names = tuple(masks)
        self.stopped: tuple[str, ...] = ()  # those that required a gradient before
        self.hooked: dict[str, tuple[weakref.ref[nn.Parameter], RemovableHandle]] = {}
        self.owner: weakref.ref[nn.Module] | None = None
        self.copies: dict[
            str, list[FrozenEntries]
        ] = {}  # FSDP2 has a parameter in pieces, and at times whole

    def mount(self, owner: nn.Module) -> None:
        """Become a child of the module, and stop what is frozen whole."""
        owner.add_module(PARAMETERS, self)
        for name in self.names:
            parameter: nn.Parameter = getattr(owner, name)
            if parameter.requires_grad and not self._tgd_kept[name].any():
                self.stopped = (*self.stopped, name)
                parameter.requires_grad_(False)
        owner._state_dict_pre_hooks[HOOK] = self.before_state_dict
        owner._load_state_dict_pre_hooks[HOOK] = self.before_load
        self.follow(owner)

    def dismount(self, owner: nn.Module) -> None:
        """Undo `mount`."""
        self.put_back(uncounted=True)
        for _, handle in self.hooked.values():
            handle.remove()
        self.hooked = {}
        frozen_entries.release(self)
        owner._state_dict_pre_hooks.pop(HOOK, None)
        owner._load_state_dict_pre_hooks.pop(HOOK, None)
        for name in self.stopped:
            getattr(owner, name).requires_grad_(True)
        delattr(owner, PARAMETERS)

    def follow(self, owner: nn.Module) -> None:
        """Hook the owner's parameters, unless they are hooked already; their frozen entries are right."""
        for name in self.names:
            refuse_computed(owner, name)
        self._belong_to(owner)
        self.put_back()
        for name in self.names:
            parameter: nn.Parameter = getattr(owner, name)
            known = self.hooked[name][0]() if name in self.hooked else None
            if parameter.requires_grad and parameter is not known:
                self._hook(name, parameter)

    def parameters_of_owner(self) -> Iterator[nn.Parameter]:
        """The owner's parameters as they are now."""
        for _, parameter in self._present():
            yield parameter

    def put_back(self, *, uncounted: bool = False) -> None:
        """Write the copies to the parameters that were written to."""
        if under_functorch() or in_forward_mode():  # which allow no write, and differentiate what is there
            return
        for name, parameter in self._present():
            self._copy_of(name, parameter).put_back(parameter, uncounted=uncounted)

    def before_state_dict(self, *args: object) -> None:
        """Hook of the owner's `state_dict`."""
        self.put_back(uncounted=True)

    def before_load(self, *args: object) -> None:
        """Hook of the owner's `load_state_dict`, whose argument can be the owner's own, written to."""
        self.put_back(uncounted=True)

    def train(self, mode: bool = True) -> ParameterMask:
        """Set the mode; the next forward sees to the frozen entries in any case."""
        for entries in chain(*self.copies.values()):
            entries.doubt()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.copies = {}  # the owner has loaded its parameters
        self.put_back()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ParameterMask:
        self.put_back(uncounted=True)  # the owner's parameters come after those of its children
        self.copies = {}
        return super()._apply(fn, recurse)

    def _present(self) -> Iterator[tuple[str, nn.Parameter]]:
        owner = None if self.owner is None else self.owner()
        present = {} if owner is None else owner._parameters
        for name in self.names:
            if (parameter := present.get(name)) is not None:  # not one that was pruned since
                yield name, parameter

    def _copy_of(self, name: str, parameter: nn.Parameter) -> FrozenEntries:
        """The copy of a parameter's frozen entries, made now if it is new."""
        known = self.copies.setdefault(name, [])
        for one in known:
            if one.is_of(parameter):
                return one
        known[:] = [one for one in known if one.is_alive()]
        known.append(FrozenEntries(parameter, self._tgd_kept[name].expand(parameter.shape)))
        return known[-1]

    def forward(self, x: Any) -> Any:
        """`x` itself, so that an owner which calls all its children is not disturbed."""
        return x

    def _belong_to(self, owner: nn.Module) -> None:
        # To the first: a network and its graph have the same parameters, and copies are made from the network.
        if self.owner is None or self.owner() is None:
            self.owner = weakref.ref(owner)
            frozen_entries.protect(self)

    def _hook(self, name: str, parameter: nn.Parameter) -> None:
        handle = parameter.register_hook(functools.partial(self._masked, name))
        self.hooked[name] = weakref.ref(parameter), handle

    def _masked(self, name: str, gradient: Tensor) -> Tensor:
        return zeroed(gradient, self._tgd_constant(name, gradient.device))

    def __getstate__(self) -> dict[str, Any]:
        hooked = {name: parameter() for name, (parameter, _) in self.hooked.items()}
        hooked = {name: there for name, there in hooked.items() if there is not None}
        copies = {name: (parameter, self._copy_of(name, parameter)) for name, parameter in self._present()}
        owner = None if self.owner is None else self.owner()
        return {**vars(self), "hooked": hooked, "owner": owner, "copies": copies}

    def __setstate__(self, state: dict[str, Any]) -> None:
        copies: dict[str, tuple[nn.Parameter, FrozenEntries]] = state["copies"]
        super().__setstate__({**state, "hooked": {}, "owner": None, "copies": {}})  # type: ignore[no-untyped-call]
        for name, (parameter, entries) in copies.items():
            entries.follow(parameter)
            self.copies[name] = [entries]
        for name, parameter in state["hooked"].items():
            if parameter.requires_grad:  # else `follow` hooks it once it does
                self._hook(name, parameter)
        if state["owner"] is not None:
            self._belong_to(state["owner"])


def refuse_computed(owner: nn.Module, name: str) -> None:
    """Raise if what was a Parameter is computed from another one now, which nothing keeps from moving."""
    if name in owner._parameters or vars(owner).get("_is_replica"):  # DataParallel's have plain tensors
        return
    if f"{name}_orig" in owner._parameters or isinstance(getattr(owner, name, None), Tensor):
        raise RewriteError(
            f"The {name} of a {type(owner).__name__} was pruned, or is computed in another way, since apply_tgd.",
            "Undo it with torch.nn.utils.prune.remove or parametrize.remove_parametrizations; prune before apply_tgd, "
            "or what remove_tgd returns.",
        )


def follow_parameters(net: nn.Module, args: object = None) -> None:
    """Let every parameter mask in `net` hook the parameters that are there now; also a forward pre-hook."""
    if torch.compiler.is_compiling():
        return
    for module in net.modules():
        if isinstance(mask := module._modules.get(PARAMETERS), ParameterMask):
            mask.follow(module)
