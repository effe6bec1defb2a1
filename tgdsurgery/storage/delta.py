"""The retrained rows as a small file on top of a base network: what one patient or scanner needs, kept apart.

A delta is a safetensors file. Its tensors are the entries that training could move, flat, under the names of the
`state_dict`: trainable rows of parameters, the statistics of trainable channels, and every buffer that no plan
freezes (counters). Its metadata are the plan, a fingerprint of all other entries, and one of the file itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.copying import copy_model
from tgdsurgery.core.errors import CheckpointError, PlanError, RewriteError
from tgdsurgery.core.norm_statistics import held_statistics
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.surgery.entries import trainable_entries
from tgdsurgery.surgery.remove import remove_tgd
from tgdsurgery.surgery.tgd_network import plan_of, unwrapped

DELTA_FORMAT = "tgdsurgery-delta-1"
SUFFIX = ".safetensors"


class Entries(NamedTuple):
    """One tensor of a network's `state_dict`, and which of its entries training may move.

    Args:
        tensor: the tensor itself, no copy.
        movable: bool of its shape if the plan fits; expanded where possible.
    """

    tensor: Tensor
    movable: Tensor


def save_delta(tgd_model: nn.Module, path: str | Path) -> None:
    """Write what a TGD network has learnt, without the base network it was made from.

    Args:
        tgd_model: what `apply_tgd` returned, in either form, trained; may be wrapped in DDP, DataParallel or
            torch.compile. It is not touched.
        path: a .safetensors file; replaced only when all is written.

    Raises:
        RewriteError: `tgd_model` is not a TGD network; or a layer was replaced, pruned or added after apply_tgd.
        CheckpointError: the file cannot be written, or the network has state that is not a tensor.

    Example:
        >>> import tempfile
        >>> from tgdsurgery import apply_tgd, remove_tgd
        >>> _ = torch.manual_seed(0)
        >>> base = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 3))
        >>> tgd = apply_tgd(base, phi=0.3)
        >>> with torch.no_grad():
        ...     for parameter in tgd.parameters():
        ...         _ = parameter.add_(1)  # in place of training
        >>> file = Path(tempfile.mkdtemp()) / "patient.safetensors"
        >>> save_delta(tgd, file)
        >>> adapted = load_delta(base, file)
        >>> torch.equal(adapted[0].weight, remove_tgd(tgd)[0].weight)
        True
    """
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise CheckpointError(f"{path} has no suffix of a delta.", f"Name it {path.stem}{SUFFIX}.")
    plan = plan_of(tgd_model)
    plain = remove_tgd(tgd_model)
    _refuse_added(plain, plan)
    entries = _entries(plain, _state(plain), plan)
    values = {
        name: tensor.detach()[movable].cpu() for name, (tensor, movable) in entries.items() if movable.any()
    }
    metadata = {"format": DELTA_FORMAT, "plan": plan.to_json(), "base": json.dumps(fingerprint(entries))}
    metadata["contents"] = _contents(metadata, values)
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(values, temporary, metadata=metadata)
        except (SafetensorError, KeyError) as error:  # a full disk, a dtype that safetensors lacks
            raise CheckpointError(
                f"{path} cannot be written: {error}.", "Check the disk and the dtypes."
            ) from error


def load_delta(base_model: nn.Module, path: str | Path) -> nn.Module:
    """A copy of the base network with the retrained rows of a delta put in.

    Bit for bit the network that `remove_tgd` made of the one that was saved. Deltas can be stacked: what this
    returns can be the base of the next one. Only buffers that are not in the `state_dict` stay the base's.

    Args:
        base_model: the plain network that `apply_tgd` was given; wrappers are looked through. It is not touched.
        path: a file that `save_delta` wrote. No code in it is run.

    Raises:
        CheckpointError: the file is missing, damaged or no delta; or what is frozen in the plan is not, bit for
            bit, what it was in the network the delta was made from.
        RewriteError: the base is a TGD network itself, or cannot be copied.
    """
    values, plan, wanted = read_delta(Path(path))
    base = unwrapped(base_model)
    if any("tgd_plan" in vars(module) for module in base.modules()):
        raise RewriteError("The base is a TGD network.", "Give the plain network; remove_tgd makes it one.")
    net = copy_model(base)
    state = _state(net)
    entries = _entries(net, state, plan)
    check_base(fingerprint(entries), wanted, Path(path))
    check_values(entries, values, Path(path))
    changed = {id(tensor): tensor.detach().clone() for tensor, _ in entries.values()}
    for name, (tensor, movable) in entries.items():
        if name in values:
            changed[id(tensor)][movable.to(tensor.device)] = values[name].to(tensor.device)
    net.load_state_dict({name: changed[id(tensor)] for name, tensor in state.items()})
    return net


def _refuse_added(plain: nn.Module, plan: TGDPlan) -> None:
    planned = {*plan.unmapped, *(rows.name for entry in plan.entries for rows in entry.layer.parameters)}
    if added := [name for name, _ in plain.named_parameters() if name not in planned]:
        layer = added[0].rpartition(".")[0] or added[0]
        raise RewriteError(
            f"{layer} was added after apply_tgd, and no base would have it.",
            f"Add it before, and use overrides={{{layer!r}: 'train'}}; or save what remove_tgd returns, whole.",
        )


def _state(net: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` with the tensors themselves, so that those under two names show as one."""
    state: dict[str, object] = net.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"The network keeps {name!r}, which is not a tensor.",
                "Save all of it: torch.save after remove_tgd.",
            )
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _entries(net: nn.Module, state: Mapping[str, Tensor], plan: TGDPlan) -> dict[str, Entries]:
    """Every tensor of a plain network's state once, by its first name."""
    masks = {id(parameter): mask for parameter, mask in trainable_entries(net, plan).items()}
    buffers = dict(net.named_buffers(remove_duplicate=False))
    masks |= {id(buffers[name]): mask for name, mask in held_statistics(plan).items() if name in buffers}
    everywhere = torch.ones((), dtype=torch.bool)
    found: dict[int, tuple[str, Entries]] = {}
    for name, tensor in state.items():
        mask = masks.get(id(tensor), everywhere.expand(tensor.shape))
        found.setdefault(id(tensor), (name, Entries(tensor, mask)))
    return dict(found.values())


def fingerprint(entries: Mapping[str, Entries]) -> dict[str, str]:
    """For every tensor its dtype, shape and the digest of its frozen entries."""
    return {name: " ".join(_described(*entry)) for name, entry in entries.items()}


def _described(tensor: Tensor, movable: Tensor) -> Iterator[str]:
    yield str(tensor.dtype)
    yield "x".join(map(str, tensor.shape))
    if movable.shape == tensor.shape:  # else the plan is another network's, and the shape above says so
        yield _digest(tensor.detach()[~movable])


def _digest(tensor: Tensor) -> str:
    """Equal digests are equal bits, whatever the type means by them."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16).hexdigest()


def _contents(metadata: Mapping[str, str], values: Mapping[str, Tensor]) -> str:
    """One digest of all that is in the file, except the digest itself: storage can fail silently."""
    digests = {name: f"{tensor.dtype} {_digest(tensor)}" for name, tensor in values.items()}
    text = json.dumps([dict(metadata), digests], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_delta(path: Path) -> tuple[dict[str, Tensor], TGDPlan, dict[str, str]]:
    """Values, plan, and the fingerprint of the base.

    Raises:
        CheckpointError: the file is missing, damaged or no delta.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, or is not a file.", "Check the path.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            values = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "Check its permissions.") from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged, cut off or not a safetensors file.", "Copy it again."
        ) from error
    if metadata.get("format") != DELTA_FORMAT:
        raise CheckpointError(
            f"{path} is not a delta of format {DELTA_FORMAT}.", "Give what save_delta wrote."
        )
    contents = metadata.pop("contents", None)
    try:
        if contents == _contents(metadata, values):
            return values, TGDPlan.from_json(metadata["plan"]), json.loads(metadata["base"])
    except (PlanError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}).", "Copy it again.") from error
    raise CheckpointError(f"{path} is damaged: its contents are not what was written.", "Copy it again.")


def check_values(entries: Mapping[str, Entries], values: Mapping[str, Tensor], path: Path) -> None:
    """Raise unless the file has just those entries that its plan lets move: a digest can be made anew."""
    planned = {name: (int(e.movable.sum()), e.tensor.dtype) for name, e in entries.items() if e.movable.any()}
    stored = {name: (tensor.numel(), tensor.dtype) for name, tensor in values.items()}
    for name in {**planned, **stored}:
        if planned.get(name) != stored.get(name):
            (wanted, _), (found, _) = planned.get(name, (0, None)), stored.get(name, (0, None))
            raise CheckpointError(
                f"{path} is damaged: it has {found} entries of {name!r} where its plan says {wanted}, or others.",
                "Copy it again, or write it anew with save_delta.",
            )


def check_base(found: Mapping[str, str], wanted: Mapping[str, str], path: Path) -> None:
    """Raise unless the base that was found has the fingerprint of the one the delta was made from."""
    differing = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if differing:
        more = ", ..." if len(differing) > 3 else ""
        raise CheckpointError(
            f"{path} was made from another network: {len(differing)} of {len(wanted)} tensors differ in what is "
            f"frozen ({', '.join(differing[:3])}{more}).",
            "Give the base that apply_tgd was given, with the same weights and dtype. If it is the same, frozen "
            "entries moved in training; see verify and guard.",
        )
