"""Every op does what onnxruntime does with it, in the opsets in which it changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from tests.onnx.graphs import drawn, ints, node, save
from tgdsurgery import UnsupportedOpError, from_onnx
from tgdsurgery.onnx_graph.ops import OPS

X = {"x": (2, 4, 6, 8)}
OTHER = {"x": (2, 4, 6, 8), "z": (4, 1, 8)}
ROW = drawn(4)
# Name of the case: nodes, inputs, weights, opset.
CASES: dict[str, tuple[Any, Any, Any, int]] = {
    **{
        name: ([node(name, "x")], X, {}, 17)
        for name in (
            *("Abs", "Neg", "Exp", "Floor", "Ceil", "Round", "Sign", "Erf", "Sigmoid", "Sin", "Cos", "Tanh"),
            *("Relu", "HardSwish", "Softsign", "Softplus", "LeakyRelu", "Elu", "Celu", "Selu", "HardSigmoid"),
            *("ThresholdedRelu", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Reciprocal"),
        )
    },
    **{f"{name} 18": ([node(name, "x")], X, {}, 18) for name in ("Mish",)},
    **{f"{name} 20": ([node(name, "x")], X, {}, 20) for name in ("Gelu",)},
    "Gelu tanh": ([node("Gelu", "x", approximate="tanh")], X, {}, 20),
    **{
        name: ([node(name, "x z")], OTHER, {}, 17)
        for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")
    },
    "Pow": ([node("Mul", "x x", "s"), node("Pow", "s e")], X, {"e": np.float32(1.5)}, 17),
    "Mod": ([node("Mod", "x z", fmod=1)], OTHER, {}, 17),
    "Where": ([node("Greater", "x z", "c"), node("Where", "c x z")], OTHER, {}, 17),
    "logic": (
        [
            node("Less", "x z", "a"),
            node("LessOrEqual", "x x", "b"),
            node("Equal", "x x", "c"),
            node("GreaterOrEqual", "x z", "d"),
            node("And", "a b", "e"),
            node("Or", "e c", "f"),
            node("Xor", "f d", "g"),
            node("Not", "g", "h"),
            node("Cast", "h", to=TensorProto.FLOAT),
        ],
        OTHER,
        {},
        17,
    ),
    "Clip 6": ([node("Clip", "x", min=-0.5, max=0.5)], X, {}, 6 + 1),
    "Clip 13": ([node("Clip", "x - high")], X, {"high": np.float32(0.5)}, 13),
    "PRelu": ([node("PRelu", "x slope")], X, {"slope": drawn(4, 1, 1)}, 16),
    "PRelu of space": ([node("PRelu", "x slope")], X, {"slope": drawn(6, 8)}, 16),
    "Softmax 11": ([node("Softmax", "x", axis=2)], X, {}, 11),
    "Softmax 13": ([node("Softmax", "x", axis=1)], X, {}, 13),
    "LogSoftmax": ([node("LogSoftmax", "x")], X, {}, 13),
    # movement
    "Reshape": ([node("Reshape", "x s")], X, {"s": ints(0, -1, 8)}, 17),
    "Flatten": ([node("Flatten", "x", axis=2)], X, {}, 17),
    "Flatten 0": ([node("Flatten", "x", axis=0)], X, {}, 17),
    "Transpose": ([node("Transpose", "x", perm=[0, 2, 3, 1])], X, {}, 17),
    "Transpose all": ([node("Transpose", "x")], X, {}, 17),
    "Squeeze 11": ([node("Unsqueeze", "x", "u", axes=[1]), node("Squeeze", "u", axes=[1])], X, {}, 11),
    "Squeeze 13": ([node("Unsqueeze", "x a", "u"), node("Squeeze", "u")], X, {"a": ints(0, -1)}, 13),
    "Concat": ([node("Concat", "x x x", axis=-3)], X, {}, 17),
    "Split 11": ([node("Split", "x", "a b", axis=1, split=[1, 3]), node("Concat", "b a", axis=1)], X, {}, 11),
    "Split 13": (
        [node("Split", "x s", "a b", axis=1), node("Concat", "b a", axis=1)],
        X,
        {"s": ints(3, 1)},
        13,
    ),
    "Split equal": ([node("Split", "x", "a b", axis=3), node("Mul", "a b")], X, {}, 13),
    "Split 18": ([node("Split", "x", "a b c", axis=2, num_outputs=3), node("Sum", "a b c")], X, {}, 18),
    "Slice 9": ([node("Slice", "x", starts=[1, -3], ends=[3, 100], axes=[1, 3])], X, {}, 9),
    "Slice 13": (
        [node("Slice", "x b e a s")],
        X,
        {"b": ints(-1, 1), "e": ints(-(2**62), 2**62), "a": ints(1, 3), "s": ints(-1, 2)},
        13,
    ),
    "Slice backwards in steps": (
        [node("Slice", "x b e a s")],
        X,
        {"b": ints(6), "e": ints(0), "a": ints(3), "s": ints(-3)},
        13,
    ),
    "Gather": ([node("Gather", "x i", axis=1)], X, {"i": np.array([[3, 0], [-1, 2]])}, 17),
    "Gather one": ([node("Gather", "x i", axis=1)], X, {"i": np.array(-1)}, 17),
    "Gather a list of one": ([node("Gather", "x i", axis=1)], X, {"i": ints(2)}, 17),
    "GatherElements": (
        [node("GatherElements", "x i", axis=0)],
        X,
        {"i": np.random.default_rng(0).integers(-2, 2, (2, 4, 6, 8))},
        17,
    ),
    "GatherND": ([node("GatherND", "x i")], X, {"i": np.array([[0, 1], [1, 3]])}, 17),
    "ScatterND": (
        [node("ScatterND", "x i u")],
        X,
        {"i": np.array([[0, 1], [1, 3]]), "u": drawn(2, 6, 8)},
        17,
    ),
    "ScatterElements": (
        [node("ScatterElements", "x i u", axis=1)],
        X,
        {"i": np.full((2, 1, 6, 8), -1), "u": drawn(2, 1, 6, 8)},
        17,
    ),
    "Expand": ([node("Expand", "x s")], {"x": (4, 1, 8)}, {"s": ints(2, 1, 6, 1)}, 17),
    "Tile": ([node("Tile", "x r")], X, {"r": ints(1, 2, 1, 3)}, 17),
    "DepthToSpace": ([node("DepthToSpace", "x", blocksize=2)], X, {}, 17),
    "DepthToSpace CRD": ([node("DepthToSpace", "x", blocksize=2, mode="CRD")], X, {}, 17),
    "SpaceToDepth": ([node("SpaceToDepth", "x", blocksize=2)], X, {}, 17),
    "Trilu": ([node("Trilu", "x k", upper=0)], X, {"k": np.array(1)}, 17),
    "OneHot": (
        [node("ArgMax", "x", "i", axis=1, keepdims=0), node("OneHot", "i d v", axis=1)],
        X,
        {"d": np.array(4), "v": np.array([0.0, 2.0], np.float32)},
        17,
    ),
    **{
        f"Pad {mode}": (
            [node("Pad", "x p", mode=mode)],
            X,
            {"p": ints(0, 1, 2, 0, 0, 0, 1, 3)},
            19,
        )
        for mode in ("constant", "reflect", "edge", "wrap")
    },
    "Pad 2": ([node("Pad", "x", pads=[0, 0, -1, 1, 0, 2, 0, 0], value=0.5)], X, {}, 7),
    "Pad axes": ([node("Pad", "x p v a")], X, {"p": ints(1, 2), "v": np.float32(3), "a": ints(-2)}, 18),
    "sequence": (
        [node("SplitToSequence", "x s", "q", axis=1), node("SequenceAt", "q i")],
        X,
        {"s": ints(1, 3), "i": np.array(1)},
        17,
    ),
    "sequence, joined": (
        [node("SequenceConstruct", "x x", "q"), node("ConcatFromSequence", "q", axis=1, new_axis=1)],
        X,
        {},
        17,
    ),
    # reduction
    **{
        name: ([node("Abs", "x", "s"), node(name, "s", axes=[1, -1])], X, {}, 11)
        for name in (
            *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd"),
            *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
        )
    },
    "ReduceMean 18": ([node("ReduceMean", "x a", keepdims=0)], X, {"a": ints(2, 3)}, 18),
    "ReduceSum of nothing": ([node("ReduceSum", "x", noop_with_empty_axes=1)], X, {}, 13),
    "ReduceSum of all": ([node("ReduceSum", "x", keepdims=0)], X, {}, 13),
    "ArgMin": ([node("ArgMin", "x", "i", axis=2), node("Cast", "i", to=TensorProto.FLOAT)], X, {}, 17),
    "TopK": ([node("TopK", "x k", "y i", axis=1, largest=0)], X, {"k": ints(2)}, 17),
    "CumSum": ([node("CumSum", "x a", exclusive=1, reverse=1)], X, {"a": np.array(2)}, 17),
    "MatMul": ([node("MatMul", "x z")], {"x": (2, 4, 6, 8), "z": (8, 5)}, {}, 17),
    "Gemm": (
        [node("Gemm", "x z c", alpha=0.5, beta=2.0, transA=1, transB=1)],
        {"x": (6, 3), "z": (5, 6), "c": (5,)},
        {},
        17,
    ),
    "Einsum": ([node("Einsum", "x z", equation="bchw,cxw->bxh")], OTHER, {}, 17),
    # pooling
    "MaxPool": ([node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0])], X, {}, 12),
    "MaxPool uneven": ([node("MaxPool", "x", kernel_shape=[2, 3], pads=[0, 0, 1, 2])], X, {}, 12),
    "MaxPool same": (
        [node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")],
        X,
        {},
        12,
    ),
    "MaxPool ceil": ([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], X, {}, 12),
    "AveragePool": ([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], X, {}, 12),
    "AveragePool, padding counts": (
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
        X,
        {},
        12,
    ),
    "AveragePool uneven": ([node("AveragePool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1])], X, {}, 12),
    "AveragePool same": ([node("AveragePool", "x", kernel_shape=[2, 2], auto_pad="SAME_LOWER")], X, {}, 12),
    # norms
    "BatchNormalization": (
        [node("BatchNormalization", "x s b m v", epsilon=0.01)],
        X,
        {"s": ROW, "b": drawn(4, seed=1), "m": drawn(4, seed=2), "v": np.abs(ROW) + 1},
        15,
    ),
    "InstanceNormalization": (
        [node("InstanceNormalization", "x s b")],
        X,
        {"s": ROW, "b": drawn(4, seed=1)},
        17,
    ),
    "LayerNormalization": (
        [node("LayerNormalization", "x s b", axis=2)],
        X,
        {"s": drawn(6, 8), "b": drawn(6, 8, seed=1)},
        17,
    ),
    "LayerNormalization, computed": (
        [node("Abs", "z", "s"), node("LayerNormalization", "x s")],
        {"x": (2, 4, 6, 8), "z": (8,)},
        {},
        17,
    ),
    "GroupNormalization": (
        [node("GroupNormalization", "x s b", num_groups=2)],
        X,
        {"s": ROW, "b": drawn(4, seed=1)},
        21,
    ),
    "LpNormalization": ([node("LpNormalization", "x", axis=1, p=2)], X, {}, 17),
    "LRN": ([node("LRN", "x", size=3)], X, {}, 17),
    "MeanVarianceNormalization": ([node("MeanVarianceNormalization", "x")], X, {}, 13),
    # filters
    "Conv": (
        [node("Conv", "x w b", pads=[1, 0, 1, 0], strides=[2, 1], dilations=[1, 2], group=2)],
        X,
        {"w": drawn(6, 2, 3, 3), "b": drawn(6)},
        17,
    ),
    "Conv uneven": ([node("Conv", "x w", pads=[0, 1, 2, 0])], X, {"w": drawn(6, 4, 3, 3)}, 17),
    "Conv same": (
        [node("Conv", "x w", strides=[2, 2], auto_pad="SAME_UPPER")],
        X,
        {"w": drawn(6, 4, 3, 3)},
        17,
    ),
    "Conv computed": ([node("Conv", "x w", pads=[1, 1, 1, 1])], {**X, "w": (6, 4, 3, 3)}, {}, 17),
    "ConvTranspose": (
        [node("ConvTranspose", "x w b", strides=[2, 3], pads=[1, 0, 1, 0], output_padding=[1, 2], group=2)],
        X,
        {"w": drawn(4, 3, 3, 3), "b": drawn(6)},
        17,
    ),
    "ConvTranspose uneven": (
        [node("ConvTranspose", "x w", pads=[0, 1, 1, 0])],
        X,
        {"w": drawn(4, 3, 3, 3)},
        17,
    ),
    "Linear": ([node("MatMul", "x w", "m"), node("Add", "b m")], X, {"w": drawn(8, 5), "b": drawn(5)}, 17),
    "LSTM": (
        [
            node("LSTM", "x w r b - h c", "o last", hidden_size=3, direction="bidirectional"),
            node("Squeeze", "o"),
        ],
        {"x": (7, 2, 4), "h": (2, 2, 3), "c": (2, 2, 3)},
        {"w": drawn(2, 12, 4), "r": drawn(2, 12, 3), "b": drawn(2, 24)},
        17,
    ),
    "GRU": (
        [node("GRU", "x w r b", "y", hidden_size=3, linear_before_reset=1)],
        {"x": (7, 2, 4)},
        {"w": drawn(1, 9, 4), "r": drawn(1, 9, 3), "b": drawn(1, 18)},
        17,
    ),
    "DequantizeLinear": (
        [node("DequantizeLinear", "q s z", "w", axis=0), node("Conv", "x w")],
        X,
        {
            "q": np.random.default_rng(0).integers(-128, 127, (6, 4, 3, 3)).astype(np.int8),
            "s": np.abs(drawn(6)),
            "z": np.zeros(6, np.int8),
        },
        17,
    ),
    "Upsample 7": ([node("Upsample", "x", scales=[1.0, 1.0, 2.0, 3.0])], X, {}, 7),
    "Upsample 9": (
        [node("Upsample", "x s", mode="linear")],
        X,
        {"s": np.array([1, 1, 2, 2], np.float32)},
        9,
    ),
    "Resize 10": ([node("Resize", "x s")], X, {"s": np.array([1, 1, 1.5, 2], np.float32)}, 10),
}
WAYS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
for _mode, _way in ((mode, way) for mode in ("nearest", "linear") for way in WAYS):
    for _scale in (2.0, 1.5, 0.5):
        CASES[f"Resize {_mode} {_way} {_scale}"] = (
            [node("Resize", "x - s", mode=_mode, coordinate_transformation_mode=_way)],
            X,
            {"s": np.array([1, 1, _scale, _scale], np.float32)},
            13,
        )
for _rounded in ("floor", "ceil", "round_prefer_ceil"):
    CASES[f"Resize to a size, {_rounded}"] = (
        [node("Resize", "x - - s", coordinate_transformation_mode="asymmetric", nearest_mode=_rounded)],
        X,
        {"s": ints(2, 4, 9, 5)},
        13,
    )
CASES["Resize cubic"] = (
    [node("Resize", "x - - s", mode="cubic")],
    X,
    {"s": ints(2, 4, 12, 16)},
    13,
)


@pytest.mark.parametrize("name", CASES)
def test_an_op_does_what_onnxruntime_does(tmp_path, name):
    nodes, inputs, weights, opset = CASES[name]
    path = save(tmp_path / "op.onnx", nodes, inputs, weights, opset=opset)
    net = from_onnx(path)
    given = [drawn(*sizes, seed=7) for sizes in inputs.values()]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, dict(zip(inputs, given, strict=True)))
    with torch.no_grad():
        found = net(*map(torch.from_numpy, given))
    # Sums and exponentials in another order.
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


def test_every_op_is_tried():
    tried = {made.op_type for nodes, *_ in CASES.values() for made in nodes}
    elsewhere = {"Shape", "Size", "ConstantOfShape", "Range", "CastLike"}  # in test_shapes.py
    rare = {
        "Log",
        "Sqrt",
        "Tan",
        "Asin",
        "Acos",
        "Atan",
        "Sinh",
        "Cosh",
        "Asinh",
        "Acosh",
        "Atanh",
        "IsNaN",
        "IsInf",
    }
    newest = {"Swish", "RMSNormalization"}  # of opsets that onnxruntime does not have yet
    assert OPS.keys() - tried - elsewhere - rare - newest == set()


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (node("NonZero", "x"), r"the op NonZero \(node 'y'\) is not supported"),
        (
            node("Resize", "x - s", mode="cubic", coordinate_transformation_mode="asymmetric"),
            "op Resize.*cubic",
        ),
        (node("AveragePool", "x", kernel_shape=[2, 2], dilations=[2, 2]), "op AveragePool.*dilations"),
        (node("Reshape", "x n"), r"op Reshape \(node 'y'\) takes its shape from data"),
        (node("MaxPool", "x", kernel_shape=[2, 2], unheard_of=3), "has the attribute 'unheard_of'"),
    ],
    ids=lambda value: getattr(value, "op_type", ""),
)
def test_what_is_not_supported_is_told_by_name(tmp_path, made, told):
    weights = {"s": np.array([1, 1, 1.5, 1.5], np.float32)}
    count = [node("Cast", "x", "l", to=TensorProto.INT64), node("Flatten", "l", "n")]
    path = save(tmp_path / "op.onnx", [*count, made], X, weights, opset=19)
    with pytest.raises(UnsupportedOpError, match=told):
        from_onnx(path)
