"""The captured graph computes what the model computes, and knows where every node came from."""

import random

import numpy as np
import pytest
import torch
from torch import fx, nn

from tgdsurgery.core.copying import copy_model
from tgdsurgery.core.errors import CaptureError, UnsupportedOpError
from tgdsurgery.mapping.capture import capture
from tgdsurgery.mapping.fixed import value_at
from tgdsurgery.mapping.nodes import alias_root, written


class Branching(nn.Module):
    """Control flow on a value, in-place writes through views, a buffer as index."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.norm(self.conv(x))[:, self.order]
        if y.mean().item() > -1e9:
            y = torch.relu_(y)
        z = torch.zeros_like(y)
        z[:, :2] = y[:, 2:]
        return {"sum": y + z, "first": z}


def test_graph_computes_what_the_model_computes() -> None:
    model, x = Branching().eval(), torch.randn(2, 2, 6, 6)
    expected = model(x)
    graph = capture(copy_model(model), (x,), {}, training=False).graph
    constants = {node.target: node.meta["value"] for node in graph.nodes if node.op == "get_attr"}
    run = fx.GraphModule(constants, graph)
    for seen, wanted in zip(run(x), (expected["sum"], expected["first"]), strict=True):
        assert torch.equal(seen, wanted)


@pytest.mark.parametrize("training", [False, True])
def test_every_node_knows_its_module(training: bool) -> None:
    nodes = capture(Branching(), (torch.randn(2, 2, 6, 6),), {}, training=training).graph.nodes
    modules = {str(node.target): node.meta["module"] for node in nodes if node.op == "call_function"}
    assert modules["aten.convolution.default"] == "conv"
    assert modules["aten.native_batch_norm.default"] == "norm"
    assert modules["aten.relu_.default"] == ""
    returned = [node.meta["returned_by"] for node in nodes if "convolution" in str(node.target)]
    assert returned == [["conv"]]


def test_memory_that_takes_in_the_input_is_not_fixed() -> None:
    nodes = capture(Branching(), (torch.randn(2, 2, 6, 6),), {}, training=False).graph.nodes
    zeros = next(node for node in nodes if "zeros_like" in str(node.target))
    write = next(node for node in nodes if "copy_" in str(node.target))
    assert not zeros.meta["fixed"]
    assert "value" not in zeros.meta
    assert [alias_root(target) for target in written(write)] == [zeros]
    index = next(node for node in nodes if node.meta.get("buffer") == "order")
    assert index.meta["fixed"]
    assert index.meta["value"].tolist() == [3, 1, 0, 2]


def test_random_generators_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    capture(model, (torch.zeros(1, 1, 5, 5),), {}, training=True)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_input_is_not_written_to() -> None:
    x = torch.randn(1, 2, 4, 4)
    before = x.clone()
    capture(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 1, 1)), (x,), {}, training=False)
    assert torch.equal(x, before)


def test_failing_forward_is_a_typed_error_and_leaves_no_hook() -> None:
    model = nn.Conv2d(3, 1, 3)
    with pytest.raises(CaptureError, match=r"eval mode: RuntimeError.*example_inputs"):
        capture(model, (torch.zeros(1, 2, 5, 5),), {}, training=False)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_attention_is_seen_whole() -> None:
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.randn(1, 3, 4)
    nodes = capture(model, (x, x, x), {}, training=False).graph.nodes
    read = {node.meta.get("parameter") for node in nodes}
    assert {"in_proj_weight", "out_proj.weight"} <= read
    assert torch.backends.mha.get_fastpath_enabled()


class Fleeting(nn.Module):
    """Tensors that come from outside torch, at addresses where others have just died."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(100):
            x = x + 2 * x  # the double dies here
            x = x * torch.from_numpy(np.ones(tuple(x.shape), np.float32))
        return x


def test_memory_that_is_used_again_is_not_taken_for_what_lay_there() -> None:
    nodes = capture(Fleeting(), (torch.randn(1, 2, 3, 3),), {}, training=False).graph.nodes
    factors = [node.args[1] for node in nodes if str(node.target) == "aten.mul.Tensor"]
    outside = [alias_root(factor) for factor in factors if isinstance(factor, torch.fx.Node)]
    assert [node.op for node in outside if "constant" in node.meta] == 100 * ["get_attr"]
    assert len(set(outside)) == 100


class Replaced(nn.Module):
    """A buffer is written to, its memory is given away, and others come to lie there."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("run", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.run.copy_(x.mean((0, 2, 3)))
        self.run.data = torch.from_numpy(np.ones(4, np.float32))
        kept, x = [], x.view(x.shape)  # an op, at which dead memory may be forgotten
        for _ in range(100):
            kept.append(torch.from_numpy(np.ones(4, np.float32)))
            x = x * kept[-1][:, None, None]
        return x


def test_memory_of_a_buffer_is_not_taken_for_it_when_it_is_another_ones() -> None:
    nodes = capture(Replaced(), (torch.randn(1, 4, 3, 3),), {}, training=False).graph.nodes
    assert [node.meta.get("buffer") for node in nodes].count("run") == 1


class Quantising(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8).dequantize()


def test_quantised_tensors_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"quantised tensor \(torch.quint8\).*before it is quantised"):
        capture(Quantising(), (torch.randn(1, 2, 3, 3),), {}, training=False)


class Overwritten(nn.Module):
    """One scratch weight, filled anew for each convolution; and an order that changes between reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.empty(4, 4, 1, 1)
        for layer in (self.a, self.b):
            weight.copy_(layer.weight)
            x = nn.functional.conv2d(x, weight)
        return x


def test_fixed_memory_is_known_as_it_was_when_it_was_read() -> None:
    model = Overwritten()
    nodes = capture(model, (torch.randn(1, 4, 3, 3),), {}, training=False).graph.nodes
    read = [node for node in nodes if "convolution" in str(node.target)]
    for node, layer in zip(read, (model.a, model.b), strict=True):
        assert torch.equal(value_at(node.args[1], node), layer.weight)


class Shared(nn.Module):
    """Two names for one piece of memory, one of them of a part."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(1, 2, 3, 3))
        self.part = self.cache[:, :1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache.copy_(x)
        return self.part * 2


def test_writes_to_memory_with_several_names_are_refused() -> None:
    with pytest.raises(UnsupportedOpError, match=r"'cache' and an attribute share.*clone"):
        capture(Shared(), (torch.randn(1, 2, 3, 3),), {}, training=False)
