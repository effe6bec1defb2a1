"""Running statistics of norms: what they are called, which channels are held, and how held ones stay."""

from __future__ import annotations

import torch
from torch import BoolTensor, Tensor

from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.records import Layer

STATISTICS = ("running_mean", "running_var")


def norm_of(layer: Layer) -> str | None:
    """Name of the norm module that keeps the layer's statistics; None if some other module keeps them."""
    owner, _, _ = layer.statistics[0].rpartition(".")
    return owner if owner in (layer.name, *layer.modules) else None


def held_statistics(plan: TGDPlan) -> dict[str, BoolTensor]:
    """By name, every running statistic that training holds in part: (N,), True at the channels that move."""
    if plan.norm_stats != "hold":
        return {}
    return {
        name: plan.trainable(entry.layer.name)
        for entry in plan.entries
        if not all(entry.mask)
        for name in entry.layer.statistics
    }


def mixed(stored: Tensor, moved: Tensor, trainable: Tensor) -> Tensor:
    """(N,): of trainable channels the moved statistics, of the others the stored ones."""
    return torch.where(trainable, moved, stored)
