"""Train a segmenter, on normal dose or on another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tgd_ct.case import NORMAL, Case, Task
from tgd_ct.networks.segmenters import Segmenter
from tgd_ct.training.losses import segmentation_loss
from tgd_ct.training.samples import Sample, SampleSource, fingerprint
from tgd_kit.training import fit as training
from tgd_kit.training.module import NetworkTraining
from tgd_kit.training.schedule import Schedule


def train_segmenter(
    network: Segmenter,
    cases: Sequence[Case],
    task: Task,
    folder: Path,
    schedule: Schedule,
    *,
    dose: float = NORMAL,
    progress: bool = True,
) -> None:
    """Train `network` in place to segment the organ of a task and its tumours, by Dice loss.

    No noise is added to the images: the network knows what the dose shows. The optimizer is Adam with one cycle of the
    rate; the published one (SGD with a momentum of .99 over 100 epochs) needs far more steps.

    Args:
        network: a segmenter.
        cases: what to train on.
        task: what to segment.
        folder: the run's own folder.
        schedule: how long and how fast.
        dose: of the images, as a share of the normal one.
        progress: show how far it is.

    Raises:
        RunError: there is nothing to train on, the folder holds another run, training was interrupted (Ctrl-C,
            SIGTERM), or it diverged.
        ImageError: a case lacks the dose or the task.
    """
    source = SampleSource(cases, "2d", dose, task, schedule)
    asked = {"purpose": "segment", "dose": dose, "task": task, "data": fingerprint(cases, dose, task)}
    training.fit(Segmenting(network, schedule), source, folder, schedule, asked, show=progress)


class Segmenting(NetworkTraining):
    """The training step: Dice loss, which is shown."""

    def training_step(self, batch: Sample, index: int) -> Tensor:
        """The loss of one batch."""
        slices, _, labels = batch
        loss = segmentation_loss(self.network(slices), labels)
        self.log("Dice loss", loss.detach(), on_step=False, on_epoch=True)
        return loss
