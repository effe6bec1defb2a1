"""Optimizers that were made before apply_tgd are told apart from those that train the network.

apply_tgd returns a copy. An optimizer that holds the parameters of the model it was made from would step for
ever and train nothing, without a word: their gradients are None, and torch skips them.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from tgdsurgery.errors import RewriteError

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
        tgdsurgery.errors.RewriteError: This SGD was made before apply_tgd: ...
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
