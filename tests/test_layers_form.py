"""The layers form: what is inserted, its gradients in both forms, and what is left after removal."""

from __future__ import annotations

import copy
import dataclasses
import gc
import io
import pickle
import random
import subprocess
import sys
import threading
import warnings
import weakref
from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tgdsurgery import apply_tgd, plan_tgd
from tgdsurgery.core.copying import own_randomness
from tgdsurgery.core.errors import CaptureError, RewriteError
from tgdsurgery.core.plan import LayerPlan, TGDPlan
from tgdsurgery.core.records import Layer, ParameterRows
from tgdsurgery.surgery.apply import layers_form
from tgdsurgery.surgery.equivalence import same_results
from tgdsurgery.surgery.layers.graph import TGDGraphModule, traced
from tgdsurgery.surgery.layers.held_norm import HeldNorm, Hold
from tgdsurgery.surgery.layers.parameter_mask import ParameterMask
from tgdsurgery.surgery.layers.tgd_layer import TGDLayer
from tgdsurgery.surgery.remove import remove_tgd

FILTERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def layer_of(net: nn.Module, name: str, **changes: object) -> Layer:
    """The record of the module `name`, as the planner would write it."""
    module = net.get_submodule(name)
    transposed = isinstance(module, nn.ConvTranspose2d)
    groups = module.groups if transposed else 1
    parameters = []
    for own, parameter in module.named_parameters(recurse=False):
        rows = ParameterRows(f"{name}.{own}", tuple(parameter.shape))
        if transposed and own == "weight":
            rows = dataclasses.replace(rows, axis=1, groups=groups)
        parameters.append(rows)
    first = parameters[0]
    layer = Layer(
        name=name,
        role="filter" if isinstance(module, FILTERS) else "channel",
        type=type(module).__name__,
        channels=first.shape[first.axis] * groups,
        parameters=tuple(parameters),
        statistics=tuple(f"{name}.{s}" for s in ("running_mean", "running_var") if hasattr(module, s)),
        modules=(name,),
        channel_axis=-1 if isinstance(module, nn.Linear) else -3,
        groups=getattr(module, "groups", 1),
        transposed=transposed,
    )
    return dataclasses.replace(layer, **changes)


def plan_for(
    net: nn.Module, masks: dict[str | Layer, list[int]], *, flow: str = "masked", norm_stats: str = "hold"
) -> TGDPlan:
    """A plan by hand: for each layer (a module's name, or its record) 1 where trainable."""
    entries = []
    for key, mask in masks.items():
        layer = layer_of(net, key) if isinstance(key, str) else key
        assert len(mask) == layer.channels
        entries.append(LayerPlan(layer, (None,) * len(mask), tuple(map(bool, mask))))
    owned = {rows.name for entry in entries for rows in entry.layer.parameters}
    unmapped = {name: p.numel() for name, p in net.named_parameters() if name not in owned}
    return TGDPlan(0.3, None, 5, 1.0, flow, norm_stats, tuple(entries), unmapped)


class Net(nn.Module):
    """Norms, in-place activations, a skip, a grouped transposed conv, dropout, and a module never called."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(1, 1, 1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.slope = nn.PReLU(6)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Conv2d(6, 2, 1)
        self.scale = 0.5  # a plain attribute

    def forward(self, x: Tensor) -> Tensor:
        skip = self.act(self.norm1(self.first(x)))
        x = self.act(self.norm2(self.second(skip))) + skip
        return self.last(self.drop(self.slope(self.up(x))))


class Branching(Net):
    """The same, with control flow on a value, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() < float("inf") else x * 0)


class Moody(Net):
    """The same, with other code in train and in eval mode, which can be exported but is not one graph."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.2, self.training))


MASKS = {
    "first": [1, 0, 1, 0],
    "norm1": [1, 0, 1, 0],
    "second": [0, 1, 1, 0],
    "norm2": [0, 1, 1, 0],
    "up": [1, 0, 0, 0, 1, 1],
    "slope": [1, 0, 0, 0, 1, 1],
    "last": [0, 0],
}
MASKED = tuple(plan_for(Net(), MASKS).parameter_masks())
FORMS = pytest.mark.parametrize("kind", [Net, Branching], ids=["graph", "attached"])
FLOWS = pytest.mark.parametrize("flow", ["masked", "full"])


def make(kind: type[Net], **settings: str) -> tuple[Net, nn.Module]:
    """A net that has seen data, and its layers form."""
    torch.manual_seed(1)
    net = kind()
    net(5 * torch.randn(8, 3, 8, 8) + 1)
    return net, layers_form(net, plan_for(net, MASKS, **settings), X)


def gradients(net: nn.Module, x: Tensor = X) -> dict[str, Tensor]:
    """Gradients of a loss that is not linear in the output, with seeded dropout; nought for None."""
    net.zero_grad()
    torch.manual_seed(2)
    net(x).square().sum().backward()
    nought = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    return {name: nought[name] if p.grad is None else p.grad for name, p in net.named_parameters()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def seeded(net: nn.Module, x: Tensor = X) -> Tensor:
    torch.manual_seed(3)
    return net(x)


class TestForward:
    @FORMS
    @FLOWS
    def test_is_the_models_own_in_eval(self, kind, flow):
        net, tgd = make(kind, flow=flow)
        assert isinstance(tgd, TGDGraphModule) == (kind is Net and flow == "masked")
        assert torch.equal(tgd.eval()(X), net.eval()(X))

    @FORMS
    @FLOWS
    def test_is_the_models_own_in_train_with_batch_statistics(self, kind, flow):
        net, tgd = make(kind, flow=flow, norm_stats="batch")
        assert torch.equal(seeded(tgd), seeded(net))
        assert_same(tgd.state_dict(), net.state_dict())

    @FORMS
    def test_held_statistics_differ_in_train(self, kind):
        net, tgd = make(kind)
        assert not torch.equal(seeded(tgd), seeded(net))

    @FORMS
    def test_another_size_and_batch(self, kind):
        net, tgd = make(kind)
        x = torch.randn(3, 3, 10, 14)
        assert torch.equal(tgd.eval()(x), net.eval()(x))


def by_segments(stages: list[tuple[nn.Module, list[int] | None]], x: Tensor) -> list[Tensor]:
    """Gradients of a chain by the chain rule over its stages, masking dL/dY by hand after each."""
    inputs, outputs = [], []
    for stage, _ in stages:
        inputs.append(x.detach().clone().requires_grad_(True))
        outputs.append(stage(inputs[-1]))
        x = outputs[-1]
    result = []
    gradient = 2 * outputs[-1].detach()  # of the sum of squares
    for (stage, mask), start, end in reversed(list(zip(stages, inputs, outputs, strict=True))):
        if mask is not None:
            gradient = gradient * torch.tensor(mask, dtype=gradient.dtype).view(-1, 1, 1)
        wanted = (start, *stage.parameters())
        gradient, *own = torch.autograd.grad(end, wanted, gradient)
        result[:0] = own
    return result


def chain(size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, size, 3), nn.BatchNorm2d(size), nn.ReLU(),
        nn.Conv2d(size, size, 3), nn.BatchNorm2d(size), nn.ReLU(), nn.Conv2d(size, 2, 1),
    )  # fmt: skip


class TestGradients:
    @given(data=st.data(), size=st.integers(2, 6))
    def test_equal_hand_masked_autograd(self, data, size):
        drawn = st.lists(st.integers(0, 1), min_size=size, max_size=size).filter(any)
        masks = {name: data.draw(drawn) for name in "0134"}
        net = chain(size)
        tgd = layers_form(net, plan_for(net, {**masks, "6": [1, 1]}, norm_stats="batch"), X)
        expected = by_segments([(net[i], masks.get(str(i))) for i in range(7)], X)
        for (name, gradient), by_hand in zip(gradients(tgd).items(), expected, strict=True):
            # The same ops on the same numbers; float32 rounding of sums where a kernel picks another path.
            torch.testing.assert_close(
                gradient, by_hand, rtol=1e-5, atol=1e-5 * float(by_hand.abs().max()), msg=name
            )

    def test_of_a_linear_and_an_unbatched_conv(self):
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 4), nn.ReLU(inplace=True)
        )
        x = torch.randn(3, 8, 8)
        tgd = layers_form(net, plan_for(net, {"0": [1, 0, 1, 0], "3": [1, 0, 1, 1]}), x)
        found = gradients(tgd, x)
        for name in ("0.weight", "0.bias", "3.weight", "3.bias"):
            frozen = torch.tensor([0, 1, 0, int(name[0] == "0")], dtype=torch.bool)
            assert not found[name][frozen].any()
            assert found[name][~frozen].any()

    @FLOWS
    def test_of_both_forms_are_equal(self, flow):
        (_, graph), (_, attached) = make(Net, flow=flow), make(Branching, flow=flow)
        assert_same(gradients(graph), gradients(attached))

    def test_masked_flow_is_a_mask_on_every_output(self):
        net, tgd = make(Net, norm_stats="batch")

        class ByHand(Net):
            def forward(self, x: Tensor) -> Tensor:
                def masked(name: str, x: Tensor) -> Tensor:
                    y = getattr(self, name)(x)
                    mask = torch.tensor(MASKS[name]).view(-1, 1, 1)
                    return y * mask + y.detach() * (1 - mask)

                skip = torch.relu(masked("norm1", masked("first", x)))
                x = torch.relu(masked("norm2", masked("second", skip))) + skip
                return self.last(self.drop(masked("slope", masked("up", x))))

        hand = ByHand()
        hand.load_state_dict(net.state_dict())
        for name in ("last", "unused"):
            getattr(hand, name).requires_grad_(False)
        assert_same(gradients(tgd), gradients(hand))

    @FORMS
    def test_full_flow_is_a_mask_on_the_parameters(self, kind):
        net, tgd = make(kind, flow="full", norm_stats="batch")
        masks = tgd.tgd_plan.parameter_masks()
        nowhere = torch.tensor(False)
        expected = {n: torch.where(masks.get(n, nowhere), g, 0) for n, g in gradients(net).items()}
        assert_same(gradients(tgd), expected)

    @FORMS
    def test_full_flow_leaves_the_gradient_of_the_input(self, kind):
        net, tgd = make(kind, flow="full", norm_stats="batch")
        x = X.clone().requires_grad_(True)
        own, rewritten = (torch.autograd.grad(seeded(n, x).sum(), x)[0] for n in (net, tgd))
        assert torch.equal(rewritten, own)
        _, masked = make(kind, norm_stats="batch")
        assert not torch.equal(torch.autograd.grad(seeded(masked, x).sum(), x)[0], own)

    @FORMS
    @FLOWS
    def test_of_frozen_entries_are_zero_or_none(self, kind, flow):
        _, tgd = make(kind, flow=flow)
        found = gradients(tgd)
        for name, mask in tgd.tgd_plan.parameter_masks().items():
            assert not found[name][~mask].any()
            assert torch.equal(found[name] != 0, mask), name  # all trainable entries of this net get one
        for name in ("last.weight", "unused.bias"):
            parameter = tgd.get_parameter(name)
            assert parameter.grad is None
            assert not parameter.requires_grad

    @FORMS
    def test_compiled_equal_eager(self, kind):
        torch._dynamo.reset()
        _, tgd = make(kind)
        tgd.get_submodule("drop").eval()  # a compiler may draw other random numbers
        expected = gradients(tgd)
        assert_same(gradients(torch.compile(tgd, backend="aot_eager")._orig_mod), expected)
        compiled = torch.compile(copy.deepcopy(tgd), backend="aot_eager")
        found = gradients(compiled)
        for name, gradient in expected.items():
            # The compiler decomposes ops: other roundings of float32 sums.
            other = found[f"_orig_mod.{name}"]
            torch.testing.assert_close(
                other, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name
            )


class TestStatistics:
    @FORMS
    def test_held_for_frozen_channels_only(self, kind):
        _, tgd = make(kind)
        before = copy.deepcopy(tgd.state_dict())
        for _ in range(3):
            gradients(tgd)
        for norm in ("norm1", "norm2"):
            mask = torch.tensor(MASKS[norm], dtype=torch.bool)
            for name in (f"{norm}.running_mean", f"{norm}.running_var"):
                assert torch.equal(tgd.state_dict()[name] != before[name], mask)

    def test_batch_lets_all_move(self):
        net, tgd = make(Net, norm_stats="batch")
        assert not any(isinstance(module, HeldNorm) for module in tgd.modules())
        seeded(tgd)
        assert (tgd.state_dict()["norm1.running_mean"] != net.norm1.running_mean).all()

    @pytest.mark.parametrize("momentum", [0.0, 0.1, None])
    def test_held_whatever_the_momentum(self, momentum):
        """With a momentum of 0, as in CREPE, nothing is seen to move, and yet training takes the batch's statistics."""
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(4, momentum=momentum)
        norm.running_mean.normal_()
        net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 2, 1))
        plan = plan_tgd(net, X, phi=0.5)
        trainable = plan.trainable("1")
        assert 0 < trainable.sum() < 4
        made = net[0](X)
        by_batch, by_stored = (
            F.batch_norm(made, norm.running_mean.clone(), norm.running_var.clone(), training=t)
            for t in (True, False)
        )
        expected = torch.where(trainable.view(-1, 1, 1), by_batch, by_stored)
        for form in ("layers", "compact"):
            tgd = apply_tgd(net, X, plan=plan, form=form).train()
            torch.testing.assert_close(tgd(X), net[2](expected))

    def test_fused_norm_of_a_users_class(self):
        class FusedNorm(nn.BatchNorm2d):
            def forward(self, x: Tensor) -> Tensor:
                return F.relu_(super().forward(x))

        net = nn.Sequential(nn.Conv2d(3, 4, 3), FusedNorm(4), nn.Conv2d(4, 2, 1))
        tgd = layers_form(net, plan_for(net, {"0": [1, 0, 1, 0], "1": [1, 0, 1, 0], "2": [0, 0]}), X)
        found = gradients(tgd)
        assert torch.equal(tgd.state_dict()["1.running_mean"] != 0, torch.tensor([True, False, True, False]))
        assert not found["1.weight"][[1, 3]].any()
        assert found["1.weight"][[0, 2]].any()
        assert type(remove_tgd(tgd)[1]) is FusedNorm


class TestState:
    @FORMS
    @FLOWS
    def test_dict_is_the_original(self, kind, flow):
        net, tgd = make(kind, flow=flow)
        assert list(tgd.state_dict()) == list(net.state_dict())
        assert_same(tgd.state_dict(), net.state_dict())
        other = kind()
        tgd.load_state_dict(other.state_dict(), strict=True)
        assert torch.equal(tgd.eval()(X), other.eval()(X))
        net.load_state_dict(tgd.state_dict(), strict=True)
        assert torch.equal(net.eval()(X), other(X))

    @FORMS
    @FLOWS
    @pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
    def test_copies_train_alike(self, kind, flow, way):
        net, tgd = make(kind, flow=flow)
        tgd.note = "set after the rewriting"
        tgd.get_submodule("norm1").eval()
        if way == "deepcopy":
            other = copy.deepcopy(tgd)
        elif way == "pickle":
            other = pickle.loads(pickle.dumps(tgd))
        else:
            file = io.BytesIO()
            torch.save(tgd, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        assert other.tgd_plan == tgd.tgd_plan
        assert other.note == "set after the rewriting"
        assert other.scale == net.scale
        assert [m.training for m in other.modules()] == [m.training for m in tgd.modules()]
        assert isinstance(other, TGDGraphModule) == isinstance(tgd, TGDGraphModule)
        expected = gradients(tgd)
        assert_same(gradients(other), expected)
        with torch.no_grad():
            other.get_parameter("first.weight").zero_()
        assert tgd.get_parameter("first.weight").any()
        assert torch.equal(remove_tgd(other).eval()(X), other.eval()(X))

    def test_unpickles_in_another_process(self, tmp_path):
        net = chain(4)
        tgd = layers_form(net, plan_for(net, {"0": [1, 0, 1, 0], "1": [1, 0, 1, 0], "6": [0, 0]}), X)
        torch.save(tgd, tmp_path / "tgd.pt")
        torch.save((X, tgd.eval()(X)), tmp_path / "x.pt")
        code = (
            "import sys, torch; torch.set_num_threads(1);"
            "net = torch.load(sys.argv[1], weights_only=False).eval();"
            "x, y = torch.load(sys.argv[2]); assert torch.equal(net(x), y); print(type(net).__name__)"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "tgd.pt"), str(tmp_path / "x.pt")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert run.stdout.strip() == "TGDSequential"

    @FORMS
    @FLOWS
    def test_replaced_parameters_are_masked_too(self, kind, flow):
        net, tgd = make(kind, flow=flow)
        expected = gradients(copy.deepcopy(tgd))
        replaced = copy.deepcopy(net).state_dict()
        tgd.load_state_dict(replaced, assign=True)
        found = gradients(tgd)
        assert_same({name: found[name] for name in MASKED}, {name: expected[name] for name in MASKED})

    @FORMS
    def test_moves_as_one(self, kind):
        net, tgd = make(kind)
        tgd.double()
        assert torch.equal(tgd.eval()(X.double()), net.double().eval()(X.double()))
        gradients(tgd.train(), X.double())
        assert {b.device.type for b in tgd.to("meta").buffers()} == {"meta"}

    @pytest.mark.parametrize("kind", [Net, Moody], ids=["graph", "attached"])
    @FLOWS
    def test_exports(self, kind, flow):
        net, tgd = make(kind, flow=flow)
        program = torch.export.export(tgd.eval(), (X,))
        assert torch.equal(program.module()(X), net.eval()(X))

    # onnxscript and torch's exporter call functions of their own that they have deprecated.
    @pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:onnxscript", "ignore::FutureWarning:torch|copyreg"
    )
    @pytest.mark.parametrize("kind", [Net, Moody], ids=["graph", "attached"])
    def test_exports_to_onnx(self, kind, tmp_path):
        net, tgd = make(kind)
        torch.onnx.export(tgd.eval(), (X,), tmp_path / "net.onnx", dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
        # Another runtime with its own kernels: float32 rounding.
        np.testing.assert_allclose(found, net.eval()(X).detach().numpy(), rtol=1e-4, atol=1e-5)


class TestGraphForm:
    def test_calls_a_tgd_layer_after_each_layer_frozen_in_part(self):
        _, tgd = make(Net)
        calls = [str(node.target) for node in tgd.graph.nodes if node.op == "call_module"]
        followed = [a for a, b in pairwise(calls) if b == f"{a}.tgd_layer"]
        assert followed == ["first", "norm1", "second", "norm2", "up", "slope"]

    def test_tracing_leaves_no_trace(self):
        class Constant(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.conv(x) * torch.tensor(2.0)

        net = Constant()
        tgd = layers_form(net, plan_for(net, {"conv": [1, 0, 1, 0]}), X)
        assert type(tgd) is Constant  # a graph would hold the tensor that the tracing run made
        assert list(vars(tgd)) == [*vars(net), "tgd_plan", "tgd_masked"]

    @FLOWS
    def test_of_a_network_that_is_a_graph_already(self, flow):
        net = torch.fx.symbolic_trace(chain(4))
        tgd = layers_form(
            net, plan_for(net, {"0": [1, 0, 1, 0], "1": [1, 0, 1, 0], "6": [0, 0]}, flow=flow), X
        )
        assert isinstance(tgd, TGDGraphModule) == (flow == "masked")
        expected = gradients(tgd)
        for copied in (copy.deepcopy(tgd), pickle.loads(pickle.dumps(tgd))):
            assert copied.tgd_plan == tgd.tgd_plan
            assert_same(gradients(copied), expected)
            plain = remove_tgd(copied)
            assert vars(plain).keys() == vars(net).keys()
            assert [type(m) for m in plain.children()] == [type(m) for m in net.children()]
            assert torch.equal(plain.eval()(X), copied.eval()(X))

    def test_a_name_that_a_graph_module_needs_for_itself(self):
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.graph, self.meta = nn.Conv2d(3, 4, 1), "mine"

            def forward(self, x: Tensor) -> Tensor:
                return self.graph(x)

        net = Named()
        tgd = layers_form(net, plan_for(net, {"graph": [1, 0, 1, 0]}), X)
        assert type(tgd) is Named
        assert remove_tgd(tgd).meta == "mine"

    def test_outputs_and_gradients_are_compared(self):
        class Faulty(nn.Conv2d):
            shift, cut = 0.0, False

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                y = super().forward(x)
                return (y.detach() + 0 * y if self.cut else y), y.detach() + self.shift

        one = Faulty(3, 4, 1)
        shifted, cut = copy.deepcopy(one), copy.deepcopy(one)
        shifted.shift, cut.cut = 1e-3, True
        assert same_results(one, copy.deepcopy(one), ((X,), {}))
        assert not same_results(one, shifted, ((X,), {}))
        assert not same_results(one, cut, ((X,), {}))

    @pytest.mark.parametrize(
        "fault", ["no_grad", "autocast", "writes", "isinstance", "counts", "mode", "hook", "random"]
    )
    def test_falls_back_where_a_graph_would_be_another_model(self, fault):
        class Faulty(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
                self.seen = None
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x: Tensor) -> Tensor:
                if fault == "no_grad":
                    with torch.no_grad():
                        x = self.one(x)
                elif fault == "autocast":
                    with torch.autocast("cpu", enabled=False):
                        x = self.one(x)
                else:
                    x = self.one(x)
                if fault == "writes":
                    self.seen = x
                if fault == "counts":
                    self.calls.add_(1)
                if fault == "isinstance" and isinstance(x, Tensor):
                    x = x * 2
                if fault == "random" and random.random() + np.random.random() + torch.rand(()) > 0:
                    x = x * 2
                return F.dropout(self.two(x), training=self.training and fault == "mode")

        net = Faulty()
        if fault == "hook":
            net.one.register_forward_hook(lambda module, args, output: output * 3)
        before = picture(net)
        tgd = layers_form(net, plan_for(net, {"one": [1, 0, 1, 0], "two": [1, 0, 1, 0]}), X)
        assert picture(net) == before
        assert type(tgd) is Faulty
        assert traced(tgd) is None or fault in ("isinstance", "hook")  # a graph, but of another model
        assert torch.equal(seeded(tgd), seeded(net))
        assert not gradients(tgd)["two.weight"][1].any()
        assert gradients(tgd)["one.weight"].any() == (fault != "no_grad")

    def test_keyword_arguments_and_structured_outputs(self):
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 1)

            def forward(self, x: Tensor, *, extra: Tensor) -> dict[str, object]:
                y = self.conv(x)
                return {"y": y, "pair": (y + extra, 2.0)}

        net = Named()
        tgd = layers_form(net, plan_for(net, {"conv": [1, 0, 1, 0]}), {"x": X, "extra": torch.ones(())})
        assert isinstance(tgd, TGDGraphModule)
        assert torch.equal(tgd(X, extra=2)["pair"][0], net(X, extra=2)["pair"][0])


class Twice(nn.Module):
    """One conv and one norm, each called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.alias = self.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.alias(torch.relu(self.norm(self.conv(x)))))


class TiedConvs(nn.Module):
    """Two convs with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class Functional(nn.Module):
    """A conv that is no module, on a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(4, 4, 3, 3))])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.inner(x), self.weights[0])


class TestSharing:
    def test_a_module_called_twice(self):
        net = Twice()
        conv = layer_of(net, "conv", modules=("conv", "alias"))
        tgd = layers_form(net, plan_for(net, {conv: [1, 0, 1], "norm": [1, 0, 1]}), X)
        assert isinstance(tgd, TGDGraphModule)
        assert sum(isinstance(module, TGDLayer) for module in tgd.modules()) == 2
        calls = [str(node.target) for node in tgd.graph.nodes if str(node.target).endswith("tgd_layer")]
        assert len(calls) == 4
        found = gradients(tgd)
        assert all(
            torch.equal(g.flatten(1).any(1) if g.ndim > 1 else g != 0, torch.tensor([True, False, True]))
            for g in found.values()
        )
        assert list(remove_tgd(tgd).state_dict()) == list(net.state_dict())

    def test_tied_weights_in_one_layer(self):
        net = TiedConvs()
        rows = (*layer_of(net, "a").parameters, *layer_of(net, "b").parameters)
        layer = layer_of(net, "a", modules=("a", "b"), parameters=rows)
        tgd = layers_form(net, plan_for(net, {layer: [1, 0, 1]}), X)
        assert tgd.a.weight is tgd.b.weight
        for gradient in gradients(tgd).values():
            assert not gradient[1].any()
            assert gradient[[0, 2]].any()

    def test_a_parameter_of_two_layers_moves_where_both_agree(self):
        net = TiedConvs()
        tgd = layers_form(net, plan_for(net, {"a": [1, 0, 1], "b": [1, 1, 0]}), X)
        for copied in (tgd, copy.deepcopy(tgd)):
            found = gradients(copied)
            assert torch.equal(found["a.weight"].flatten(1).any(1), torch.tensor([True, False, False]))
            assert torch.equal(found["b.bias"] != 0, torch.tensor([True, True, False]))
        assert not remove_tgd(tgd).a.weight._backward_hooks

    def test_a_functional_layer(self):
        net = Functional()
        weight = ParameterRows("weights.0", (4, 4, 3, 3))
        layer = Layer("weights.0", "filter", "Functional", 4, (weight,), channel_axis=-3)
        tgd = layers_form(net, plan_for(net, {"inner": [1, 1, 0, 0], layer: [0, 1, 1, 0]}), X)
        assert isinstance(tgd, TGDGraphModule)
        whole = gradients(net)["weights.0"]
        for copied in (tgd, copy.deepcopy(tgd), pickle.loads(pickle.dumps(tgd))):
            found = gradients(copied)
            assert torch.equal(
                found["weights.0"], torch.where(torch.tensor([0, 1, 1, 0]).bool().view(-1, 1, 1, 1), whole, 0)
            )
            assert not found["inner.weight"][2:].any()


class TestRemove:
    @FORMS
    @FLOWS
    def test_nothing_is_left(self, kind, flow):
        net, tgd = make(kind, flow=flow)
        gradients(tgd)
        tgd.get_submodule("norm2").eval()
        plain = remove_tgd(tgd)
        assert type(plain) is kind
        assert [type(m) for m in plain.modules()] == [type(m) for m in net.modules()]
        assert list(plain.state_dict()) == list(net.state_dict())
        assert_same(plain.state_dict(), tgd.state_dict())
        assert [n for n, _ in plain.named_buffers()] == [n for n, _ in net.named_buffers()]
        assert {n: p.requires_grad for n, p in plain.named_parameters()} == {
            n: True for n, _ in net.named_parameters()
        }
        for module, original in zip(plain.modules(), net.modules(), strict=True):
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert vars(module).keys() == vars(original).keys()
            assert module._non_persistent_buffers_set == original._non_persistent_buffers_set
        assert not any(p._backward_hooks for p in plain.parameters())
        assert not plain.norm2.training
        assert plain.training
        assert torch.equal(plain.eval()(X), tgd.eval()(X))

    @FORMS
    def test_leaves_the_tgd_model(self, kind):
        _, tgd = make(kind)
        expected = gradients(tgd)
        plain = remove_tgd(tgd)
        with torch.no_grad():
            plain.first.weight.zero_()
        assert_same(gradients(tgd), expected)

    @FORMS
    @FLOWS
    def test_gradients_are_whole_again(self, kind, flow):
        net, tgd = make(kind, flow=flow)
        assert_same(gradients(remove_tgd(tgd)), gradients(net))

    def test_keeps_what_the_user_had_frozen(self):
        net = Net()
        net.first.weight.requires_grad_(False)
        net.last.bias.requires_grad_(False)
        tgd = layers_form(net, plan_for(net, MASKS), X)
        assert not tgd.get_parameter("first.weight").requires_grad
        before = {n: p.requires_grad for n, p in net.named_parameters()}
        assert {n: p.requires_grad for n, p in remove_tgd(tgd).named_parameters()} == before

    def test_keeps_the_users_hooks(self):
        net = Net()
        net.first.register_forward_hook(double)
        tgd = layers_form(net, plan_for(net, MASKS), X)
        assert type(tgd) is Net
        plain = remove_tgd(tgd)
        assert list(plain.first._forward_hooks.values()) == [double]
        assert torch.equal(plain.eval()(X), net.eval()(X))

    def test_looks_through_wrappers(self):
        _, tgd = make(Net)
        assert type(remove_tgd(nn.DataParallel(torch.compile(tgd, backend="eager")))) is Net

    def test_can_be_applied_again(self):
        net, tgd = make(Net)
        again = layers_form(remove_tgd(tgd), plan_for(net, MASKS), X)
        assert_same(gradients(again), gradients(tgd))


def double(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output * 2


def picture(net: nn.Module) -> list[object]:
    """All that a caller could find changed, the random generators included."""
    modules = [
        (name, type(module), module.training, sorted(vars(module)), [id(m) for m in module.children()])
        for name, module in net.named_modules()
    ]
    tensors = [
        (name, id(t), t.detach().tolist(), t._version, t.requires_grad, t.grad, len(t._backward_hooks or ()))
        for name, t in (*net.named_parameters(), *net.named_buffers())
    ]
    hooks = [{**m._forward_hooks, **m._forward_pre_hooks, **m._backward_hooks} for m in net.modules()]
    generators = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    return [modules, tensors, hooks, torch.is_grad_enabled(), *generators]


class TestCallersModel:
    @FORMS
    @FLOWS
    def test_is_untouched(self, kind, flow):
        net = kind()
        net.norm1.eval()
        net.first.register_forward_pre_hook(lambda *_: None)
        net.last.weight.requires_grad_(False)
        before = picture(net)
        tgd = layers_form(net, plan_for(net, MASKS, flow=flow), X)
        assert picture(net) == before
        assert [m.training for m in tgd.modules() if type(m) is nn.Conv2d] == [True] * 4
        assert not tgd.norm1.training
        gradients(tgd)
        remove_tgd(tgd)
        assert picture(net)[:4] == before[:4]  # training drew random numbers

    def test_is_untouched_by_failures(self):
        net = Net()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is, but is still around
            script = torch.jit.trace(net.eval(), X)
        plan = plan_for(net, MASKS)
        other = Net()
        other.first = nn.Conv2d(3, 5, 3)
        other.norm1 = None
        uncopyable = Net()
        uncopyable.lock = threading.Lock()
        rewritten = layers_form(net, plan, X)
        cases = [
            (other, plan, "first.weight.*shape.*no module 'norm1'"),
            (uncopyable, plan, "cannot be copied: TypeError"),
            (rewritten, plan, "applied to this model already.*remove_tgd first"),
            (nn.Sequential(rewritten), plan, "applied to this model already"),
            (nn.DataParallel(net), plan, "wrapped in DataParallel"),
        ]
        for model, plan_, message in cases:
            before = picture(model)
            with pytest.raises(RewriteError, match=message):
                layers_form(model, plan_, X)
            assert picture(model) == before
        before = picture(script)
        with pytest.raises(CaptureError, match="TorchScript"):
            layers_form(script, plan, X)
        assert picture(script) == before

    def test_that_does_not_run_on_the_inputs_is_attached(self):
        net = Net()
        assert type(layers_form(net, plan_for(net, MASKS), torch.randn(1))) is Net

    def test_with_computed_weights_is_copied(self):
        conv = nn.Conv2d(3, 4, 3)
        with pytest.warns(FutureWarning, match="weight_norm"):
            net = nn.Sequential(nn.utils.weight_norm(conv))
        net(X)
        rows = (ParameterRows("0.weight_v", (4, 3, 3, 3)), ParameterRows("0.weight_g", (4, 1, 1, 1)))
        layer = layer_of(net, "0", parameters=(*rows, ParameterRows("0.bias", (4,))))
        tgd = layers_form(net, plan_for(net, {layer: [1, 0, 0, 1]}), X)
        assert torch.equal(tgd(X), net(X))
        for gradient in gradients(tgd).values():
            assert not gradient[1:3].any()
            assert gradient[[0, 3]].any()

    def test_whose_weights_mix_rows_moves_trainable_ones_only(self):
        net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)))
        rows = ParameterRows("0.parametrizations.weight.original", (4, 3, 3, 3))
        layer = layer_of(net, "0", parameters=(rows, ParameterRows("0.bias", (4,))), channels=4)
        found = gradients(layers_form(net, plan_for(net, {layer: [1, 0, 0, 1]}), X))[rows.name]
        assert not found[1:3].any()
        assert found[[0, 3]].any()

    def test_not_a_tgd_model(self):
        with pytest.raises(RewriteError, match="This Net is not a TGD network"):
            remove_tgd(Net())

    def test_statistics_outside_of_a_norm_cannot_be_held(self):
        net = Net()
        layer = layer_of(net, "first", statistics=("norm1.running_mean", "norm1.running_var"))
        with pytest.raises(RewriteError, match="norm_stats='batch'"):
            layers_form(net, plan_for(net, {layer: [1, 0, 0, 1]}), X)


def test_own_randomness_is_fixed_and_gives_the_generators_back():
    def draw() -> tuple[float, ...]:
        return random.random(), np.random.random(), float(torch.rand(()))

    def borrowed() -> tuple[float, ...]:
        with own_randomness(nn.ReLU()):
            return draw()

    before = picture(nn.ReLU())
    first = borrowed()
    with pytest.raises(ZeroDivisionError), own_randomness(nn.ReLU()):
        draw()[0] / 0
    assert picture(nn.ReLU())[3:] == before[3:]
    draw()
    assert borrowed() == first


def test_frozen_whole_lets_the_loss_through():
    net = Net()
    tgd = layers_form(net, plan_for(net, {**MASKS, "up": [0] * 6, "slope": [0] * 6}), X)
    found = gradients(tgd)
    assert found["first.weight"].any()
    assert not found["up.weight"].any()


def test_all_trainable_needs_nothing():
    net = Net()
    tgd = layers_form(net, plan_for(net, {name: [1] * len(mask) for name, mask in MASKS.items()}), X)
    found = {
        name for name, m in tgd.named_modules() if isinstance(m, TGDLayer | ParameterMask | HeldNorm | Hold)
    }
    assert found == {"unused.tgd_parameters"}  # the parameters of no layer
    net.unused.requires_grad_(False)
    assert_same(gradients(tgd), gradients(net))


@pytest.mark.parametrize("copied", [False, True])
def test_the_memory_of_a_network_is_free_once_it_is_gone(copied):
    """Without waiting for Python to look for circles: networks take gigabytes."""
    net = Branching()
    tgd = layers_form(net, plan_for(net, {"first": [1, 0, 0, 1]}), X)
    assert not isinstance(tgd, TGDGraphModule)
    tgd = copy.deepcopy(tgd) if copied else tgd
    tgd(X).sum().backward()
    weight = weakref.ref(tgd.first.weight)
    gc.disable()
    try:
        del tgd
        assert weight() is None
    finally:
        gc.enable()
