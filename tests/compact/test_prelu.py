"""The backward of PReLU by vectorised ops, beside torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.compact.twins import twin_of
from tgdsurgery.surgery.compact.backward_prelu import PReLU

SHAPES = [((3, 4, 5, 5), 4), ((3, 4, 5, 5), 1), ((2, 4, 3, 3, 3), 4), ((6, 4), 4), ((6, 4), 1), ((5,), 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "count"), SHAPES)
def test_gradients_are_those_of_torch(shape, count, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    x.view(-1)[:3] = torch.tensor([0.0, -0.0, 1e-30])
    weight, weights = torch.randn(count, dtype=dtype), torch.randn(shape, dtype=dtype)
    found = []
    for function in (F.prelu, PReLU.apply):
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = function(*leaves)
        found.append((y, *torch.autograd.grad((y * weights).sum(), leaves)))
    (expected, by_input, by_weight), (y, by_input_here, by_weight_here) = found
    assert torch.equal(y, expected)
    assert torch.equal(by_input_here, by_input)
    torch.testing.assert_close(by_weight_here, by_weight)


@pytest.mark.parametrize(("shape", "count"), SHAPES)
def test_second_derivatives(shape, count):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(count, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(PReLU.apply, (x, weight))


def test_one_number_for_all_channels_stays_as_it_is():
    """It is frozen whole where a channel is; its input has a gradient all the same."""
    layer = nn.PReLU()
    twin = twin_of(layer, [False], channel_axis=-1, stops_gradient=False)
    assert not list(twin.parameters())
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (found,) = torch.autograd.grad(twin(x).square().sum(), x)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert torch.equal(found, expected)
