"""The TGD layer, the parameter mask and the held norm, each on its own."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tgdsurgery.surgery.layers.held_norm import HOLD, HeldNorm, hold, release
from tgdsurgery.surgery.layers.parameter_mask import PARAMETERS, ParameterMask, follow_parameters
from tgdsurgery.surgery.layers.tgd_layer import TGD, TGDLayer, attach

MASK = torch.tensor([True, False, True, False])
STATISTICS = ("running_mean", "running_var")


class FusedNorm(nn.BatchNorm2d):
    """A norm whose forward does more than normalise, in place."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu_(super().forward(x)) + 1


class ReplacingNorm(nn.Module):
    """A norm of no known class, which puts a new tensor in the place of its statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            self.running_mean = torch.lerp(self.running_mean, mean.detach(), 0.1)
            self.running_var = torch.lerp(self.running_var, var.detach(), 0.1)
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean[:, None, None]) / var[:, None, None].sqrt()


NORMS = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "cumulative": lambda: nn.BatchNorm2d(4, momentum=None),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "fused": lambda: FusedNorm(4),
    "replacing": lambda: ReplacingNorm(4),
}


def norm_with_history(kind: str) -> nn.Module:
    """A norm whose statistics are not those it started with."""
    torch.manual_seed(0)
    norm = NORMS[kind]()
    for _ in range(3):
        norm(2 + 3 * torch.randn(4, 4, 5, 5))
    return norm


def held(norm: nn.Module, mask: Tensor) -> nn.Module:
    result = copy.deepcopy(norm)
    hold(result, mask, -3, STATISTICS)
    return result


class TestTGDLayer:
    def test_returns_the_very_tensor(self):
        x = torch.randn(2, 4, 3, 3, requires_grad=True) * 2
        assert TGDLayer(MASK, -3)(x) is x

    @given(axis=st.integers(-4, -1), data=st.data())
    def test_masks_the_gradient_along_its_axis(self, axis, data):
        shape = data.draw(st.lists(st.integers(1, 4), min_size=4, max_size=4))
        mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=shape[axis], max_size=shape[axis])))
        x, weight = torch.randn(shape, requires_grad=True), torch.randn(shape)
        (TGDLayer(mask, axis)(x * 1) * weight).sum().backward()
        expected = weight.clone()
        expected.movedim(axis, 0)[~mask] = 0
        assert torch.equal(x.grad, expected)

    @pytest.mark.parametrize(
        ("layer", "x", "axis"),
        [
            pytest.param(nn.Conv2d(3, 4, 3), torch.rand(2, 3, 6, 6), -3, id="conv"),
            pytest.param(nn.Conv2d(3, 4, 3), torch.rand(3, 6, 6), -3, id="unbatched-conv-returns-a-view"),
            pytest.param(nn.Linear(3, 4), torch.rand(2, 5, 3), -1, id="linear-returns-a-view"),
        ],
    )
    @pytest.mark.parametrize("inplace", [False, True])
    def test_in_place_activation_may_follow(self, layer, x, axis, inplace):
        layer.zero_grad()
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 0.1)  # so that no draw closes every ReLU
        y = nn.functional.relu(TGDLayer(MASK, axis)(layer(x)) + 0 * x.sum(), inplace=inplace)
        z = nn.functional.relu(TGDLayer(MASK, axis)(layer(x)), inplace=inplace)
        (y.sum() + z.sum()).backward()
        assert not layer.weight.grad[~MASK].any()
        assert layer.weight.grad[MASK].any()

    @pytest.mark.parametrize("bad", [float("inf"), float("nan")])
    def test_an_overflow_stops_at_a_frozen_channel(self, bad):
        x = torch.randn(1, 4, 1, 1, requires_grad=True)
        gradient = torch.where(MASK, 1.0, bad).view(1, 4, 1, 1)
        TGDLayer(MASK, -3)(x * 1).backward(gradient)
        assert torch.equal(x.grad.flatten(), MASK.float())

    def test_double_backward(self):
        x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(TGDLayer(MASK, -3)(x**3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        assert torch.equal(second, torch.where(MASK.view(-1, 1, 1), 6 * x, 0))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_keeps_the_type_of_the_gradient(self, dtype):
        x = torch.ones(4, dtype=dtype, requires_grad=True)
        TGDLayer(MASK, -1)(x * 2).sum().backward()
        assert x.grad.dtype == dtype
        assert torch.equal(x.grad, 2 * MASK.to(dtype))

    def test_compiled_gradient_equals_eager(self):
        torch._dynamo.reset()
        layer, x = TGDLayer(MASK, -3), torch.randn(2, 4, 3, 3, requires_grad=True)

        def compute(x):
            return (nn.functional.relu(layer(x * 2), inplace=True) ** 2).sum()

        compiled = torch.compile(compute, backend="aot_eager", fullgraph=True)
        assert torch.equal(*(torch.autograd.grad(f(x), x)[0] for f in (compute, compiled)))

    def test_works_under_functional_gradients(self):
        layer = TGDLayer(MASK, -1)
        gradient = torch.func.grad(lambda x: layer(x * 3).sum())(torch.ones(4))
        assert torch.equal(gradient, 3 * MASK.float())

    def test_has_no_state(self):
        layer = TGDLayer(MASK, -3)
        assert not layer.state_dict()
        assert not list(layer.buffers())
        cpu, meta = torch.device("cpu"), torch.device("meta")
        assert torch.equal(pickle.loads(pickle.dumps(layer))._tgd_constant("mask", cpu), MASK)
        assert layer.to("meta")._tgd_constant("mask", meta).is_meta
        assert torch.equal(layer.to_empty(device="cpu")._tgd_constant("mask", cpu), MASK)
        assert repr(layer) == "TGDLayer(2 of 4 channels trainable, axis -3)"

    def test_loaded_hook_does_not_give_way_to_a_later_one(self, monkeypatch):
        conv = nn.Conv2d(1, 4, 1)
        conv.add_module(TGD, TGDLayer(MASK, -3))
        loaded = pickle.loads(pickle.dumps(attach(conv)))
        # As in a new process, which has made no hook before this one.
        key = min(loaded._forward_hooks)
        monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "next_id", max(key, 0))
        loaded.register_forward_hook(lambda *_: None)
        assert len(loaded._forward_hooks) == 2


class TestParameterMask:
    @staticmethod
    def masked_conv() -> nn.Conv2d:
        conv = nn.Conv2d(3, 4, 3)
        conv.add_module(PARAMETERS, ParameterMask({"weight": MASK.view(-1, 1, 1, 1), "bias": MASK}))
        conv.register_forward_pre_hook(follow_parameters)
        follow_parameters(conv)
        return conv

    @staticmethod
    def assert_masked(conv: nn.Conv2d) -> None:
        conv.zero_grad()
        conv(torch.randn(2, 3, 5, 5)).square().sum().backward()
        for gradient in (conv.weight.grad, conv.bias.grad):
            assert not gradient[~MASK].any()
            assert gradient[MASK].any()

    def test_masks_parameters_and_leaves_the_input(self):
        conv = self.masked_conv()
        self.assert_masked(conv)
        plain = nn.Conv2d(3, 4, 3)
        plain.load_state_dict(conv.state_dict())
        x = torch.randn(2, 3, 5, 5, requires_grad=True)
        assert torch.equal(*(torch.autograd.grad(net(x).square().sum(), x)[0] for net in (conv, plain)))

    def test_hooks_each_parameter_once(self):
        conv = self.masked_conv()
        for _ in range(3):
            conv(torch.randn(1, 3, 5, 5))
        assert len(conv.weight._backward_hooks) == 1

    def test_copies_are_masked_before_any_forward(self):
        conv = self.masked_conv()
        file = io.BytesIO()
        torch.save(conv, file)
        file.seek(0)
        copies = (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)), torch.load(file, weights_only=False))
        for copied in copies:
            assert len(copied.weight._backward_hooks) == 1
            self.assert_masked(copied)

    def test_follows_replaced_parameters(self):
        conv = self.masked_conv()
        conv.load_state_dict(nn.Conv2d(3, 4, 3).state_dict(), assign=True)
        self.assert_masked(conv)

    def test_follows_a_parameter_that_is_switched_on_later(self):
        conv = nn.Conv2d(3, 4, 3).requires_grad_(False)
        conv.add_module(PARAMETERS, ParameterMask({"weight": MASK.view(-1, 1, 1, 1), "bias": MASK}))
        follow_parameters(conv)
        conv.register_forward_pre_hook(follow_parameters)
        self.assert_masked(conv.requires_grad_(True))

    def test_dismounted_it_leaves_no_hooks(self):
        conv = self.masked_conv()
        conv.get_submodule(PARAMETERS).dismount(conv)
        assert not conv.weight._backward_hooks
        assert not hasattr(conv, PARAMETERS)


@pytest.mark.parametrize("kind", NORMS)
class TestHeldNorm:
    def test_each_channel_has_its_own_mode(self, kind):
        norm = norm_with_history(kind)
        net, x = held(norm, MASK), torch.randn(4, 4, 5, 5)
        stored = copy.deepcopy(norm).eval()(x)
        batch = norm.train()(x)
        assert torch.equal(net.train()(x), torch.where(MASK.view(-1, 1, 1), batch, stored))
        for name in STATISTICS:
            assert torch.equal(getattr(net, name)[MASK], getattr(norm, name)[MASK])

    def test_frozen_statistics_do_not_move_and_others_do(self, kind):
        net = held(norm_with_history(kind), MASK)
        before = copy.deepcopy(net.state_dict())
        for _ in range(3):
            net(5 * torch.randn(4, 4, 5, 5))
        for name in STATISTICS:
            same = net.state_dict()[name] == before[name]
            assert torch.equal(same, ~MASK)

    def test_frozen_whole_is_as_in_evaluation(self, kind):
        norm = norm_with_history(kind)
        net, x = held(norm, torch.zeros(4, dtype=torch.bool)), torch.randn(4, 4, 5, 5)
        before = copy.deepcopy(net.state_dict())
        assert torch.equal(net.train()(x), norm.eval()(x))
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert net.training

    def test_evaluation_is_the_original(self, kind):
        norm, x = norm_with_history(kind), torch.randn(4, 4, 5, 5)
        assert torch.equal(held(norm, MASK).eval()(x), norm.eval()(x))

    def test_backward_after_two_forwards(self, kind):
        net, x = held(norm_with_history(kind), MASK), torch.randn(4, 4, 5, 5, requires_grad=True)
        (net(x) * net(2 * x)).sum().backward()
        assert x.grad.isfinite().all()

    def test_copies(self, kind):
        net, x = held(norm_with_history(kind), MASK), torch.randn(4, 4, 5, 5)
        copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
        expected = net(x)
        for copied in copies:
            assert type(copied) is type(net)
            assert torch.equal(copied(x), expected)

    def test_compiles(self, kind):
        torch._dynamo.reset()
        norm, x = norm_with_history(kind), torch.randn(4, 4, 5, 5)
        net, other = held(norm, MASK), held(norm, MASK)
        # Torch's own cumulative average reads a counter's value, which no one graph can hold.
        compiled = torch.compile(other, backend="aot_eager", fullgraph=kind != "cumulative")
        assert torch.equal(compiled(x), net(x))
        assert all(torch.equal(other.state_dict()[name], value) for name, value in net.state_dict().items())

    def test_release_gives_the_class_back(self, kind):
        norm = norm_with_history(kind)
        net = held(norm, MASK)
        assert isinstance(net, HeldNorm)
        assert isinstance(net, type(norm))
        assert list(net.state_dict()) == list(norm.state_dict())
        release(net)
        assert type(net) is type(norm)
        assert not hasattr(net, HOLD)


def test_a_failing_forward_leaves_the_norm_as_it_was():
    net = held(norm_with_history("BatchNorm2d"), MASK)
    before = dict(net._buffers)
    with pytest.raises(ValueError, match="expected 4D"):
        net(torch.randn(4, 4))
    assert net.training
    assert all(net._buffers[name] is buffer for name, buffer in before.items())
