"""Runs under torchrun: Lightning's own loop on two processes; it knows nothing of TGD."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, DistributedSampler

from tests.distributed.launching import WORLD, leave, report
from tests.distributed.subject import BATCH, STEPS, batch, operated, optimizer_of
from tgdsurgery import remove_tgd, verify


class Task(L.LightningModule):
    """The loss and the optimizer of the other workers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, images: Tensor, index: int) -> Tensor:
        return self.net(images).square().mean()

    def configure_optimizers(self) -> optim.Optimizer:
        return optimizer_of(self.net)


def fitted(net: nn.Module, folder: Path, epochs: int, resume: str | None = None) -> None:
    """One epoch has STEPS batches, whose images are dealt out to the processes in turn."""
    images = [image for step in range(STEPS) for image in batch(step)]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy="ddp",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)],
    )
    # Lightning's own sampler would shuffle.
    sampler = DistributedSampler(images, WORLD, int(os.environ["RANK"]), shuffle=False)
    loader = DataLoader(images, BATCH // WORLD, sampler=sampler)
    trainer.fit(Task(net), loader, ckpt_path=resume, weights_only=True)


def main(folder: Path) -> None:
    torch.use_deterministic_algorithms(True)
    tgd = operated()
    before = copy.deepcopy(tgd.state_dict())
    fitted(tgd, folder / "one", epochs=1)
    results: dict[str, Any] = {
        "state": copy.deepcopy(tgd.state_dict()),
        "plain": remove_tgd(tgd).state_dict(),
        "frozen kept": verify(before, tgd, tgd.tgd_plan).ok,
    }
    resumed, uninterrupted = operated(), operated()
    fitted(resumed, folder / "more", epochs=2, resume=str(folder / "one" / "epoch=0.ckpt"))
    fitted(uninterrupted, folder / "two", epochs=2)
    results |= {"resumed": resumed.state_dict(), "uninterrupted": uninterrupted.state_dict()}
    report(folder, dist.get_rank(), results)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
