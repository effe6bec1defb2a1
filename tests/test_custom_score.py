"""A function of the user's own scores the channels in place of KSE."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from torch import Tensor, nn

from tgdsurgery import (
    PlanError,
    TGDPlan,
    TGDSettings,
    apply_tgd,
    kse,
    load_delta,
    plan_of,
    plan_tgd,
    save_delta,
    sweep_phi,
)


class Net(nn.Module):
    """A grouped conv, a transposed conv with groups, a linear layer after a flatten, and one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.up, self.hidden = nn.ConvTranspose2d(6, 4, 2, 2, groups=2), nn.Linear(4 * 16, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(torch.relu(self.grouped(torch.relu(self.stem(x)))))
        return self.out(torch.relu(self.hidden(torch.relu(y).flatten(1))))


X = torch.randn(2, 1, 2, 2)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def own_kse(module: nn.Module, weight: Tensor) -> Tensor:
    return kse(weight, groups=getattr(module, "groups", 1), transposed=isinstance(module, nn.ConvTranspose2d))


def test_a_score_that_computes_kse_gives_the_same_plan(net):
    default, own = plan_tgd(net, X, phi=0.6), plan_tgd(net, X, phi=0.6, score=own_kse)
    assert own.entries == default.entries
    assert (default.score, own.score) == ("KSE", "own_kse")


def test_it_sees_the_layers_of_the_model_and_their_weights(net):
    seen = {}

    def constant(module: nn.Module, weight: Tensor) -> Tensor:
        seen[module] = tuple(weight.shape)
        assert not weight.requires_grad
        return torch.ones(
            weight.shape[0] if module is net.up else weight.shape[1] * getattr(module, "groups", 1)
        )

    plan_tgd(net, X, budget=0.5, score=constant)
    shapes = [(4, 1, 3, 3), (6, 2, 3, 3), (6, 2, 2, 2), (5, 4, 16), (2, 5)]
    assert seen == dict(zip([net.stem, net.grouped, net.up, net.hidden, net.out], shapes, strict=True))


def test_the_channels_it_scores_least_are_retrained(net):
    def rising(module: nn.Module, weight: Tensor) -> Tensor:
        return torch.linspace(
            0, 1, weight.shape[0] if module is net.up else getattr(module, "in_channels", weight.shape[1])
        )

    tgd = apply_tgd(net, X, phi=0.5, score=rising)
    plan = plan_of(tgd)
    assert plan.trainable("stem").tolist() == [True, True, False, False]
    assert plan.trainable("grouped").tolist() == [True] * 3 + [False] * 3
    assert plan.trainable("up").tolist() == [True, True, False, False]
    assert plan.trainable("hidden").tolist() == [True, True, False, False, False]
    assert torch.equal(tgd(X), net(X))


def test_a_weight_without_a_module_of_its_own_is_scored_with_the_module_that_has_it():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels = nn.Parameter(torch.randn(3, 1, 3, 3))
            self.head = nn.Conv2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.conv2d(x, self.kernels, padding=1))

    net, seen = Functional(), []

    def ones(module: nn.Module, weight: Tensor) -> Tensor:
        seen.append(module)
        return torch.ones(weight.shape[1])

    plan_tgd(net, torch.randn(1, 1, 4, 4), overrides={"kernels": "train"}, score=ones)
    assert seen == [net, net.head]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda count: torch.ones(count + 1),
            r"'stem' is torch.float32 \(2,\), not a real tensor of shape \(1,\)",
        ),
        (lambda count: torch.ones(count, 1), r"\(1, 1\), not"),
        (lambda count: torch.ones(count, dtype=torch.int64), "torch.int64"),
        (lambda count: [1.0] * count, "is list"),
        (lambda count: torch.full((count,), torch.nan), "'stem' has nan"),
        (lambda count: torch.full((count,), -0.5), "'stem' has -0.5"),
        (lambda count: torch.full((count,), torch.inf), "'stem' has inf"),
    ],
)
def test_what_is_no_score_is_refused_by_the_name_of_its_layer(net, made, message):
    with pytest.raises(PlanError, match=message) as caught:
        plan_tgd(net, X, score=lambda module, weight: made(weight.shape[1]))
    assert "one number in [0, 1] for each input channel" in caught.value.remedy


def test_the_settings_of_kse_and_what_cannot_be_called_are_refused(net):
    for settings in ({"k": 3}, {"alpha": 0.5}):
        with pytest.raises(PlanError, match="k and alpha are settings of KSE"):
            plan_tgd(net, X, score=own_kse, **settings)
    with pytest.raises(PlanError, match="score is 'l1'"):
        TGDSettings(score="l1")
    with pytest.raises(PlanError, match="plan and score are both given"):
        apply_tgd(net, X, plan=plan_tgd(net, X), score=own_kse)


class TestTheThresholdStudy:
    def test_scores_by_it(self, net):
        def constant(module: nn.Module, weight: Tensor) -> Tensor:
            return torch.full_like(own_kse(module, weight), 0.5)

        def distance(candidate: nn.Module) -> float:
            return 1 + (candidate(X) - net(X)).norm().item()

        rows = sweep_phi(net, distance, [0.5, 0.6], X, score=constant).rows
        everything = plan_tgd(net, X, phi=0.6, score=constant)
        assert [row.dropped for row in rows] == [0, everything.share]
        assert rows[0].value == 1 < rows[1].value
        by_kse, same = (sweep_phi(net, distance, [0.6], X, score=score) for score in (None, own_kse))
        assert by_kse == same

    def test_refuses_what_is_no_score(self, net):
        with pytest.raises(PlanError, match=r"'stem' is torch.float32 \(7,\)"):
            sweep_phi(net, lambda net: 1.0, [0.5], X, score=lambda module, weight: torch.ones(7))
        with pytest.raises(PlanError, match="k and alpha are settings of KSE"):
            sweep_phi(net, lambda net: 1.0, [0.5], X, score=own_kse, k=3)


class TestThePlanNamesIt:
    def test_in_print_and_in_its_file(self, net):
        plan = plan_tgd(net, X, phi=0.6, score=own_kse)
        assert "phi 0.6, scored by own_kse" in str(plan)
        assert "scored by" not in str(plan_tgd(net, X, phi=0.6))
        assert TGDPlan.from_json(plan.to_json()) == plan
        assert plan.override({"stem": "train"}).score == "own_kse"

    def test_by_its_class_where_it_has_no_name(self, net):
        assert plan_tgd(net, X, phi=0.6, score=functools.partial(own_kse)).score == "partial"

    def test_a_file_from_before_is_one_of_kse(self, net):
        plan = plan_tgd(net, X)
        old = json.loads(plan.to_json())
        del old["score"]
        assert TGDPlan.from_json(json.dumps(old)) == plan

    def test_in_a_delta(self, net, tmp_path):
        tgd = apply_tgd(net, X, phi=0.6, score=own_kse)
        save_delta(tgd, tmp_path / "rows.safetensors")
        assert torch.equal(load_delta(net, tmp_path / "rows.safetensors")(X), net(X))
        again = apply_tgd(net, X, plan=plan_of(tgd))
        assert plan_of(again).score == "own_kse"
