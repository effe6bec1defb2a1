"""Training patches drawn from simulated patients, the same for the same seed on any number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tgd_kit.arrays import FloatArray, Mask
from tgd_kit.errors import RunError
from tgd_kit.training.schedule import PATCH
from tgd_pet.denoising import triplets


class Scans(Protocol):
    """What training needs of a patient: one target and its noisy versions, as (z, y, x) volumes in SUV."""

    def full(self, version: str) -> FloatArray:
        """The full-count image."""

    def low(self, version: str) -> Sequence[FloatArray]:
        """The low-count images, one per level."""

    def body(self) -> Mask:
        """Where the patient is."""


class PatchPairs(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of a low-count and the full-count patch: three slices of `patch` x `patch` pixels, in SUV.

    A patch is centred on a random voxel of the body, in a random patient at a random count level, and
    flipped at random along every axis: noise does not depend on the orientation of a torso. Item `i` depends on
    `seed` and `i` alone.

    Args:
        patients: the patients to draw from.
        version: reconstruction of inputs and targets, "v1" or "v2".
        count: number of patches.
        seed: any non-negative integers; other numbers give other patches.
        patch: edge length in pixels.

    Raises:
        RunError: an image is smaller than a patch, or has no body.
    """

    def __init__(
        self,
        patients: Sequence[Scans],
        version: str,
        count: int,
        *,
        seed: Sequence[int] = (0,),
        patch: int = PATCH,
    ) -> None:
        self._count, self._seed, self._patch = count, tuple(seed), patch
        self._patients = [_Pair(patient, version) for patient in patients]
        for pair in self._patients:
            pair.check(patch)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        random = np.random.default_rng((*self._seed, index))
        patient = self._patients[random.integers(len(self._patients))]
        low = patient.low[random.integers(len(patient.low))]
        z, *corner = patient.corner(int(random.integers(len(patient.centres))), self._patch)
        rows, columns = (slice(start, start + self._patch) for start in corner)
        flipped = [axis for axis in range(3) if random.integers(2)]
        patches = (triplets(volume[:, rows, columns], torch.tensor([z]))[0] for volume in (low, patient.full))
        noisy, clean = (patch.flip(flipped) for patch in patches)
        return noisy, clean


class _Pair:
    """The volumes of one patient as tensors, and the voxels that patches are centred on."""

    def __init__(self, patient: Scans, version: str) -> None:
        self.full = torch.from_numpy(patient.full(version))
        self.low = [torch.from_numpy(volume) for volume in patient.low(version)]
        self.centres = np.argwhere(patient.body())

    def check(self, patch: int) -> None:
        """Refuse a patient without a place for a patch."""
        height, width = self.full.shape[1:]
        if min(height, width) < patch:
            raise RunError(
                f"Slices of {width} x {height} pixels hold no patch of {patch} x {patch}.",
                "Pass larger images, or a Schedule of smaller patches.",
            )
        if not len(self.centres):
            raise RunError("A patient has no voxel in the body.", "Leave that patient out.")

    def corner(self, index: int, patch: int) -> list[int]:
        """Slice of the voxel, and first row and column of the patch around it, moved into the image."""
        z, *centre = self.centres[index].tolist()
        ends = (size - patch for size in self.full.shape[1:])
        return [z, *(min(max(c - patch // 2, 0), end) for c, end in zip(centre, ends, strict=True))]


def fingerprint(patients: Sequence[Scans], version: str) -> str:
    """A digest of all voxels that training would see; equal data give equal digests."""
    digest = hashlib.sha256(version.encode())
    for patient in patients:
        for volume in (patient.full(version), *patient.low(version), patient.body()):
            digest.update(np.ascontiguousarray(volume).data)
    return digest.hexdigest()[:16]
