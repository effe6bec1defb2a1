"""What an exported network computes, compared with what PyTorch does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tgdsurgery.core.errors import TGDError
from tgdsurgery.core.torch_private import tree_leaves

# Share of the largest output. Sums in another order differ by a millionth; a thousandth is another network.
TOLERANCE = 1e-3
HALF_TOLERANCE = 3e-2
Runner = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class ExportError(TGDError):
    """A network that cannot be exported, or that computes something else afterwards."""


def tensors(output: Any) -> list[Tensor]:
    """All tensors of an output, whatever it is nested in."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def difference(runner: Runner, expected: Sequence[Tensor], inputs: Sequence[Tensor]) -> float:
    """The largest difference between what an exported network computes and what PyTorch did.

    Raises:
        ExportError: another number or shape of outputs, or a difference that no rounding explains.
    """
    found = runner(inputs)
    shapes = [[tuple(tensor.shape) for tensor in outputs] for outputs in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ExportError(
            f"The exported network returns shapes {shapes[0]} instead of {shapes[1]}.",
            "Export another format.",
        )
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if not other.numel():
            continue
        apart = (one.to(torch.float64) - other.to(torch.float64)).abs().nan_to_num(nan=0.0)
        alike = torch.equal(one.isfinite(), other.isfinite())
        most = TOLERANCE if other.element_size() > 2 or not other.is_floating_point() else HALF_TOLERANCE
        scale = float(other.to(torch.float64).nan_to_num(0, 0, 0).abs().max())
        if not alike or float(apart.max()) > most * max(scale, 1e-12):
            raise ExportError(
                f"The exported network's output differs from PyTorch's by {float(apart.max()):.3g}, "
                f"where the largest value is {scale:.3g}.",
                "Export another format, or report the network.",
            )
        worst = max(worst, float(apart.max()))
    return worst
