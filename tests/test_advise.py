"""`advise`: what is tried, what is recommended and why, and that the user's network stays as it was."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tgdsurgery.advice.advise as trying
from tgdsurgery import Advice, PlanError, RewriteError, advise, apply_tgd
from tgdsurgery.advice.result import Errors, Trial

X = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 1, 3, padding=1)).eval()


def error(target: Tensor):
    return lambda net: F.mse_loss(net(X), target).item()


def advice(net: nn.Module, target: Tensor, **options: object) -> Advice:
    given = {"evaluate_old": error(X), "evaluate_new": error(target), "steps": 6, **options}
    return advise(net, [(X, target)], F.mse_loss, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found() -> Advice:
    return advice(network(), X.flip(-1))


def test_what_is_tried(found: Advice) -> None:
    full = [trial for trial in found.trials if trial.method == "full fine-tuning"]
    assert [trial.rate for trial in full] == [3e-4, 1e-3, 3e-3]
    tgd = {(trial.flow, trial.share) for trial in found.trials if trial.method == "TGD"}
    assert tgd == {(flow, share) for flow in ("masked", "full") for share in (0.1, 0.25, 0.5)}
    best = min(full, key=lambda trial: min(point.new for point in trial.points)).rate
    assert {trial.rate for trial in found.trials if trial.method != "full fine-tuning"} == {best, 3 * best}
    assert all(len(trial.points) == 3 for trial in found.trials)
    whole = sum(parameter.numel() for parameter in network().parameters())
    assert {trial.trained for trial in full} == {whole}
    assert all(trial.trained < whole * trial.share for trial in found.trials if trial.share)
    assert sum(found.histogram) == 64  # 32 filters, each with its norm
    assert found.untouched.new == error(X.flip(-1))(network())


def test_the_same_again(found: Advice) -> None:
    again = advice(network(), X.flip(-1))
    assert [trial.points for trial in again.trials] == [trial.points for trial in found.trials]
    assert again.text == found.text


def test_nothing_is_left_in_the_network_or_the_generators() -> None:
    net = network()
    net[1].train()  # a mode of its own
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    known = [sorted(vars(module)) for module in net.modules()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    advice(net, X.flip(-1), shares=[0.25], steps=3)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert [sorted(vars(module)) for module in net.modules()] == known
    assert all(parameter.grad is None for parameter in net.parameters())


def test_inputs_by_name_and_by_place() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, image: Tensor) -> Tensor:
            return self.inner(image)

    points = []
    for inputs in (X, (X,), {"image": X}):
        result = advise(
            Named(),
            iter([(inputs, X.flip(-1))]),
            F.mse_loss,
            evaluate_old=error(X),
            evaluate_new=error(X.flip(-1)),
            shares=[0.25],
            steps=3,
        )
        points.append([trial.points for trial in result.trials])
    assert points[0] == points[1] == points[2]


def trial(
    method: str, *points: tuple[float, float], flow: str | None = None, share: float | None = None
) -> Trial:
    return Trial(method, flow, share, 1e-3, 100, 0.5, tuple(Errors(*each) for each in points))  # type: ignore[arg-type]


FULL = trial("full fine-tuning", (1.5, 6.0), (2.0, 2.0))  # from (1, 10): half of the gain is a new error of 6
OURS = trial("TGD", (1.2, 7.0), (1.4, 5.0), flow="full", share=0.25)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([OURS], OURS),
        ([OURS, trial("LoRA", (1.3, 5.5))], "LoRA"),  # clearly less old error
        ([OURS, trial("LoRA", (1.39, 5.5))], OURS),  # no difference that a trial can tell
        ([trial("TGD", (1.0, 6.1), flow="full", share=0.1)], "full fine-tuning"),  # TGD does not get there
    ],
)
def test_what_is_chosen(others: list[Trial], chosen: Trial | str) -> None:
    trials = [FULL, *others]
    target = trying._target(trials, 10.0)
    assert target == 6.0
    best = trials[trying._chosen(trials, target)]
    assert best is chosen if isinstance(chosen, Trial) else best.method == chosen


def test_the_text_has_the_figures(found: Advice) -> None:
    best = found.best
    assert best is not None
    assert found.target is not None
    assert f"{best.rate:g}" in found.text
    if best.method == "TGD":
        assert f"budget={best.share:g}, flow={best.flow!r}" in found.text
    reached = best.at(found.target)
    assert reached is not None
    assert f"{reached.old:.4g}" in found.text
    assert f"{found.low:.0%} of the scores" in found.text
    assert " *" in str(found)


def test_nothing_to_learn() -> None:
    result = advise(
        network(),
        [(X, X)],
        lambda outputs, targets: outputs.square().mean(),
        evaluate_old=error(X),
        evaluate_new=lambda net: 1.0,
        shares=[0.25],
        steps=3,
    )
    assert result.best is None
    assert "no method lowered the new error" in result.text
    assert Advice.from_json(result.to_json()) == result


def test_no_slack_where_all_scores_cost() -> None:
    def costly(net: nn.Module) -> float:
        return 1.0 + sum("ZeroLayer" in type(module).__name__ for module in net.modules())

    result = advice(network(), X.flip(-1), shares=[0.25], steps=3, evaluate_old=costly)
    assert result.slack is None
    assert advice(network(), X.flip(-1), shares=[0.25], steps=3, evaluate_old=lambda net: 1.0).slack == 0.5
    assert "no slack" in result.text


def test_an_old_error_of_zero_says_nothing_of_slack() -> None:
    assert advice(network(), X.flip(-1), shares=[0.25], steps=3, evaluate_old=lambda net: 0.0).slack is None


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "has_lora", lambda: False)
    result = advice(network(), X.flip(-1), shares=[0.25], steps=3)
    assert {each.method for each in result.trials} == {"TGD", "full fine-tuning"}
    assert "LoRA" not in result.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": []}, "no share"),
        ({"shares": [1.5]}, "share is 1.5"),
        ({"steps": 2}, "steps is 2"),
        ({"steps": True}, "steps is True"),
        ({"evaluate_new": lambda net: None}, "evaluate returned None"),
    ],
)
def test_bad_settings(options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        advice(network(), X, **options)


@pytest.mark.parametrize(
    ("batches", "message"), [([], "batches has none"), ([X], "A batch is Tensor"), ([(X,)], "pairs")]
)
def test_bad_batches(batches: list[object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        advise(network(), batches, F.mse_loss, evaluate_old=error(X), evaluate_new=error(X))


def test_a_tgd_network_is_refused() -> None:
    with pytest.raises(RewriteError, match="already"):
        advice(apply_tgd(network(), X, phi=0.9), X)


@pytest.mark.parametrize("change", [("target", "no"), ("chosen", "1"), ("format", "other")])
def test_damaged_json(found: Advice, change: tuple[str, str]) -> None:
    data = {**json.loads(found.to_json()), change[0]: change[1]}
    with pytest.raises(PlanError, match="not an advice"):
        Advice.from_json(json.dumps(data))


def test_copies_of_an_advice_are_equal(found: Advice) -> None:
    assert copy.deepcopy(found) == found
    assert Advice.from_json(found.to_json()) == found


def test_a_share_that_trains_nothing_is_left_out() -> None:
    result = advice(network(), X.flip(-1), shares=[0.001, 0.5], steps=3)
    assert {each.share for each in result.trials} == {None, 0.5}


def test_a_frozen_network_is_refused() -> None:
    with pytest.raises(PlanError, match="requires_grad"):
        advice(network().requires_grad_(False), X)
