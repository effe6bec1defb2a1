"""The TGD network inside wrappers, and its plan."""

from __future__ import annotations

from torch import nn

from tgdsurgery.core.errors import RewriteError


def tgd_form(model: nn.Module) -> nn.Module:
    """The network that `insert` or `lower` returned, wrapped or not.

    Raises:
        RewriteError: `model` is no such network.
    """
    net = unwrapped(model)
    if "tgd_stopped" in vars(net):
        return net
    raise RewriteError(
        f"This {type(net).__name__} has no TGD layers.", "Give the network that apply_tgd returned."
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model
