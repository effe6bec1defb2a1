"""What files have that no op shows: constants in nodes, sizes from shapes, branches, names, layers called twice."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from tests.onnx.graphs import drawn, ints, node, save
from tgdsurgery import CheckpointError, UnsupportedOpError, channel_map, from_onnx
from tgdsurgery.onnx_graph import check
from tgdsurgery.storage.checkpoints import read_state_dict

X = {"x": (2, 3, 8, 8)}
TWO_CONVS = [node("Conv", "x a.weight", "h"), node("Relu", "h", "r"), node("Conv", "r b.weight")]
WEIGHTS = {"a.weight": drawn(4, 3, 3, 3), "b.weight": drawn(5, 4, 1, 1)}


def layers(net: nn.Module) -> dict[str, str]:
    """The classes of the layers that have weights, by name."""
    return {
        name: type(module).__name__ for name, module in net.named_modules() if list(module.parameters(False))
    }


@pytest.mark.parametrize("literal", [False, True], ids=["initialisers", "Constant nodes"])
def test_weights_are_found_wherever_they_are(tmp_path, literal):
    path = save(tmp_path / "net.onnx", TWO_CONVS, X, WEIGHTS, literal=literal)
    net = from_onnx(path)
    assert layers(net) == {"a": "Conv2d", "b": "Conv2d"}
    assert torch.equal(net.a.weight, torch.from_numpy(WEIGHTS["a.weight"]))
    found = channel_map(net)
    assert [[p.channel for p in ps] for ps in found.producers("b")] == [[0], [1], [2], [3]]
    state = read_state_dict(path)
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in net.state_dict().items()
    }
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("weight", "name", "expected"),
    [
        ("layer1.0.conv1.weight", "node_Conv_3", "layer1.0.conv1"),
        ("conv2d_106.w_0", "p2o.Conv.22", "conv2d_106"),
        ("conv1_weights", "", "conv1"),
        ("onnx::Conv_193", "/layer1/layer1.0/conv1/Conv", "layer1.0.conv1.Conv"),
        ("val_3", "model/a/Conv2D;model/a/BiasAdd", "model.a.Conv2D"),
        ("val_3", "", "y"),
        ("training.weight", "", "training_"),
        ("block1-0.weight", "", "block1-0"),
    ],
)
def test_names(tmp_path, weight, name, expected):
    made = node("Conv", f"x {weight}")
    made.name = name
    assert list(layers(from_onnx(save(tmp_path / "net.onnx", [made], X, {weight: drawn(4, 3, 3, 3)})))) == [
        expected
    ]


def test_a_layer_called_twice_is_one_module(tmp_path):
    nodes = [
        node("Conv", "x a.weight", "h"),
        node("Conv", "h a.weight", "g"),
        node("Conv", "g a.weight", strides=[2, 2]),
    ]
    net = from_onnx(save(tmp_path / "net.onnx", nodes, X, {"a.weight": drawn(3, 3, 1, 1)}))
    assert layers(net) == {"a": "Conv2d", "a_2": "Conv2d"}  # other settings are another module
    assert net.a.weight is net.a_2.weight
    assert sum(made.target == "a" for made in net.graph.nodes) == 2


def test_norms_with_equal_tensors_are_two(tmp_path):
    """Exporters keep equal tensors once: fresh norms would train as one, and mix their statistics."""
    norm = "n.weight n.bias n.running_mean n.running_var"
    nodes = [
        node("BatchNormalization", f"x {norm}", "h"),
        node("Relu", "h", "r"),
        node("BatchNormalization", f"r {norm}"),
    ]
    weights = {
        f"n.{name}": np.ones(3, np.float32) for name in ("weight", "bias", "running_mean", "running_var")
    }
    net = from_onnx(save(tmp_path / "net.onnx", nodes, X, weights))
    assert layers(net) == {"n": "BatchNorm2d", "n_2": "BatchNorm2d"}
    with torch.no_grad():
        net.train()(torch.randn(2, 3, 8, 8))
    assert not torch.equal(net.n.running_mean, net.n_2.running_mean)
    assert len({tensor.data_ptr() for tensor in net.parameters()}) == 4


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_batch_norms_of_every_rank(tmp_path, rank):
    weights = {name: np.abs(drawn(3, seed=i)) for i, name in enumerate(("w", "b", "m", "v"))}
    path = save(
        tmp_path / "net.onnx",
        [node("BatchNormalization", "x w b m v", momentum=0.8)],
        {"x": (2, 3, 4, 4, 4)[:rank]},
        weights,
    )
    (norm,) = (
        module for module in from_onnx(path).modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    )
    assert type(norm) is {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[rank]
    assert norm.momentum == pytest.approx(0.2)


def test_the_bias_that_a_node_adds_is_the_layers(tmp_path):
    nodes = [
        node("Conv", "x a.weight", "h"),
        node("Add", "h bias", "s"),
        node("Flatten", "s", "f"),
        node("MatMul", "f fc.weight", "m"),
        node("Add", "offset m"),
    ]
    weights = {
        "a.weight": drawn(4, 3, 8, 8),
        "bias": drawn(1, 4, 1, 1),
        "fc.weight": drawn(4, 5),
        "offset": drawn(5),
    }
    net = from_onnx(save(tmp_path / "net.onnx", nodes, X, weights))
    assert layers(net) == {"a": "Conv2d", "fc": "Linear"}
    assert torch.equal(net.a.bias, torch.from_numpy(weights["bias"]).flatten())
    assert torch.equal(net.fc.weight, torch.from_numpy(weights["fc.weight"]).t())
    assert torch.equal(net.fc.bias, torch.from_numpy(weights["offset"]))


def test_a_sum_that_others_see_is_no_bias(tmp_path):
    nodes = [node("Conv", "x a.weight", "h"), node("Add", "h bias", "s"), node("Mul", "h s")]
    net = from_onnx(
        save(tmp_path / "net.onnx", nodes, X, {"a.weight": drawn(4, 3, 3, 3), "bias": drawn(4, 1, 1)})
    )
    assert net.a.bias is None
    assert net.get_parameter("bias").shape == (4, 1, 1)


def test_a_scale_is_a_channel_layer_and_a_number_is_none(tmp_path):
    nodes = [
        node("Conv", "x a.weight", "h"),
        node("Mul", "h gamma", "s"),
        node("Mul", "s half", "t"),
        node("Conv", "t b.weight"),
    ]
    weights = {**WEIGHTS, "gamma": drawn(4, 1, 1), "half": np.float32(0.5)}
    net = from_onnx(save(tmp_path / "net.onnx", nodes, X, weights))
    found = channel_map(net)
    assert [len(ps) for ps in found.channel_layers("b")] == [1, 1, 1, 1]
    assert not found.unmapped
    assert not list(net.buffers())


def test_sizes_that_are_computed_from_shapes(tmp_path):
    """As exporters write them: gathered, cast, divided, joined, padded; any size goes through."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s two", "h"),  # 8
        node("Cast", "h", "hf", to=TensorProto.FLOAT),
        node("Div", "hf twof", "q"),
        node("Floor", "q", "fl"),
        node("Cast", "fl", "half", to=TensorProto.INT64),  # 4
        node("Unsqueeze", "half zeros", "halves"),
        node("Slice", "s zeros twos", "front"),  # 2, 3
        node("Concat", "front halves minus", "to", axis=0),
        node("Reshape", "x to", "r"),  # 2 3 4 16
        node("Shape", "to", "rank"),
        node("ConstantOfShape", "rank", "none", value=helper.make_tensor("v", TensorProto.INT64, [1], [0])),
        node("Mul", "none two", "begins"),
        node("Concat", "begins none", "pads", axis=0),
        node("Reshape", "pads pairs", "grid"),
        node("Transpose", "grid", "turned"),
        node("Reshape", "turned minus", "flat"),
        node("Pad", "r flat", "p"),
        node("Range", "zero half one", "numbers"),
        node("Cast", "numbers", "floats", to=TensorProto.FLOAT),
        node("Unsqueeze", "floats ones", "column"),
        node("Equal", "to minus", "isminus"),
        node("Where", "isminus ones to", "shape"),
        node("Expand", "column shape", "e"),
        node("Size", "x", "count"),
        node("Cast", "count", "countf", to=TensorProto.FLOAT),
        node("Div", "e countf", "d"),
        node("Add", "p d"),
    ]
    weights = {
        "two": np.array(2),
        "twof": np.float32(2),
        "zero": np.array(0),
        "one": np.array(1),
        "zeros": ints(0),
        "ones": ints(1),
        "twos": ints(2),
        "minus": ints(-1),
        "pairs": ints(2, -1),
    }
    path = save(tmp_path / "net.onnx", nodes, {"x": ("batch", 3, "height", "width")}, weights)
    net = from_onnx(path)
    assert net.meta["largest_difference"] == 0
    assert net.meta["example_inputs"][0].shape == (2, 3, 64, 64)
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 6, 2)).shape == (1, 3, 3, 4)
        assert net.to("meta")(torch.zeros(5, 3, 8, 8, device="meta")).shape == (5, 3, 4, 16)


def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes), "branch", [], [helper.make_value_info("out", helper.make_tensor_type_proto(1, None))]
    )


def test_a_branch_that_is_always_taken(tmp_path):
    taken = helper.make_node(
        "If",
        ["c"],
        ["y"],
        then_branch=branch(node("Relu", "x", "out")),
        else_branch=branch(node("Neg", "x", "out")),
    )
    for value, expected in ((True, torch.relu), (False, torch.neg)):
        net = from_onnx(save(tmp_path / "net.onnx", [taken], X, {"c": np.array(value)}))
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(net(x), expected(x))


def test_a_branch_that_depends_on_data_is_refused_and_its_weights_are_read(tmp_path):
    inner = branch(node("Conv", "x a.weight", "out"))
    taken = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=inner, else_branch=inner)
    path = save(tmp_path / "net.onnx", [taken], {**X, "c": ()}, WEIGHTS, kinds={"c": TensorProto.BOOL})
    with pytest.raises(UnsupportedOpError, match=r"the op If \(node 'choice'\).*condition is not constant"):
        from_onnx(path)
    assert torch.equal(read_state_dict(path)["a.weight"], torch.from_numpy(WEIGHTS["a.weight"]))


def test_functions_are_written_out(tmp_path):
    path = save(
        tmp_path / "net.onnx", [node("Conv", "x a.weight", "h"), node("Twice", "h", domain="own")], X, WEIGHTS
    )
    model = onnx.load(path)
    opset = helper.make_opsetid("", 17)
    model.functions.append(
        helper.make_function("own", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [opset])
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    net = from_onnx(path)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(net(x), 2 * net.a(x))


def test_ops_of_other_domains_are_refused(tmp_path):
    path = save(tmp_path / "net.onnx", [node("Relu", "x", domain="com.microsoft")], X)
    with pytest.raises(UnsupportedOpError, match=r"the op com.microsoft.Relu \(node 'y'\) is not supported"):
        from_onnx(path)


def test_several_inputs_and_outputs_in_their_order(tmp_path):
    nodes = [node("Sub", "first.in second", "y"), node("Neg", "y", "z")]
    path = save(tmp_path / "net.onnx", nodes, {"first.in": (2, 3), "second": (2, 3)}, outputs=("z", "y"))
    a, b = torch.rand(2, 3), torch.rand(2, 3)
    found = from_onnx(path)(a, b)
    assert torch.equal(found[0], -(a - b))
    assert torch.equal(found[1], a - b)


def test_dropout_is_a_layer_that_sleeps(tmp_path):
    net = from_onnx(save(tmp_path / "net.onnx", [node("Dropout", "x ratio")], X, {"ratio": np.float32(0.25)}))
    (dropout,) = (module for module in net.modules() if isinstance(module, nn.Dropout))
    assert dropout.p == 0.25
    assert torch.equal(net(torch.ones(2, 3, 8, 8)), torch.ones(2, 3, 8, 8))
    assert not torch.equal(net.train()(torch.ones(2, 3, 8, 8)), torch.ones(2, 3, 8, 8))


def test_half_precision(tmp_path):
    path = save(
        tmp_path / "net.onnx",
        [node("Conv", "x a.weight", "h"), node("Cast", "h", to=TensorProto.FLOAT)],
        X,
        {"a.weight": WEIGHTS["a.weight"].astype(np.float16)},
        kinds={"x": TensorProto.FLOAT16},
    )
    net = from_onnx(path)
    assert net.a.weight.dtype == torch.float16
    assert net(torch.ones(1, 3, 8, 8, dtype=torch.float16)).dtype == torch.float32


def test_a_size_that_fits_is_found(tmp_path):
    """A file that leaves its sizes open and takes only one."""
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f fc.weight", transB=1)]
    path = save(tmp_path / "net.onnx", nodes, {"x": ("n", 1, "h", "w")}, {"fc.weight": drawn(5, 96 * 96)})
    assert from_onnx(path).meta["example_inputs"][0].shape == (2, 1, 96, 96)


def test_copies_and_pickles(tmp_path):
    net = from_onnx(save(tmp_path / "net.onnx", TWO_CONVS, X, WEIGHTS))
    x = torch.randn(1, 3, 8, 8)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))
        assert other.a.weight is not net.a.weight


class TestTheCheck:
    """It finds what is wrong, with either judge."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return save(tmp_path / "net.onnx", TWO_CONVS, X, WEIGHTS)

    @pytest.fixture(params=["onnxruntime", "onnx"])
    def judge(self, request, monkeypatch):
        if request.param == "onnx":
            monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)

    def test_the_difference_is_told(self, path, judge):
        assert 0 <= from_onnx(path).meta["largest_difference"] < 1e-5
        assert "largest_difference" not in from_onnx(path, check=False).meta
        assert from_onnx(path, check=False).meta["example_inputs"][0].shape == (2, 3, 8, 8)

    def test_another_result_is_an_error(self, path, judge, monkeypatch):
        run = check.run
        monkeypatch.setattr(check, "run", lambda net, inputs: [y * 1.001 for y in run(net, inputs)])
        with pytest.raises(CheckpointError, match="was read wrongly: its output 'y' is up to"):
            from_onnx(path)

    def test_another_shape_is_an_error(self, path, judge, monkeypatch):
        run = check.run
        monkeypatch.setattr(check, "run", lambda net, inputs: [y[:1] for y in run(net, inputs)])
        with pytest.raises(CheckpointError, match=r"has shape \(2, 5, 6, 6\), and in torch \(1, 5, 6, 6\)"):
            from_onnx(path)

    def test_an_op_that_fails_is_named(self, tmp_path):
        path = save(tmp_path / "net.onnx", [node("Reshape", "x s")], X, {"s": ints(7, 7)})
        with pytest.raises(UnsupportedOpError, match=r"The op Reshape \(node 'y'\) fails: RuntimeError"):
            from_onnx(path, check=False)
