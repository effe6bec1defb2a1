"""The CT adapter keeps the contract, with denoisers of slices and of volumes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.adapters.contract import Adapter, AdapterContract
from tgd_ct.networks.generator import Generator, Kind, new_generator


def network(seed: int, kind: Kind) -> Generator:
    made = new_generator(seed, kind, (6, 8, 8, 8))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        nn.init.normal_(made.convolutions[-1].weight, std=0.1)  # a new network's are zero
    return made.eval()


def images(seed: int, *shape: int) -> tuple[Tensor]:
    return (200 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)),)


def loss(denoiser: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    (noisy,) = inputs
    axes = tuple(range(2, noisy.ndim))
    return nn.functional.mse_loss(
        denoiser(noisy) / 400, (noisy / 400).mean(axes, keepdim=True).expand_as(noisy)
    )


class TestSlices(AdapterContract):
    adapter = Adapter(
        "tgd_ct",
        "ct",
        lambda seed: network(seed, "2d"),
        lambda seed: images(seed, 1, 16, 16),
        loss,
        output_layers=("convolutions.7",),
    )


class TestVolumes(AdapterContract):
    adapter = Adapter(
        "tgd_ct",
        "ct",
        lambda seed: network(seed, "3d"),
        lambda seed: images(seed, 1, 4, 12, 12),
        loss,
        output_layers=("convolutions.7",),
    )
