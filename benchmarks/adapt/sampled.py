"""Sampled flow, tried and timed: an unbiased estimate of the gradient of the loss, for less than its price.

The gradient of the rows of a convolution comes from the exact gradient at its output. The gradient at its *input*,
which goes on to earlier layers, comes from a share p of the output channels, drawn anew in each backward, times 1/p.
The mean over the draws is the exact gradient.

It is part of this benchmark and not of the library; docs/adapting.md says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tgdsurgery.surgery.compact import backward_conv, gain
from tgdsurgery.surgery.compact.channels import select


def sampling(share: float | None, generator: torch.Generator) -> contextlib.AbstractContextManager[object]:
    """For a while, convolutions in the compact form with `flow="full"` hand on a sampled gradient.

    The forward has to be in it, too. With None for the share they do not. Depthwise ones never do: they are a small
    part of a step.
    """
    if share is None:
        return contextlib.nullcontext()
    return _patched(share, generator)


@contextlib.contextmanager
def _patched(share: float, generator: torch.Generator) -> Iterator[None]:
    exact = backward_conv._input_gradient

    def sampled(
        ctx: Any, gradient: Tensor, weight: Tensor, read: Tensor | None, needs: Tensor | None
    ) -> Tensor:
        if ctx.stops_gradient or ctx.geometry.groups > 1:
            return exact(ctx, gradient, weight, read, needs)
        rows = drawn(gradient.shape[1], share, generator)
        scale = gradient.shape[1] / len(rows)
        axis = 1 if ctx.geometry.transposed else 0
        return exact(ctx, select(gradient, rows) * scale, weight.index_select(axis, rows), read, needs)

    # The library takes the plain backward where a compact one does not pay.
    always = mock.patch.object(gain.Gain, "pays", return_value=True)
    with always, mock.patch.object(backward_conv, "_input_gradient", sampled):
        yield


def drawn(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Which channels: a share of them, at least one, all alike and none twice."""
    return torch.randperm(count, generator=generator)[: max(1, round(share * count))]
