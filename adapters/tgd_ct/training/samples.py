"""Training samples drawn from cases, the same for the same seed on any number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tgd_ct.case import NORMAL, TUMOUR, Case, Task
from tgd_ct.networks.generator import Kind
from tgd_kit.errors import RunError
from tgd_kit.training.schedule import Schedule

DEPTH = 8  # slices of a sample in 3-D
SHIFT_MM = 5.0  # as in the published code
TUMOUR_SHARE = 0.5  # of the samples, where a case has tumours

Sample = tuple[Tensor, Tensor, Tensor]


class Samples(Dataset[Sample]):
    """Triples of a low-dose image, the one of normal dose, and the labels of a task.

    Half of the samples are centred on a voxel of a tumour, the others on one of the body, shifted by up to 5 mm and
    then moved into the image. Shifts are whole pixels: anything else would smooth the noise. Item `i` depends on `seed`
    and `i` alone.

    Args:
        cases: patients to draw from.
        kind: shape of the images: (1, H, W), (3, H, W), or (1, D, H, W) with `DEPTH` slices.
        dose: of the first image, as a share of the normal one.
        task: what the labels are of.
        count: number of samples.
        seed: any non-negative integers; other numbers give other samples.
        patch: H and W in pixels; an image that is smaller is continued by its edge.

    Returns:
        Low dose in HU, as `kind` says; normal dose in HU and labels (int64), both with one channel.

    Raises:
        RunError: there is no case, or one without a body.
        ImageError: a case lacks the dose or the task.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        kind: Kind,
        dose: float,
        task: Task,
        count: int,
        *,
        seed: Sequence[int] = (0,),
        patch: int,
    ) -> None:
        if not cases:
            raise RunError("There is no case to train on.", "Make some with `tgd ct simulate`.")
        self._cases = [_Volumes(case, dose, task) for case in cases]
        self._kind, self._count, self._seed, self._patch = kind, count, tuple(seed), patch

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(index)
        random = np.random.default_rng((*self._seed, index))
        volumes = self._cases[random.integers(len(self._cases))]
        z, y, x = volumes.window(random, self._patch)
        depth = len(volumes.low)
        if self._kind == "3d":
            start = min(max(z - DEPTH // 2, 0), max(depth - DEPTH, 0))
            block = np.ix_(np.clip(np.arange(start, start + DEPTH), 0, depth - 1), y, x)
            cut = [volume[block][None] for volume in volumes.all]
        else:
            neighbours = np.arange(-1, 2) if self._kind == "2.5d" else np.arange(1)
            low = volumes.low[np.ix_(np.clip(z + neighbours, 0, depth - 1), y, x)]
            cut = [low, *(volume[np.ix_(np.array([z]), y, x)] for volume in volumes.all[1:])]
        noisy, clean, labels = (torch.from_numpy(np.ascontiguousarray(array)) for array in cut)
        return noisy, clean, labels.long()


class _Volumes:
    """The volumes of one case, and the voxels that samples are centred on."""

    def __init__(self, case: Case, dose: float, task: Task) -> None:
        self.low, self.normal, self.target = case.image(dose), case.image(NORMAL), case.target(task)
        if not all(np.isfinite(volume).all() for volume in (self.low, self.normal)):
            raise RunError(f"{case.name} holds NaN or infinite voxels.", "Leave that case out.")
        self._body, self._tumour = np.argwhere(case.body), np.argwhere(self.target == TUMOUR)
        self._shift = round(SHIFT_MM / case.spacing_mm[-1])
        if not len(self._body):
            raise RunError(f"{case.name} has no voxel in the body.", "Leave that case out.")

    @property
    def all(self) -> tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.generic]]:
        """Low dose, normal dose, labels."""
        return self.low, self.normal, self.target

    def window(
        self, random: np.random.Generator, patch: int
    ) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        """Slice, rows and columns of a sample."""
        at_tumour = len(self._tumour) and random.random() < TUMOUR_SHARE
        places = self._tumour if at_tumour else self._body
        z, *centre = places[random.integers(len(places))].tolist()
        axes = [
            self._axis(c, size, patch, int(random.integers(-self._shift, self._shift + 1)))
            for c, size in zip(centre, self.low.shape[1:], strict=True)
        ]
        return z, axes[0], axes[1]

    def _axis(self, centre: int, size: int, patch: int, shift: int) -> NDArray[np.int64]:
        """Indices along one axis: around the centre, in the image up to the shift."""
        inside = min(max(centre - patch // 2, 0), size - patch) if patch < size else (size - patch) // 2
        return np.clip(np.arange(inside + shift, inside + shift + patch), 0, size - 1)


class SampleSource(L.LightningDataModule):
    """New samples in every epoch, the same in a resumed run."""

    def __init__(
        self, cases: Sequence[Case], kind: Kind, dose: float, task: Task, schedule: Schedule
    ) -> None:
        super().__init__()
        self._cases, self._kind, self._dose, self._task, self._schedule = cases, kind, dose, task, schedule
        Samples(cases, kind, dose, task, 0, patch=schedule.patch)  # refused now, before a folder is made

    def train_dataloader(self) -> DataLoader[Sample]:
        """One epoch's samples."""
        schedule = self._schedule
        count = schedule.steps * schedule.batch * schedule.processes
        epoch = self.trainer.current_epoch if self.trainer else 0
        seed = (schedule.seed, epoch)
        samples = Samples(
            self._cases, self._kind, self._dose, self._task, count, seed=seed, patch=schedule.patch
        )
        return DataLoader(samples, batch_size=schedule.batch)


def fingerprint(cases: Sequence[Case], dose: float, task: Task) -> str:
    """A digest of all voxels that training would see; equal data give equal digests."""
    digest = hashlib.sha256()
    for case in cases:
        for volume in (case.image(dose), case.image(NORMAL), case.target(task), case.body):
            digest.update(np.ascontiguousarray(volume).data)
    return digest.hexdigest()[:16]
