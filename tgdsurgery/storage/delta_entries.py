"""Which entries of a network's state a plan lets move, what the others are, and new values put in.

All of it works on tensors by name, so on a network and on a checkpoint without the network's code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tgdsurgery.core.bits import differing
from tgdsurgery.core.errors import CheckpointError, RewriteError
from tgdsurgery.core.masking import collapsed
from tgdsurgery.core.norm_statistics import held_statistics
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.surgery.tgd_network import unwrapped

Named = Iterable[tuple[str, Tensor]]


class Entries(NamedTuple):
    """One tensor of a network's `state_dict`, and which of its entries training may move.

    Args:
        tensor: the tensor itself, no copy.
        movable: bool of its shape if the plan fits; expanded where possible.
    """

    tensor: Tensor
    movable: Tensor


def plain_network(model: nn.Module) -> nn.Module:
    """The network inside wrappers, which has to be a plain one.

    Raises:
        RewriteError: it is a TGD network, or holds one.
    """
    net = unwrapped(model)
    if any("tgd_plan" in vars(module) for module in net.modules()):
        raise RewriteError("The base is a TGD network.", "Give the plain network; remove_tgd makes it one.")
    return net


def state_of(net: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` with the tensors themselves, so that those under two names show as one."""
    state: dict[str, object] = net.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"The network keeps {name!r}, which is not a tensor.",
                "Save all of it: torch.save after remove_tgd.",
            )
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def named_in(net: nn.Module) -> Named:
    """All parameters and buffers under all their names, which are not always those in the `state_dict`."""
    return chain(net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False))


def entries_of(state: Mapping[str, Tensor], plan: TGDPlan, named: Named | None = None) -> dict[str, Entries]:
    """Every tensor of a plain network's state once, by its first name.

    A tensor under several names moves only where the plan lets all of them move. Parameters that the plan does not
    know move nowhere, other tensors (counters, caches) everywhere: no plan freezes those.

    Args:
        state: the tensors; those under two names are one object.
        plan: which rows are trainable.
        named: the tensors under the names that the plan may know them by; those of `state` if None.
    """
    planned = {**plan.parameter_masks(), **held_statistics(plan)}
    masks: dict[int, Tensor] = {}
    frozen: set[int] = set()
    for name, tensor in state.items() if named is None else named:
        if (mask := planned.get(name)) is not None:
            known = masks.get(id(tensor))
            masks[id(tensor)] = mask if known is None or known.shape != mask.shape else known & mask
        elif isinstance(tensor, nn.Parameter) or name in plan.unmapped:
            frozen.add(id(tensor))
    found: dict[int, tuple[str, Entries]] = {}
    for name, tensor in state.items():
        default = torch.tensor(id(tensor) not in frozen).expand(tensor.shape)
        found.setdefault(id(tensor), (name, Entries(tensor, masks.get(id(tensor), default))))
    return dict(found.values())


def fingerprint(entries: Mapping[str, Entries]) -> dict[str, str]:
    """For every tensor its dtype, shape and the digest of its frozen entries."""
    return {name: " ".join(_described(*entry)) for name, entry in entries.items()}


def _described(tensor: Tensor, movable: Tensor) -> Iterator[str]:
    yield str(tensor.dtype)
    yield "x".join(map(str, tensor.shape))
    if movable.shape == tensor.shape:  # else the plan is another network's, and the shape above says so
        yield digest(tensor.detach()[~movable])


def digest(tensor: Tensor) -> str:
    """Equal digests are equal bits, whatever the type means by them."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16).hexdigest()


def movable_values(entries: Mapping[str, Entries]) -> dict[str, Tensor]:
    """Of every tensor the entries that may move, flat, on the CPU; none of those that are frozen whole."""
    return {
        name: tensor.detach()[movable].cpu() for name, (tensor, movable) in entries.items() if movable.any()
    }


def with_values(
    state: Mapping[str, Tensor],
    entries: Mapping[str, Entries],
    values: Mapping[str, Tensor],
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """A copy of the state with the movable entries on their way to `values`: there at scale 1, not begun at 0."""
    changed = {id(tensor): tensor.detach().clone() for tensor, _ in entries.values()}
    for name, (tensor, movable) in entries.items():
        if name in values:
            copy = changed[id(tensor)]
            where = movable.to(tensor.device)
            copy[where] = between(copy[where].cpu(), values[name], scale).to(tensor.device)
    return {name: changed[id(tensor)] for name, tensor in state.items()}


def between(base: Tensor, adapted: Tensor, scale: float) -> Tensor:
    """Values on the line from `base` to `adapted`, in double precision, then rounded to their dtype.

    The ends are copies, and what is equal at both ends stays, bit for bit. Whole numbers (counters) have no between:
    they are those of `adapted`.
    """
    if scale == 0:
        return base
    if scale == 1 or not (adapted.is_floating_point() or adapted.is_complex()):
        return adapted
    wide = torch.complex128 if adapted.is_complex() else torch.float64
    start, end = base.to(wide), adapted.to(wide)
    mixed = (start + scale * (end - start)).to(adapted.dtype)
    return torch.where(differing(base, adapted), mixed, base)


def check_base(found: Mapping[str, str], wanted: Mapping[str, str], path: Path) -> None:
    """Raise unless the frozen entries of a network are those that a delta was made from."""
    names = {**wanted, **found}
    wrong = [name for name in names if found.get(name) != wanted.get(name)]
    if wrong:
        raise CheckpointError(
            f"{path} was made from another network: {len(wrong)} of {len(names)} tensors differ in what is "
            f"frozen ({listed(wrong)}).",
            "Give the base that apply_tgd was given, with the same weights and dtype. If it is the same, frozen "
            "entries moved in training; see verify and guard.",
        )


def check_values(entries: Mapping[str, Entries], values: Mapping[str, Tensor], path: Path) -> None:
    """Raise unless a file has just those entries that its plan lets move: a digest can be made anew."""
    planned = {
        name: (int(movable.sum()) if movable.shape == tensor.shape else -1, tensor.dtype)
        for name, (tensor, movable) in entries.items()
        if collapsed(movable).any()  # a mask may claim more entries than can be counted
    }
    stored = {name: (tensor.numel(), tensor.dtype) for name, tensor in values.items()}
    for name in {**planned, **stored}:
        if planned.get(name) != stored.get(name):
            (wanted, _), (found, _) = planned.get(name, (0, None)), stored.get(name, (0, None))
            raise CheckpointError(
                f"{path} is damaged: it has {found} entries of {name!r} where its plan says {wanted}, or others.",
                "Copy it again, or write it anew with save_delta.",
            )


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few names, for a message."""
    given = list(names)
    return ", ".join(given[:most]) + ", ..." * (len(given) > most)
