"""`align`: the numbers of trainable channels are multiples, and a budget holds all the same."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.strategies import Case, cases
from tgdsurgery import PlanError, TGDPlan, apply_tgd, plan_of, plan_tgd
from tgdsurgery.mapping.channel_map import map_model
from tgdsurgery.mapping.example_inputs import arguments_for
from tgdsurgery.scoring.decide import make_plan
from tgdsurgery.scoring.gather import score
from tgdsurgery.settings import TGDSettings

X = torch.zeros(1, 1, 16, 16)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(20, 24, 3, groups=2), nn.BatchNorm2d(24), nn.ReLU())
    return nn.Sequential(nn.Conv2d(1, 20, 3), nn.ReLU(), block, nn.Conv2d(24, 2, 3))


def lowest(entry) -> bool:
    """Whether every trainable channel has a score, and none above that of a frozen one."""
    pairs = list(zip(entry.scores, entry.mask, strict=True))
    kept = [value for value, moves in pairs if not moves and value is not None]
    return all(value is not None and value <= min(kept, default=1.0) for value, moves in pairs if moves)


@given(case=cases(), align=st.integers(1, 5), share=st.floats(0, 1), by_budget=st.booleans())
def test_counts_are_multiples_or_whole_layers(case: Case, align: int, share: float, by_budget: bool) -> None:
    mapped = map_model(case.model, arguments_for(case.model, case.inputs), on_unknown="raise")
    scores = score(mapped)
    wanted = {"budget": share} if by_budget else {"phi": share}
    plan = make_plan(mapped.channels, scores, TGDSettings(**wanted, align=align))
    below = make_plan(mapped.channels, scores, TGDSettings(phi=plan.phi))
    for entry, plain in zip(plan.entries, below.entries, strict=True):
        most = sum(value is not None for value in entry.scores)
        assert entry.trainable % align == 0 or entry.trainable == most
        assert lowest(entry)
        gained = entry.trainable - plain.trainable
        assert (-align < gained <= 0) if by_budget else (0 <= gained < align)
        assert plain.trainable or not entry.trainable
    if by_budget:
        assert plan.filter_share <= share
    assert TGDPlan.from_json(plan.to_json()) == plan


def test_a_multiple_takes_the_next_scores(net: nn.Module) -> None:
    plain, plan = plan_tgd(net, X, phi=0.5), plan_tgd(net, X, phi=0.5, align=8)
    for name in ("0", "2.0", "2.1"):
        few, more = plain[name].trainable, plan[name].trainable
        assert 0 < few < more
        assert more % 8 == 0
        assert (plan.trainable(name) | ~plain.trainable(name)).all()
    assert plan["2.0"].mask == plan["2.1"].mask  # a norm keeps to its conv
    assert not plan.trainable("3").any()
    added = sum(plan[name].trainable - plain[name].trainable for name in ("0", "2.0", "3"))
    assert plan.rounding == added
    assert f"in multiples of 8: {added} filters more than below phi" in str(plan)
    assert "multiples" not in str(plain)


def test_a_budget_is_filled_and_kept(net: nn.Module) -> None:
    plain, plan = plan_tgd(net, X, budget=0.4), plan_tgd(net, X, budget=0.4, align=8)
    assert 0 < plan.filter_share <= 0.4
    assert plan.phi >= plain.phi
    assert plan.rounding < 0
    assert f"in multiples of 8: {-plan.rounding} filters fewer than below phi" in str(plan)


def test_overrides_are_followed(net: nn.Module) -> None:
    plan = plan_tgd(net, X, budget=0.4, align=8)
    other = plan.override({"0": 0.5})
    assert other["2.0"] == plan["2.0"]  # which is rounded down
    assert other["0"].trainable == plan_tgd(net, X, phi=0.5, align=8)["0"].trainable
    assert plan.override({"0": "train"}).trainable("0").all()
    assert not plan.override({"0": "freeze"}).trainable("0").any()


def test_a_network_is_made_with_it(net: nn.Module) -> None:
    tgd = apply_tgd(net, X, phi=0.5, align=8)
    assert plan_of(tgd) == plan_tgd(net, X, phi=0.5, align=8)
    assert tgd[0].weight.shape[0] == 20
    assert sorted(len(parameter) for parameter in tgd[0].parameters()) == [plan_of(tgd)["0"].trainable] * 2


def test_a_plan_file_from_before_has_none_and_a_wrong_one_is_refused(net: nn.Module) -> None:
    plan = plan_tgd(net, X)
    stored = json.loads(plan.to_json())
    assert stored.pop("align") == 1
    assert TGDPlan.from_json(json.dumps(stored)) == plan
    with pytest.raises(PlanError, match="align is 0"):
        TGDPlan.from_json(json.dumps({**stored, "align": 0}))
