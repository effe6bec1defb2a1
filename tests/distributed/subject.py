"""What the workers train, and one process for comparison: the same network, data and steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

from tests.strategies.case import randomise
from tgdsurgery import apply_tgd

STEPS = 3
BATCH = 4
Step = Callable[[int], None]


class OwnConv(nn.Conv2d):
    """Has no compact twin."""


def base(seed: int = 0) -> nn.Sequential:
    """A pretrained network, in float64: sums in another order agree to many digits."""
    net = nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1),
        nn.GroupNorm(3, 9),
        nn.ReLU(inplace=True),
        OwnConv(9, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )
    return randomise(net, seed).double()


def operated(*, form: str = "compact", seed: int = 0, **settings: Any) -> nn.Module:
    """The network with TGD; the batch norm is frozen whole, as its batch statistics are each process's own."""
    image = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    overrides = {"4": "freeze", **settings.pop("overrides", {})}
    return apply_tgd(base(seed), image, phi=0.8, overrides=overrides, form=form, **settings).train()


def optimizer_of(tgd: nn.Module, net: nn.Module | None = None) -> optim.Optimizer:
    """Made from the parameters as they are now, wrapped or sharded."""
    return optim.SGD((net or tgd).parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)


def batch(step: int) -> Tensor:
    """What all processes together see in a step."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 3, 8, 8, generator=generator, dtype=torch.float64)


def train(net: nn.Module, optimizer: optim.Optimizer, steps: range, rank: int = 0, world: int = 1) -> None:
    """Each process takes its part of every batch."""
    for step in steps:
        optimizer.zero_grad()
        part = batch(step).chunk(world)[rank]
        net(part).square().mean().backward()
        optimizer.step()


def alone(tgd: nn.Module, steps: int = STEPS) -> dict[str, Tensor]:
    """The state after training in one process."""
    train(tgd, optimizer_of(tgd), range(steps))
    return copy.deepcopy(tgd.state_dict())
