"""Norms that are not torch's. Images are as wide as they have channels: a wrong axis would not show by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.strategies.blocks import FrozenNorm, NormByHand
from tests.topologies.registry import topology

SQUARE = (2, 3, 4, 4)


@topology("frozen batch norms", SQUARE)
def frozen_batch_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        FrozenNorm(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        FrozenNorm(4),
        nn.LeakyReLU(),
        nn.Conv2d(4, 2, 1),
    )


@topology("batch norms by hand", SQUARE)
def batch_norms_by_hand() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        NormByHand(4),
        nn.SiLU(),
        nn.Conv2d(4, 4, 1),
        NormByHand(4, way="in place"),
        nn.SiLU(),
        nn.Conv2d(4, 2, 1),
    )


@topology("batch norm by hand, channels last", SQUARE)
class ChannelsLastNorm(nn.Module):
    """Its axis of four is the last of four."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), NormByHand(4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.stem(x).movedim(1, -1)).movedim(-1, 1)))
