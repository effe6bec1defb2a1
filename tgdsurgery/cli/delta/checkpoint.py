"""A checkpoint as the state of the network that a plan or a delta is of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.tables import counted
from tgdsurgery.storage.checkpoints import read_state_dict, write_state_dict
from tgdsurgery.storage.delta_entries import listed
from tgdsurgery.storage.weights import bare_names, tied_names


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, tied ones once.

    Args:
        path: the file.
        state: the tensors under the names that the plan or delta knows.
        names: every name in the file, and that of its tensor in `state`: another one if it is tied to it.
    """

    path: Path
    state: Mapping[str, Tensor]
    names: Mapping[str, str]

    def write(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Write other values of the same tensors, under all names."""
        write_state_dict({name: state[own] for name, own in self.names.items()}, path)


def read_checkpoints(known: Collection[str], *paths: Path) -> list[Checkpoint]:
    """States of one network, under the names that a plan or delta knows.

    A prefix that all names share is taken off if they are the known ones then. A safetensors file stores tied tensors
    once for each name: a name that is not known, but has the bits of a known one of the same kind (`weight`) in all
    files, is taken to be tied to it.
    """
    states = [bare_names(read_state_dict(path), known) for path in paths]
    ties = tied_names(known, states)
    return [
        Checkpoint(
            path,
            {name: tensor for name, tensor in state.items() if name not in ties},
            {name: ties.get(name, name) for name in state},
        )
        for path, state in zip(paths, states, strict=True)
    ]


def refuse_unplanned(checkpoint: Checkpoint, plan: TGDPlan) -> None:
    """Raise unless a checkpoint has every tensor of the plan, in its shape."""
    shapes = {name: mask.shape for name, mask in plan.parameter_masks().items()}
    found = {name: tensor.shape for name, tensor in checkpoint.state.items()}
    wrong = [
        name
        for name in sorted(plan.tensors)
        if name not in found or found[name] != shapes.get(name, found[name])
    ]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.path} is not of the network that the plan was made for: {counted(len(wrong), 'tensor')} "
            f"missing, or of another shape ({listed(wrong)}).",
            "Give the plan of this network.",
        )
