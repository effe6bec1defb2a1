"""Norms and PReLU: outputs, gradients and running statistics of the compact form."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.compact.twins import assert_same_gradients, by_hand, described, run, twin_of
from tgdsurgery.surgery.layers.held_norm import hold
from tgdsurgery.surgery.layers.tgd_layer import TGDLayer

STATISTICS = ("running_mean", "running_var")
# Both sides add up the same numbers, some hundred of size about one, in another order.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}

# Each: the layer for 4 channels, the shape of its input, and the axis of the channels from the end.
CHANNEL_LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "batch 1d": (lambda: nn.BatchNorm1d(4), (3, 4, 5), -2),
    "batch 1d of features": (lambda: nn.BatchNorm1d(4), (6, 4), -1),
    "batch 2d": (lambda: nn.BatchNorm2d(4), (3, 4, 5, 5), -3),
    "batch 3d": (lambda: nn.BatchNorm3d(4), (2, 4, 3, 3, 3), -4),
    "batch, cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), (3, 4, 5, 5), -3),
    "batch, not affine": (lambda: nn.BatchNorm2d(4, affine=False), (3, 4, 5, 5), -3),
    "batch, not tracking": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (3, 4, 5, 5), -3),
    "group": (lambda: nn.GroupNorm(2, 4), (3, 4, 5, 5), -3),
    "layer, last axis": (lambda: nn.LayerNorm(4), (3, 5, 4), -1),
    "layer, all axes": (lambda: nn.LayerNorm((4, 3, 3)), (2, 4, 3, 3), -3),
    "layer, no bias": (lambda: nn.LayerNorm(4, bias=False), (3, 5, 4), -1),
    "rms": (lambda: nn.RMSNorm(4), (3, 5, 4), -1),
    "instance 1d": (lambda: nn.InstanceNorm1d(4, affine=True), (3, 4, 5), -2),
    "instance 2d": (lambda: nn.InstanceNorm2d(4, affine=True), (3, 4, 5, 5), -3),
    "instance 3d": (lambda: nn.InstanceNorm3d(4, affine=True), (2, 4, 3, 3, 3), -4),
    "instance, tracking": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        (3, 4, 5, 5),
        -3,
    ),
    "prelu": (lambda: nn.PReLU(4), (3, 4, 5, 5), -3),
}
TRACKING = [
    name for name, (make, *_) in CHANNEL_LAYERS.items() if getattr(make(), "running_mean", None) is not None
]
masks = st.sampled_from([[bool(bits >> n & 1) for n in range(4)] for bits in range(15)])  # not all trainable


def channel_layer(name: str) -> tuple[nn.Module, Tensor, int]:
    """The layer with random parameters and statistics of its own, an input, and the channel axis."""
    torch.manual_seed(0)
    make, shape, axis = CHANNEL_LAYERS[name]
    module = make().double()
    for _ in range(2):
        module(2 + 3 * torch.randn(shape, dtype=torch.float64))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module, torch.randn(shape, dtype=torch.float64), axis


@pytest.mark.parametrize("name", CHANNEL_LAYERS)
@given(mask=masks, stops=st.booleans(), training=st.booleans())
def test_output_and_gradients_are_the_plain_ones_masked_by_hand(
    name: str, mask: list[bool], stops: bool, training: bool
):
    module, x, axis = channel_layer(name)
    module.train(training)
    twin = twin_of(module, mask, channel_axis=axis, stops_gradient=stops, hold=False)
    weight = torch.randn_like(x)
    expected, by_autograd = by_hand(
        module, x, described(module, channel_axis=axis), mask, stops, None, weight
    )
    y, found = run(twin, x, weight)
    assert torch.equal(y, expected)
    assert_same_gradients(found, by_autograd, **ROUNDING)


@pytest.mark.parametrize("name", TRACKING)
@pytest.mark.parametrize("channels_last", [False, True])
@given(mask=masks, stops=st.booleans())
def test_held_channels_are_those_of_the_layers_form(
    name: str, channels_last: bool, mask: list[bool], stops: bool
):
    module, x, axis = channel_layer(name)
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    layered = copy.deepcopy(module)
    hold(layered, torch.tensor(mask), axis, STATISTICS)
    twin = twin_of(module, mask, channel_axis=axis, stops_gradient=stops)
    layer = TGDLayer(torch.tensor(mask), axis)
    weight = torch.randn_like(x)
    for _ in range(2):
        both = []
        for net in (twin, layered):
            net.zero_grad()
            leaf = x.clone().requires_grad_()
            y = net(leaf) if net is twin or not stops else layer(net(leaf))
            if y.requires_grad:
                (y * weight).sum().backward()
            both.append((y.detach(), leaf.grad))
        (y, by_input), (expected, by_layers) = both
        assert torch.equal(y, expected)
        assert y.stride() == expected.stride()
        found = {name: p.grad for name, p in twin.named_parameters()}
        rows = {
            name: p.grad[torch.tensor(mask)] for name, p in layered.named_parameters() if p.grad is not None
        }
        assert_same_gradients(
            {**found, "x": torch.zeros_like(x) if by_input is None else by_input},
            {**rows, "x": by_layers},
            **ROUNDING,
        )
    assert twin.state_dict().keys() == module.state_dict().keys()
    for buffer, tensor in layered.named_buffers(recurse=False):
        assert torch.equal(twin.get_buffer(buffer), tensor)


@pytest.mark.parametrize("name", CHANNEL_LAYERS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_an_activation_in_place_may_follow(name: str, channels_last: bool):
    module, x, axis = channel_layer(name)
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    twin = twin_of(module, [True, False, True, False], channel_axis=axis, stops_gradient=True)
    again = copy.deepcopy(twin)
    x.requires_grad_()
    gradients = [
        torch.autograd.grad(y.square().sum(), [x, *net.parameters()])
        for net, y in ((twin, twin(x).relu_()), (again, again(x).relu()))
    ]
    assert_same_gradients(*(dict(enumerate(each)) for each in gradients), rtol=0, atol=0)


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("mask", [(True, False, False, True), (True, True, True, False), (False,) * 4])
@pytest.mark.parametrize("name", CHANNEL_LAYERS)
def test_an_empty_batch_is_that_of_the_plain_layer(name: str, mask: tuple[bool, ...], hold: bool):
    module, x, axis = channel_layer(name)
    module.train()
    twin = twin_of(module, mask, channel_axis=axis, hold=hold)
    plain, nothing = copy.deepcopy(module), x[:0]
    try:
        expected = plain(nothing)
    except (RuntimeError, IndexError) as error:  # what torch refuses
        with pytest.raises(type(error)):
            twin(nothing)
        return
    y, found = run(twin, nothing)
    assert y.shape == expected.shape
    assert not any(gradient.any() for gradient in found.values())
    held = hold and not any(mask)  # which counts no batches
    for buffer, value in (module if held else plain).named_buffers():
        assert torch.equal(twin.state_dict()[buffer], value)


# torch tells that it computes an RMSNorm without its fused kernel.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", [(True, False, False, True), (True, True, True, False)])
@pytest.mark.parametrize("name", sorted(CHANNEL_LAYERS.keys() - {"batch, not affine"}))
def test_autocast_has_the_plain_dtypes_and_outputs(name: str, mask: tuple[bool, ...], dtype: torch.dtype):
    module, x, axis = channel_layer(name)
    module, x = module.float(), x.float()
    twin = twin_of(module, mask, channel_axis=axis, hold=False)
    outputs, gradients = [], []
    for net in (module, twin):
        net.zero_grad()
        with torch.autocast("cpu", dtype):
            y = net(x.to(dtype))
        y.float().square().sum().backward()
        outputs.append(y)
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    assert outputs[0].dtype == outputs[1].dtype
    assert torch.equal(*outputs)
    for parameter, gradient in gradients[1].items():
        assert gradient.dtype == torch.float32
        # Both round activations to the short type; sums of some hundred products of size one.
        torch.testing.assert_close(gradient, gradients[0][parameter][list(mask)], rtol=2**-5, atol=2**-4)


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", [(True, False, False, True), (True, True, True, False)])
@pytest.mark.parametrize("name", CHANNEL_LAYERS)
def test_gradients_of_gradients_are_the_plain_ones_masked_by_hand(
    name: str, mask: tuple[bool, ...], training: bool, stops: bool
):
    module, x, axis = channel_layer(name)
    module.train(training)
    twin = twin_of(module, mask, channel_axis=axis, stops_gradient=stops, hold=False)
    shaped = torch.tensor(mask).view(-1, *[1] * (-axis - 1))
    found = []
    for net, through in ((twin, lambda y: y), (module, lambda y: torch.where(shaped, y, y.detach()))):
        leaf = x.clone().requires_grad_()
        y = through(net(leaf)) if stops or net is twin else net(leaf)
        (gradient,) = torch.autograd.grad(y.pow(3).sum(), leaf, create_graph=True)
        parameters = dict(net.named_parameters())
        wanted = torch.autograd.grad(gradient.square().sum(), [leaf, *parameters.values()], allow_unused=True)
        found.append({n: g for n, g in zip(["x", *parameters], wanted, strict=True) if g is not None})
    twins, plain = found
    plain = {n: g if n == "x" else g[torch.tensor(mask)] for n, g in plain.items()}
    assert_same_gradients(twins, plain, **ROUNDING)


@pytest.mark.parametrize("name", TRACKING)
def test_gradients_of_gradients_of_held_norms(name: str):
    module, x, axis = channel_layer(name)
    twin = twin_of(module, [True, False, True, False], channel_axis=axis, stops_gradient=False)
    statistics = {buffer: twin.get_buffer(buffer).clone() for buffer in STATISTICS}

    def forward(x: Tensor) -> Tensor:
        for buffer, value in statistics.items():
            twin.get_buffer(buffer).data.copy_(value)
        return twin(x)

    assert torch.autograd.gradgradcheck(forward, (x[:2].clone().requires_grad_(),))


def test_a_whole_frozen_norm_moves_no_statistics_and_lets_the_loss_through_if_told_so():
    module, x, axis = channel_layer("batch 2d")
    before = copy.deepcopy(module.state_dict())
    frozen: dict[str, Any] = {"mask": [False] * 4, "channel_axis": axis}
    twin = twin_of(module, stops_gradient=False, **frozen)
    y, found = run(twin, x)
    assert torch.equal(y, module.eval()(x))
    assert found["x"].any()
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in before.items())
    assert not twin_of(module, stops_gradient=True, **frozen)(x.requires_grad_()).requires_grad


# torch's compiler makes an instance of the autograd function, which torch itself warns about.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
# Of a cumulative norm torch reads the number of batches in Python, which breaks the plain layer's graph as well.
@pytest.mark.parametrize("name", sorted(CHANNEL_LAYERS.keys() - {"batch, cumulative"}))
def test_it_compiles_without_a_break(name: str):
    module, x, axis = channel_layer(name)
    twin = twin_of(module, [True, False, True, False], channel_axis=axis)
    other = copy.deepcopy(twin)
    y, expected = run(twin, x)
    compiled, found = run(torch.compile(other, backend="aot_eager", fullgraph=True), x)
    torch.testing.assert_close(compiled, y, **ROUNDING)
    assert_same_gradients({n.removeprefix("_orig_mod."): g for n, g in found.items()}, expected, **ROUNDING)
