"""Tensors by name, loaded into a network, or named as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from tgdsurgery.core.errors import CheckpointError


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
        missing, unexpected = model.load_state_dict(with_names(state, model.state_dict()), strict=False)
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


def with_names(state: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
    """The state without a prefix (Lightning's `model.`, say) that keeps it from having these names.

    >>> list(with_names({"model.conv.weight": Tensor()}, ["conv.weight"]))
    ['conv.weight']
    """
    prefix = next(iter(state), "").partition(".")[0] + "."
    bare = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    wrapped = all(name.startswith(prefix) for name in state)
    return bare if wrapped and all(name in bare for name in names) else state


def _listed(what: str, names: Sequence[str], *, shown: int = 3) -> str:
    more = ", ..." if len(names) > shown else ""
    return f"{len(names)} {what} ({', '.join(names[:shown])}{more})" if names else ""
