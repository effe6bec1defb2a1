"""Planned at one size, run at another: nothing of the plan belongs to the size of the example input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tests.laws.subjects import (
    ACCEPTED,
    Method,
    assert_equal_tensors,
    gradients,
    in_both_forms,
    operated,
    with_flags_of,
)
from tests.oracles.gradients import assert_same_gradients, hand_masked_step
from tests.strategies import Case, call, leaves, scalar_loss
from tests.strategies.case import randomise
from tests.topologies import case_of
from tgdsurgery import channel_map

# Networks of the catalogue that do not run on the larger inputs.
ONE_SIZE = {
    "flatten head": "its linear layer has a weight per place",
    "learned position code": "its code has a value per place",
    "norms over channels": "one of its norms has a gain per place",
    "without a batch axis": "its first axis counts channels",
    "convolutional recurrence": "its second axis counts frames, the third channels",
}


def larger(inputs: Any) -> Any:
    """A batch of one more, and twice the size along every axis of space."""

    def draw(x: Tensor) -> Tensor:
        space = [2 * size if size > 1 else size for size in x.shape[2:]]
        return torch.randn(len(x) + 1, *x.shape[1:2], *space, generator=torch.Generator().manual_seed(1))

    return tree_map_only(Tensor, draw, inputs)


def assert_good_at(case: Case, inputs: Any, method: Method) -> None:
    """Raise unless a network planned on the case's inputs is right on the others: output, gradients, statistics.

    The expected gradients are those of the original network with masks put in by hand.
    """
    case = case.double()
    tgd, there = operated(case, method), Case(case.model, inputs).double()
    output = call(tgd, there.inputs)
    scalar_loss(output).backward()
    expected = hand_masked_step(there, tgd.tgd_plan)
    for found, want in zip(leaves(output), leaves(expected.output), strict=True):
        # The oracle normalises by the textbook formula; torch scales and shifts in one step.
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-10)
    assert_same_gradients(gradients(tgd), expected.gradients)
    assert any(gradient.any() for gradient in expected.gradients.values())


@in_both_forms
@pytest.mark.parametrize("name", [name for name in ACCEPTED if name not in ONE_SIZE])
def test_catalogue(name, form):
    case = case_of(name)
    there = Case(case.model, larger(case.inputs))
    tgd = operated(case, Method(form=form))
    plain = with_flags_of(copy.deepcopy(case.model), tgd)
    assert_equal_tensors(leaves(call(tgd, there.inputs)), leaves(call(plain, there.inputs)))
    assert channel_map(case.model, there.inputs) == channel_map(case.model, case.inputs)
    assert_good_at(case.train(), there.inputs, Method(form=form))


class FollowsShapes(nn.Module):
    """Reads sizes wherever a forward does: upsampling to a skip, padding, cropping, pooling, views, new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.norm, self.gate = nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.head = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.silu(self.stem(x))
        batch, channels, height, width = skip.shape
        y = self.norm(self.down(skip))
        gate = self.gate(F.avg_pool2d(y, y.shape[2:]).view(batch, channels)).sigmoid()
        y = F.interpolate(y * gate.view(batch, -1, 1, 1), size=(height, width))
        ones = x.new_ones(batch, 1, height, width)
        both = F.pad(torch.cat([skip, y, ones], 1), (1, 1, 1, 1))
        return self.head(both)[..., 1 : height + 1, 1 : width + 1]


class BranchesOnShape(FollowsShapes):
    """Sizes that do not fit are padded first: control flow that no graph holds."""

    def forward(self, x: Tensor) -> Tensor:
        right, below = -x.shape[-1] % 4, -x.shape[-2] % 4
        if right or below:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        return super().forward(x)


@in_both_forms
@pytest.mark.parametrize("planned", [(2, 3, 8, 8), (1, 3, 5, 7)])
@pytest.mark.parametrize("run", [(3, 3, 8, 8), (2, 3, 12, 4), (2, 3, 6, 9)])
@pytest.mark.parametrize("kind", [FollowsShapes, BranchesOnShape])
def test_forwards_that_read_sizes(kind, planned, run, form):
    torch.manual_seed(0)
    case = Case(randomise(kind(), seed=0).eval(), torch.randn(planned))
    inputs = torch.randn(run)
    tgd = operated(case, Method(form=form))
    assert torch.equal(tgd(inputs), case.model(inputs))
    assert_good_at(case.train(), inputs, Method(form=form))
