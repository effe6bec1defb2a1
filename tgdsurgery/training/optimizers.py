"""Frozen entries stay frozen under any optimizer; an optimizer made for another network is found out."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from tgdsurgery.core.errors import RewriteError
from tgdsurgery.core.sharding import is_sharded, like, local
from tgdsurgery.surgery.entries import trainable_entries
from tgdsurgery.surgery.tgd_network import tgd_form

_Index = tuple[Tensor, ...]


class Guard:
    """Handle of a guarded optimizer; `remove()`, or leaving it as a context manager, ends the guard.

    Args:
        optimizer: the optimizer.
        frozen: for each parameter, the index of its frozen entries (in this process's shard of it).
    """

    def __init__(self, optimizer: Optimizer, frozen: Mapping[nn.Parameter, _Index]) -> None:
        self._frozen = frozen
        self._kept: list[tuple[Tensor, _Index, Tensor]] = []
        self._handles = (
            optimizer.register_step_pre_hook(self._keep),
            optimizer.register_step_post_hook(self._put_back),
        )

    def remove(self) -> None:
        """Let the optimizer move all entries again."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    @torch.no_grad()
    def _keep(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._kept = []
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if parameter in self._frozen:
                own = local(parameter)
                index = tuple(axis.to(own.device) for axis in self._frozen[parameter])
                self._kept.append((own, index, own[index].clone()))

    @torch.no_grad()
    def _put_back(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for own, index, values in self._kept:
            own[index] = values
        self._kept = []


def guard(optimizer: Optimizer, tgd_model: nn.Module) -> Guard:
    """Keep the frozen entries where they are in every `optimizer.step()`, bit for bit.

    A frozen entry's gradient is zero, but weight decay, momentum, and the state of an optimizer that was
    used before move it all the same. The guard copies the frozen entries before `step` runs, and puts them
    back after it. It works with every optimizer of `torch.optim` and all that build on its `Optimizer`, and
    with a GradScaler; with FSDP2, shard the model first. In the compact form only the layers that could not
    be made compact need it: in all others, frozen entries are no parameters.

    Args:
        optimizer: holds all or some of the model's parameters.
        tgd_model: what apply_tgd returned; may be wrapped in DDP, DataParallel or torch.compile.

    Raises:
        RewriteError: `tgd_model` is no TGD network, or the optimizer holds none of its parameters.

    Example:
        >>> from tgdsurgery.core.plan import LayerPlan, TGDPlan
        >>> from tgdsurgery.core.records import Layer, ParameterRows
        >>> from tgdsurgery.surgery.apply import layers_form
        >>> layer = Layer("0", "filter", "Linear", 2, (ParameterRows("0.weight", (2, 1)),), (), ("0",), -1)
        >>> entry = LayerPlan(layer, (0.1, 0.9), (True, False))
        >>> plan = TGDPlan(0.3, None, 5, 1.0, "masked", "hold", (entry,))
        >>> net = layers_form(nn.Sequential(nn.Linear(1, 2, bias=False)), plan, torch.ones(1, 1))
        >>> _ = torch.nn.init.ones_(net.get_parameter("0.weight"))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=1.0)
        >>> with guard(optimizer, net):
        ...     net(torch.ones(1, 1)).sum().backward()
        ...     optimizer.step()
        >>> net.get_parameter("0.weight").flatten().tolist()
        [0.0, 1.0]
    """
    net = tgd_form(tgd_model)
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(net.parameters()):
        raise RewriteError(
            "The optimizer holds none of the TGD model's parameters (made from the model before apply_tgd?).",
            "Make it from the parameters of the network that apply_tgd returned.",
        )
    masks = trainable_entries(net, vars(net)["tgd_plan"])
    return Guard(optimizer, {p: _frozen_index(mask, p) for p, mask in masks.items() if not mask.all()})


def _frozen_index(trainable: Tensor, parameter: Any) -> _Index:
    """Index of the False entries over the leading axes only, as many as the mask varies along."""
    while trainable.ndim and (trainable.shape[-1] == 1 or trainable.stride(-1) == 0):
        trainable = trainable.select(-1, 0)
    if trainable.ndim and is_sharded(parameter):
        trainable = local(like(trainable.contiguous().to(parameter.device), parameter))
    return (~trainable).nonzero(as_tuple=True) if trainable.ndim else ()


# For each TGD network that is alive: the parameters of the model it was made from, by id. Nothing is kept alive.
_Originals = dict[int, "weakref.ref[nn.Parameter]"]


_watched: weakref.WeakKeyDictionary[nn.Module, _Originals] = weakref.WeakKeyDictionary()


def watch(tgd_model: nn.Module, model: nn.Module) -> None:
    """From now on, an `optimizer.step()` that leaves out `tgd_model` because it was made for `model` is an error.

    Training `model` itself goes on as ever, and so does an optimizer that holds parameters of both.

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


# One hook for all, which stays: taking one away while torch goes through them is an error, and the garbage
# collector, which would do it, runs at any time.
register_optimizer_step_post_hook(_check)
