"""Train with Lightning: progress, checkpoints, resuming, devices.

A run is a folder. Its `run.json` says what was asked; `network.safetensors` appears when it is done. Asking
for the same again continues an interrupted run where its last epoch ended, or returns the finished one.
"""

from __future__ import annotations

import logging
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from tgd_kit.errors import RunError, printable, reason
from tgd_kit.progress import Task, progress
from tgd_kit.runs.reserve import reserve
from tgd_kit.training.module import NetworkTraining
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.weights import check_finite, digest, finite, read_weights, save_weights

NETWORK = "network.safetensors"


def fit(
    module: NetworkTraining,
    data: L.LightningDataModule,
    folder: Path,
    schedule: Schedule,
    asked: Mapping[str, object],
    *,
    validate: bool = False,
    callbacks: Sequence[Callback] = (),
    show: bool = True,
) -> None:
    """Train `module.network` in place, and leave it in eval mode on the CPU and as a file in the folder.

    Args:
        module: the network and its training step.
        data: the batches of each epoch.
        folder: the run's own folder.
        schedule: how long and how fast.
        asked: what results depend on, beyond schedule and first weights.
        validate: whether `data` has batches to validate with after each epoch.
        callbacks: more of Lightning's.
        show: show progress.

    Raises:
        RunError: nothing is trainable, there are too few devices, the folder holds another run, training was
            interrupted (Ctrl-C, SIGTERM), or it diverged.
    """
    schedule.check()
    network = module.network
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise RunError("Nothing in the network is trainable.", "With TGD, take a larger phi.")
    if 0 < (there := torch.accelerator.device_count()) < schedule.devices:
        raise RunError(f"This machine has {there} of {schedule.devices} devices.", "Ask for fewer of them.")
    check_finite(network, "The network to train")
    reserve(folder / "run.json", {**asked, **schedule.record(), "first weights": digest(network)})
    done, checkpoints = folder / NETWORK, folder / "checkpoints"
    if done.exists():
        _finished(network, done)
        return
    resumed = _checkpoint(checkpoints / "last.ckpt")
    keep = ModelCheckpoint(checkpoints, filename="last", enable_version_counter=False)
    with _quiet(), torch.random.fork_rng(devices=[]):
        count = _Count(schedule)
        trainer = _trainer(folder, schedule, validate, [keep, *callbacks, count])
        steps = schedule.epochs * schedule.steps
        with progress("training steps", steps, show=show and trainer.is_global_zero) as count.task:
            _run(trainer, module, data, resumed)
    if not finite(network):
        raise _diverged("weights")
    network.cpu().eval()
    if trainer.is_global_zero:
        save_weights(network, done)
        shutil.rmtree(checkpoints)


def _finished(network: nn.Module, done: Path) -> None:
    """Put the weights of a finished run into the network."""
    remedy = "Delete it, and the same call trains again."
    try:
        network.load_state_dict(read_weights(done, remedy))
    except RuntimeError as error:
        raise RunError(f"{printable(done)} holds another network.", remedy) from error
    check_finite(network, printable(done))


def _trainer(folder: Path, schedule: Schedule, validate: bool, callbacks: list[Callback]) -> L.Trainer:
    return L.Trainer(
        max_epochs=schedule.epochs,
        devices=schedule.devices,
        num_nodes=schedule.nodes,
        # Frozen rows are buffers: sent before every step, they would cost what freezing saves.
        strategy=DDPStrategy(broadcast_buffers=False) if schedule.processes > 1 else "auto",
        logger=False,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        limit_val_batches=None if validate else 0,
    )


def _run(
    trainer: L.Trainer, module: NetworkTraining, data: L.LightningDataModule, resumed: Path | None
) -> None:
    first = _First()
    trainer.callbacks.append(first)  # type: ignore[attr-defined]
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    except Exception as error:
        if resumed is None or first.done or isinstance(error, RunError):
            raise
        raise RunError(
            f"The run cannot continue from {printable(resumed)} ({reason(error)}).",
            "Delete it to start anew.",
        ) from error
    except SystemExit as stopped:  # what Lightning makes of Ctrl-C and, with exit code 0, of SIGTERM
        raise RunError(
            "Training was interrupted.", "The same command continues where its last epoch ended."
        ) from stopped


def _diverged(what: str) -> RunError:
    return RunError(
        f"Training diverged: {what} are not finite.", "Use a lower learning rate and another folder."
    )


class _First(Callback):
    """Whether a step was done: until then, what goes wrong in a resumed run is its checkpoint."""

    done = False

    def on_train_batch_end(self, *_: Any) -> None:
        self.done = True


class _Count(Callback):
    """Counts the steps of a training, with the errors of the last epoch beside them; ends one that diverges."""

    task: Task

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not the trainer's steps, of which a batch has two where two networks train in turns.
        self.task.advance(trainer.current_epoch * self._schedule.steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        if not outputs["loss"].isfinite().all():
            raise _diverged("losses")
        self.task.advance()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # In every process, although one of them shows it: gathering a metric takes all of them.
        errors = trainer.callback_metrics.items()
        self.task.note = ", ".join(f"{name} {float(value):.4f}" for name, value in errors)


def _checkpoint(path: Path) -> Path | None:
    """The checkpoint to continue from, if there is one and it can be read without running code from it."""
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            stored = sum(member.file_size for member in archive.infolist())
            if archive.testzip() or stored > path.stat().st_size:  # torch checks neither
                raise ValueError("a checksum or a size is wrong")
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage leads to any exception in torch.load
        raise RunError(
            f"{path} is damaged, or not a checkpoint of a run.", "Delete it to start anew."
        ) from error
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notes on hardware and its own products, and warnings that do not apply here."""
    # Not all of Fabric's: that one of several processes has died is one of its notes.
    notes = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric.utilities.distributed")]
    levels = [note.level for note in notes]
    for note in notes:
        note.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Patches are slices of arrays in memory: workers would only cost.
            warnings.filterwarnings("ignore", ".*does not have many workers")
            # The held modules.
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
            # Lightning 2.6 uses a name that torch 2.13 renamed.
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            # The folder of an interrupted run.
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            # torch 2.9 has no other name for it.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            yield
    finally:
        for note, level in zip(notes, levels, strict=True):
            note.setLevel(level)
