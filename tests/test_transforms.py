"""Transforms and tracers of torch on a network before removal: torch.func, dual numbers, jit, ONNX, torch.fx."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.autograd import forward_ad

from tests.laws.subjects import Method, in_both_forms, methods, operated
from tests.strategies import Case, call, cases, scalar_loss
from tests.strategies.case import randomise
from tests.topologies import case_of
from tgdsurgery import RewriteError, apply_tgd, remove_tgd

X = torch.linspace(-1, 1, 768, dtype=torch.float64).view(4, 3, 8, 8)
# torch would rather have torch.export and the newer ONNX export, warns of what a trace keeps as a constant, and tells
# where it batches slowly.
pytestmark = pytest.mark.filterwarnings("ignore")
FLOWS = pytest.mark.parametrize("flow", ["masked", "full"])


class Own(nn.Conv2d):
    """Without a twin: its weight is put together by a property."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


def network(own: bool = True) -> nn.Module:
    """Every kind of twin, and a layer that has none."""
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, groups=2),
        nn.GroupNorm(2, 8),
        nn.PReLU(8),
        Own(8, 8, 3) if own else nn.Conv2d(8, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
        nn.ConvTranspose2d(8, 8, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(8),
        nn.Linear(8, 6),
        nn.SiLU(),
        nn.Linear(6, 2),
    ]
    return randomise(nn.Sequential(*layers), seed=0).double().eval()


def tgd_of(form: str, flow: Any = "masked", **options: Any) -> nn.Module:
    return apply_tgd(network(**options), X, phi=0.6, form=form, flow=flow).eval()


def weights_of(tgd: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in tgd.named_parameters() if p.requires_grad}


def gradients_of(tgd: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """By a backward, as in any loop."""
    tgd.zero_grad()
    tgd(x).square().sum().backward()
    return {name: p.grad for name, p in tgd.named_parameters() if p.grad is not None}


@FLOWS
@in_both_forms
def test_per_sample_gradients(form, flow):
    """`vmap` over `grad`, as differential privacy takes them."""
    tgd = tgd_of(form, flow)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(tgd, weights, (x[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights_of(tgd), X)
    for index in range(len(X)):
        for name, gradient in gradients_of(tgd, X[index : index + 1]).items():
            torch.testing.assert_close(found[name][index], gradient)


def assert_forward_mode_agrees(tgd: nn.Module, inputs: Any) -> None:
    """Raise unless the derivative along a direction is that of the backward, which knows the flow."""

    def outputs(weights: dict[str, Tensor]) -> Tensor:
        return scalar_loss(call(partial(torch.func.functional_call, tgd, weights), (inputs,)))

    weights = weights_of(tgd)
    if not weights:
        return
    torch.manual_seed(0)
    direction = {name: torch.randn_like(value) for name, value in weights.items()}
    for name, mask in tgd.tgd_plan.parameter_masks().items():
        if name in direction and direction[name].shape == mask.shape:  # the layers form: of what is trainable
            direction[name] *= mask
    _, forward = torch.func.jvp(outputs, (weights,), (direction,))
    gradients = torch.func.grad(outputs)(weights)
    backward = sum((gradient * direction[name]).sum() for name, gradient in gradients.items())
    size = sum((gradient * direction[name]).abs().sum() for name, gradient in gradients.items())
    assert abs(forward - backward) <= 1e-7 * size + 1e-12  # of float64; sums in another order


@FLOWS
@in_both_forms
def test_forward_mode(form, flow):
    assert_forward_mode_agrees(tgd_of(form, flow), X)


@pytest.mark.parametrize("name", ["residual stages", "u-net", "norms with statistics", "linear layers only"])
@FLOWS
@in_both_forms
def test_forward_mode_on_topologies(name, form, flow):
    case = case_of(name).double()
    assert_forward_mode_agrees(operated(case, Method(form=form, flow=flow)).eval(), case.inputs)


@in_both_forms
def test_dual_numbers_where_norms_hold_their_statistics(form):
    """In training; the statistics of frozen channels stay, those of the others move."""
    tgd = tgd_of(form).train()
    norm, trainable = tgd.get_submodule("1"), tgd.tgd_plan.trainable("1")
    before = norm.running_mean.clone()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, torch.ones_like(X))
        assert forward_ad.unpack_dual(tgd(dual)).tangent is not None
    assert trainable.any()
    assert torch.equal(before != norm.running_mean, trainable)


@in_both_forms
def test_jacobians_and_curvature(form):
    tgd = tgd_of(form)
    torch.testing.assert_close(torch.func.jacrev(tgd)(X[:2]), torch.func.jacfwd(tgd)(X[:2]))
    weights = weights_of(tgd)

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(tgd, weights, (X,)).square().sum()

    product = torch.func.jvp(torch.func.grad(loss), (weights,), (weights,))[1]
    assert all(torch.isfinite(value).all() for value in product.values())


@in_both_forms
@pytest.mark.parametrize("grad", [True, False])
def test_trace(form, grad):
    """Also twice, as torch checks it; the trace runs on inputs of another batch."""
    tgd = tgd_of(form)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(tgd, X)
        assert torch.equal(traced(X[:3]), tgd(X[:3]))


@in_both_forms
def test_the_onnx_export_that_traces(form):
    tgd, file = tgd_of(form).float(), io.BytesIO()
    torch.onnx.export(tgd, (X.float(),), file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    (y,) = session.run(None, {session.get_inputs()[0].name: X.float().numpy()})
    torch.testing.assert_close(torch.from_numpy(y), tgd(X.float()).detach())


@in_both_forms
@pytest.mark.parametrize("training", [True, False])
def test_fx(form, training):
    """The trace calls the layers of the network, so it trains as the network does."""
    tgd = tgd_of(form, own=False).train(training)
    traced = fx.symbolic_trace(tgd)
    assert {"0", "1", "3"} <= {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert torch.equal(traced(X), tgd(X))
    expected = gradients_of(tgd, X)
    found = gradients_of(traced, X)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


def test_fx_never_keeps_a_weight_as_a_constant():
    with pytest.raises(RewriteError, match=r"constant.*remove_tgd"):
        fx.symbolic_trace(tgd_of("compact"))
    tgd = tgd_of("compact")
    torch.testing.assert_close(fx.symbolic_trace(remove_tgd(tgd))(X), tgd(X))


@given(case=cases(), method=methods, mode=st.sampled_from(["trace", "forward mode"]))
def test_random_networks(case: Case, method: Method, mode: str):
    case = case.double().train(False)
    tgd = operated(case, method).eval()
    if mode == "trace":
        traced = torch.jit.trace(tgd, case.inputs, check_trace=False)
        assert torch.equal(scalar_loss(call(traced, case.inputs)), scalar_loss(call(tgd, case.inputs)))
    else:
        assert_forward_mode_agrees(tgd, case.inputs)
