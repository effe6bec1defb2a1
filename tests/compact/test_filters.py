"""Convolutions, transposed convolutions and linear layers: outputs and gradients of the compact form."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.compact.twins import assert_same_gradients, at_needed, by_hand, described, rows_of, run, twin_of
from tgdsurgery.surgery.compact import backward_conv as gradients
from tgdsurgery.surgery.compact import gain
from tgdsurgery.surgery.compact.layout import by_row

CONVS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
# Both sides add up the same products, at most some hundred of size about one, in another order.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}


class Subject(NamedTuple):
    """A plain layer, an input, and what is asked of the twin."""

    module: nn.Module
    x: Tensor
    mask: list[bool]
    stops_gradient: bool
    needs: list[bool] | None


def bools(size: int) -> st.SearchStrategy[list[bool]]:
    return st.lists(st.booleans(), min_size=size, max_size=size)


@st.composite
def convs(draw: st.DrawFn) -> Subject:
    spatial = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    groups = draw(st.integers(1, 3))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    sizes = st.tuples(*[st.integers(1, 2)] * spatial)
    stride, dilation = draw(sizes), draw(sizes)
    kernel = draw(st.tuples(*[st.integers(1, 3)] * spatial))
    settings: dict[str, Any] = {"groups": groups, "bias": draw(st.booleans()), "dilation": dilation}
    if transposed:
        settings |= {"padding": draw(st.integers(0, 1)), "stride": stride}
        settings["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
    else:
        settings["padding_mode"] = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
        settings["padding"] = draw(st.sampled_from([0, 1, (1,) * spatial, "same", "valid"]))
        settings["stride"] = 1 if settings["padding"] == "same" else stride
    torch.manual_seed(draw(st.integers(0, 9)))
    module = CONVS[spatial][transposed](inputs, outputs, kernel, **settings).double()
    x = torch.randn(draw(st.integers(1, 2)), inputs, *[6] * spatial, dtype=torch.float64)
    form = draw(st.sampled_from(["contiguous", "channels last", "strided", "unbatched"]))
    if form == "channels last" and spatial > 1:
        layout = torch.channels_last if spatial == 2 else torch.channels_last_3d
        module, x = module.to(memory_format=layout), x.to(memory_format=layout)
    elif form == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    elif form == "unbatched":
        x = x[0]
    return Subject(module, x, draw(bools(outputs)), draw(st.booleans()), draw(st.none() | bools(inputs)))


@st.composite
def linears(draw: st.DrawFn) -> Subject:
    torch.manual_seed(draw(st.integers(0, 9)))
    inputs, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    module = nn.Linear(inputs, outputs, bias=draw(st.booleans())).double()
    shape = draw(st.sampled_from([(), (3,), (2, 3), (2, 2, 2)]))
    x = torch.randn(*shape, inputs, dtype=torch.float64)
    if draw(st.booleans()):
        x = torch.stack([x, x], -1)[..., 0].transpose(0, -2) if len(shape) > 1 else x
    return Subject(module, x, draw(bools(outputs)), draw(st.booleans()), draw(st.none() | bools(inputs)))


def assert_twin_is_right(subject: Subject) -> None:
    module, x, mask, stops_gradient, needs = subject
    layer = described(module)
    weight = torch.randn_like(module(x).detach())
    expected, by_autograd = by_hand(
        module, x, layer, mask, stops_gradient, None if all(mask) else needs, weight
    )
    for per_call in (0, math.inf):  # with the compact backward where it can be, and with the plain one
        with mock.patch.object(gain, "PER_CALL", per_call):
            twin = twin_of(module, mask, stops_gradient=stops_gradient, needs=needs)
        if all(mask):
            assert type(twin) is type(module)
            return
        y, found = run(twin, x, weight)
        assert torch.equal(y, expected)
        if needs is not None and "x" in found:  # the gradient of other channels may be left out
            found["x"] = at_needed(found["x"], layer, needs)
        assert_same_gradients(found, by_autograd, **ROUNDING)
        with torch.no_grad():
            assert torch.equal(twin(x), module(x))
        assert twin(x).stride() == module(x).stride()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even:UserWarning")  # the plain layer's own
@given(convs())
def test_a_convolution_has_the_plain_output_and_the_gradients_of_autograd_masked_by_hand(subject: Subject):
    assert_twin_is_right(subject)


@given(linears())
def test_a_linear_layer_has_the_plain_output_and_the_gradients_of_autograd_masked_by_hand(subject: Subject):
    assert_twin_is_right(subject)


CHANNELS = (True, False, True, False)


def conv(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(4, 4, 3, padding=1, **options)


@pytest.mark.parametrize("name", ["_row_gradient", "_input_gradient"])
def test_a_planted_error_in_the_backward_is_caught(name: str, monkeypatch: pytest.MonkeyPatch):
    right = getattr(gradients, name)
    monkeypatch.setattr(gradients, name, lambda *args: right(*args).flip(1))
    subject = Subject(conv().double(), torch.randn(2, 4, 6, 6).double(), list(CHANNELS), True, None)
    with pytest.raises(AssertionError):
        assert_twin_is_right(subject)


FILTERS = {
    "conv": lambda: nn.Conv2d(2, 4, 2),
    "strided": lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1),
    "depthwise": lambda: nn.Conv1d(4, 4, 2, groups=4),
    "uneven groups": lambda: nn.Conv1d(4, 6, 2, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(2, 4, 2, stride=2),
    "grouped transposed": lambda: nn.ConvTranspose1d(4, 4, 2, groups=2),
    "linear": lambda: nn.Linear(3, 4),
}


@pytest.mark.parametrize("stops_gradient", [True, False])
@pytest.mark.parametrize("kind", FILTERS)
def test_gradients_of_gradients_agree_with_finite_differences(kind: str, stops_gradient: bool):
    torch.manual_seed(0)
    module = FILTERS[kind]().double()
    count = described(module).channels
    mask = [True, False, True, True, False, False][:count]
    first = module.weight.shape[0] if described(module).transposed else getattr(module, "in_channels", 3)
    twin = twin_of(module, mask, stops_gradient=stops_gradient)
    names = [name for name, _ in twin.named_parameters()]
    spatial = len(getattr(module, "kernel_size", ()))
    x = torch.randn(2, first, *[3] * spatial, dtype=torch.float64, requires_grad=True)
    rows = [p.detach().requires_grad_() for p in twin.parameters()]

    def gradient_of_input(x: Tensor, *rows: Tensor) -> Tensor:
        y = torch.func.functional_call(twin, dict(zip(names, rows, strict=True)), (x,))
        (gradient,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return gradient

    if not stops_gradient:
        assert torch.autograd.gradcheck(gradient_of_input, (x, *rows))
        assert torch.autograd.gradgradcheck(
            lambda x, *rows: torch.func.functional_call(twin, dict(zip(names, rows, strict=True)), (x,)),
            (x, *rows),
        )
        return
    # Where frozen channels are stopped, gradients are not those of the output, and finite differences no measure:
    # the plain layer with a mask after it is.
    plain = copy.deepcopy(module)
    shaped = torch.tensor(mask).view(-1, *[1] * spatial)
    penalties = []
    for net, through in ((twin, lambda y: y), (plain, lambda y: torch.where(shaped, y, y.detach()))):
        y = through(net(x))
        (gradient,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        penalty = gradient.pow(2).sum()
        found = torch.autograd.grad(penalty, [x, rows_of(net)])
        penalties.append(found)
    (of_x, of_rows), (expected_x, expected) = penalties
    layer = described(module)
    torch.testing.assert_close(of_x, expected_x, **ROUNDING)
    torch.testing.assert_close(of_rows, by_row(layer.parameters[0], expected)[torch.tensor(mask)], **ROUNDING)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("needs_grad", [True, False])
def test_autocast_has_the_plain_dtypes_and_outputs(kind: str, needs_grad: bool, dtype: torch.dtype):
    torch.manual_seed(0)
    module = FILTERS[kind]()
    inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    x = torch.randn(2, inputs, *[4] * len(getattr(module, "kernel_size", ())))
    twin = twin_of(module, [True, *[False] * (described(module).channels - 1)])
    with torch.autocast("cpu", dtype), torch.set_grad_enabled(needs_grad):
        expected, y = module(x), twin(x)
    assert y.dtype == expected.dtype == dtype
    assert torch.equal(y, expected)
    if needs_grad:
        expected.float().sum().backward()
        y.float().sum().backward()
        assert rows_of(twin).grad.dtype == torch.float32
        rows = rows_of(twin).grad
        whole = module.weight.grad
        # bfloat16 keeps 8 bits, float16 more; sums of some ten products of size about one
        torch.testing.assert_close(
            rows, by_row(described(module).parameters[0], whole)[:1], rtol=2**-6, atol=2**-4
        )


# torch counts no groups.
COUNTED = {
    "conv": lambda: nn.Conv2d(8, 8, 3, padding=1),
    "strided": lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1),
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 2, stride=2),
    "linear": lambda: nn.Linear(8, 8),
}


@pytest.mark.parametrize("kind", COUNTED)
@pytest.mark.parametrize(("trainable", "needed"), [(2, 4), (4, 8), (6, 2)])
def test_the_backward_computes_no_more_than_it_needs(kind: str, trainable: int, needed: int):
    """Of the plain backward's products: for weights the trainable share, for the input that of the needed as well."""
    torch.manual_seed(0)
    module = COUNTED[kind]()
    x = (
        torch.randn(2, 8, requires_grad=True)
        if kind == "linear"
        else torch.randn(2, 8, 6, 6).requires_grad_()
    )
    mask, needs = ([n < count for n in range(8)] for count in (trainable, needed))
    products = []
    for net in (module, twin_of(module, mask, needs=needs)):
        y = net(x)
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        products.append(counter.get_total_flops())
    plain, twin = products
    assert twin == plain / 2 * (trainable / 8 + trainable * needed / 64)


@pytest.mark.parametrize("kind", FILTERS)
def test_an_empty_batch_gives_zero_gradients(kind: str):
    module = FILTERS[kind]()
    inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    twin = twin_of(module, [True, *[False] * (described(module).channels - 1)])
    x = torch.zeros(0, inputs, *[4] * len(getattr(module, "kernel_size", ())))
    y, found = run(twin, x)
    assert y.shape == module(x).shape
    assert found["x"].shape == x.shape
    assert found.keys() == {"x", "weight", "bias"}
    assert not any(gradient.any() for gradient in found.values())


def test_with_nothing_trainable_the_output_is_cut_off_or_lets_the_loss_through():
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    assert not twin_of(conv(), [False] * 4)(x).requires_grad
    twin_of(conv(), [False] * 4, stops_gradient=False)(x).sum().backward()
    assert torch.equal(x.grad, torch.autograd.grad(conv()(x).sum(), x)[0])


def test_an_overflow_at_a_frozen_channel_stops_there():
    for mask in (CHANNELS, (True, True, True, False)):
        for groups in (1, 2):
            twin = twin_of(conv(groups=groups), mask)
            x = torch.randn(1, 4, 5, 5, requires_grad=True)
            y = twin(x)
            y.backward(torch.where(torch.tensor(mask)[:, None, None], torch.ones_like(y), torch.inf))
            assert all(
                torch.isfinite(g).all() for g in (x.grad, rows_of(twin).grad, rows_of(twin, "bias").grad)
            )


@pytest.mark.parametrize("flags", [(False, True), (True, False), (False, False)])
def test_requires_grad_of_the_rows_is_respected(flags: tuple[bool, bool]):
    twin = twin_of(conv(), CHANNELS)
    rows_of(twin).requires_grad_(flags[0])
    rows_of(twin, "bias").requires_grad_(flags[1])
    y = twin(torch.randn(1, 4, 5, 5))
    assert y.requires_grad == any(flags)
    if any(flags):
        y.sum().backward()
    assert [rows_of(twin).grad is not None, rows_of(twin, "bias").grad is not None] == list(flags)


@pytest.mark.parametrize("kind", FILTERS)
def test_a_backward_uses_the_weight_of_its_forward(kind: str):
    """Also if other rows, such as averaged ones, were in its place for an evaluation in between."""
    module = FILTERS[kind]()
    inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    twin = twin_of(module, [True, *[False] * (described(module).channels - 1)], stops_gradient=False)
    x = torch.randn(2, inputs, *[4] * len(getattr(module, "kernel_size", ())), requires_grad=True)
    expected = torch.autograd.grad(module(x).sum(), x)[0]
    y, rows = twin(x), rows_of(twin)
    own = rows.detach().clone()
    rows.data.zero_()
    with torch.no_grad():
        assert not torch.equal(twin(x), y)
    rows.data.copy_(own)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)


@pytest.mark.parametrize("kind", FILTERS)
def test_a_backward_after_an_evaluation_is_no_error(kind: str):
    """The whole weight is written anew in it, with the same values."""
    module = FILTERS[kind]()
    inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    twin = twin_of(module, [True, *[False] * (described(module).channels - 1)], stops_gradient=False)
    x = torch.randn(2, inputs, *[4] * len(getattr(module, "kernel_size", ())), requires_grad=True)
    y = twin(x)
    with torch.no_grad():
        twin.eval()(x)
    twin.train()
    expected = torch.autograd.grad(module(x).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)


def saved_elements(module: nn.Module, x: Tensor) -> int:
    """How many floating-point entries autograd keeps for the backward."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(x)
    return sum(t.numel() for t in kept if t.is_floating_point())


def test_the_backward_keeps_no_more_than_it_needs():
    x, twin = torch.randn(2, 4, 5, 5), twin_of(conv(), CHANNELS)
    assert saved_elements(twin, x) == x.numel()  # for the rows' gradient
    rows_of(twin).requires_grad_(False)
    x.requires_grad_()
    assert saved_elements(twin, x) == rows_of(twin).numel()  # for the input's


@pytest.mark.parametrize("kind", FILTERS)
def test_an_activation_in_place_may_follow(kind: str):
    module = FILTERS[kind]()
    inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    count = described(module).channels
    for batch in ((), (2,), (2, 3)) if kind == "linear" else ((), (2,)):
        shape = (inputs,) if kind == "linear" else (inputs, *[4] * len(module.kernel_size))
        for mask in ([True] + [False] * (count - 1), [False] * count):
            twin = twin_of(module, mask)
            x = torch.randn(*batch, *shape, requires_grad=True)
            found = twin(x).relu_().sum()
            assert torch.equal(found, module(x).relu_().sum())
            if any(mask):
                found.backward()
                assert x.grad is not None


@given(st.integers(1, 150), st.integers(2, 150), st.integers(1, 8), st.booleans(), st.integers(0, 99))
def test_a_linear_layer_rounds_as_the_plain_one_does_where_its_weight_needs_a_gradient(
    inputs: int, outputs: int, batch: int, bias: bool, seed: int
):
    torch.manual_seed(seed)
    module = nn.Linear(inputs, outputs, bias)
    twin = twin_of(module, [True] + [False] * (outputs - 1))
    x = torch.randn(batch, inputs, 7)
    assert torch.equal(twin(x.transpose(1, 2)), module(x.transpose(1, 2)))
    assert torch.equal(twin(x.permute(2, 0, 1)), module(x.permute(2, 0, 1)))


def test_vmap_and_per_sample_gradients():
    torch.manual_seed(0)
    module, mask = conv(), torch.tensor(CHANNELS)
    twin, x = twin_of(module, CHANNELS, stops_gradient=False), torch.randn(3, 4, 5, 5)

    def loss(parameters: dict[str, Tensor], net: nn.Module, sample: Tensor) -> Tensor:
        return torch.func.functional_call(net, parameters, (sample,)).pow(2).sum()

    found, expected = (
        torch.func.vmap(torch.func.grad(loss), (None, None, 0))(dict(net.named_parameters()), net, x)
        for net in (twin, module)
    )
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name][:, mask])


# torch's compiler makes an instance of the autograd function, which torch itself warns about.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("stops_gradient", [True, False])
def test_it_compiles_without_a_break(kind: str, stops_gradient: bool):
    torch.manual_seed(0)
    module = FILTERS[kind]()
    inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    twin = twin_of(module, [True, *[False] * (described(module).channels - 1)], stops_gradient=stops_gradient)
    x = torch.randn(2, inputs, *[4] * len(getattr(module, "kernel_size", ())))
    y, expected = run(twin, x)
    twin.zero_grad()
    compiled, found = run(torch.compile(twin, backend="aot_eager", fullgraph=True), x)
    assert torch.equal(compiled, y)
    found = {name.removeprefix("_orig_mod."): gradient for name, gradient in found.items()}
    assert_same_gradients(found, expected)
