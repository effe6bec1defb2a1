"""Runs under torchrun: both forms in DistributedDataParallel."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.launching import leave, report
from tests.distributed.subject import STEPS, operated, optimizer_of, train
from tests.distributed.test_ddp import FORMS
from tgdsurgery import PlanError, remove_tgd, verify


def trained(rank: int, world: int, **settings: Any) -> dict[str, Any]:
    tgd = operated(**settings)
    before = copy.deepcopy(tgd.state_dict())
    wrapped = DistributedDataParallel(tgd)
    train(wrapped, optimizer_of(tgd, wrapped), range(STEPS), rank, world)
    return {
        "state": tgd.state_dict(),
        "wrapped keys": list(wrapped.state_dict()),
        "plain": remove_tgd(wrapped).state_dict(),
        "sent": sorted(wrapped.named_module_buffers),
        "frozen kept": verify(before, wrapped, tgd.tgd_plan).ok,
    }


def refusal(make: Callable[[], object], kind: type[Exception]) -> str:
    """What the error says that `make` raises; nothing if it raises none."""
    try:
        make()
    except kind as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    early = operated(seed=int(os.environ["RANK"]))  # without a group, plans are not compared
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    results: dict[str, Any] = {name: trained(rank, world, **form) for name, form in FORMS.items()}
    results["norm in part"] = trained(rank, world, overrides={"4": 0.8})
    results["other weights"] = refusal(lambda: operated(seed=rank), PlanError)
    results["other shapes"] = refusal(lambda: DistributedDataParallel(early), RuntimeError)
    report(folder, rank, results)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
