"""The paper's TGD layer: it follows a filter layer or a channel layer; identity forward, masked backward.

It sits in the network as a child module with `Constants`: its mask moves with `.to(device)`, is copied and pickled
with the network, and is not part of its state.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from tgdsurgery.core.constants import Constants
from tgdsurgery.core.masking import mask_gradient

ModuleT = TypeVar("ModuleT", bound=nn.Module)


# Key of our hooks. Torch numbers its own from 0 in each process: in a network that was loaded from a file, a
# later hook could take the number of ours, and its place.
HOOK = -1
TGD = "tgd_layer"  # name of the child module


class TGDLayer(Constants):
    """Identity forward; in the backward, the gradient of frozen channels becomes zero.

    The forward returns the very tensor it got. A frozen channel's gradient is *replaced* by zero, not
    multiplied by it: an overflow (inf, NaN) that meets a frozen channel stops there, where 0 * inf would turn
    into a NaN and reach every layer before it. Works under double backward.

    Args:
        mask: (N,) bool, True where the channel is trainable; on the CPU.
        channel_axis: axis of the N channels, counted from the end (-3 for the output of a 2-D conv).
        device: where the network is.

    Source: Chen, Asma, Chan: "Targeted Gradient Descent", MICCAI 2021, eq. 4 (the factor M_n).

    >>> x = torch.ones(1, 2, 1, requires_grad=True)
    >>> (3 * TGDLayer(torch.tensor([True, False]), -2)(x)).sum().backward()
    >>> x.grad.flatten().tolist()
    [3.0, 0.0]
    """

    def __init__(self, mask: Tensor, channel_axis: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self._tgd_keep("mask", mask.clone(), device)

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself; in some cases (see `mask_gradient`) an equal tensor."""
        if isinstance(x, fx.Proxy):  # traced as one call, as torch's own layers are
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
        return mask_gradient(x, self._tgd_constant("mask", x.device), self.channel_axis)

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        mask = self._tgd_kept["mask"]
        return f"{int(mask.sum())} of {mask.numel()} channels trainable, axis {self.channel_axis}"


def attach(net: ModuleT) -> ModuleT:
    """Let every TGD layer in `net` follow the module it is a child of, by a forward hook; returns `net`."""
    for module in net.modules():
        if hasattr(module, TGD):
            module._forward_hooks[HOOK] = _through_tgd_layer
    return net


def _through_tgd_layer(module: nn.Module, args: object, output: Tensor) -> Tensor:
    # Looked up, not bound: a replica of the module on another device has a replica of the layer.
    masked: Tensor = module.get_submodule(TGD)(output)
    return masked
