"""Denoiser and segmenter trained together, by mean squared error and the task loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from tgd_ct.case import Case, Task
from tgd_ct.networks.generator import Generator
from tgd_ct.networks.segmenters import Segmenter
from tgd_ct.training.losses import mse_loss, task_loss
from tgd_ct.training.samples import Sample, SampleSource, fingerprint
from tgd_kit.training import fit as training
from tgd_kit.training.module import NetworkTraining
from tgd_kit.training.schedule import Schedule


class Joint(nn.Module):
    """Both networks as one, so that one file holds them."""

    def __init__(self, denoiser: Generator, segmenter: Segmenter) -> None:
        super().__init__()
        self.denoiser, self.segmenter = denoiser, segmenter


def train_jointly(
    denoiser: Generator,
    segmenter: Segmenter,
    cases: Sequence[Case],
    dose: float,
    task: Task,
    folder: Path,
    schedule: Schedule,
    *,
    task_weight: float,
    progress: bool = True,
) -> None:
    """Train both networks in place; all weights move. The optimizer is Adam with one cycle of the rate.

    Args:
        denoiser: in front.
        segmenter: of the denoised image.
        cases: what to train on.
        dose: of the images, as a share of the normal one.
        task: what to segment.
        folder: the run's own folder.
        schedule: how long and how fast.
        task_weight: how much 1 - Dice counts beside the mean squared error in units of (400 HU)^2.
        progress: show how far it is.

    Raises:
        RunError: there is nothing to train on, the folder holds another run, training was interrupted, or it diverged.
        ImageError: a case lacks the dose or the task.
    """
    source = SampleSource(cases, denoiser.kind, dose, task, schedule)
    asked = {
        "purpose": "joint",
        "dose": dose,
        "task": task,
        "task weight": task_weight,
        "data": fingerprint(cases, dose, task),
    }
    module = Together(Joint(denoiser, segmenter), schedule, task_weight)
    training.fit(module, source, folder, schedule, asked, show=progress)


class Together(NetworkTraining):
    """The training step: mean squared error, and the task loss with a segmenter that moves."""

    def __init__(self, network: Joint, schedule: Schedule, task_weight: float) -> None:
        super().__init__(network, schedule)
        self._task_weight = task_weight

    def training_step(self, batch: Sample, index: int) -> Tensor:
        """The loss of one batch."""
        noisy, clean, labels = batch
        both = cast(Joint, self.network)
        denoised = both.denoiser(noisy)
        missed = task_loss(both.segmenter, denoised, labels)
        self.log("task loss", missed.detach(), on_step=False, on_epoch=True)
        return mse_loss(denoised, clean) + self._task_weight * missed
