"""Keep what a network said before it was adapted: distillation of its own outputs on the new inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Distance = Callable[[Tensor, Tensor], Tensor]


class Distillation:
    """A term of the loss that holds the outputs close to those of the network before adaptation.

    It needs no old data: the teacher sees the new inputs only.

    Args:
        teacher: the network before adaptation; a copy of it is kept, in eval mode.
        weight: of the term, relative to a loss of the same scale.
        distance: of the outputs and the teacher's, to a scalar.

    Reference:
        Li and Hoiem: Learning without Forgetting, ECCV 2016 (section 3; there the outputs are those of old classes).

    Example:
        >>> base = nn.Conv2d(1, 1, 3, padding=1)
        >>> keep = Distillation(base, weight=0.5)
        >>> image = torch.rand(2, 1, 8, 8)
        >>> keep(image, base(image)).item()
        0.0
    """

    def __init__(self, teacher: nn.Module, weight: float = 1.0, distance: Distance = F.mse_loss) -> None:
        self._teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self._weight, self._distance = weight, distance

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The weighted distance of `outputs`, which the network in training made of `inputs`, from the teacher's."""
        with torch.no_grad():
            before = self._teacher(inputs)
        return self._weight * self._distance(outputs, before)
