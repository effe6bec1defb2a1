"""Which compact class takes the place of which of torch's own.

The class of a compact module is a subclass of its original's class, so `isinstance` still holds.
"""

from __future__ import annotations

from torch import nn

from tgdsurgery.surgery.compact.base import Compact
from tgdsurgery.surgery.compact.conv import CompactConv, CompactConvTranspose
from tgdsurgery.surgery.compact.linear import CompactLinear
from tgdsurgery.surgery.compact.norms import (
    CompactBatchNorm,
    CompactGroupNorm,
    CompactInstanceNorm,
    CompactLayerNorm,
    CompactPReLU,
    CompactRMSNorm,
)

_TWINS: dict[type[Compact], tuple[type[nn.Module], ...]] = {
    CompactConv: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    CompactConvTranspose: (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    CompactLinear: (nn.Linear,),
    CompactBatchNorm: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    CompactInstanceNorm: (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    CompactGroupNorm: (nn.GroupNorm,),
    CompactLayerNorm: (nn.LayerNorm,),
    CompactRMSNorm: (nn.RMSNorm,),
    CompactPReLU: (nn.PReLU,),
}


TWINS: dict[type[nn.Module], type[Compact]] = {}


for _twin, _originals in _TWINS.items():
    for _original in _originals:
        _name = f"Compact{_original.__name__}"
        TWINS[_original] = _twin
        if _name != _twin.__name__:
            # A class of its own for each, under its name in this module, where pickle finds it.
            TWINS[_original] = type(_name, (_twin, _original), {"__module__": __name__})
            globals()[_name] = TWINS[_original]
        TWINS[_original].original_class = _original
