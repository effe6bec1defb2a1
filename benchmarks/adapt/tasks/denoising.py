"""What the tasks of denoising share: a network trained once and kept, a few patches, and the error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks.adapt.task import Batch
from tgd_kit.training.weights import read_weights, save_weights

FEW, PATCHES = 2, 64  # patients to adapt with, and patches of theirs
RATE, BATCH = 3e-3, 8  # of the training of the network that is adapted
REMEDY = "Delete it, and it is made again."


def trained(
    network: nn.Module, path: Path, steps: int, pairs: Callable[[int], Dataset[tuple[Tensor, ...]]]
) -> nn.Module:
    """The network, trained on old data unless that was done before.

    Args:
        network: untrained.
        path: file of its weights.
        steps: of Adam on the mean squared error, at one cycle of the rate.
        pairs: so many patches: noisy, clean, and what else there is.
    """
    if not path.exists():
        network.train()
        optimizer = torch.optim.Adam(network.parameters())
        rate = OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
        for noisy, clean, *_ in DataLoader(pairs(steps * BATCH), BATCH):
            optimizer.zero_grad()
            F.mse_loss(network(noisy), clean).backward()
            optimizer.step()
            rate.step()
        save_weights(network, path)
    network.load_state_dict(read_weights(path, REMEDY))
    return network.eval()


def few(seed: int, pool: int) -> list[int]:
    """The patients to adapt with, out of so many."""
    return [int(index) for index in np.random.default_rng((1, seed)).choice(pool, FEW, replace=False)]


def endless(pairs: Dataset[tuple[Tensor, ...]], seed: int, size: int) -> Iterator[Batch]:
    """Endless batches of the patches, in an order of the seed's."""
    noisy, clean, *_ = default_collate([pairs[index] for index in range(PATCHES)])
    order = np.random.default_rng((3, seed))
    while True:
        for chosen in np.array_split(order.permutation(PATCHES), PATCHES // size):
            yield noisy[chosen], clean[chosen]


def middle(shape: tuple[int, ...], crop: int) -> tuple[slice, slice]:
    """Rows and columns of the middle of slices of such a volume."""
    starts = [max(0, side - crop) // 2 for side in shape[1:]]
    return slice(starts[0], starts[0] + crop), slice(starts[1], starts[1] + crop)


def rmse(network: nn.Module, noisy: Tensor, clean: Tensor, body: Tensor) -> float:
    """The error over the body.

    Args:
        network: in eval mode.
        noisy: (N, C, H, W); the middle one of the channels that come out is measured.
        clean, body: (N, H, W).
    """
    with torch.no_grad():
        denoised = network(noisy)
    centre = denoised[:, denoised.shape[1] // 2]
    return float((centre - clean)[body].square().mean().sqrt())
