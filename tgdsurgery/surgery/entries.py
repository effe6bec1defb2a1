"""Which entries of a network's parameters may move."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.surgery.compact import Divided


def trainable_entries(net: nn.Module, plan: TGDPlan) -> dict[nn.Parameter, Tensor]:
    """For every parameter of `net`: a bool mask of its shape, True at the entries that may move.

    A parameter under several names moves only where all of them agree, and one that no layer owns nowhere.
    Where parameters are divided, all of what is a Parameter may move.
    """
    planned = plan.parameter_masks()
    masks: dict[nn.Parameter, Tensor] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if name in planned:
            known = masks.get(parameter)
            masks[parameter] = planned[name] if known is None else planned[name] & known
    divided = [module for module in net.modules() if isinstance(module, Divided)]
    rows = {parameter for module in divided for parameter in module.parameters(recurse=False)}
    everywhere, nowhere = torch.ones((), dtype=torch.bool), torch.zeros((), dtype=torch.bool)
    masks |= {parameter: everywhere.expand(parameter.shape) for parameter in rows}
    return {
        parameter: masks.get(parameter, nowhere.expand(parameter.shape)) for parameter in net.parameters()
    }
