"""The TGD network inside wrappers, and its plan."""

from __future__ import annotations

from torch import nn

from tgdsurgery.core.errors import RewriteError
from tgdsurgery.core.plan import TGDPlan


def tgd_form(model: nn.Module) -> nn.Module:
    """The TGD network itself, which may be wrapped.

    Raises:
        RewriteError: `model` is not a TGD network.
    """
    net = unwrapped(model)
    if "tgd_plan" in vars(net):
        return net
    raise RewriteError(
        f"This {type(net).__name__} is not a TGD network.", "Give the network that apply_tgd returned."
    )


def plan_of(tgd_model: nn.Module) -> TGDPlan:
    """The plan of a TGD network, also inside DDP, DataParallel or torch.compile.

    Args:
        tgd_model: what `apply_tgd` returned, wrapped or not.

    Raises:
        RewriteError: `tgd_model` is not a TGD network.

    Example:
        >>> from tgdsurgery import apply_tgd
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
        >>> plan_of(nn.DataParallel(apply_tgd(net, phi=0.5))).phi
        0.5
    """
    plan: TGDPlan = vars(tgd_form(tgd_model))["tgd_plan"]
    return plan


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model
