"""PET: the TGD paper's denoiser, from one reconstruction to another one, at another dose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.adapt.task import Batch, Split, Task
from benchmarks.adapt.tasks.denoising import FEW, PATCHES, endless, few, middle, rmse, trained
from tgd_pet.denoising import triplets
from tgd_pet.experiment.settings import PROFILES, read_settings
from tgd_pet.network import new_network
from tgd_pet.simulation.files import load_patient, simulate_set
from tgd_pet.simulation.patient import SimulatedPatient
from tgd_pet.training.patches import PatchPairs

OLD, NEW = "v1", "v2"
DOSES = {OLD: 0.15, NEW: 0.05}  # shares of the counts
PATCH, CROP = 32, 64  # pixels of a side: to train on, to measure on
FIRST_SEED = {OLD: 500, NEW: 600}  # of the patients
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
    "quick": Size("quick", WIDTHS, 10, 8, 4, 16, 800, 80, 8),
    "full": Size("quick", WIDTHS, 20, 16, 4, 16, 3000, 300, 8),
}


def make(profile: str, folder: Path) -> Task:
    """The task; patients and network are kept in the folder."""
    size = SIZES[profile]
    patients = {kind: simulated(kind, size, folder) for kind in (OLD, NEW)}
    network = trained(
        new_network(0, size.widths),
        folder / "network.safetensors",
        size.base,
        lambda count: PatchPairs(patients[OLD][: size.old], OLD, count, patch=PATCH),
    )

    @lru_cache
    def data(split: Split, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        start = len(patients[kind]) - (2 if split == "validation" else 1) * size.measured
        return slices(patients[kind][start : start + size.measured], kind, size)

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


def batches(seed: int, pool: Sequence[SimulatedPatient], size: int) -> Iterator[Batch]:
    """Endless batches of patches of the few patients that the seed draws."""
    chosen = [pool[index] for index in few(seed, len(pool))]
    return endless(PatchPairs(chosen, NEW, PATCHES, seed=(2, seed), patch=PATCH), seed, size)


def slices(patients: Sequence[SimulatedPatient], kind: str, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 3, H, W) noisy triplets, (N, H, W) clean slices, and where the body is: the middle of slices of all."""
    found = []
    per_patient = size.slices // len(patients)
    for patient in patients:
        rows, columns = middle(patient.true.shape, CROP)
        chosen = torch.linspace(1, len(patient.true) - 2, per_patient).round().long()
        noisy, clean, body = (
            torch.from_numpy(volume[:, rows, columns])
            for volume in (patient.low(kind)[0], patient.full(kind), patient.body())
        )
        found.append((triplets(noisy, chosen), clean[chosen], body[chosen]))
    noisy, clean, body = (torch.cat(parts) for parts in zip(*found, strict=True))
    return noisy, clean, body
