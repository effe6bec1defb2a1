"""Sampled flow is an unbiased estimate of the gradient of the loss."""

from __future__ import annotations

from itertools import combinations, product
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.adapt import sampled
from tgdsurgery import apply_tgd


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 3), (3, 4), (4, 3)):
        layers += [nn.Conv2d(inputs, outputs, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(3, 1, 3)).double()


def gradients(tgd: nn.Module, x: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(tgd(x).square().sum(), list(tgd.parameters()))
    return list(found)


def test_the_mean_over_all_draws_is_the_gradient_of_the_loss() -> None:
    tgd = apply_tgd(network(), phi=0.9, flow="full")
    x = torch.rand(2, 1, 12, 12, dtype=torch.float64)
    exact = gradients(tgd, x)
    # The backward comes to the third convolution first. The first needs no input gradient, the last is frozen.
    draws = list(product(combinations(range(3), 2), combinations(range(4), 2)))
    found = []
    for draw in draws:
        given = iter([torch.tensor(rows) for rows in draw])
        with (
            mock.patch.object(sampled, "drawn", lambda count, share, generator, given=given: next(given)),
            sampled.sampling(0.5, torch.Generator()),
        ):
            found.append(gradients(tgd, x))
        assert next(given, None) is None
    for parameter, each in zip(exact, zip(*found, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(each).mean(0), parameter, rtol=1e-10, atol=1e-12)
    first = torch.stack([one[0] for one in found])
    assert first.std(0).max() > 0  # the draws do differ


def test_every_channel_is_drawn_as_often_as_every_other() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(8)
    for _ in range(4000):
        rows = sampled.drawn(8, 0.25, generator)
        assert len(rows) == len(rows.unique()) == 2
        counts[rows] += 1
    assert (counts / 4000 - 0.25).abs().max() < 0.04  # five standard deviations


def test_masked_flow_and_no_share_stay_as_they_are() -> None:
    x = torch.rand(2, 1, 12, 12, dtype=torch.float64)
    for flow, share in (("masked", 0.5), ("full", None)):
        tgd = apply_tgd(network(), phi=0.9, flow=flow)  # type: ignore[arg-type]
        exact = gradients(tgd, x)
        with sampled.sampling(share, torch.Generator()):
            assert all(torch.equal(*pair) for pair in zip(gradients(tgd, x), exact, strict=True))
