"""PET: the TGD paper's denoiser, from one reconstruction to another one, at another dose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, default_collate

from benchmarks.adapt.task import Batch, Split, Task
from tgd_kit.training.weights import read_weights, save_weights
from tgd_pet.denoising import triplets
from tgd_pet.experiment.settings import PROFILES, read_settings
from tgd_pet.network import DnCNN, network_from, new_network
from tgd_pet.simulation.files import load_patient, simulate_set
from tgd_pet.simulation.patient import SimulatedPatient
from tgd_pet.training.patches import PatchPairs

OLD, NEW = "v1", "v2"
DOSES = {OLD: 0.15, NEW: 0.05}  # shares of the counts
FEW = 2  # patients to adapt with, out of the pool
PATCHES = 64  # of theirs
PATCH, CROP = 32, 64  # pixels of a side: to train on, to measure on
FIRST_SEED = {OLD: 500, NEW: 600}  # of the patients
REMEDY = "Delete it, and it is made again."
ABOUT = """\
The DnCNN of the TGD paper with {widths} filters removes noise from simulated PET images. Old data: reconstructed
without time of flight and resolution model (*v1*), from {old:.0%} of the counts. New data: with both (*v2*), sharper
and of another noise, from {new:.0%} of the counts; {patches} patches of {patch} x {patch} pixels of {few} patients to
train on."""


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Args:
        simulated: the profile of `tgd pet study` whose scans are used.
        widths: filters of the convolutions.
        old, pool, measured: patients to train the network on, to draw the few from, and in each split.
        slices: to measure on, of each split and kind.
        base: steps of the network's training.
        steps: of a run.
        batch: patches in a batch of a run.
    """

    simulated: str
    widths: Sequence[int]
    old: int
    pool: int
    measured: int
    slices: int
    base: int
    steps: int
    batch: int


WIDTHS = (16, 16, 32, 32, 32, 64, 64, 3)
SIZES = {
    "tiny": Size("tiny", (4, 6, 6, 3), 2, 3, 1, 2, 4, 4, 4),
    "quick": Size("quick", WIDTHS, 10, 8, 2, 16, 800, 80, 8),
    "full": Size("quick", WIDTHS, 20, 16, 4, 16, 3000, 300, 8),
}


def make(profile: str, folder: Path) -> Task:
    """The task; patients and network are kept in the folder."""
    size = SIZES[profile]
    patients = {kind: simulated(kind, size, folder) for kind in (OLD, NEW)}
    network = trained(patients[OLD][: size.old], size, folder / "network.safetensors")

    @lru_cache
    def data(split: Split, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        others = patients[kind][-2 * size.measured :]
        return slices(
            others[: size.measured] if split == "validation" else others[size.measured :], kind, size
        )

    return Task(
        name="pet",
        title="PET (DnCNN)",
        about=ABOUT.format(
            widths=", ".join(map(str, size.widths)),
            old=DOSES[OLD],
            new=DOSES[NEW],
            patches=PATCHES,
            patch=PATCH,
            few=FEW,
        ),
        error="the RMSE in SUV over the body, against the image of all counts",
        network=network,
        batches=lambda seed: batches(seed, patients[NEW][: size.pool], size.batch),
        loss=F.mse_loss,
        distance=F.mse_loss,
        errors=lambda net, split: (rmse(net, *data(split, OLD)), rmse(net, *data(split, NEW))),
        steps=size.steps,
        rates=(3e-4, 1e-3, 3e-3),
    )


def simulated(kind: str, size: Size, folder: Path) -> list[SimulatedPatient]:
    """Patients to train on, then those of both splits."""
    settings = read_settings(PROFILES / f"{size.simulated}.yaml")
    count = (size.old if kind == OLD else size.pool) + 2 * size.measured
    seeds = range(FIRST_SEED[kind], FIRST_SEED[kind] + count)
    config = replace(settings.simulated(), fractions=(DOSES[kind],))
    return [load_patient(path) for path in simulate_set(folder / kind, seeds, config, progress=False)]


def trained(patients: Sequence[SimulatedPatient], size: Size, path: Path) -> nn.Module:
    """The network, trained on old images unless that was done before."""
    if not path.exists():
        save_weights(train(new_network(0, size.widths), patients, size.base), path)
    return network_from(read_weights(path, REMEDY), str(path))


def train(network: DnCNN, patients: Sequence[SimulatedPatient], steps: int) -> DnCNN:
    """Adam on the mean squared error, one cycle."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters())
    rate = OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for noisy, clean in DataLoader(PatchPairs(patients, OLD, 8 * steps), 8):
        optimizer.zero_grad()
        F.mse_loss(network(noisy), clean).backward()
        optimizer.step()
        rate.step()
    return network


def batches(seed: int, pool: Sequence[SimulatedPatient], size: int) -> Iterator[Batch]:
    """Endless batches of patches of the few patients that the seed draws."""
    few = np.random.default_rng((1, seed)).choice(len(pool), FEW, replace=False)
    pairs = PatchPairs([pool[index] for index in few], NEW, PATCHES, seed=(2, seed), patch=PATCH)
    noisy, clean = default_collate([pairs[index] for index in range(PATCHES)])
    order = np.random.default_rng((3, seed))
    while True:
        for chosen in np.array_split(order.permutation(PATCHES), PATCHES // size):
            yield noisy[chosen], clean[chosen]


def slices(patients: Sequence[SimulatedPatient], kind: str, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 3, H, W) noisy triplets, (N, H, W) clean slices, and where the body is: the middle of slices of all."""
    found = []
    per_patient = size.slices // len(patients)
    for patient in patients:
        margins = [max(0, side - CROP) // 2 for side in patient.true.shape[1:]]
        rows, columns = (slice(margin, margin + CROP) for margin in margins)
        chosen = torch.linspace(1, len(patient.true) - 2, per_patient).round().long()
        noisy, clean, body = (
            torch.from_numpy(volume[:, rows, columns])
            for volume in (patient.low(kind)[0], patient.full(kind), patient.body())
        )
        found.append((triplets(noisy, chosen), clean[chosen], body[chosen]))
    noisy, clean, body = (torch.cat(parts) for parts in zip(*found, strict=True))
    return noisy, clean, body


def rmse(network: nn.Module, noisy: Tensor, clean: Tensor, body: Tensor) -> float:
    """The error of the centre slices."""
    with torch.no_grad():
        denoised = network(noisy)[:, 1]
    return float((denoised - clean)[body].square().mean().sqrt())
