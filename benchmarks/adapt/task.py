"""What a task is: a pretrained network, new data to adapt it to, and how wrong it is on old and new data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

AT_ONCE = 16  # inputs that are measured together: few stay in the caches

Split = Literal["validation", "test"]
Batch = tuple[Tensor, Tensor]  # inputs and targets


@dataclass(frozen=True)
class Task:
    """A pretrained network and the data it is to be adapted to. Everything is made from fixed seeds.

    Args:
        name: one word, as on the command line.
        title: the same for headings and figures.
        about: what the network, the old and the new data are, for the page: a few sentences of Markdown.
        error: what the errors are, with their unit. Lower is better.
        network: plain, in eval mode, all parameters with requires_grad. Nobody changes it.
        batches: endless batches of new data. The seed draws the small data set that there is to train on, and the
            order of it.
        loss: of outputs and targets, for training; a scalar.
        distance: of outputs and the outputs of another network for the same inputs; a scalar, for distillation.
        errors: the error of a network in eval mode on the old and on the new data.
        steps: how many steps a run has.
        rates: learning rates for Adam that are worth trying, ascending, a factor of about 3 apart.
    """

    name: str
    title: str
    about: str
    error: str
    network: nn.Module
    batches: Callable[[int], Iterator[Batch]]
    loss: Callable[[Tensor, Tensor], Tensor]
    distance: Callable[[Tensor, Tensor], Tensor]
    errors: Callable[[nn.Module, Split], tuple[float, float]]
    steps: int
    rates: tuple[float, ...]


def outputs_of(network: nn.Module, inputs: Tensor) -> Tensor:
    """The network's outputs, a few inputs at a time."""
    with torch.no_grad():
        return torch.cat([network(some) for some in inputs.split(AT_ONCE)])
