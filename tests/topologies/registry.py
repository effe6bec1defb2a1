"""Named networks: a factory each, and an input it accepts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from tests.strategies.case import Case, randomise

Factory = Callable[[], nn.Module]


class Topology(NamedTuple):
    """How to build a network, and an input: shapes in the structure its forward takes."""

    factory: Factory
    inputs: Any


TOPOLOGIES: dict[str, Topology] = {}
# Networks that overwrite what a backward pass would need: only their map can be looked at.
FORWARD_ONLY: dict[str, Topology] = {}
IMAGE = (2, 3, 6, 6)


def topology(name: str, inputs: Any = IMAGE, *, trains: bool = True) -> Callable[[Factory], Factory]:
    """Register a network under a name.

    Args:
        name: what the network is about.
        inputs: a shape, a list of inputs (positional) or a dict of inputs (keywords); None for None.
        trains: whether its backward pass runs.
    """

    def register(factory: Factory) -> Factory:
        if name in TOPOLOGIES | FORWARD_ONLY:
            raise ValueError(f"two topologies are called {name!r}")
        (TOPOLOGIES if trains else FORWARD_ONLY)[name] = Topology(factory, inputs)
        return factory

    return register


def case_of(name: str) -> Case:
    """The network of that name in evaluation mode, with weights and an input that are always the same."""
    factory, shapes = (TOPOLOGIES | FORWARD_ONLY)[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = randomise(factory(), seed=0).eval()
        drawn = drawn_like(shapes)
    return Case(model, tuple(drawn) if isinstance(drawn, list) else drawn)


def drawn_like(shapes: Any) -> Any:
    """Random tensors in place of the shapes (tuples), in the same nested lists and dicts."""
    if isinstance(shapes, dict):
        return {key: drawn_like(inner) for key, inner in shapes.items()}
    if isinstance(shapes, list):
        return [drawn_like(inner) for inner in shapes]
    return None if shapes is None else torch.randn(shapes)
