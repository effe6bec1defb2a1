"""The compact form: no Parameter holds a frozen entry, and a layer that has a twin computes no gradient of one.

`obstacles` says which layers of a network can have no twin, `compact` gives one to a layer, `assemble` divides the
parameters that are left, `restore` undoes both. Your own twin inherits from `Compact` or from a built-in twin;
see `register_compact`.
"""

from tgdsurgery.surgery.compact.assembled import Assembled, assemble
from tgdsurgery.surgery.compact.base import Divided, frozen_buffers, full_parameters
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
from tgdsurgery.surgery.compact.registry import register_compact
from tgdsurgery.surgery.compact.swap import compact, obstacles, restore
from tgdsurgery.surgery.compact.twin import Compact

__all__ = [
    "Assembled",
    "Compact",
    "CompactBatchNorm",
    "CompactConv",
    "CompactConvTranspose",
    "CompactGroupNorm",
    "CompactInstanceNorm",
    "CompactLayerNorm",
    "CompactLinear",
    "CompactPReLU",
    "CompactRMSNorm",
    "Divided",
    "assemble",
    "compact",
    "frozen_buffers",
    "full_parameters",
    "obstacles",
    "register_compact",
    "restore",
]
