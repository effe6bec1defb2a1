"""phi, budget and overrides: what is trainable, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tgdsurgery import PlanError, TGDPlan, plan_tgd

SIZE = (2, 1, 8, 8)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(stem, nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 3))


def plan(net: nn.Module, **settings: object) -> TGDPlan:
    return plan_tgd(net, torch.zeros(SIZE), **settings)  # type: ignore[arg-type]


def test_strictly_below_phi(net: nn.Module) -> None:
    scores = plan(net)["1"].scores
    at = sorted(score for score in scores if score is not None)[5]
    assert plan(net, phi=at)["1"].mask == tuple(score < at for score in scores if score is not None)


def test_phi_zero_retrains_nothing_and_one_keeps_the_best(net: nn.Module) -> None:
    assert plan(net, phi=0.0).share == 0
    top = plan(net, phi=1.0)
    for name in ("0.0", "1"):
        entry = top[name]
        assert [
            score for score, trainable in zip(entry.scores, entry.mask, strict=True) if not trainable
        ] == [1.0]


def test_output_layer_is_frozen_unless_overridden(net: nn.Module) -> None:
    assert not plan(net, phi=1.0).trainable("3").any()
    assert plan(net, phi=1.0)["3"].scores == (None, None)
    assert plan(net, overrides={"3": "train"}).trainable("3").all()


def test_overrides_by_prefix_the_longest_name_wins(net: nn.Module) -> None:
    mixed = plan(net, overrides={"0": "freeze", "0.1": "train", "1": 1.0})
    assert not mixed.trainable("0.0").any()
    assert mixed.trainable("0.1").all()
    assert mixed["1"].mask == plan(net, phi=1.0)["1"].mask


@given(budget=st.floats(0, 1))
def test_budget_is_kept_and_the_next_score_would_break_it(net: nn.Module, budget: float) -> None:
    chosen = plan(net, budget=budget)

    def share(found: TGDPlan) -> float:
        filters = [entry for entry in found.entries if entry.layer.role == "filter"]
        return sum(e.trainable_entries() for e in filters) / sum(e.entries() for e in filters)

    assert share(chosen) <= budget
    above = {
        score
        for entry in chosen.entries
        for score in entry.scores
        if score is not None and score > chosen.phi
    }
    if above:
        assert share(plan(net, phi=min(above))) > budget


def test_json_both_ways(net: nn.Module) -> None:
    original = plan(net, budget=0.4, overrides={"1": "freeze"})
    assert TGDPlan.from_json(original.to_json()) == original


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', '{"format": "tgdsurgery-plan-1"}'])
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"not a TGD plan.*tgd plan"):
        TGDPlan.from_json(text)


def test_the_table_has_every_layer(net: nn.Module) -> None:
    lines = str(plan(net)).splitlines()
    for name in plan(net).layers:
        assert any(line.split()[0] == name for line in lines if line.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phi": 1.5}, "phi is 1.5"),
        ({"phi": float("nan")}, "phi is nan"),
        ({"phi": "0.3"}, "phi is '0.3'"),
        ({"budget": -0.1}, "budget is -0.1"),
        ({"overrides": {"1": 2}}, "override of '1' is 2"),
        ({"overrides": {"1": "freze"}}, 'override of .1. is .freze.*"train" or "freeze"'),
        ({"overrides": {"stem": "train"}}, "'stem' names no layer"),
        ({"flow": "half"}, "flow is 'half'"),
        ({"norm_stats": "drift"}, "norm_stats is 'drift'"),
        ({"on_unknown": "guess"}, "on_unknown is 'guess'"),
        ({"k": 0}, "k=0"),
        ({"align": 0}, "align is 0"),
        ({"align": 2.0}, "align is 2.0"),
        ({"align": True}, "align is True"),
        ({"alpha": -1.0}, "alpha"),
        ({"budget": 0.0, "overrides": {"1": "train"}}, "above the budget"),
    ],
)
def test_bad_settings_are_refused(net: nn.Module, settings: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(net, **settings)
