"""Train a denoiser: by mean squared error, against a critic, for a segmenter, or for all of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from tgd_ct.case import Case, Task
from tgd_ct.networks.critic import new_critic
from tgd_ct.networks.generator import HU_SCALE, kind_of
from tgd_ct.training.losses import Weights, clip, critic_loss, mse_loss, perceptual_loss, task_loss
from tgd_ct.training.samples import Sample, SampleSource, fingerprint
from tgd_kit.errors import RunError
from tgd_kit.training import fit as training
from tgd_kit.training.module import NetworkTraining
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.weights import digest


@dataclass(frozen=True)
class Judges:
    """Fixed networks that losses need; none of their weights moves.

    Args:
        segmenter: of the task loss: slices in HU to logits.
        extractor: of the perceptual loss: slices in HU to features.
    """

    segmenter: nn.Module | None = None
    extractor: nn.Module | None = None

    def __post_init__(self) -> None:
        for network in self.all:
            network.eval().requires_grad_(False)

    @property
    def all(self) -> list[nn.Module]:
        """Those that there are."""
        return [network for network in (self.segmenter, self.extractor) if network is not None]

    def digests(self) -> list[str]:
        """Of their weights."""
        return [digest(network) for network in self.all]


def loss_parts(
    weights: Weights, judges: Judges, denoised: Tensor, clean: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """The parts of a denoiser's loss but the critic's, by the names of their weights; those of weight 0 are left out.

    Args:
        weights: of the loss.
        judges: the networks that its parts need.
        denoised: (B, 1, H, W) or (B, 1, D, H, W) in HU.
        clean: of the same shape.
        labels: of the same shape.
    """
    found = {"mse": mse_loss(denoised, clean)}
    if weights.task and judges.segmenter is not None:
        found["task"] = task_loss(judges.segmenter, denoised, labels)
    if weights.perceptual and judges.extractor is not None:
        found["perceptual"] = perceptual_loss(judges.extractor, denoised, clean)
    return found


def weighted(weights: Weights, parts: Mapping[str, Tensor]) -> Tensor:
    """The sum of the parts, each times its weight."""
    total: Tensor = reduce(torch.add, (getattr(weights, name) * part for name, part in parts.items()))
    return total


def train_denoiser(
    network: nn.Module,
    cases: Sequence[Case],
    dose: float,
    task: Task,
    folder: Path,
    schedule: Schedule,
    *,
    weights: Weights,
    judges: Judges | None = None,
    purpose: str = "train",
    held: Sequence[nn.Module] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> None:
    """Train `network` in place to turn low-dose images into those of normal dose.

    Without a critic the optimizer is Adam with one cycle of the rate. Against a critic both have RMSprop and take turns
    after every batch, and the rate falls to a tenth after half of the steps and to a hundredth after four fifths, as
    published. The same call continues an interrupted run, or returns the finished one.

    Args:
        network: a denoiser, plain or rewritten by `apply_tgd`; what has `requires_grad` moves.
        cases: what to train on.
        dose: of the images to denoise, as a share of the normal one.
        task: whose labels and tumours samples are drawn by.
        folder: the run's own folder.
        schedule: how long and how fast.
        weights: of the losses.
        judges: the fixed networks that the losses need.
        purpose: part of what was asked, beyond data, weights and schedule.
        held: modules kept in eval mode.
        callbacks: more of Lightning's.
        progress: show how far it is.

    Raises:
        RunError: a loss lacks its network, there is nothing to train or to train on, there are several devices for a
            training against a critic, the folder holds another run, training was interrupted (Ctrl-C, SIGTERM), or it
            diverged.
        ImageError: a case lacks the dose or the task.
    """
    judges = judges or Judges()
    if weights.task and judges.segmenter is None:
        raise RunError("The task loss needs a segmenter.", "Train one with `tgd ct pretrain`.")
    if weights.perceptual and judges.extractor is None:
        raise RunError("The perceptual loss needs an extractor of features.", "Train or pass one.")
    if weights.gan and schedule.processes > 1:
        raise RunError("Against a critic a network trains on one device.", "Leave out --devices and --nodes.")
    source = SampleSource(cases, kind_of(network), dose, task, schedule)
    module = (Adversarial if weights.gan else Denoising)(network, schedule, weights, judges, held)
    asked = {
        "purpose": purpose,
        "dose": dose,
        "task": task,
        "weights": asdict(weights),
        "judges": judges.digests(),
        "data": fingerprint(cases, dose, task),
    }
    training.fit(module, source, folder, schedule, asked, callbacks=callbacks, show=progress)


class Denoising(NetworkTraining):
    """The training step without a critic; the RMSE in HU and, where it counts, the task loss are shown."""

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        weights: Weights,
        judges: Judges,
        held: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__(network, schedule, held)
        self.weights, self.judges = weights, judges

    def on_fit_start(self) -> None:
        """The judges are no part of the module, so that checkpoints do not hold them."""
        super().on_fit_start()
        for judge in self.judges.all:
            judge.to(self.device)

    def training_step(self, batch: Sample, index: int) -> Any:
        """The loss of one batch."""
        noisy, clean, labels = batch
        return self.error(self.network(noisy), clean, labels)

    def error(self, denoised: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """All parts of the loss but the critic's."""
        parts = loss_parts(self.weights, self.judges, denoised, clean, labels)
        self.log("RMSE", HU_SCALE * parts["mse"].detach().sqrt(), on_step=False, on_epoch=True)
        if "task" in parts:
            self.log("task loss", parts["task"].detach(), on_step=False, on_epoch=True)
        return weighted(self.weights, parts)


class Adversarial(Denoising):
    """The training step with a critic, which has a step of its own before that of the network."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        axes = 3 if kind_of(self.network) == "3d" else 2
        self.critic = new_critic(self._schedule.seed, axes, self.weights.lipschitz)

    def configure_optimizers(self) -> Any:
        """RMSprop for both."""
        moving = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizers = [
            torch.optim.RMSprop(parameters, lr=self._schedule.rate)
            for parameters in (moving, list(self.critic.parameters()))
        ]
        return optimizers, [LambdaLR(optimizer, self._falling) for optimizer in optimizers]

    def _falling(self, step: int) -> float:
        done = step / (self._schedule.epochs * self._schedule.steps)
        return 1.0 if done < 0.5 else 0.1 if done < 0.8 else 0.01

    def training_step(self, batch: Sample, index: int) -> Any:
        """One step of the critic, and one of the network."""
        noisy, clean, labels = batch
        of_network, of_critic = cast(list[Any], self.optimizers())
        denoised = self.network(noisy)

        judged = critic_loss(self.critic, clean, denoised, self.weights.lipschitz)
        self._step(of_critic, judged)
        if self.weights.lipschitz == "clip":
            clip(self.critic)

        self.critic.requires_grad_(False)
        loss = self.error(denoised, clean, labels) + self.weights.gan * self.critic(denoised).mean()
        self._step(of_network, loss)
        self.critic.requires_grad_(True)
        for falling in cast(list[LambdaLR], self.lr_schedulers()):
            falling.step()
        return {"loss": loss.detach() + judged.detach()}

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
