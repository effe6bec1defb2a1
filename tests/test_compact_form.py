"""Which layers of a network have compact twins, and what happens to the parameters of the others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.laws.subjects import assert_equal_tensors, gradients, with_flags_of
from tests.strategies.case import randomise, scalar_loss
from tgdsurgery import (
    LayersFormWarning,
    RewriteError,
    TGDWarning,
    apply_tgd,
    channel_map,
    plan_tgd,
    remove_tgd,
    verify,
)
from tgdsurgery.surgery import equivalence as trial
from tgdsurgery.surgery.apply import compact_form
from tgdsurgery.surgery.compact import Compact, CompactConv
from tgdsurgery.surgery.compact.registry import TWINS
from tgdsurgery.surgery.derived import derive
from tgdsurgery.surgery.needed_inputs import needed_inputs

# In float64, where sums in another order agree to many digits.
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


class Chain(nn.Module):
    """Three convolutions, a norm and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.last = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.silu(self.second(F.relu(self.norm(self.first(x)), inplace=True))))


class OwnConv(nn.Conv2d):
    """A class of the user's own, which may do anything with its weight."""


class WithOwnConv(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.second = OwnConv(6, 6, 3, padding=1)


class WithParametrization(Chain):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.second)


class WithFunctionalCall(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 6, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(F.relu(self.first(x)), self.kernel, padding=1))
        return self.last(self.second(self.norm(x)))


class WithTiedWeights(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Conv2d(6, 6, 3, padding=1)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.silu(self.third(self.second(self.norm(self.first(x))))))


class WithHook(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.second.register_forward_hook(lambda module, args, output: 2 * output)


class Scaling(Chain):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.last(F.silu(self.second(x) / self.second.weight.shape[0]))


class WithWeightInHand(Chain):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.last(F.conv2d(x, self.second.weight / self.second.weight.norm(), padding=1))


class CalledTwice(Chain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.second(F.relu(self.norm(self.first(x))))))
        return self.last(x)


# Each network, and which of its layers have no compact twin.
PARTLY: dict[str, tuple[type[Chain], set[str]]] = {
    "a class of one's own": (WithOwnConv, {"second"}),
    "a parametrization": (WithParametrization, {"second"}),
    "a functional call": (WithFunctionalCall, {"kernel"}),
    "a module's weight in hand": (WithWeightInHand, {"second"}),
    "tied weights": (WithTiedWeights, {"second", "third"}),
    "a hook": (WithHook, {"second"}),
    "none, called twice": (CalledTwice, set()),
    "none": (Chain, set()),
}


def made(model: nn.Module) -> nn.Module:
    return randomise(model, seed=0).double()


def compact_names(net: nn.Module) -> set[str]:
    return {name for name, module in net.named_modules() if isinstance(module, Compact)}


def both_forms(model: nn.Module, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """Compact form and layers form, after a backward of the same loss in training mode."""
    pair = [apply_tgd(model, X, phi=0.5, form=form, **settings) for form in ("compact", "layers")]
    for net in pair:
        scalar_loss(net.train()(X)).backward()
    return pair[0], pair[1]


def assert_same_training(compacted: nn.Module, layered: nn.Module) -> None:
    """Raise unless gradients agree up to rounding, and weights and statistics exactly."""
    found, expected = gradients(compacted), gradients(layered)
    assert found.keys() == expected.keys()
    assert any(gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    assert_equal_tensors(compacted.state_dict(), layered.state_dict())


def assert_all_may_move(net: nn.Module) -> None:
    """Raise unless no Parameter holds a frozen entry: writing to all of every one leaves them as they are."""
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(1.0)
    assert verify(net, moved).ok


@pytest.mark.parametrize("name", PARTLY)
@pytest.mark.parametrize("flow", ["masked", "full"])
def test_layers_without_a_twin_are_put_together(name: str, flow: str):
    kind, whole = PARTLY[name]
    model = made(kind())
    compacted, layered = both_forms(model, flow=flow)
    plan = compacted.tgd_plan
    divided = {layer for layer in plan.layers if not plan.trainable(layer).all()} - whole
    assert compact_names(compacted) == divided
    assert_all_may_move(compacted)
    assert_same_training(compacted, layered)
    model.load_state_dict(compacted.state_dict())
    assert torch.equal(compacted.eval()(X), with_flags_of(model, compacted).eval()(X))


@pytest.mark.parametrize("flow", ["masked", "full"])
def test_a_forward_that_asks_for_the_shape_of_a_weight_finds_all_of_it(flow: str):
    """A twin's Parameter has some of the rows only; with it the network would compute something else."""
    compacted, layered = both_forms(made(Scaling()), flow=flow)
    assert 0 < compacted.tgd_plan.trainable("second").sum() < 6
    assert "second" in compact_names(compacted)
    assert compacted.second.weight.shape == (6, 6, 3, 3)
    assert_all_may_move(compacted)
    assert_same_training(compacted, layered)


class Penalised(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * sum(parameter.square().sum() for parameter in self.parameters())


@pytest.mark.parametrize("flow", ["masked", "full"])
def test_a_forward_that_goes_through_all_parameters_takes_the_layers_form(flow: str):
    with pytest.warns(
        LayersFormWarning, match=r"Penalised is not the same network: its outputs .* layers form"
    ):
        compacted, layered = both_forms(made(Penalised()), flow=flow)
    assert compact_names(compacted) == set()
    assert_same_training(compacted, layered)


class WrongTwin(CompactConv):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_networks_are_tried_in_their_own_type(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "MAX_FLOAT64_PARAMETERS", 0)
    net = apply_tgd(made(Chain()).to(dtype), X.to(dtype), phi=0.5)
    assert compact_names(net) == {
        name for name in net.tgd_plan.layers if not net.tgd_plan.trainable(name).all()
    }
    with pytest.warns(LayersFormWarning, match="outputs or gradients differ"):
        apply_tgd(made(Penalised()).to(dtype), X.to(dtype), phi=0.5)
    monkeypatch.setitem(TWINS, nn.Conv2d, derive(WrongTwin, nn.Conv2d))
    with pytest.warns(TGDWarning, match="put together at every use"):
        net = apply_tgd(made(Chain()).to(dtype), X.to(dtype), phi=0.5)
    assert compact_names(net) == set()


def test_a_norm_over_channels_that_couples_them_takes_no_gradient_away():
    """Statistics over all channels make every input channel matter to every trainable output channel."""

    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4, affine=False)
            self.second, self.last = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.silu(self.second(self.norm(self.first(x)))))

    model = made(Coupled())
    overrides = {"first": 0.4, "second": "train"}
    compacted, layered = both_forms(model, overrides=overrides)
    rows = compacted.tgd_plan.trainable("first")
    assert rows.any()
    assert not rows.all()
    assert_same_training(compacted, layered)


def test_inputs_that_lead_to_nothing_trainable_get_no_gradient():
    model = made(Chain())
    plan, channels = plan_tgd(model, X, phi=0.5, flow="masked"), channel_map(model, X)
    leads = plan.trainable("norm").tolist()
    assert set(leads) == {True, False}
    needs = needed_inputs(channels, plan)
    assert needs == {
        "first": (True,) * 3,  # the network's own input: its gradient may be asked for
        "second": tuple(leads),
        "last": tuple(plan.trainable("second").tolist()),
    }
    compacted = compact_form(model, plan, channels, X)
    assert compacted.second._tgd_compaction.needs == needs["second"]
    assert needed_inputs(channels, plan_tgd(model, X, phi=0.5, flow="full")) == {}


@pytest.mark.parametrize("kept", [2, 5])
def test_with_most_input_channels_needed_the_gradient_is_that_of_all(kept):
    model = made(Chain())
    scores = sorted(s for s in plan_tgd(model, X)["second"].scores if s is not None)
    plan = plan_tgd(model, X, phi=0.5, overrides={"second": scores[kept]}, flow="masked")
    needs = tuple(plan.trainable("second").tolist())
    assert sum(needs) == kept
    compacted = compact_form(model, plan, channel_map(model, X), X)
    assert compacted.last._tgd_compaction.needs == (needs if kept == 2 else None)


@pytest.mark.parametrize("between", [nn.PReLU(), nn.BatchNorm2d(6)], ids=["one PReLU for all", "frozen norm"])
def test_a_frozen_carrier_makes_no_channel_needed(between):
    model = made(nn.Sequential(nn.Conv2d(3, 6, 3), between, nn.Conv2d(6, 4, 3), nn.Conv2d(4, 2, 3)))
    plan = plan_tgd(model, X, phi=0.5, overrides={"1": "freeze"}, flow="masked")
    channels = channel_map(model, X)
    assert 0 < plan.trainable("0").sum() < 6
    assert needed_inputs(channels, plan)["2"] == tuple(plan.trainable("0").tolist())
    compacted = compact_form(model, plan, channels, X)
    assert compacted.get_submodule("2")._tgd_compaction.needs == tuple(plan.trainable("0").tolist())


def test_the_gradient_of_the_networks_input_is_that_of_the_layers_form():
    model = made(Chain())
    found = []
    for form in ("compact", "layers"):
        net = apply_tgd(model, X, phi=0.5, form=form)
        x = X.clone().requires_grad_()
        found.append(torch.autograd.grad(scalar_loss(net(x)), x)[0])
    assert found[0].any()
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_what_is_frozen_whole_holds_no_parameter_and_builds_no_graph():
    model = made(Chain())
    net = apply_tgd(model, X, phi=0.5, overrides={"first": "freeze", "norm": "freeze"})
    assert not list(net.first.parameters())
    assert not list(net.norm.parameters())
    assert not F.relu(net.train().norm(net.first(X))).requires_grad
    assert net(X).requires_grad
    nothing = apply_tgd(model, X, phi=0.0)
    assert not list(nothing.parameters())
    assert not nothing.train()(X).requires_grad


def test_what_is_trainable_whole_is_the_plain_layer():
    model = made(Chain())
    train = dict.fromkeys(("first", "norm", "second", "last"), "train")
    net = apply_tgd(model, X, overrides=train)
    assert compact_names(net) == set()
    assert [type(module) for module in net.modules()] == [type(module) for module in model.modules()]


def test_shown_in_the_repr():
    model = made(Chain())
    net = apply_tgd(model, X, phi=0.5)
    count = int(net.tgd_plan.trainable("first").sum())
    assert (
        f"(first): CompactConv2d(3, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), {count}/6 "
        in str(net)
    )


def test_the_callers_model_is_not_touched():
    model = made(Chain())
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    net = apply_tgd(model, X, phi=0.5)
    scalar_loss(net.train()(X)).backward()
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(type(module) in (Chain, nn.Conv2d, nn.BatchNorm2d) for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert_equal_tensors(model.state_dict(), state)


def test_a_model_that_cannot_run_in_one_mode_is_compared_in_the_other():
    """Batch norm refuses to train on single values."""

    class Pooled(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(
                self.second(F.interpolate(self.norm(F.adaptive_avg_pool2d(self.first(x), 1)), 8))
            )

    model = made(Pooled()).eval()
    net = apply_tgd(model, X[:1], phi=0.5, norm_stats="batch")
    assert "first" in compact_names(net)
    with pytest.raises(ValueError, match="more than 1 value"):
        net.train()(X[:1])
    assert torch.isfinite(net(X)).all()


def test_a_tgd_network_is_refused_until_tgd_is_removed():
    net = apply_tgd(made(Chain()), X, phi=0.5)
    with pytest.raises(RewriteError, match="remove_tgd"):
        apply_tgd(net, X)
    assert apply_tgd(remove_tgd(net), X, phi=0.5).tgd_plan == net.tgd_plan
