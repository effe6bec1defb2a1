"""What a delta is, and its file.

A delta is a safetensors file. Its tensors are the entries that training could move, flat, under the names of the
`state_dict`: trainable rows of parameters, the statistics of trainable channels, and every buffer that no plan
freezes (counters). Its metadata are the plan, a fingerprint of all other entries, the conditions under which it is
chosen, and a digest of the file itself. A delta that can be taken off again has the base's entries, too: tensors of
two rows, the new values and the old.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.errors import CheckpointError, PlanError
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.tables import shortened
from tgdsurgery.storage.checkpoints import open_tensors
from tgdsurgery.storage.delta_entries import digest
from tgdsurgery.storage.safetensors_files import check_header

FORMATS = ("tgdsurgery-delta-1", "tgdsurgery-delta-2")  # the first has no conditions and no old values
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Delta:
    """The retrained rows of a network.

    Args:
        values: of every tensor with movable entries, these, flat.
        plan: which entries those are.
        base: of every tensor dtype, shape and the digest of its frozen entries.
        before: the base's entries, like `values`; None if the file cannot be taken off a checkpoint.
        when: tags of a scan and the values that they must all have for the delta to be chosen; empty if it is
            never chosen.
    """

    values: Mapping[str, Tensor]
    plan: TGDPlan
    base: Mapping[str, str]
    before: Mapping[str, Tensor] | None = None
    when: Mapping[str, str] = field(default_factory=dict)


def full_size(delta: Delta) -> int:
    """Bytes of all tensors of the network that a delta is of.

    Raises:
        CheckpointError: its fingerprint names no dtypes and shapes.
    """
    try:
        described = [text.split(" ")[:2] for text in delta.base.values()]
        sizes = [math.prod(int(size) for size in shape.split("x") if size) for _, shape in described]
        dtypes = [getattr(torch, dtype.removeprefix("torch.")) for dtype, _ in described]
        return sum(size * dtype.itemsize for size, dtype in zip(sizes, dtypes, strict=True))
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            "The delta is damaged: it names no dtypes and shapes.", "Save it again."
        ) from error


def check_conditions(when: Mapping[str, str]) -> None:
    """Raise unless each condition is a tag's keyword and a text."""
    for tag, value in when.items():
        if not re.fullmatch("[A-Za-z][A-Za-z0-9]*", tag) or not value.strip():
            raise CheckpointError(
                f"{shortened(tag)!r} with the value {shortened(value)!r} is not a condition.",
                'Give a DICOM keyword and a text, as in {"ManufacturerModelName": "Discovery MI"}.',
            )


def write_delta(delta: Delta, path: Path) -> None:
    """Write the file, whole or not at all."""
    if path.suffix.lower() != SUFFIX:
        raise CheckpointError(f"{path} has no suffix of a delta.", f"Name it {path.stem}{SUFFIX}.")
    check_conditions(delta.when)
    tensors = dict(delta.values)
    if delta.before is not None:
        tensors = {name: torch.stack([new, delta.before[name]]) for name, new in tensors.items()}
    metadata = {
        "format": FORMATS[-1],
        "plan": json.dumps(
            json.loads(delta.plan.to_json()), separators=(",", ":")
        ),  # a small network's is most of it
        "base": json.dumps(dict(delta.base)),
        "when": json.dumps(dict(delta.when)),
        "reversible": json.dumps(delta.before is not None),
    }
    metadata["contents"] = contents(metadata, tensors)
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)
        except (SafetensorError, KeyError) as error:  # a full disk, a dtype that safetensors lacks
            raise CheckpointError(
                f"{path} cannot be written: {error}.", "Check the disk and the dtypes."
            ) from error


def contents(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """One digest of all that is in the file, except the digest itself: storage can fail silently."""
    digests = {name: f"{tensor.dtype} {digest(tensor)}" for name, tensor in tensors.items()}
    text = json.dumps([dict(metadata), digests], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_delta(path: Path) -> Delta:
    """The delta in a file, which is checked whole; no code in it is run.

    Raises:
        CheckpointError: the file is missing, damaged or no delta.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, or is not a file.", "Check the path.")
    try:
        check_header(path)
    except CheckpointError as error:
        if _is_checkpoint(path):
            raise CheckpointError(
                f"{path} is a checkpoint, and no delta.", "Give what `tgd delta save` or save_delta wrote."
            ) from error
        raise
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "Check its permissions.") from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged, cut off or not a safetensors file.", "Copy it again."
        ) from error
    if metadata.get("format") not in FORMATS:
        raise CheckpointError(
            f"{path} is not a delta of format {' or '.join(FORMATS)}.", "Give what save_delta wrote."
        )
    written = metadata.pop("contents", None)
    try:
        if written == contents(metadata, tensors):
            return _parsed(metadata, tensors)
    except (PlanError, CheckpointError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}).", "Copy it again.") from error
    raise CheckpointError(f"{path} is damaged: its contents are not what was written.", "Copy it again.")


def _is_checkpoint(path: Path) -> bool:
    try:
        open_tensors(path)
    except CheckpointError:
        return False
    return True


def _parsed(metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> Delta:
    plan, base = TGDPlan.from_json(metadata["plan"]), _texts(metadata["base"])
    when = _texts(metadata.get("when", "{}"))
    check_conditions(when)
    if json.loads(metadata.get("reversible", "false")) is not True:
        return Delta({name: values.flatten() for name, values in tensors.items()}, plan, base, when=when)
    if any(tensor.dim() != 2 or len(tensor) != 2 for tensor in tensors.values()):
        raise ValueError("it lacks old values")
    new, old = ({name: pair[row] for name, pair in tensors.items()} for row in (0, 1))
    return Delta(new, plan, base, old, when)


def _texts(text: str) -> dict[str, str]:
    found = json.loads(text)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("its metadata are not texts by name")
    return found
