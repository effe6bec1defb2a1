"""Arguments that may be None: planned with one set of them, called with another."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.laws.subjects import in_both_forms, with_flags_of
from tests.strategies.case import randomise
from tests.topologies.interfaces import OptionalMask
from tgdsurgery import apply_tgd

X, MASK, GAIN = torch.randn(2, 3, 6, 6), torch.randn(2, 1, 6, 6), torch.randn(4)


class OwnGain(nn.Module):
    """Where no gain is given its own is used; the function that takes it would accept None as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.register_buffer("gain", torch.rand(4))

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        if gain is None:
            gain = self.gain
        return self.head(F.group_norm(self.stem(x), 2, gain))


WAYS = {"left out": (X,), "None": (X, None), "given": (X, MASK)}


def assert_same(
    model: nn.Module, planned: object, args: tuple[object, ...], kwargs: dict[str, object], form: str
) -> None:
    tgd = apply_tgd(randomise(model, seed=0).eval(), planned, phi=0.9, form=form)
    assert 0 < tgd.tgd_plan.share < 1
    expected = with_flags_of(model, tgd)(*args, **kwargs)
    assert torch.equal(tgd(*args, **kwargs), expected)


@in_both_forms
@pytest.mark.parametrize("called", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("planned", [WAYS["left out"], WAYS["None"]], ids=["left out", "None"])
def test_planned_without(planned, called, form):
    assert_same(OptionalMask(), planned, called, {}, form)
    by_name = dict(zip(("image", "mask"), called, strict=False))
    assert_same(OptionalMask(), planned, (), by_name, form)
    assert_same(OptionalMask(), dict(zip(("image", "mask"), planned, strict=False)), (), by_name, form)


@in_both_forms
@pytest.mark.parametrize("called", WAYS.values(), ids=WAYS)
def test_planned_with(called, form):
    assert_same(OptionalMask(), WAYS["given"], called, {}, form)
    by_name = dict(zip(("image", "mask"), called, strict=False))
    assert_same(OptionalMask(), {"image": X, "mask": MASK}, (), by_name, form)


@in_both_forms
@pytest.mark.parametrize("called", [(X,), (X, None), (X, 2 * GAIN)], ids=WAYS)
@pytest.mark.parametrize("planned", [(X,), (X, None), (X, GAIN)], ids=WAYS)
def test_a_default_that_the_forward_fills_in(planned, called, form):
    """Nothing fails here where a recorded forward has forgotten the default: the output is just another one."""
    assert_same(OwnGain(), planned, called, {}, form)
