"""What a model is called with: positional and keyword arguments in one form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tgdsurgery.core.errors import ExampleInputError
from tgdsurgery.core.torch_private import tree_leaves, tree_map_only


class Arguments(NamedTuple):
    """What the model is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def as_arguments(example_inputs: object) -> Arguments:
    """Positional and keyword arguments from a tensor, a tuple or list of positional ones, or a dict of keyword ones.

    Raises:
        ExampleInputError: anything else, or no tensor in it.
    """
    if isinstance(example_inputs, Tensor):
        return Arguments((example_inputs,), {})
    if isinstance(example_inputs, Arguments):
        return example_inputs
    if isinstance(example_inputs, (tuple, list)):
        arguments = Arguments(tuple(example_inputs), {})
    elif isinstance(example_inputs, Mapping):
        arguments = Arguments((), dict(example_inputs))
    else:
        raise ExampleInputError(
            f"example_inputs is a {type(example_inputs).__name__}.",
            "Give a tensor, a tuple of positional arguments, or a dict of keyword arguments.",
        )
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(arguments)):
        raise ExampleInputError("example_inputs holds no tensor.", "Give what you would call the model with.")
    return arguments


def repeated(arguments: Arguments) -> Arguments:
    """The same arguments with every tensor twice along its first axis, for layers that need a batch."""
    twice: Arguments = tree_map_only(Tensor, lambda t: torch.cat([t, t]) if t.dim() else t, arguments)
    return twice
