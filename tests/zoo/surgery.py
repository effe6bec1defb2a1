"""TGD on a network of the zoo, in reasonable time."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from tgdsurgery import TGDSettings
from tgdsurgery.core.plan import Flow, TGDPlan
from tgdsurgery.core.records import ChannelMap, LayerScores
from tgdsurgery.mapping.channel_map import map_model
from tgdsurgery.mapping.example_inputs import arguments_for
from tgdsurgery.scoring.decide import make_plan
from tgdsurgery.scoring.gather import score

BUDGET = 0.25
# KSE of larger networks takes up to minutes; their scores are drawn. The benchmark computes them.
LARGE = 8_000_000
# Networks above are tried in the default form only: what differs from their smaller kin is the numbers of layers and
# channels. The benchmark makes the layers form of all but the giants.
HUGE = 30_000_000


def parameters(net: nn.Module) -> int:
    """How many there are."""
    return sum(parameter.numel() for parameter in net.parameters())


def planned(net: nn.Module, image: Tensor) -> tuple[dict[Flow, TGDPlan], ChannelMap]:
    """For either flow a plan by which a quarter of the filter parameters are trainable, and their map."""
    mapped = map_model(net, arguments_for(net, image))
    scores = score(mapped) if parameters(net) < LARGE else _drawn(mapped.channels)
    plans = {
        flow: make_plan(mapped.channels, scores, TGDSettings(budget=BUDGET, flow=flow))
        for flow in get_args(Flow)
    }
    return plans, mapped.channels


def masked_whole(tgd: nn.Module, plan: TGDPlan) -> int:
    """How many Parameters hold frozen entries: all of those in the layers form, and in the compact form none."""
    masks = plan.parameter_masks()
    frozen = {name for name, mask in masks.items() if not mask.all()}
    return sum(
        name in plan.unmapped or (name in frozen and parameter.shape == masks[name].shape)
        for name, parameter in tgd.named_parameters()
    )


def _drawn(channels: ChannelMap) -> list[LayerScores]:
    generator = torch.Generator().manual_seed(0)
    return [
        LayerScores(layer, torch.rand(layer.channels, generator=generator).double())
        for layer in channels.layers.values()
    ]
