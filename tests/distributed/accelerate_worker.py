"""Runs under torchrun: Accelerate's loop on two processes; it knows nothing of TGD."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from tests.distributed.launching import WORLD, leave, report
from tests.distributed.subject import BATCH, STEPS, batch, operated, optimizer_of
from tgdsurgery import remove_tgd, verify


def trained(accelerator: Accelerator, **settings: Any) -> dict[str, Tensor | bool]:
    tgd = operated(**settings)
    before = copy.deepcopy(tgd.state_dict())
    images = [image for step in range(STEPS) for image in batch(step)]
    net, optimizer, loader = accelerator.prepare(tgd, optimizer_of(tgd), DataLoader(images, BATCH // WORLD))
    for part in loader:
        optimizer.zero_grad()
        accelerator.backward(net(part).square().mean())
        accelerator.clip_grad_norm_(net.parameters(), 1e6)
        optimizer.step()
    plain = accelerator.unwrap_model(net)
    return {
        "state": accelerator.get_state_dict(net),
        "plain": remove_tgd(plain).state_dict(),
        "frozen kept": verify(before, net, tgd.tgd_plan).ok,
    }


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    results = {"compact": trained(accelerator), "layers": trained(accelerator, form="layers")}
    report(folder, accelerator.process_index, results)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
