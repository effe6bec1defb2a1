"""The network without the channels that a plan flags: what the old task loses without them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tgdsurgery.core.copying import copy_model
from tgdsurgery.core.masking import along
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.surgery.layers.tgd_layer import TGD, attach


def without_flagged(model: nn.Module, plan: TGDPlan) -> nn.Module:
    """A copy of the model, in evaluation mode, in which the channels that the plan retrains are zero.

    Where the layers form has a TGD layer, this has a layer of zeros: after each filter and each channel layer that is
    a module. Zeros in the weights would not do: a norm without affine parameters turns a map of zeros into
    another constant, tied weights are another layer's too, and computed ones (spectral norm) would change for
    all filters. Only layers without a module of their own get their parameters' rows set to zero, where all layers that
    share them agree.

    Args:
        model: a plain network; it is not touched.
        plan: made from this model.
    """
    net = copy_model(model)
    masks = plan.parameter_masks()
    for entry in plan.entries:
        flagged, layer = plan.trainable(entry.layer.name), entry.layer
        if flagged.any():
            for module in {net.get_submodule(name) for name in layer.modules}:
                module.add_module(TGD, ZeroLayer(flagged, layer.channel_axis))
        if not layer.modules:
            for rows in layer.parameters:
                _set_zero(net.get_parameter(rows.name), masks[rows.name])
    return attach(net).eval()


@torch.no_grad()
def _set_zero(parameter: Tensor, mask: Tensor) -> None:
    parameter.masked_fill_(mask.to(parameter.device), 0)


class ZeroLayer(nn.Module):
    """Stands in a TGD layer's place: flagged channels become zero in the forward.

    Args:
        mask: (N,) bool, True where the channel is flagged.
        channel_axis: axis of the N channels, counted from the end.

    >>> ZeroLayer(torch.tensor([True, False]), -2)(torch.ones(1, 2, 3)).tolist()
    [[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]
    """

    mask: Tensor

    def __init__(self, mask: Tensor, channel_axis: int) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.register_buffer("mask", mask.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """A copy of x with the zeros; an overflow in a flagged channel is gone too."""
        return x.masked_fill(along(self.mask, self.channel_axis).to(x.device), 0)
