"""Where a convolution has the compact backward, and where the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import nn

from tests.compact.twins import twin_of
from tgdsurgery.surgery.compact import gain

PER_CALL = 4_000_000  # as it is outside of tests


@pytest.fixture(autouse=True)
def calls_count() -> Iterator[None]:
    with mock.patch.object(gain, "PER_CALL", PER_CALL):
        yield


def gathers(conv: nn.Module, share: float, pixels: int, *, stops_gradient: bool) -> bool:
    size = conv.out_channels
    twin = twin_of(conv, [n < share * size for n in range(size)], stops_gradient=stops_gradient)
    return twin._tgd_gain.pays(pixels, True)


@pytest.mark.parametrize("stops_gradient", [True, False])
def test_it_is_compact_where_many_products_are_saved(stops_gradient):
    assert gathers(nn.Conv2d(64, 64, 3), 0.25, 4096, stops_gradient=stops_gradient)
    assert gathers(nn.Conv2d(256, 64, 1), 0.25, 4096, stops_gradient=stops_gradient)
    assert gathers(nn.Conv2d(144, 144, 5, groups=144), 0.25, 8192, stops_gradient=stops_gradient)


@pytest.mark.parametrize("stops_gradient", [True, False])
def test_it_is_plain_where_calls_take_longer_than_the_products(stops_gradient):
    assert not gathers(nn.Conv2d(480, 20, 1), 0.25, 8, stops_gradient=stops_gradient)


def test_it_is_plain_where_nearly_all_is_gathered_and_little_is_saved():
    assert not gathers(nn.Conv2d(64, 64, 3), 0.9, 4096, stops_gradient=False)
    assert not gathers(nn.Conv2d(16, 96, 1), 0.5, 32768, stops_gradient=False)
    assert not gathers(nn.Conv2d(96, 96, 3, groups=96), 0.9, 32768, stops_gradient=True)


def test_it_is_compact_where_few_pixels_meet_a_large_weight():
    """The plain backward takes a copy of the weight, and the gradient of all of it."""
    assert gathers(nn.Conv2d(512, 512, 3), 0.9, 8, stops_gradient=False)


def test_it_is_plain_where_groups_have_unequal_numbers_of_trainable_channels():
    twin = twin_of(nn.Conv2d(64, 64, 3, groups=2), [True] * 33 + [False] * 31)
    assert twin._tgd_gain is None
    assert torch.isfinite(twin(torch.randn(1, 64, 4, 4))).all()
