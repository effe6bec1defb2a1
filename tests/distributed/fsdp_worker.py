"""Runs under torchrun: parameters sharded by `fully_shard` (FSDP2), checkpoints in pieces and whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

from tests.distributed.launching import WORLD, leave, report
from tests.distributed.subject import STEPS, base, operated, optimizer_of, train
from tests.distributed.test_fsdp import FORMS
from tgdsurgery import RewriteError, remove_tgd, verify

WHOLE = StateDictOptions(full_state_dict=True)


def in_pieces(net: nn.Module) -> nn.Module:
    """Some layers by themselves, as large networks need it, and the rest together."""
    mesh = dist.init_device_mesh("cpu", (WORLD,))
    if isinstance(net, nn.Sequential):  # the layers form masks by hooks on the parameters that the root has
        for layer in (net[0], net[3], net[6]):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def sharded(**settings: Any) -> nn.Module:
    return in_pieces(operated(**settings))


def whole(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the state, in full on every rank."""
    return {name: value.clone() for name, value in get_model_state_dict(net, options=WHOLE).items()}


def trained(
    rank: int, world: int, **settings: Any
) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Any]]:
    tgd = sharded(**settings)
    before = whole(tgd)
    optimizer = optimizer_of(tgd)
    train(tgd, optimizer, range(STEPS), rank, world)
    after = whole(tgd)
    return (
        tgd,
        optimizer,
        {
            "before": before,
            "state": after,
            "shapes": {key: list(value.shape) for key, value in tgd.state_dict().items()},
            "kinds": {name: type(p).__name__ for name, p in tgd.named_parameters()},
            "frozen kept": verify(before, after, tgd.tgd_plan).ok,
        },
    )


def resumed(folder: Path, rank: int, world: int, tgd: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Sharded save of network and optimizer, load into a fresh pair; then both go on."""
    network, state = get_state_dict(tgd, optimizer)
    dcp.save({"network": network, "optimizer": state}, checkpoint_id=folder / "sharded")
    fresh = sharded()
    other = optimizer_of(fresh)
    network, state = get_state_dict(fresh, other)
    kept = {"network": network, "optimizer": state}
    dcp.load(kept, checkpoint_id=folder / "sharded")
    set_state_dict(fresh, other, model_state_dict=kept["network"], optim_state_dict=kept["optimizer"])
    loaded = whole(fresh)
    for net, made in ((tgd, optimizer), (fresh, other)):
        train(net, made, range(STEPS, 2 * STEPS), rank, world)
    return {"loaded": loaded, "uninterrupted": whole(tgd), "resumed": whole(fresh)}


def loads(tgd: nn.Module) -> dict[str, Any]:
    """Strict, both ways, whole and in pieces, from TGD networks and plain ones."""
    plain = in_pieces(base())
    set_model_state_dict(tgd, base(seed=1).state_dict(), options=WHOLE)
    found = {"whole into TGD": whole(tgd)}
    set_model_state_dict(plain, whole(tgd), options=WHOLE)
    found["whole of TGD into plain"] = whole(plain)
    set_model_state_dict(plain, base(seed=2).state_dict(), options=WHOLE)
    tgd.load_state_dict(plain.state_dict(), strict=True)
    found["pieces of plain into TGD"] = whole(tgd)
    return found


def sent_by_one() -> str:
    """Torch's other way to load, which copies into the pieces of the trainable rows: refused, as they do not fit."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    state = base(seed=1).state_dict() if dist.get_rank() == 0 else {}
    try:
        set_model_state_dict(sharded(), state, options=options)
    except RuntimeError as error:
        return str(error)
    return ""


def removed(tgd: nn.Module) -> dict[str, Any]:
    """A sharded network cannot be made plain in place; the way round it."""
    try:
        remove_tgd(tgd)
    except RewriteError as error:
        message = str(error)
    else:
        message = ""
    single = operated()
    single.load_state_dict(whole(tgd))
    return {"message": message, "plain": remove_tgd(single).state_dict(), "state": whole(tgd)}


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    results = {}
    for name, form in FORMS.items():
        tgd, optimizer, results[name] = trained(rank, world, **form)
        if name == "compact":
            results["resume"] = resumed(folder, rank, world, tgd, optimizer)
            results["loads"] = loads(tgd)
            results["removed"] = removed(tgd)
    results["sent by one"] = sent_by_one()
    report(folder, rank, results)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
