"""Train a denoiser on patches with Lightning: progress, checkpoints, resuming, devices.

A run is a folder. Its `run.json` says what was asked; `network.safetensors` appears when it is done. Asking
for the same again takes up an interrupted run where its last epoch ended, or returns the finished one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError

from tgd_pet.training.patches import PATCH, PatchPairs, Scans, fingerprint
from tgd_kit.errors import RunError
from tgd_kit.runs.files import replacing
from tgd_pet.network import save_network

VALIDATION_PATCHES = 128


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Args:
        epochs: a checkpoint is written after each.
        steps: optimizer steps per epoch.
        batch: patches per step.
        rate: the highest learning rate of Adam; the rate rises over the first tenth of all steps and then
            falls to nearly zero along a cosine ("one cycle"). The paper uses Adam at 0.001.
        seed: of the patches; and of the first weights, where training starts from none.
        patch: edge length of a patch in pixels.
        devices: accelerators of a machine, or processes on its CPUs, that train together, each on batches of
            its own; Lightning starts them.
        nodes: machines that train together; the same is started on each.
    """

    epochs: int = 20
    steps: int = 100
    batch: int = 16
    rate: float = 1e-3
    seed: int = 0
    patch: int = PATCH
    devices: int = 1
    nodes: int = 1

    @property
    def processes(self) -> int:
        """How many train together, on all machines."""
        return self.devices * self.nodes


Penalty = Callable[[Tensor, Tensor], Tensor]  # of the noisy and the denoised triplets, (B, 3, H, W)


def fit(
    network: nn.Module,
    studies: Sequence[Scans],
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

    Args:
        network: maps triplets (B, 3, H, W) in SUV to denoised ones; what has `requires_grad` moves.
        studies: what to train on.
        version: reconstruction of the images, "v1" or "v2".
        folder: the run's own folder.
        schedule: how long and how fast.
        purpose: part of what was asked, beyond data, weights and schedule.
        held: modules kept in eval mode, so that their running statistics stay.
        validation: studies whose error is shown after each epoch; it decides nothing.
        penalty: added to the mean squared error; `purpose` has to name it.
        progress: show a bar.
        callbacks: more of Lightning's.

    Raises:
        RunError: there is nothing to train or to train on, too few devices, the folder holds another run,
            training was interrupted (Ctrl-C, SIGTERM), or it diverged.
    """
    if not studies:
        raise RunError("There is no study to train on.", "Make some with `tgd pet simulate`.")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise RunError("Nothing in the network is trainable.", "With TGD, take a larger phi.")
    if 0 < (there := torch.accelerator.device_count()) < schedule.devices:
        raise RunError(f"This machine has {there} of {schedule.devices} devices.", "Ask for fewer of them.")
    _claim(folder, _asked(network, studies, version, schedule, purpose))
    done, checkpoints = folder / "network.safetensors", folder / "checkpoints"
    if done.exists():
        network.load_state_dict(load_file(done))
        return
    bar = [RichProgressBar(console_kwargs={"stderr": True})] if progress else []
    resumed = _checkpoint(checkpoints / "last.ckpt")
    keep = ModelCheckpoint(checkpoints, filename="last", enable_version_counter=False)
    with _quiet():
        trainer = L.Trainer(
            max_epochs=schedule.epochs,
            devices=schedule.devices,
            num_nodes=schedule.nodes,
            # Frozen rows are buffers: sent before every step, they would cost what freezing saves.
            strategy=DDPStrategy(broadcast_buffers=False) if schedule.processes > 1 else "auto",
            logger=False,
            # The bar of the first process gathers metrics from all: what the others do at that point comes first.
            callbacks=[keep, *callbacks, *bar],
            default_root_dir=folder,
            enable_progress_bar=progress,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            limit_val_batches=None if validation else 0,
        )
        try:
            trainer.fit(
                Denoising(network, schedule, held, penalty),
                datamodule=Patches(studies, version, schedule, validation),
                ckpt_path=resumed,
                weights_only=True,
            )
        except SystemExit as stopped:  # what Lightning makes of Ctrl-C, and of SIGTERM as if all was well
            raise RunError(
                "Training was interrupted.", "The same again goes on where its last epoch ended."
            ) from stopped
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise RunError(
            "Training diverged: weights are not finite.", "Use a lower learning rate and another folder."
        )
    network.cpu().eval()
    if trainer.is_global_zero:
        save_network(network, done)
        shutil.rmtree(checkpoints)


class Denoising(L.LightningModule):
    """The training step: mean squared error over all three slices, in SUV; RMSE of both is shown."""

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        held: Sequence[nn.Module] = (),
        penalty: Penalty | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._schedule, self._held, self._penalty = schedule, tuple(held), penalty
        self.training_error = MeanSquaredError(squared=False)
        self.validation_error = MeanSquaredError(squared=False)

    def train(self, mode: bool = True) -> Denoising:
        """Switch to training, but for the held modules."""
        super().train(mode)
        for module in self._held:
            module.eval()
        return self

    def setup(self, stage: str) -> None:
        """Channels-last convolutions are the quicker ones, on CPUs and GPUs; DDP looks at the layout next."""
        self.network.to(memory_format=torch.channels_last)

    def on_fit_start(self) -> None:
        """Lightning's loop asks for no mode."""
        self.train()

    def on_train_end(self) -> None:
        """Every process goes on with the same network: running statistics differ between them till here."""
        if self.trainer.world_size > 1:
            state = {name: value.cpu() for name, value in self.network.state_dict().items()}
            self.network.load_state_dict(self.trainer.strategy.broadcast(state))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of one batch of noisy and clean patches."""
        noisy, clean = batch
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        denoised = self.network(noisy)
        self.training_error(denoised.detach().flatten(), clean.flatten())
        self.log("RMSE", self.training_error, on_step=False, on_epoch=True, prog_bar=True)
        error = nn.functional.mse_loss(denoised, clean)
        return error if self._penalty is None else error + self._penalty(noisy, denoised)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """The error of the centre slices of one batch."""
        noisy, clean = batch
        self.validation_error(self.network(noisy)[:, 1].flatten(), clean[:, 1].flatten())
        self.log("validation RMSE", self.validation_error, prog_bar=True)

    def configure_optimizers(self) -> dict[str, object]:
        """Adam with one cycle of the learning rate, stepped after every batch."""
        moving = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        rate, steps = self._schedule.rate, self._schedule.epochs * self._schedule.steps
        optimizer = torch.optim.Adam(moving, lr=rate)
        rise = 0.1 if steps > 10 else 0.0  # a tenth of ten steps has no length, and torch divides by it
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=rise)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class Patches(L.LightningDataModule):
    """New patches in every epoch, the same in a resumed run; validation patches stay."""

    def __init__(
        self, studies: Sequence[Scans], version: str, schedule: Schedule, validation: Sequence[Scans] = ()
    ) -> None:
        super().__init__()
        self._studies, self._version, self._schedule, self._validation = (
            studies,
            version,
            schedule,
            validation,
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """One epoch's patches."""
        schedule = self._schedule
        count = schedule.steps * schedule.batch * schedule.processes
        return self._loader(self._studies, count, (schedule.seed, self.trainer.current_epoch))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The same patches every time."""
        return self._loader(self._validation, VALIDATION_PATCHES, (self._schedule.seed,))

    def _loader(
        self, studies: Sequence[Scans], count: int, seed: Sequence[int]
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        schedule = self._schedule
        pairs = PatchPairs(studies, self._version, count, seed=seed, patch=schedule.patch)
        return DataLoader(pairs, batch_size=schedule.batch)


def _asked(
    network: nn.Module, studies: Sequence[Scans], version: str, schedule: Schedule, purpose: str
) -> dict[str, object]:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    asked = {"purpose": purpose, "images": version, **asdict(schedule)}
    asked["devices"] *= asked.pop("nodes")  # a run may go on with its devices spread over other machines
    asked |= {"data": fingerprint(studies, version), "first weights": digest.hexdigest()[:16]}
    return asked


def _claim(folder: Path, asked: dict[str, object]) -> None:
    """Write what was asked into a new folder; refuse one where something else was asked."""
    record = folder / "run.json"
    if not record.exists():
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(asked, indent=1) + "\n")
        return
    try:
        found = json.loads(record.read_text())
    except ValueError as error:
        raise RunError(f"{record} is damaged ({error}).", "Delete that folder or choose another.") from error
    if found != asked:
        changed = ", ".join(key for key in asked if found.get(key) != asked[key])
        raise RunError(
            f"{folder} holds another run: {changed} differ.", "Choose another folder, or delete that one."
        )


def _checkpoint(path: Path) -> Path | None:
    """The checkpoint to go on from, if there is one and it can be read without running code from it."""
    if not path.exists():
        return None
    try:
        if not zipfile.is_zipfile(path):
            raise pickle.UnpicklingError("not in torch's format")
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise RunError(
            f"{path} is damaged, or not a checkpoint of a run.", "Delete it to start anew."
        ) from error
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notes on hardware and its own products, and warnings that do not apply here."""
    # Not all of Fabric's: that a process of several has died is one of its notes.
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
            # The folder of a run that is taken up.
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            # torch 2.9 has no other name for it.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            yield
    finally:
        for note, level in zip(notes, levels, strict=True):
            note.setLevel(level)
