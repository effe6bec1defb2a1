"""A network with an input it accepts, and the few things every test does with one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True)
class Case:
    """A model, and an input: a tensor, a tuple of positional arguments or a dict of keyword arguments."""

    model: nn.Module
    inputs: Any

    def double(self) -> Case:
        """The same in float64, for tests whose tolerance should hide nothing; this case stays as it is."""
        return Case(copy.deepcopy(self.model).double(), tree_map_only(Tensor, _to_double, self.inputs))

    def train(self, mode: bool = True) -> Case:
        """The same with every module in training or evaluation mode; this case stays as it is."""
        return Case(copy.deepcopy(self.model).train(mode), self.inputs)

    def __repr__(self) -> str:
        shapes = tree_map_only(Tensor, lambda leaf: tuple(leaf.shape), self.inputs)
        return f"Case(inputs={shapes}, model={self.model})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis prints failing examples by this."""
        printer.text(repr(self))


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output for the inputs of a case; the same random numbers (dropout) every time."""
    inputs = tree_map_only(Tensor, torch.clone, inputs)  # some models write to them
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def leaves(output: Any) -> list[Tensor]:
    """All tensors of an output, whatever it is nested in."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def scalar_loss(output: Any) -> Tensor:
    """A loss that weighs every output element differently: no two gradients agree by symmetry."""
    total = torch.zeros(())
    for leaf in leaves(output):
        weights = torch.cos(torch.arange(leaf.numel(), dtype=leaf.dtype)).view(leaf.shape)
        total = total.to(leaf.dtype) + (leaf * weights).sum() + leaf.square().mean()
    return total


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter and running statistic anew, norm affines too: nothing is 0 or 1 by default."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data.normal_(std=fan_in**-0.5, generator=generator)
        else:
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.data.uniform_(0.5, 1.5, generator=generator).mul_(signs)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.5, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
    return model


def _to_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
