"""Twins for layer classes of one's own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.laws.subjects import assert_equal_tensors, gradients
from tests.strategies.case import randomise, scalar_loss
from tgdsurgery import RewriteError, TGDWarning, apply_tgd, register_compact, remove_tgd, verify
from tgdsurgery.surgery.compact import Assembled, Compact, CompactConv, registry

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


class Doubled(nn.Conv2d):
    """A layer of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class CompactDoubled(CompactConv):
    """With the backward of the built-in twin."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class PlainDoubled(Compact, Doubled):
    """With the plain backward; the layer's class is among its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self._conv_forward(self._tgd_stopped(x), self._tgd_full("weight"), self._tgd_full("bias"))


class WrongDoubled(CompactConv):
    """Forgets what the layer does."""


class LateDoubled(Doubled, Compact):
    """The layer's own forward comes first."""


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The registry."""
    monkeypatch.setattr(registry, "TWINS", registry.TWINS)
    before = dict(registry.TWINS)
    yield
    registry.TWINS.clear()
    registry.TWINS.update(before)


def network() -> nn.Module:
    return randomise(
        nn.Sequential(Doubled(3, 6, 3), nn.ReLU(), Doubled(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)), seed=0
    ).double()


def after_a_backward(**settings: object) -> nn.Module:
    tgd = apply_tgd(network(), X, phi=0.5, flow="full", **settings)
    scalar_loss(tgd(X)).backward()
    return tgd


@pytest.mark.parametrize("twin", [CompactDoubled, PlainDoubled])
def test_a_twin_of_ones_own(twin: type[Compact]):
    register_compact(Doubled, twin)
    tgd, layered = after_a_backward(), after_a_backward(form="layers")
    assert isinstance(tgd[2], twin)
    assert isinstance(tgd[2], Doubled)
    for name, gradient in gradients(layered).items():
        torch.testing.assert_close(gradients(tgd)[name], gradient, rtol=1e-9, atol=1e-12)
    for other in (tgd, copy.deepcopy(tgd), pickle.loads(pickle.dumps(tgd))):
        assert type(other[2]) is type(tgd[2])
        assert_equal_tensors(other.state_dict(), tgd.state_dict())
        assert torch.equal(other(X), tgd(X))
    with torch.no_grad():
        for parameter in tgd.parameters():
            parameter.add_(1)
    assert verify(network(), tgd).ok
    plain = remove_tgd(tgd)
    assert type(plain[2]) is Doubled
    assert_equal_tensors(plain.state_dict(), tgd.state_dict())


def test_without_one_the_weight_is_put_together():
    assert isinstance(after_a_backward()[2], Assembled)


def test_a_twin_that_computes_something_else_is_not_used():
    register_compact(Doubled, WrongDoubled)
    with pytest.warns(TGDWarning, match="With compact layers this Sequential is not the same network"):
        tgd = after_a_backward()
    assert isinstance(tgd[2], Assembled)
    assert torch.equal(tgd(X), network()(X))


@pytest.mark.parametrize(
    ("layer_class", "twin", "problem"),
    [
        (F.conv2d, CompactConv, "is not an nn.Module class"),
        (Tensor, CompactConv, "is not an nn.Module class"),
        (Doubled, Doubled, "does not inherit from Compact"),
        (Doubled, "CompactDoubled", "does not inherit from Compact"),
        (Doubled, LateDoubled, "inherits from Doubled before Compact"),
        (CompactDoubled, CompactDoubled, "CompactDoubled"),
    ],
)
def test_wrong_pairs(layer_class: object, twin: object, problem: str):
    before = dict(registry.TWINS)
    with pytest.raises(RewriteError, match=f"{problem}.*Give a layer class"):
        register_compact(layer_class, twin)
    assert before == registry.TWINS
