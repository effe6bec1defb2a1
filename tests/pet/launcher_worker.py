"""What `test_launcher` runs: Lightning starts it a second time, for the second process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from tests.pet.scans import RandomScans
from tgd_kit.training.keep_best import KeepBest
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import Tuned
from tgd_pet.network import load_network
from tgd_pet.training.finetuning import finetune
from tgd_pet.training.online import online

SCHEDULE = Schedule(epochs=3, steps=3, batch=2, devices=2)


def die(self: KeepBest, trainer: object, module: object) -> None:
    """As a killed process does: with no word to the other."""
    if trainer.current_epoch == 1 and trainer.is_global_zero:
        os._exit(9)


def main(base: Path, folder: Path, work: str) -> None:
    settings = {"folder": folder, "schedule": SCHEDULE, "phi": 0.5, "progress": False}
    if work == "finetune":
        tuned: Tuned = finetune(load_network(base), [RandomScans(1)], "v1", **settings)
    else:
        if work == "die":
            KeepBest.on_train_epoch_start = die
        halves = RandomScans(0, (12, 48, 40)).low("v1")
        tuned = online(load_network(base), *halves, **settings)
    torch.save(
        {"state": tuned.network.state_dict(), "kept": tuned.kept, "share": tuned.share},
        folder.with_name(f"{folder.name} {rank_zero_only.rank}.pt"),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
