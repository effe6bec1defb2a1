"""A delta put on a base's tensors, without the network's code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from tgdsurgery.core.bits import differing
from tgdsurgery.core.norm_statistics import held_statistics
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.storage.delta import (
    DELTA_FORMAT,
    SUFFIX,
    Entries,
    check_base,
    check_values,
    fingerprint,
    read_delta,
)


def is_delta(path: str | Path) -> bool:
    """Whether a file says that it is a delta; it may still be damaged."""
    if Path(path).suffix.lower() != SUFFIX:
        return False
    try:
        with safetensors.safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == DELTA_FORMAT
    except (OSError, SafetensorError, ValueError):
        return False


def plan_of_delta(path: str | Path) -> TGDPlan:
    """The plan that a delta carries.

    Raises:
        CheckpointError: the file is missing, damaged or no delta.
    """
    return read_delta(Path(path))[1]


def state_with_delta(base: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The tensors of the adapted network, bit for bit those that `load_delta` makes.

    Args:
        base: the base's tensors by name, on the CPU, as `read_state_dict` gives them; not touched.
        path: a file that `save_delta` wrote.

    Raises:
        CheckpointError: as `load_delta`.
    """
    path = Path(path)
    values, plan, wanted = read_delta(path)
    tied = {name: first for name in base if name not in wanted and (first := _tied(name, wanted, base))}
    entries = _entries({name: tensor for name, tensor in base.items() if name not in tied}, plan)
    check_base(fingerprint(entries), wanted, path)
    check_values(entries, values, path)
    adapted = {name: tensor.clone() if name in values else tensor for name, tensor in base.items()}
    for name, value in values.items():
        adapted[name][entries[name].movable] = value
    return {name: adapted[tied.get(name, name)] for name in base}


def _tied(name: str, wanted: Mapping[str, str], base: Mapping[str, Tensor]) -> str | None:
    """The first name of a tensor that has two, as the delta knows one only.

    Files of torch.save share the memory of both. In others they are two equal tensors, which for vectors says little.
    """
    tensor = base[name]
    for other in wanted:
        first = base.get(other)
        if first is not None and first.shape == tensor.shape and first.dtype == tensor.dtype:
            shared = first.data_ptr() == tensor.data_ptr() and first.stride() == tensor.stride()
            if shared or (tensor.ndim > 1 and not differing(first, tensor).any()):
                return other
    return None


def _entries(state: Mapping[str, Tensor], plan: TGDPlan) -> dict[str, Entries]:
    """Each tensor with the entries that a delta may hold: buffers that no plan freezes as a whole."""
    masks: dict[str, Tensor] = {**plan.parameter_masks(), **held_statistics(plan)}
    return {
        name: Entries(tensor, masks[name] if name in masks else _all(tensor, name not in plan.unmapped))
        for name, tensor in state.items()
    }


def _all(tensor: Tensor, movable: bool) -> Tensor:
    return torch.tensor(movable).expand(tensor.shape)
