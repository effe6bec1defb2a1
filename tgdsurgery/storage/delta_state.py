"""A delta put on a base's tensors, without the network's code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors import SafetensorError
from torch import Tensor

from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.storage.delta import checked
from tgdsurgery.storage.delta_entries import entries_of, with_values
from tgdsurgery.storage.delta_file import FORMATS, SUFFIX, read_delta
from tgdsurgery.storage.weights import tied_names


def is_delta(path: str | Path) -> bool:
    """Whether a file says that it is a delta; it may still be damaged."""
    if Path(path).suffix.lower() != SUFFIX:
        return False
    try:
        with safetensors.safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") in FORMATS
    except (OSError, SafetensorError, ValueError):
        return False


def plan_of_delta(path: str | Path) -> TGDPlan:
    """The plan that a delta carries.

    Raises:
        CheckpointError: the file is missing, damaged or no delta.
    """
    return read_delta(Path(path)).plan


def state_with_delta(base: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The tensors of the adapted network, bit for bit those that `load_delta` makes.

    Args:
        base: the base's tensors by name, on the CPU, as `read_state_dict` gives them; not touched.
        path: a file that `save_delta` wrote.

    Raises:
        CheckpointError: as `load_delta`.
    """
    delta = read_delta(Path(path))
    ties = tied_names(delta.base, [base])
    own = {name: tensor for name, tensor in base.items() if name not in ties}
    entries = checked(entries_of(own, delta.plan), delta, Path(path))
    adapted = with_values(own, entries, delta.values)
    return {name: adapted[ties.get(name, name)] for name in base}
