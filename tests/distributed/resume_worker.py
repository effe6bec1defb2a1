"""Runs under torchrun, twice: the first time one process is killed in the middle of a step."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn, optim
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.launching import WORLD, leave, report
from tests.distributed.subject import STEPS, batch, operated, optimizer_of, train

FORMS: dict[str, dict[str, Any]] = {"compact": {}, "layers": {"form": "layers"}}


def replicated(form: dict[str, Any]) -> tuple[nn.Module, optim.Optimizer]:
    tgd = operated(**form)
    net = DistributedDataParallel(tgd)
    return net, optimizer_of(tgd, net)


def sharded() -> tuple[nn.Module, optim.Optimizer]:
    tgd = operated()
    fully_shard(tgd, mesh=dist.init_device_mesh("cpu", (WORLD,)))
    return tgd, optimizer_of(tgd)


def save(path: Path, net: nn.Module, optimizer: optim.Optimizer) -> None:
    """As users of DDP do it: one process writes."""
    if dist.get_rank() == 0:
        torch.save({"network": net.state_dict(), "optimizer": optimizer.state_dict()}, path)


def load(path: Path, net: nn.Module, optimizer: optim.Optimizer) -> None:
    kept = torch.load(path, weights_only=True)
    net.load_state_dict(kept["network"])
    optimizer.load_state_dict(kept["optimizer"])


def save_pieces(path: Path, net: nn.Module, optimizer: optim.Optimizer) -> None:
    """As users of FSDP2 do it: every process writes its pieces."""
    network, state = get_state_dict(net, optimizer)
    dcp.save({"network": network, "optimizer": state}, checkpoint_id=path)


def load_pieces(path: Path, net: nn.Module, optimizer: optim.Optimizer) -> None:
    network, state = get_state_dict(net, optimizer)
    kept = {"network": network, "optimizer": state}
    dcp.load(kept, checkpoint_id=path)
    set_state_dict(net, optimizer, model_state_dict=kept["network"], optim_state_dict=kept["optimizer"])


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))


def first_life(folder: Path, rank: int) -> None:
    for name, form in FORMS.items():
        net, optimizer = replicated(form)
        train(net, optimizer, range(STEPS), rank, WORLD)
        save(folder / f"{name}.pt", net, optimizer)
    net, optimizer = sharded()
    train(net, optimizer, range(STEPS), rank, WORLD)
    save_pieces(folder / "pieces", net, optimizer)
    net(batch(STEPS).chunk(WORLD)[rank]).square().mean().backward()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    optimizer.step()
    dist.barrier()  # in vain


def second_life(folder: Path, rank: int) -> dict[str, Any]:
    """Goes on from the files, and trains from the start as well, for comparison."""
    results = {}
    for name, form in FORMS.items():
        net, optimizer = replicated(form)
        load(folder / f"{name}.pt", net, optimizer)
        train(net, optimizer, range(STEPS, 2 * STEPS), rank, WORLD)
        whole, other = replicated(form)
        train(whole, other, range(2 * STEPS), rank, WORLD)
        results[name] = {"resumed": state_of(net), "uninterrupted": state_of(whole)}
    net, optimizer = sharded()
    load_pieces(folder / "pieces", net, optimizer)
    train(net, optimizer, range(STEPS, 2 * STEPS), rank, WORLD)
    whole, other = sharded()
    train(whole, other, range(2 * STEPS), rank, WORLD)
    return results | {"sharded": {"resumed": state_of(net), "uninterrupted": state_of(whole)}}


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    if (folder / "pieces").exists():
        report(folder, rank, second_life(folder, rank))
    else:
        first_life(folder, rank)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
