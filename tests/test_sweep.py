"""The threshold study: what is left out is zero, nothing else changes, and the proposal is what the rows say."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tests.laws.subjects import ACCEPTED, PHI, assert_equal_tensors
from tests.laws.test_law8_leaks import snapshot
from tests.oracles.calls import FilterCall, FilterCalls
from tests.oracles.interventions import prepared
from tests.strategies import Case, call, cases, leaves
from tests.topologies import case_of
from tgdsurgery import PlanError, RewriteError, TGDError, TGDPlan, apply_tgd, plan_tgd, remove_tgd, sweep_phi
from tgdsurgery.sweep.ablation import without_flagged
from tgdsurgery.sweep.result import SweepResult, SweepRow

# One of its "layers" makes kernels: its output is no feature map, and the oracle cannot tell.
NOT_COMPARED = {"mixture of kernels"}


class Multiplied(FilterCalls):
    """Runs a network with every filter's output multiplied by 0 where it is flagged, else by 1."""

    def __init__(self, model: nn.Module, plan: TGDPlan) -> None:
        super().__init__(model)
        self.kept = {entry.layer.name: ~plan.trainable(entry.layer.name) for entry in plan.entries}

    def filter_call(self, seen: FilterCall, compute: Callable[[], Tensor]) -> Tensor:
        return multiplied(compute(), self.kept[seen.name], seen.axis)


def multiplied(x: Tensor, kept: Tensor, axis: int) -> Tensor:
    """x times `kept` along an axis, laid out in memory as x."""
    return x * kept.view([-1 if a == axis % x.dim() else 1 for a in range(x.dim())])


def channel_layer_axis(module: nn.Module | None) -> int | None:
    """Where a channel layer that is a module has its channels, whatever the map says."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return -len(module.normalized_shape)
    return 1 if isinstance(module, _NormBase | nn.GroupNorm | nn.PReLU) else None


def by_multiplication(case: Case, plan: TGDPlan) -> list[Tensor]:
    """The outputs with flagged activations multiplied by zero: of filters, of norms, of PReLUs; other channel layers
    are parameters, and have their rows multiplied."""
    watched = Multiplied(case.model, plan)
    parameters = dict(case.model.named_parameters())
    handles = []
    for entry in (entry for entry in plan.entries if entry.layer.role == "channel"):
        kept = watched.kept[entry.layer.name]
        module = dict(case.model.named_modules()).get(entry.layer.name)
        if (axis := channel_layer_axis(module)) is not None:
            handles.append(module.register_forward_hook(lambda _, __, y, k=kept, a=axis: multiplied(y, k, a)))
        else:
            for rows in entry.layer.parameters:
                parameters[rows.name].data.mul_(kept[rows.owner()])
    try:
        return leaves(watched.run(case.model, case.inputs))
    finally:
        for handle in handles:
            handle.remove()


def assert_left_out(case: Case, phi: float) -> None:
    """Raise unless leaving out the channels below phi is multiplying their activations by zero."""
    case = case.double()
    plan = plan_tgd(case.model, case.inputs, phi=phi)
    model, inputs = prepared(case)  # the oracle reads from autograd what is made of parameters
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = leaves(call(without_flagged(model, plan), inputs))
    assert_equal_tensors(model.state_dict(), before)
    expected = by_multiplication(Case(model, inputs), plan)
    # Not bit for bit: a product may lie in memory in another order, and is then summed in another order.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@given(case=cases(), phi=st.sampled_from([0.2, 0.5, 0.8, 1.0]))
def test_random_networks(case, phi):
    assert_left_out(case, phi)


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name not in NOT_COMPARED])
def test_catalogue(name):
    assert_left_out(case_of(name), PHI)


def denoiser() -> nn.Sequential:
    """A trained-looking network: half of the second convolution's inputs count for almost nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
        )
        with torch.no_grad():
            net[1].weight.uniform_(0.5, 1.5)
            net[1].bias.uniform_(0.5, 1.5)  # a map of zeros would leave a norm as this
            net[1].running_mean.normal_()
            net[3].weight[:, ::2] *= 1e-3
    return net.eval()


IMAGE = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)


def error(net: nn.Module) -> float:
    """Against a truth that the network is near to."""
    with torch.no_grad():
        return float((net(IMAGE) - denoiser()(IMAGE)).square().mean() + 0.01)


def test_without_a_filter_is_with_its_weights_bias_and_affine_zero():
    net = denoiser()
    plan = plan_tgd(net, IMAGE, phi=0.5)
    flagged = plan.trainable("0")
    assert torch.equal(flagged, plan.trainable("1"))
    assert flagged.any()
    assert not flagged.all()
    found = without_flagged(net, plan)(IMAGE)
    with torch.no_grad():
        for parameter in (*net[0].parameters(), *net[1].parameters()):
            parameter[flagged] = 0
    assert torch.equal(found, net(IMAGE))


def test_a_norm_without_parameters_leaves_nothing_of_a_zero_map():
    """Zeros in the filter's weights alone would come out of it as -mean / std."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 1, 1, bias=False)
    ).eval()
    net[1].running_mean.fill_(5.0)
    plan = plan_tgd(net, IMAGE, phi=1.0)
    flagged = plan.trainable("1")
    assert flagged.any()
    maps = without_flagged(net, plan)[:2](IMAGE)
    assert not maps[:, flagged].any()
    assert torch.equal(maps[:, ~flagged], net[:2](IMAGE)[:, ~flagged])


def test_phi_0_leaves_nothing_out():
    result = sweep_phi(denoiser(), error, [0.0])
    assert result.rows == (SweepRow(0.0, 0.0, result.untouched, 0.0),)
    assert result.untouched == error(denoiser())


def test_rows_are_the_plans_and_the_networks_without_what_they_flag():
    net = denoiser()
    result = sweep_phi(net, error, [0.6, 0.2, 0.2, 1.0], IMAGE, k=3, alpha=0.5)
    assert [row.phi for row in result.rows] == [0.2, 0.6, 1.0]
    for row in result.rows:
        plan = plan_tgd(net, IMAGE, phi=row.phi, k=3, alpha=0.5)
        assert row.dropped == plan.share
        assert row.value == error(without_flagged(net, plan))
        assert row.change == (row.value - result.untouched) / result.untouched
    assert result.rows[0].change < 0.05 < result.rows[-1].change


def test_each_set_of_channels_is_evaluated_once_on_a_copy_of_its_own():
    seen: list[nn.Module] = []

    def evaluate(net: nn.Module) -> float:
        assert not any(module.training for module in net.modules())
        seen.append(net)
        value = error(net)
        with torch.no_grad():
            net[0].weight.zero_()
        return value

    net = denoiser().train()
    before = snapshot(Case(net, IMAGE))
    scores = sorted(plan_tgd(net).entries[0].scores)
    between = [(scores[4] + scores[5]) / 2, (2 * scores[4] + scores[5]) / 3]
    result = sweep_phi(net, evaluate, [0.0, *between])
    assert len(seen) == 2  # untouched, which is phi 0 too; and one for both of the others
    assert seen[0] is not seen[1]
    assert result.rows[1].value == result.rows[2].value
    assert snapshot(Case(net, IMAGE)) == before


def test_nothing_is_left_behind_where_evaluate_fails():
    def evaluate(net: nn.Module) -> float:
        torch.rand(1)
        net(IMAGE)
        raise ZeroDivisionError("the user's own")

    case = Case(denoiser(), IMAGE)
    before = snapshot(case)
    with pytest.raises(ZeroDivisionError, match="the user's own"):
        sweep_phi(case.model, evaluate, [0.3])
    assert snapshot(case) == before


def test_evaluate_sees_the_same_random_numbers_every_time():
    drawn = []

    def evaluate(net: nn.Module) -> float:
        drawn.append(torch.rand(()).item())
        return 1.0

    sweep_phi(denoiser(), evaluate, [0.0, 0.5, 1.0])
    assert len(drawn) == 3
    assert len(set(drawn)) == 1


@pytest.mark.parametrize(
    "number", [2, 2.0, torch.tensor(2), torch.tensor([[2.0]]), torch.ones(2).double().sum().numpy()]
)
def test_any_number_will_do(number):
    assert sweep_phi(denoiser(), lambda net: number, [0.3]).untouched == 2.0


@pytest.mark.parametrize(
    "nothing", [None, "0.5", math.nan, math.inf, torch.tensor(math.nan), torch.ones(2), 1j, [1.0]], ids=repr
)
def test_what_is_no_finite_number_is_refused(nothing):
    with pytest.raises(
        PlanError, match=r"evaluate returned .* at phi 0\. It has to return one finite number"
    ):
        sweep_phi(denoiser(), lambda net: nothing, [0.3])


def test_a_network_that_breaks_down_names_the_phi():
    def evaluate(net: nn.Module) -> float:
        return math.nan if (net[:2](IMAGE) == 0).all((0, 2, 3)).any() else 1.0

    with pytest.raises(PlanError, match=r"returned nan at phi 0\.7"):
        sweep_phi(denoiser(), evaluate, [0.7])


@pytest.mark.parametrize("value", [0.0, -30.5])
def test_no_relative_rise_over_what_is_not_above_0(value):
    with pytest.raises(PlanError, match=rf"returns {value:g} for the untouched network.*an error above 0"):
        sweep_phi(denoiser(), lambda net: value, [0.3])


@pytest.mark.parametrize(
    ("phis", "settings", "problem"),
    [
        ([], {}, "There is no phi to try"),
        ([0.3, 1.5], {}, "phi is 1.5"),
        ([True], {}, "phi is True"),
        (["0.3"], {}, "phi is '0.3'"),
        ([0.3], {"tolerance": -0.1}, "tolerance is -0.1"),
        ([0.3], {"tolerance": math.nan}, "tolerance is nan"),
        ([0.3], {"tolerance": "5%"}, "tolerance is '5%'"),
        ([0.3], {"overrides": {"0": "keep"}}, "the override of '0' is 'keep'"),
        ([0.3], {"overrides": {"nothing": "freeze"}}, "'nothing' names no layer"),
    ],
    ids=str,
)
def test_bad_settings(phis, settings, problem):
    with pytest.raises(PlanError, match=problem):
        sweep_phi(denoiser(), error, phis, **settings)


def test_layers_that_are_frozen_or_retrained_in_any_case_are_left_in():
    every = sweep_phi(denoiser(), error, [1.0])
    for rule in ("freeze", "train"):
        for layers in ({"0": rule, "1": rule}, {"0": rule, "1": rule, "3": rule}):
            result = sweep_phi(denoiser(), error, [1.0], overrides=layers)
            assert result.rows[0].dropped == 0
            assert result.rows[0].value == every.untouched
    own = sweep_phi(denoiser(), error, [0.0], overrides={"0": 1.0, "1": 1.0})
    assert own.rows[0].dropped == every.rows[0].dropped


def test_only_a_plain_network_is_swept():
    tgd = apply_tgd(denoiser(), IMAGE)
    layered = apply_tgd(denoiser(), IMAGE, form="layers")
    for net in (tgd, layered, nn.Sequential(tgd), nn.DataParallel(denoiser())):
        with pytest.raises(RewriteError, match="wrapped, or is a TGD network"):
            sweep_phi(net, error, [0.3])
    assert sweep_phi(remove_tgd(tgd), error, [0.3]) == sweep_phi(denoiser(), error, [0.3])


changes = st.floats(-1, 1)


@given(found=st.lists(changes, min_size=1, max_size=6), tolerance=st.floats(0, 1))
def test_the_proposed_phi_is_the_last_before_the_first_that_costs_too_much(found, tolerance):
    rows = tuple(SweepRow(i / 10, i / 20, 1 + change, change) for i, change in enumerate(found))
    proposed = SweepResult(rows, 1.0, tolerance).proposed
    accepted = [
        row.phi for row in rows if all(other.change <= tolerance for other in rows if other.phi <= row.phi)
    ]
    assert proposed == (max(accepted) if accepted else None)


def test_a_lucky_phi_beyond_a_bad_one_is_not_proposed():
    rows = tuple(SweepRow(phi, 0.1, 1.0, change) for phi, change in ((0.1, 0.01), (0.2, 0.2), (0.3, 0.0)))
    assert SweepResult(rows, 1.0, 0.05).proposed == 0.1
    assert "Proposed: phi 0.1." in str(SweepResult(rows, 1.0, 0.05))
    assert SweepResult(rows[1:], 1.0, 0.05).proposed is None
    assert "No phi is proposed" in str(SweepResult(rows[1:], 1.0, 0.05))


numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    rows=st.lists(st.builds(SweepRow, numbers, numbers, numbers, numbers)),
    untouched=numbers,
    tolerance=numbers,
)
def test_json_both_ways(rows, untouched, tolerance):
    result = SweepResult(tuple(rows), untouched, tolerance)
    assert SweepResult.from_json(result.to_json()) == result
    assert json.loads(result.to_json())["proposed"] == result.proposed


def test_the_table():
    result = SweepResult((SweepRow(0.3, 0.514, 0.0211, 0.055),), 0.02, 0.05)
    words = re.sub(r"[─\s]+", " ", str(result)).split()
    shown = (
        "Without the channels below phi phi left out value change 0.3 51.4% 0.0211 +5.5% Untouched network: 0.02. "
        "No phi is proposed: at the smallest the value rises by more than 5.0% already."
    )
    assert words == shown.split()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data | {"format": "tgdsurgery-plan-1"},
        lambda data: {key: value for key, value in data.items() if key != "untouched"},
        lambda data: data | {"rows": [{"phi": 0.3}]},
        lambda data: data | {"rows": [data["rows"][0] | {"phi": None}]},
        lambda data: [data],
    ],
)
def test_other_json_is_refused(change: Callable[[Any], Any]):
    text = SweepResult((SweepRow(0.3, 0.5, 1.0, 0.0),), 1.0, 0.05).to_json()
    for other in (json.dumps(change(json.loads(text))), text[:-5]):
        with pytest.raises(PlanError, match="This is not a sweep of format tgdsurgery-sweep-1"):
            SweepResult.from_json(other)


@pytest.mark.parametrize("suffix", ["png", "svg", "PDF"])
def test_a_plot_is_written(tmp_path, suffix):
    result = sweep_phi(denoiser(), error, [0.1, 0.3, 1.0])
    path = tmp_path / f"sweep.{suffix}"
    for shown in (
        result,
        dataclasses.replace(result, tolerance=0.0),
        SweepResult(result.rows[2:], 1.0, 0.05),
    ):
        shown.plot(path)
        starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
        assert path.read_bytes().startswith(starts[suffix.lower()])
    assert list(tmp_path.iterdir()) == [path]


def test_a_plot_that_cannot_be_written(tmp_path, monkeypatch):
    result = SweepResult((SweepRow(0.3, 0.5, 1.0, 0.0),), 1.0, 0.05)
    for name, problem in {
        "sweep.xyz": "no suffix of a picture",
        "none/sweep.png": "folder of .* does not exist",
    }.items():
        with pytest.raises(TGDError, match=problem):
            result.plot(tmp_path / name)
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)  # as if it were not installed
    with pytest.raises(TGDError, match="pip install matplotlib"):
        result.plot(tmp_path / "sweep.png")
    assert not list(tmp_path.iterdir())
