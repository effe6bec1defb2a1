"""Whether the layers of a TGD network are still those that apply_tgd made."""

from __future__ import annotations

from torch import nn

from tgdsurgery.core.errors import RewriteError
from tgdsurgery.core.plan import LayerPlan
from tgdsurgery.core.records import ParameterRows
from tgdsurgery.surgery.compact import Divided
from tgdsurgery.surgery.layers.parameter_mask import ParameterMask, refuse_computed
from tgdsurgery.surgery.tgd_network import plan_of


def refuse_replaced(net: nn.Module) -> None:
    """Raise if a layer of the plan was replaced, pruned or given a computed weight after apply_tgd.

    Nothing knows then which of its rows are frozen, and a delta on the base would not have it. Layers that were added
    belong to no plan, and are not looked at.

    Args:
        net: a TGD network, not wrapped.

    Raises:
        RewriteError: names the layer, and what to do.
    """
    masks = [module for module in net.modules() if isinstance(module, ParameterMask)]
    masked = {parameter for mask in masks for parameter in mask.parameters_of_owner()}
    modules = dict(net.named_modules(remove_duplicate=False))
    for entry in plan_of(net).entries:
        for rows in entry.layer.parameters:
            owner, _, name = rows.name.rpartition(".")
            module = modules.get(owner)
            if module is None or not _is_the_same(module, name, entry, rows, masked):
                raise RewriteError(
                    f"{entry.layer.name} was replaced after apply_tgd.",
                    f"Replace it before, and use overrides={{{entry.layer.name!r}: 'train'}}.",
                )


def _is_the_same(
    module: nn.Module, name: str, entry: LayerPlan, rows: ParameterRows, masked: set[nn.Parameter]
) -> bool:
    if isinstance(module, Divided) and name in module._tgd_parts:
        return True  # it refuses changes itself
    refuse_computed(module, name)
    parameter = module._parameters.get(name)
    whole = all(entry.mask) and rows.requires_grad
    return parameter is not None and (parameter in masked or (whole and parameter.shape == rows.shape))
