"""`advise`: what is tried, what is recommended and why, and that the user's network stays as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tgdsurgery.advice.advise as trying
from tgdsurgery import Advice, CaptureError, PlanError, RewriteError, advise, apply_tgd
from tgdsurgery.advice.records import Errors, Trial
from tgdsurgery.sweep.result import SweepResult, SweepRow

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
    best = min(full, key=lambda trial: trial.last.new).rate
    assert {trial.rate for trial in found.trials if trial.method != "full fine-tuning"} == {best, 3 * best}
    assert all(len(trial.points) == 3 for trial in found.trials)
    whole = sum(parameter.numel() for parameter in network().parameters())
    assert {trial.trained for trial in full} == {whole}
    assert all(trial.trained < whole * trial.share for trial in found.trials if trial.share)
    assert sum(found.histogram) == 32  # filters that a layer reads; their norms have the same scores
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


UNTOUCHED = Errors(1.0, 10.0)
FULL = trial("full fine-tuning", (1.5, 6.0), (2.0, 2.0))  # from (1, 10): half of the gain is a new error of 6
OURS = trial("TGD", (1.2, 7.0), (1.4, 5.0), flow="full", share=0.25)  # 1.3 at 6


def of(*trials: Trial, sweep: SweepResult | None = None) -> Advice:
    return Advice(UNTOUCHED, 30, trials, (0,) * 10, 0.0, sweep)


@pytest.mark.parametrize(
    ("points", "old"),
    [
        ([(1.5, 6.0), (2.0, 2.0)], 1.5),  # measured there
        ([(3.0, 2.0)], 2.0),  # half of the way from the untouched network
        ([(1.2, 8.0), (2.0, 4.0), (9.0, 2.0)], 1.6),
        ([(3.0, 2.0), (4.0, 8.0), (9.0, 2.0)], 2.0),  # the first time it gets there
        ([(1.1, 11.0), (1.6, 5.0)], 1.1 + 0.5 * 5 / 6),
        ([(1.0, 2.0), (1.0, 6.01)], None),  # it does not stay
    ],
)
def test_the_old_error_at_a_target(points: list[tuple[float, float]], old: float | None) -> None:
    found = trial("LoRA", *points).old_at(6.0, UNTOUCHED)
    assert found == (old if old is None else pytest.approx(old))


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([OURS], OURS),
        ([OURS, trial("LoRA", (1.2, 6.0), (1.2, 5.5))], "LoRA"),  # clearly less old error
        ([OURS, trial("LoRA", (1.29, 6.0), (1.3, 5.5))], OURS),  # no difference that a trial can tell
        ([OURS, trial("LoRA", (1.01, 5.0), (1.01, 20.0))], OURS),  # it ends worse than the untouched network
        (
            [OURS, trial("LoRA", (1.4, 2.0), (9.0, 1.0))],
            "LoRA",
        ),  # far beyond the target at once: 1.2 on the way
        ([trial("TGD", (1.0, 6.1), flow="full", share=0.1)], "full fine-tuning"),  # TGD does not get there
    ],
)
def test_what_is_chosen(others: list[Trial], chosen: Trial | str) -> None:
    found = of(FULL, *others)
    assert found.target == 6.0
    assert found.best is not None
    assert found.best is chosen if isinstance(chosen, Trial) else found.best.method == chosen


def test_the_target_is_of_the_end() -> None:
    """Full fine-tuning went to 0 on its way, and ended at 8: it gained 2."""
    assert of(trial("full fine-tuning", (1.0, 0.0), (1.0, 8.0)), FULL).target == 6.0
    assert of(trial("full fine-tuning", (1.0, 0.0), (1.0, 8.0))).target == 9.0
    assert of(trial("full fine-tuning", (1.0, 0.0), (1.0, 10.0)), OURS).target is None


def test_the_others_take_the_rate_that_ends_best(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {3e-4: [(1.0, 0.0), (1.0, 9.0)], 1e-3: [(1.0, 9.0), (1.0, 5.0)], 3e-3: [(1.0, 1.0), (1.0, 8.0)]}
    rates = []

    class Made:
        def run(self, way: trying.Way, rate: float) -> Trial:
            rates.append(rate)
            return replace(trial(way.method, *ends.get(rate, [(1.0, 1.0)])), rate=rate)

    list(trying._all(Made(), [trying.Way("LoRA")]))  # type: ignore[arg-type]
    assert rates == [3e-4, 1e-3, 3e-3, 1e-3, 3 * 1e-3]


def test_the_text_says_how_tgd_did() -> None:
    text = of(FULL, OURS, trial("LoRA", (1.2, 6.0), (1.2, 5.5))).text
    assert "Use LoRA" in text
    assert "its old error at the target is 1.2, that of TGD 1.3." in text
    assert "no trial of TGD ends at the target" in of(FULL, trial("TGD", (1.0, 6.1), share=0.1)).text


def test_the_text_has_the_figures(found: Advice) -> None:
    best = found.best
    assert best is not None
    assert found.target is not None
    assert f"{best.rate:g}" in found.text
    if best.method == "TGD":
        assert f"budget={best.share:g}, flow={best.flow!r}" in found.text
    reached = best.old_at(found.target, found.untouched)
    assert reached is not None
    assert f"{reached:.4g}" in found.text
    assert best.last.new <= found.target < found.untouched.new


def test_the_table_explains_its_marks(found: Advice) -> None:
    shown = " ".join(str(found).split())
    assert f"{found.best.name} *" in shown  # type: ignore[union-attr]
    assert "* recommended: the lowest old error at the target, or TGD's if that is at most 2% above." in shown
    assert f"where the new error first is {found.target:.4g}" in shown


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
    assert "full fine-tuning did not lower the new error" in result.text
    assert (
        "It was 1, and at the end of the best trial of each method: TGD 1, full fine-tuning 1" in result.text
    )
    assert Advice.from_json(result.to_json()) == result


def test_slack_is_what_was_seen() -> None:
    def costly(net: nn.Module) -> float:
        return 1.0 + sum("ZeroLayer" in type(module).__name__ for module in net.modules())

    options = {"shares": [0.25], "steps": 3}
    result = advice(network(), X.flip(-1), evaluate_old=costly, **options)
    assert result.slack is None
    assert result.sweep is not None
    first = next(row for row in result.sweep.rows if row.dropped > 0)
    assert f"{result.low:.0%} of the filters' scores lie below 0.3" in result.text
    assert f"rises by {first.change:.1%}, more than 5%, where all channels below {first.phi:g}" in result.text
    harmless = advice(network(), X.flip(-1), evaluate_old=lambda net: 1.0, **options)
    assert harmless.slack == 0.5
    assert "The network has slack" in harmless.text
    assert "changes by +0.0% where all channels below 0.5 (" in harmless.text


def test_slack_where_no_channel_is_below_a_phi() -> None:
    rows = tuple(SweepRow(phi, 0.0, 1.0, 0.0) for phi in trying.PHIS)
    result = of(FULL, sweep=SweepResult(rows, 1.0, 0.05))
    assert result.slack is None
    assert result.text.endswith("There is no slack to measure: no channel has a score below 0.5.")


@pytest.mark.parametrize("old", [0.0, -2.0])
def test_an_old_error_that_is_not_above_zero_says_nothing_of_slack(old: float) -> None:
    result = advice(network(), X.flip(-1), shares=[0.25], steps=3, evaluate_old=lambda net: old)
    assert result.slack is None
    assert f"Slack was not measured: the old error of the untouched network is {old:g}, and" in result.text
    assert "no slack" not in result.text.lower()
    assert Advice.from_json(result.to_json()) == result


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
        ({"evaluate_new": lambda net: None}, "evaluate_new returned None for the untouched network"),
        (
            {"evaluate_old": lambda net: torch.nan},
            "evaluate_old returned nan .* The weights may be the reason",
        ),
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


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda outputs, targets: 1.0,
            "loss returned no tensor but float. It is called with the outputs and",
        ),
        (lambda outputs, targets: (outputs - targets).square(), r"a tensor of shape \(8, 1, 12, 12\)"),
        (lambda outputs, targets: targets.mean(), "a tensor without a gradient"),
    ],
)
def test_a_loss_that_cannot_be_trained_on(loss: Callable[..., object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        advise(network(), [(X, X)], loss, evaluate_old=error(X), evaluate_new=error(X))


def test_a_forward_that_fails_on_a_batch() -> None:
    good, bad = (X, X), (X.expand(-1, 3, -1, -1), X)
    for batches in ([bad], [good, bad]):
        with pytest.raises(
            CaptureError, match=r"forward failed on a batch: RuntimeError: .* inputs of a batch"
        ):
            advise(network(), batches, F.mse_loss, evaluate_old=error(X), evaluate_new=error(X))


@pytest.mark.parametrize("name", ["0.weight", "1.bias", "1.running_var"])
def test_weights_of_nan_are_refused_by_name(name: str) -> None:
    net = network()
    net.state_dict()[name].view(-1)[0] = torch.nan
    with pytest.raises(PlanError, match=f"The model holds NaN or infinity in {name}"):
        advice(net, X)


def test_a_training_that_diverges_is_not_the_functions_fault() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets) * torch.inf

    evaluations = {"evaluate_old": error(X), "evaluate_new": error(X.flip(-1))}
    with pytest.raises(PlanError, match=r"returned nan in a trial of full fine-tuning at .* was finite"):
        advise(network(), [(X, X.flip(-1))], loss, **evaluations)


@pytest.mark.parametrize("change", [("low", "no"), ("trials", 1), ("sweep", {}), ("format", "other")])
def test_damaged_json(found: Advice, change: tuple[str, object]) -> None:
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
