"""Train a denoiser on patches: low-count images in, full-count images out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError

from tgd_kit.errors import RunError
from tgd_kit.training import fit as training
from tgd_kit.training.module import NetworkTraining
from tgd_kit.training.schedule import Schedule
from tgd_pet.training.patches import PatchPairs, Scans, fingerprint

VALIDATION_PATCHES = 128

Penalty = Callable[[Tensor, Tensor], Tensor]  # of the noisy and the denoised triplets, (B, 3, H, W)


def fit(
    network: nn.Module,
    patients: Sequence[Scans],
    version: str,
    folder: Path,
    schedule: Schedule,
    *,
    purpose: str = "train",
    held: Sequence[nn.Module] = (),
    validation: Sequence[Scans] = (),
    penalty: Penalty | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train `network` in place to turn low-count images into the full-count ones, by the mean squared error.

    The optimizer is Adam, as in the paper, with one cycle of the learning rate. The same call continues an
    interrupted run, or returns the finished one (`tgd_kit.training.fit`).

    Args:
        network: maps triplets (B, 3, H, W) in SUV to denoised ones; what has `requires_grad` moves.
        patients: what to train on.
        version: reconstruction of the images, "v1" or "v2".
        folder: the run's own folder.
        schedule: how long and how fast.
        purpose: part of what was asked, beyond data, weights and schedule.
        held: modules kept in eval mode, so that their running statistics stay.
        validation: patients whose error is shown after each epoch; it decides nothing.
        penalty: added to the mean squared error; `purpose` has to name it.
        progress: show how far it is.
        callbacks: more of Lightning's.

    Raises:
        RunError: there is nothing to train or to train on, images are smaller than a patch or not finite, too few
            devices, the folder holds another run, training was interrupted (Ctrl-C, SIGTERM), or it diverged.
    """
    if not patients:
        raise RunError("There is no patient to train on.", "Make some with `tgd pet simulate`.")
    for scans in (patients, validation):  # before anything is noted in the folder
        PatchPairs(scans, version, count=0, patch=schedule.patch)
        volumes = (volume for one in scans for volume in (one.full(version), *one.low(version)))
        if not all(np.isfinite(volume).all() for volume in volumes):
            raise RunError("A patient's images hold NaN or infinite voxels.", "Leave that patient out.")
    training.fit(
        Denoising(network, schedule, held, penalty),
        Patches(patients, version, schedule, validation),
        folder,
        schedule,
        {"purpose": purpose, "images": version, "data": fingerprint(patients, version)},
        validate=bool(validation),
        callbacks=callbacks,
        show=progress,
    )


class Denoising(NetworkTraining):
    """The training step: mean squared error over all three slices, in SUV; RMSE of both is shown."""

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        held: Sequence[nn.Module] = (),
        penalty: Penalty | None = None,
    ) -> None:
        super().__init__(network, schedule, held)
        self._penalty = penalty
        self.training_error = MeanSquaredError(squared=False)
        self.validation_error = MeanSquaredError(squared=False)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of one batch of noisy and clean patches."""
        noisy, clean = batch
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        denoised = self.network(noisy)
        self.training_error(denoised.detach().flatten(), clean.flatten())
        self.log("RMSE", self.training_error, on_step=False, on_epoch=True)
        error = nn.functional.mse_loss(denoised, clean)
        return error if self._penalty is None else error + self._penalty(noisy, denoised)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """The error of the centre slices of one batch."""
        noisy, clean = batch
        self.validation_error(self.network(noisy)[:, 1].flatten(), clean[:, 1].flatten())
        self.log("validation RMSE", self.validation_error)


class Patches(L.LightningDataModule):
    """New patches in every epoch, the same in a resumed run; validation patches stay."""

    def __init__(
        self, patients: Sequence[Scans], version: str, schedule: Schedule, validation: Sequence[Scans] = ()
    ) -> None:
        super().__init__()
        self._patients, self._validation = patients, validation
        self._version, self._schedule = version, schedule

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """One epoch's patches."""
        schedule = self._schedule
        count = schedule.steps * schedule.batch * schedule.processes
        epoch = self.trainer.current_epoch if self.trainer else 0
        return self._loader(self._patients, count, (schedule.seed, epoch))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The same patches every time."""
        return self._loader(self._validation, VALIDATION_PATCHES, (self._schedule.seed,))

    def _loader(
        self, patients: Sequence[Scans], count: int, seed: Sequence[int]
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        schedule = self._schedule
        pairs = PatchPairs(patients, self._version, count, seed=seed, patch=schedule.patch)
        return DataLoader(pairs, batch_size=schedule.batch)
