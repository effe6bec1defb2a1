"""Train the autoencoder whose features stand in for VGG's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor

from tgd_ct.case import NORMAL, Case, Task
from tgd_ct.networks.extractors import Autoencoder
from tgd_ct.networks.segmenters import HU_WINDOW
from tgd_ct.training.losses import mse_loss
from tgd_ct.training.samples import Sample, SampleSource, fingerprint
from tgd_kit.training import fit as training
from tgd_kit.training.module import NetworkTraining
from tgd_kit.training.schedule import Schedule


def train_extractor(
    network: Autoencoder,
    cases: Sequence[Case],
    task: Task,
    folder: Path,
    schedule: Schedule,
    *,
    progress: bool = True,
) -> None:
    """Train an autoencoder in place to return slices of normal dose, by mean squared error and Adam.

    Args:
        network: the autoencoder.
        cases: what to train on.
        task: by whose tumours samples are drawn.
        folder: the run's own folder.
        schedule: how long and how fast.
        progress: show how far it is.

    Raises:
        RunError: there is nothing to train on, the folder holds another run, training was interrupted, or it diverged.
        ImageError: a case lacks the task.
    """
    source = SampleSource(cases, "2d", NORMAL, task, schedule)
    asked = {"purpose": "autoencoder", "task": task, "data": fingerprint(cases, NORMAL, task)}
    training.fit(Returning(network, schedule), source, folder, schedule, asked, show=progress)


class Returning(NetworkTraining):
    """The training step: mean squared error of the slice that comes back."""

    def training_step(self, batch: Sample, index: int) -> Tensor:
        """The loss of one batch."""
        slices, _, _ = batch
        network = cast(Autoencoder, self.network)
        return mse_loss(network.decode(network(slices)), slices.clamp(*HU_WINDOW))
