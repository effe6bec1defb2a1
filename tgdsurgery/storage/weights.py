"""Tensors by name, loaded into a network, or named as one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tgdsurgery.core.bits import differs
from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.storage.delta_entries import listed


def load_weights(model: nn.Module, state: Mapping[str, Tensor], origin: object) -> None:
    """Load tensors into a model; every name and shape has to fit.

    Args:
        model: it is changed.
        state: the tensors; a prefix before every name (Lightning's `model.`) is taken off where that fits the model.
        origin: where they come from, for messages.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    try:
        # Not strict: the names come back as lists, after the modules' own renaming of old names.
        missing, unexpected = model.load_state_dict(bare_names(state, model.state_dict()), strict=False)
        problems = [_listed("missing", missing), _listed("unexpected", unexpected)]
    except RuntimeError as error:
        lines = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]]
        problems = [_listed("misfit", lines, shown=1)]
    found = [problem for problem in problems if problem]
    if found:
        raise CheckpointError(
            f"{origin} does not fit the model: {'; '.join(found)}.",
            "Give the model that the checkpoint was made with.",
        )


def check_finite(state: Mapping[str, Tensor], origin: object) -> None:
    """Raise if weights are NaN or infinite.

    Args:
        state: the tensors.
        origin: where they come from, for messages.

    Raises:
        CheckpointError: there are some; it names their tensors.
    """
    if found := not_finite(state):
        raise CheckpointError(
            f"{origin} holds NaN or infinity in {listed(found)}.",
            "Give a state from before the training broke down.",
        )


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that hold NaN or infinity.

    A tensor of zeros and minus infinity is none of them: it masks attention.

    >>> import torch
    >>> not_finite({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan]), "mask": torch.tensor([0.0, -torch.inf])})
    ['b']
    """
    return [name for name, tensor in state.items() if _is_broken(tensor)]


def _is_broken(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return False  # has no plain values to look at
    if tensor.is_floating_point() and tensor.element_size() == 1:  # torch cannot tell in 8 bits
        tensor = tensor.float()
    return not bool(tensor.isfinite().all()) and bool(tensor[tensor != -math.inf].any())


def bare_names(state: Mapping[str, Tensor], known: Collection[str]) -> Mapping[str, Tensor]:
    """The state without a prefix (Lightning's `model.`, say) that keeps its names from being the known ones.

    >>> list(bare_names({"model.conv.weight": Tensor()}, ["conv.weight"]))
    ['conv.weight']
    """
    prefix = next(iter(state), "").partition(".")[0] + "."
    bare = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    wrapped = all(name.startswith(prefix) for name in state)
    return bare if wrapped and set(known) <= bare.keys() and not set(known) <= state.keys() else state


def tied_names(known: Collection[str], states: Sequence[Mapping[str, Tensor]]) -> dict[str, str]:
    """The names in all states that are not known, but tied to a known one (see `tied_name`), to that one."""
    unknown = states[0].keys() - set(known)
    found = ((name, tied_name(name, known, states)) for name in unknown)
    return {name: tied for name, tied in found if tied is not None}


def tied_name(name: str, known: Iterable[str], states: Sequence[Mapping[str, Tensor]]) -> str | None:
    """The known name of a tensor that has a second one; None if there is none.

    Some files store tied tensors once for each name. A name that is not known, but has the bits of a known one of the
    same kind (`weight`) in all states, is taken to be tied to it; not so where all its entries are equal, as in many
    biases and norms.
    """
    kind = name.rpartition(".")[2]
    alike = (other for other in known if other.rpartition(".")[2] == kind)
    return next((other for other in alike if all(_same(state, name, other) for state in states)), None)


def _same(state: Mapping[str, Tensor], name: str, other: str) -> bool:
    if name not in state or other not in state:
        return False
    one, two = state[name], state[other]
    flat = one.flatten()
    return one is two or not (differs(one, two) or bool((flat == flat[:1]).all()))


def _listed(what: str, names: Sequence[str], *, shown: int = 3) -> str:
    more = ", ..." if len(names) > shown else ""
    return f"{len(names)} {what} ({', '.join(names[:shown])}{more})" if names else ""
