"""A plan is a thing: changed, stored, applied, found again, and compared between processes."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import warnings
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn

from tgdsurgery import (
    PlanError,
    PlanWarning,
    RewriteError,
    TGDPlan,
    TGDSettings,
    apply_tgd,
    plan_of,
    plan_tgd,
    remove_tgd,
    verify,
)
from tgdsurgery.training import ranks

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
in_both_forms = pytest.mark.parametrize("form", ["compact", "layers"])


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(stem, nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 3))


class TestOverride:
    def test_is_what_planning_with_the_override_gives(self, net):
        plan = plan_tgd(net, X, phi=0.5)
        for overrides in ({"1": "freeze"}, {"0": "train"}, {"1": 0.9, "0.0": "train"}, {"3": "train"}):
            assert plan.override(overrides) == plan_tgd(net, X, phi=0.5, overrides=overrides)

    def test_adds_to_earlier_overrides(self, net):
        plan = plan_tgd(net, X, overrides={"0": "freeze"}).override({"1": "train"})
        assert plan.overrides == {"0": "freeze", "1": "train"}
        assert not plan.trainable("0.0").any()
        assert plan.trainable("1").all()

    def test_keeps_the_phi_of_a_budget_but_no_budget(self, net):
        plan = plan_tgd(net, X, budget=0.4)
        other = plan.override({"1": "train"})
        assert (other.phi, other.budget) == (plan.phi, None)
        assert other["0.0"].mask == plan["0.0"].mask

    def test_the_plan_itself_does_not_change(self, net):
        plan = plan_tgd(net, X)
        text = plan.to_json()
        plan.override({"1": "train"})
        assert plan.to_json() == text

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [({"stem": "train"}, "names no layer"), ({"1": 2}, "is 2"), ({"1": "frozen"}, "'frozen'")],
    )
    def test_bad_overrides_are_refused(self, net, overrides, message):
        with pytest.raises(PlanError, match=message):
            plan_tgd(net, X).override(overrides)


class TestApply:
    @in_both_forms
    def test_a_plan_from_a_file_gives_the_same_network(self, net, form):
        plan = plan_tgd(net, X, budget=0.4, flow="full", norm_stats="batch")
        stored = TGDPlan.from_json(plan.to_json())
        tgd = apply_tgd(net, X, plan=stored, form=form)
        short = apply_tgd(net, X, budget=0.4, flow="full", norm_stats="batch", form=form)
        assert plan_of(tgd) == plan == plan_of(short)
        shapes = [[p.shape for p in each.parameters()] for each in (tgd, short)]
        assert shapes[0] == shapes[1]

    def test_settings_beside_a_plan_are_refused(self, net):
        plan = plan_tgd(net, X)
        for settings in ({"phi": 0.2}, {"budget": 0.5}, {"flow": "masked"}, {"overrides": {"1": "train"}}):
            with pytest.raises(PlanError, match=f"plan and {next(iter(settings))} are both given"):
                apply_tgd(net, X, plan=plan, **settings)

    def test_another_networks_plan_is_refused(self, net):
        with pytest.raises(RewriteError, match="does not fit"):
            apply_tgd(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 3)), X, plan=plan_tgd(net, X))

    def test_a_plan_that_mixed_is_applied_without_asking_again(self, net):
        @torch.library.custom_op("tests::plain_copy", mutates_args=())
        def plain_copy(x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        class Copying(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return plain_copy(x)

        model = nn.Sequential(net, nn.Conv2d(2, 4, 1), Copying(), nn.Conv2d(4, 1, 1))
        plan = plan_tgd(model, X, on_unknown="mix", overrides={"1": "train"})
        assert plan.mixed
        assert plan_of(apply_tgd(model, X, plan=plan, form="layers")) == plan

    @pytest.mark.parametrize("form", ["literal", None, True])
    def test_an_unknown_form_is_refused(self, net, form):
        with pytest.raises(PlanError, match="'compact' or 'layers'"):
            apply_tgd(net, X, form=form)


class TestPlanOf:
    @in_both_forms
    def test_is_found_through_wrappers(self, net, form):
        tgd = apply_tgd(net, X, phi=0.5, form=form)
        for wrapped in (tgd, nn.DataParallel(tgd), torch.compile(tgd, backend="eager")):
            assert plan_of(wrapped).phi == 0.5

    def test_a_plain_network_has_none(self, net):
        with pytest.raises(RewriteError, match="apply_tgd"):
            plan_of(net)


class TestVerify:
    @in_both_forms
    def test_takes_the_plan_of_the_network(self, net, form):
        tgd = apply_tgd(net, X, phi=0.5, form=form)
        assert verify(net, tgd).ok
        assert verify(net, tgd) == verify(net, tgd, plan_of(tgd))
        assert verify(tgd, net).ok
        plain = remove_tgd(tgd)
        with torch.no_grad():
            plain[1].weight += 1
        assert not verify(tgd, plain).ok

    def test_asks_for_a_plan_where_there_is_none(self, net):
        with pytest.raises(RewriteError, match=r"verify\(before, after, plan\)"):
            verify(net, net.state_dict())


class TestFrozenByTheUser:
    @in_both_forms
    def test_counts_as_frozen_in_plan_and_budget(self, net, form):
        net[1].requires_grad_(False)
        with pytest.warns(PlanWarning, match=r"1 of 4 layers stay frozen, .*requires_grad=False: 1\."):
            tgd = apply_tgd(net, X, phi=1.0, overrides={"1": "train"}, form=form)
        plan = plan_of(tgd)
        assert not plan.trainable("1").any()
        assert plan.trainable("0.0").any()
        filters = [entry for entry in plan.entries if entry.layer.role == "filter"]
        assert plan.filter_share == plan["0.0"].trainable_entries() / sum(e.entries() for e in filters)
        assert not remove_tgd(tgd)[1].weight.requires_grad

    def test_a_frozen_bias_leaves_the_weight_trainable(self, net):
        net[1].bias.requires_grad_(False)
        plan = plan_tgd(net, X, phi=1.0)
        assert plan.trainable("1").any()
        masks = plan.parameter_masks()
        assert masks["1.weight"].any()
        assert not masks["1.bias"].any()
        assert plan["1"].trainable_entries() == 8 * 9 * plan["1"].trainable

    def test_survives_the_way_through_a_file(self, net):
        net[1].requires_grad_(False)
        plan = plan_tgd(net, X, phi=1.0)
        assert TGDPlan.from_json(plan.to_json()) == plan
        assert not plan.override({"1": "train"}).trainable("1").any()


class TestWarnings:
    def test_nothing_is_trained(self, net):
        with pytest.warns(PlanWarning, match=r"trains none of the filter parameters.*budget=0.25"):
            plan_tgd(net, X, phi=0.0)

    def test_next_to_nothing_is_trained(self, net):
        with pytest.warns(PlanWarning, match=r"only 0\.\d\d% of the filter parameters"):
            plan_tgd(net, X, phi=0.0, overrides={"0.0": 1e-9, "3": 0.0, "1": least(net)})

    def test_else_there_is_none(self, net):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            apply_tgd(net, X, phi=0.5)

    def test_they_point_at_the_callers_line(self, net):
        with pytest.warns(PlanWarning) as found:
            plan_tgd(net, X, phi=0.0)
        assert found[0].filename == __file__


def least(net: nn.Module) -> float:
    """A phi below which exactly one filter of the wide layer scores; it alone is not one hundredth."""
    net[1] = nn.Conv2d(8, 200, 3)
    net[3] = nn.Conv2d(200, 2, 3)
    scores = sorted(score for score in plan_tgd(net, X)["1"].scores if score is not None)
    return (scores[0] + scores[1]) / 2


def test_settings_are_checked_when_they_are_made():
    with pytest.raises(PlanError, match="phi is 2"):
        TGDSettings(phi=2)


class TestRanks:
    """What `agree_on` does with the key-value store of a process group; two processes: tests/distributed."""

    @pytest.fixture
    def group(self, monkeypatch):
        store = distributed.HashStore()
        monkeypatch.setattr(ranks, "default_store", lambda: store)
        monkeypatch.setattr(ranks.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(ranks.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(ranks.distributed, "get_rank", lambda: threading.current_thread().name == "other")
        monkeypatch.setattr(ranks, "_rounds", iter([0, 0, 1, 1]))
        monkeypatch.setattr(ranks, "MAX_WAIT", timedelta(seconds=5))

    def outcomes(self, *plans):
        found = {}

        def run(name, plan):
            try:
                found[name] = ranks.agree_on(plan)
            except PlanError as error:
                found[name] = error

        threads = [
            threading.Thread(target=run, args=each, name=each[0])
            for each in zip(("one", "other"), plans, strict=False)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def test_equal_plans_agree(self, group, net):
        plan = plan_tgd(net, X)
        assert self.outcomes(plan, TGDPlan.from_json(plan.to_json())) == {"one": None, "other": None}

    def test_different_plans_are_an_error_in_both(self, group, net):
        found = self.outcomes(plan_tgd(net, X), plan_tgd(net, X, phi=0.9))
        assert all("different plans" in str(error) for error in found.values())

    def test_one_that_does_not_come_is_an_error_and_no_hang(self, group, net, monkeypatch):
        monkeypatch.setattr(ranks, "MAX_WAIT", timedelta(seconds=0.2))
        assert "did not call apply_tgd" in str(self.outcomes(plan_tgd(net, X))["one"])


class TestPlanFiles:
    """A plan is read from anybody's file: what does not fit is one clear error."""

    @pytest.mark.parametrize(
        ("where", "value"),
        [
            (("phi",), "0.3"),
            (("phi",), 7),
            (("phi",), None),
            (("k",), 2.5),
            (("flow",), "half"),
            (("extra",), 1),
            (("overrides",), {"1": "thaw"}),
            (("entries",), {}),
            (("entries", 0, "mask"), [1, 0]),
            (("entries", 0, "mask"), [True]),
            (("entries", 0, "scores"), [0.5]),
            (("entries", 0, "layer", "channels"), 2**40),
            (("entries", 0, "layer", "role"), "carrier"),
            (("entries", 0, "layer", "parameters", 0, "shape"), [2**40, 1, 3, 3]),
            (("entries", 0, "layer", "parameters", 0, "axis"), 9),
            (("entries", 0, "layer", "parameters", 0, "groups"), 0),
            (
                ("entries", 0, "layer", "parameters", 0),
                {"name": "0.0.weight", "shape": [4, 1, 3, 3], "axis": 1, "groups": 8, "requires_grad": True},
            ),
            (("entries", 0, "layer", "name"), ["0"]),
        ],
        ids=str,
    )
    def test_a_wrong_value_is_refused(self, net, where, value):
        data = json.loads(plan_tgd(net, X).to_json())
        *path, last = where
        inside = data
        for key in path:
            inside = inside[key]
        inside[last] = value
        with pytest.raises(PlanError) as raised:
            TGDPlan.from_json(json.dumps(data))
        assert len(str(raised.value)) < 500

    @pytest.mark.parametrize(
        "text", ["[" * 100_000, "NaN", '{"format": "tgdsurgery-plan-2"}', "\ud800", "{" * 9]
    )
    def test_a_text_that_is_no_plan_is_refused(self, text):
        with pytest.raises(PlanError, match="not a TGD plan"):
            TGDPlan.from_json(text)


class TestDigest:
    def test_is_that_of_what_is_decided(self, net):
        plan = plan_tgd(net, X, overrides={"1": 0.5, "0": "train"})
        entry = plan.entries[0]
        nudged = tuple(None if s is None else math.nextafter(s, 2) for s in entry.scores)
        for same in (
            plan_tgd(net, X, overrides={"0": "train", "1": 0.5}),
            dataclasses.replace(plan, entries=(dataclasses.replace(entry, scores=nudged), *plan.entries[1:])),
            TGDPlan.from_json(plan.to_json()),
        ):
            assert same.digest == plan.digest

    def test_differs_with_every_decision(self, net):
        plan = plan_tgd(net, X, phi=0.5)
        others = [
            plan.override({"1": "freeze"}),
            dataclasses.replace(plan, flow="masked"),
            dataclasses.replace(plan, norm_stats="batch"),
        ]
        assert len({plan.digest, *(other.digest for other in others)}) == 4


def test_a_plan_with_two_layers_of_one_name_is_refused(net):
    data = json.loads(plan_tgd(net, X).to_json())
    data["entries"].append(data["entries"][0])
    with pytest.raises(PlanError, match="two layers of one name"):
        TGDPlan.from_json(json.dumps(data))
