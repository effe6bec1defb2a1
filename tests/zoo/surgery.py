"""TGD on a network of the zoo, in reasonable time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tgdsurgery import apply_tgd
from tgdsurgery.channels import channel_map
from tgdsurgery.planning import make_plan
from tgdsurgery.records import LayerScores
from tgdsurgery.rewrite import insert

BUDGET = 0.25
# KSE of larger networks takes up to minutes; their scores are drawn. The benchmark computes them.
LARGE = 8_000_000


def parameters(net: nn.Module) -> int:
    """How many there are."""
    return sum(parameter.numel() for parameter in net.parameters())


def operated(net: nn.Module, image: Tensor, **settings: Any) -> nn.Module:
    """The network with TGD applied, a quarter of its filter parameters trainable."""
    if parameters(net) < LARGE:
        return apply_tgd(net, image, budget=BUDGET, **settings)
    channels = channel_map(net, image)
    generator = torch.Generator().manual_seed(0)
    drawn = [
        LayerScores(layer, torch.rand(layer.channels, generator=generator).double())
        for layer in channels.layers.values()
    ]
    return insert(net, make_plan(channels, drawn, budget=BUDGET, **settings), (image,), {})
