"""CT: the denoiser of TOD-Net, from slim patients to large ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.adapt.task import Batch, Split, Task
from benchmarks.adapt.tasks.denoising import FEW, PATCHES, endless, few, middle, rmse, trained
from tgd_ct.case import NORMAL, Case
from tgd_ct.networks.generator import new_generator
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.files import load_patient, simulate_set
from tgd_ct.training.losses import mse_loss
from tgd_ct.training.samples import Samples
from tgd_kit.simulation.torso import BodySize

OLD: BodySize = "low"
NEW: BodySize = "high"
DOSE = 0.05  # as a share of the normal one
PATCH, CROP = 32, 64  # pixels of a side: to train on, to measure on
FIRST_SEED = {OLD: 500, NEW: 600}  # of the patients
ABOUT = """\
The denoiser of TOD-Net with {widths} filters, and as many on the way back, trained on the mean squared error alone.
Old data: simulated CT of slim patients at {dose:.0%} of the normal dose. New data: large patients at the same dose, who
let fewer photons through, so that there is more noise and of another texture; {patches} patches of {patch} x {patch}
pixels of {few} patients to train on."""


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Args:
        config: how patients are simulated.
        widths: filters of the widening convolutions.
        old, pool, measured: patients to train the network on, to draw the few from, and in each split.
        slices: to measure on, of each split and kind.
        base: steps of the network's training.
        steps: of a run.
        batch: patches in a batch of a run.
    """

    config: PatientConfig
    widths: Sequence[int]
    old: int
    pool: int
    measured: int
    slices: int
    base: int
    steps: int
    batch: int


SIZES = {
    "tiny": Size(PatientConfig.tiny(), (3, 4, 4, 6), 2, 3, 1, 2, 4, 4, 4),
    "quick": Size(PatientConfig.quick(), (8, 16, 32, 64), 10, 8, 4, 12, 800, 80, 8),
    "full": Size(PatientConfig.quick(), (16, 32, 64, 128), 20, 16, 4, 16, 3000, 300, 8),
}


def make(profile: str, folder: Path) -> Task:
    """The task; patients and network are kept in the folder."""
    size = SIZES[profile]
    cases = {kind: simulated(kind, size, folder) for kind in (OLD, NEW)}
    network = trained(
        new_generator(0, "2d", size.widths),
        folder / "network.safetensors",
        size.base,
        lambda count: samples(cases[OLD][: size.old], count),
    )

    @lru_cache
    def data(split: Split, kind: BodySize) -> tuple[Tensor, Tensor, Tensor]:
        start = len(cases[kind]) - (2 if split == "validation" else 1) * size.measured
        return slices(cases[kind][start : start + size.measured], size)

    return Task(
        name="ct",
        title="CT (TOD-Net's denoiser)",
        about=ABOUT.format(
            widths=", ".join(map(str, size.widths)),
            dose=DOSE,
            patches=PATCHES,
            patch=PATCH,
            few=FEW,
        ),
        error="the RMSE in HU over the body, against the image of normal dose",
        network=network,
        batches=lambda seed: batches(seed, cases[NEW][: size.pool], size.batch),
        loss=mse_loss,
        distance=mse_loss,
        errors=lambda net, split: (rmse(net, *data(split, OLD)), rmse(net, *data(split, NEW))),
        steps=size.steps,
        rates=(3e-4, 1e-3, 3e-3),
    )


def simulated(kind: BodySize, size: Size, folder: Path) -> list[Case]:
    """Patients to train on, then those of both splits."""
    count = (size.old if kind == OLD else size.pool) + 2 * size.measured
    seeds = range(FIRST_SEED[kind], FIRST_SEED[kind] + count)
    config = replace(size.config, body_size=kind)
    paths = simulate_set(folder / kind, seeds, config, progress=False)
    return [load_patient(path).case() for path in paths]


def samples(cases: Sequence[Case], count: int, seed: Sequence[int] = (0,)) -> Samples:
    """Patches of these patients."""
    return Samples(cases, "2d", DOSE, "liver", count, seed=seed, patch=PATCH)


def batches(seed: int, pool: Sequence[Case], size: int) -> Iterator[Batch]:
    """Endless batches of patches of the few patients that the seed draws."""
    chosen = [pool[index] for index in few(seed, len(pool))]
    return endless(samples(chosen, PATCHES, (2, seed)), seed, size)


def slices(cases: Sequence[Case], size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 1, H, W) noisy slices, (N, H, W) clean ones, and where the body is: the middle of slices of all."""
    found = []
    for case in cases:
        chosen = np.linspace(1, len(case.body) - 2, size.slices // len(cases)).round().astype(int)
        where = (chosen, *middle(case.body.shape, CROP))
        found.append([torch.from_numpy(v[where]) for v in (case.image(DOSE), case.image(NORMAL), case.body)])
    noisy, clean, body = (torch.cat(parts) for parts in zip(*found, strict=True))
    return noisy[:, None], clean, body
