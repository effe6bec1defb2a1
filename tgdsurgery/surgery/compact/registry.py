"""Which compact twin takes the place of which layer class. A twin is a subclass of it, so `isinstance` still holds."""

from __future__ import annotations

from typing import Any

from torch import nn

from tgdsurgery.core.errors import RewriteError
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
from tgdsurgery.surgery.compact.twin import Compact
from tgdsurgery.surgery.derived import derive

TWINS: dict[type[nn.Module], type[Any]] = {}
_REMEDY = "Give a layer class, and a class that inherits from Compact or from a twin such as CompactConv."


def register_compact(layer_class: type[nn.Module], twin: type[Compact]) -> None:
    """Add a compact twin for a layer class of your own: its frozen rows then cost no backward.

    Without a twin a layer's weight is put together by a property, which is as safe, and no faster. The twin counts for
    layers of exactly this class whose parameters have one row per output channel. `apply_tgd` compares outputs and
    gradients with those of the plain layers, so that a wrong twin is not used.

    Args:
        layer_class: the class of the layers.
        twin: `Compact`, or one of the built-in twins in `tgdsurgery.surgery.compact`, with a forward for this layer.
            It may inherit from `layer_class` too, after them; it gets it in any case. Keep it where pickle finds it.

    Raises:
        RewriteError: an argument has the wrong class.

    Example:
        >>> from tgdsurgery import apply_tgd
        >>> from tgdsurgery.surgery.compact import CompactConv
        >>> class Doubled(nn.Conv2d):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> class CompactDoubled(CompactConv):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> register_compact(Doubled, CompactDoubled)
        >>> net = nn.Sequential(Doubled(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
        >>> isinstance(apply_tgd(net, phi=0.5)[0], CompactDoubled)
        True
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, nn.Module)):
        raise RewriteError(f"{layer_class!r} is not an nn.Module class.", _REMEDY)
    if not (isinstance(twin, type) and issubclass(twin, Compact)):
        raise RewriteError(f"{twin!r} does not inherit from Compact.", _REMEDY)
    try:
        made = derive(twin, layer_class)
    except TypeError as error:
        raise RewriteError(
            f"{twin.__name__} is no twin of {layer_class.__name__} ({error}).", _REMEDY
        ) from error
    order = made.__mro__
    if issubclass(layer_class, Compact) or order.index(Compact) > order.index(layer_class):
        raise RewriteError(f"{twin.__name__} inherits from {layer_class.__name__} before Compact.", _REMEDY)
    TWINS[layer_class] = made


for _twin, _layer_classes in {
    CompactConv: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    CompactConvTranspose: (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    CompactLinear: (nn.Linear,),
    CompactBatchNorm: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    CompactInstanceNorm: (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    CompactGroupNorm: (nn.GroupNorm,),
    CompactLayerNorm: (nn.LayerNorm,),
    CompactRMSNorm: (nn.RMSNorm,),
    CompactPReLU: (nn.PReLU,),
}.items():
    for _layer_class in _layer_classes:
        register_compact(_layer_class, _twin)
