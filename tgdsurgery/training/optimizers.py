"""Frozen entries stay frozen under any optimizer; an optimizer made for another network raises an error."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tgdsurgery.core.errors import RewriteError
from tgdsurgery.core.optimizer_hooks import after_every_step
from tgdsurgery.core.torch_private import runs_hooks
from tgdsurgery.surgery.intact import refuse_replaced
from tgdsurgery.surgery.layers.frozen_entries import Kept
from tgdsurgery.surgery.layers.parameter_mask import ParameterMask
from tgdsurgery.surgery.tgd_network import tgd_form


class Guard:
    """Handle of a guarded optimizer; `remove()`, or leaving it as a context manager, ends the guard.

    Args:
        optimizer: anything with `step`, and `param_groups` of its own or of an optimizer inside.
        masks: what knows the frozen entries; nothing is done without.
    """

    def __init__(self, optimizer: Any, masks: Sequence[ParameterMask]) -> None:
        self._optimizer, self._before = optimizer, vars(optimizer).get("step")
        self._wraps = bool(masks) and not runs_hooks(optimizer)
        if not self._wraps:
            return
        inner = optimizer.step

        @functools.wraps(inner)
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            kept = Kept(_param_groups(self), masks)
            try:
                return inner(*args, **kwargs)
            finally:
                kept.put_back()

        optimizer.step = types.MethodType(step, optimizer)  # schedulers expect a method

    def remove(self) -> None:
        """Let the optimizer step as before."""
        if self._wraps and self._before is None:
            del self._optimizer.step
        elif self._wraps:
            self._optimizer.step = self._before
        self._wraps = False

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def guard(optimizer: Any, tgd_model: nn.Module) -> Guard:
    """Keep the frozen entries of a network in the layers form in every `step` of an optimizer that is not torch's.

    The guard copies the frozen entries before `step` runs, and puts them back after it. Only `form="layers"` has
    frozen entries in its Parameters, and only an optimizer whose `step` runs none of torch's hooks can move them: a
    class of one's own, or a wrapper that leaves out `Optimizer.__init__`, as Lookahead and differentially private
    optimizers do. With any other optimizer, and in the compact form, there is nothing to do, and nothing is done.

    Args:
        optimizer: anything with `step` and `param_groups`; wrappers that keep theirs in `optimizer` or
            `original_optimizer` are looked through.
        tgd_model: what apply_tgd returned; may be wrapped in DDP, DataParallel or torch.compile.

    Raises:
        RewriteError: `tgd_model` is not a TGD network, a layer of it was replaced or pruned after apply_tgd, or the
            optimizer holds none of its parameters.

    Example:
        >>> import torch
        >>> from tgdsurgery import apply_tgd, verify
        >>> class Decay:  # not torch's
        ...     def __init__(self, parameters):
        ...         self.param_groups = [{"params": list(parameters)}]
        ...     @torch.no_grad()
        ...     def step(self):
        ...         for parameter in self.param_groups[0]["params"]:
        ...             parameter.mul_(0.9)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
        >>> tgd = apply_tgd(net, phi=0.5, form="layers")
        >>> optimizer = Decay(tgd.parameters())
        >>> with guard(optimizer, tgd):
        ...     optimizer.step()
        >>> verify(net, tgd).ok
        True
    """
    net = tgd_form(tgd_model)
    refuse_replaced(net)
    held = {parameter for group in _param_groups(optimizer) for parameter in group["params"]}
    if held.isdisjoint(net.parameters()):
        raise RewriteError(
            "The optimizer holds none of the TGD model's parameters (made from the model before apply_tgd?).",
            "Make it from the parameters of the network that apply_tgd returned.",
        )
    return Guard(optimizer, [module for module in net.modules() if isinstance(module, ParameterMask)])


def _param_groups(optimizer: Any) -> Any:
    """Those of the optimizer, or of the one inside."""
    inside: Any = optimizer
    while not hasattr(inside, "param_groups"):
        inside = getattr(inside, "optimizer", None) or getattr(inside, "original_optimizer", None)
        if inside is None:
            raise RewriteError(
                f"{type(optimizer).__name__} has no param_groups, and holds no optimizer that has.",
                "Guard the optimizer that updates the parameters.",
            )
    return inside.param_groups


# For each TGD network that is alive: the parameters of the model it was made from, by id. Nothing is kept alive.
_Originals = dict[int, "weakref.ref[nn.Parameter]"]


_watched: weakref.WeakKeyDictionary[nn.Module, _Originals] = weakref.WeakKeyDictionary()


def watch(tgd_model: nn.Module, model: nn.Module) -> None:
    """From now on, an `optimizer.step()` that leaves out `tgd_model` because it was made for `model` is an error.

    Training `model` itself is not affected, and so does an optimizer that holds parameters of both.

    Args:
        tgd_model: what apply_tgd returns.
        model: what it was made from.

    Example:
        >>> import torch
        >>> from tgdsurgery import apply_tgd
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> tgd = apply_tgd(net, phi=0.9)  # calls `watch`
        >>> tgd(torch.randn(1, 1, 8, 8)).sum().backward()
        >>> optimizer.step()
        Traceback (most recent call last):
        tgdsurgery.core.errors.RewriteError: This SGD was made before apply_tgd: ...
    """
    after_every_step(_check)
    _watched[tgd_model] = {id(parameter): weakref.ref(parameter) for parameter in model.parameters()}


def _check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Raise if the step that is just over was meant for a TGD network; a closure has set the gradients by now."""
    held: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    for tgd_model, originals in list(_watched.items()):
        stale = [p for p in held if p.requires_grad and (own := originals.get(id(p))) and own() is p]
        if not stale or any(p.grad is not None for p in stale):
            continue  # another model's, or it trains the original
        present = set(tgd_model.parameters())
        if present.isdisjoint(held) and any(p.grad is not None for p in present):
            raise RewriteError(
                f"This {type(optimizer).__name__} was made before apply_tgd: it holds the parameters of the model "
                "that was given to apply_tgd, and none of the network that is trained.",
                "Make it from the parameters of the network that apply_tgd returned.",
            )
