"""The PET adapter keeps the contract."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.adapters.contract import Adapter, AdapterContract
from tgd_pet.network import DnCNN, new_network


def network(seed: int) -> DnCNN:
    made = new_network(seed, (6, 8, 8, 8, 3))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        nn.init.normal_(made.convolutions[-1].weight, std=0.1)  # a new network's are zero
    return made.eval()


def triplets(seed: int) -> tuple[Tensor]:
    return (5 * torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)),)


def loss(denoiser: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    (noisy,) = inputs
    return nn.functional.mse_loss(denoiser(noisy), noisy.mean((2, 3), keepdim=True).expand_as(noisy))


class TestPET(AdapterContract):
    adapter = Adapter("tgd_pet", "pet", network, triplets, loss, output_layers=("noise.conv5",))
