"""A task of the adaptation benchmark that takes no time: the network is to move its image by a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.adapt.task import Batch, Split, Task


def images(seed: int) -> torch.Tensor:
    return torch.rand(32, 1, 12, 12, generator=torch.Generator().manual_seed(seed))


def batches(seed: int) -> Iterator[Batch]:
    generator, found = torch.Generator().manual_seed(seed), images(seed)
    while True:
        x = found[torch.randperm(len(found), generator=generator)[:8]]
        yield x, x.roll(1, -1)


def errors(network: nn.Module, split: Split) -> tuple[float, float]:
    x = images(1000 + (split == "test"))
    with torch.no_grad():
        y = network(x)
    return float(F.mse_loss(y, x)), float(F.mse_loss(y, x.roll(1, -1)))


def make(profile: str, folder: Path) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 12), (12, 12), (12, 12)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        network = nn.Sequential(*layers, nn.Conv2d(12, 1, 3, padding=1)).eval()
    return Task(
        "toy", "A toy", "About it.", "MSE", network, batches, F.mse_loss, F.mse_loss, errors, 10, (1e-3, 1e-2)
    )
