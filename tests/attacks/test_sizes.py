"""Files that claim far more than they hold, hold what they should not, or break off."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onnx import TensorProto, helper

from tests.attacks.harness import assert_refused, run
from tests.attacks.test_paths import with_external_data


def safetensors(path: Path, header: str, data: bytes = b"", length: int | None = None) -> None:
    text = header.encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape: list[int], end: int) -> str:
    return json.dumps({"c.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}})


def long_header(path: Path) -> None:
    safetensors(path, "{}", length=2**62)


def large_shape(path: Path) -> None:
    safetensors(path, entry([2**40, 2**20], 4), b"\0" * 4)


def large_end(path: Path) -> None:
    safetensors(path, entry([2**30, 1], 2**32), b"\0" * 4)


def negative_shape(path: Path) -> None:
    safetensors(path, '{"c.weight":{"dtype":"F32","shape":[-4,-1],"data_offsets":[0,16]}}', b"\0" * 16)


def twice(path: Path) -> None:
    one = '"c.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}'
    safetensors(path, f"{{{one},{one}}}", b"\0" * 16)


def deep_header(path: Path) -> None:
    safetensors(path, '{"a":' * 100_000 + "1" + "}" * 100_000)


def expanded(path: Path) -> None:
    torch.save({"c.weight": torch.zeros(1).expand(2**20, 2**10)}, path)


def bomb(path: Path) -> None:
    """A gigabyte of zeros, packed into a megabyte."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data/0", "w") as member,
    ):
        for _ in range(2**10):
            member.write(b"\0" * 2**20)


def archive_bomb(path: Path) -> None:
    bomb(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/archive_format", "pt2")


def onnx_dims(path: Path) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**31, 2**31], raw_data=b"\0" * 16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    sizes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None]) for name in ("x", "y")]
    graph = helper.make_graph([node], "graph", sizes[:1], sizes[1:], [weight])
    path.write_bytes(helper.make_model(graph).SerializeToString())


def onnx_length(path: Path) -> None:
    (path.parent / "weights.bin").write_bytes(b"\0" * 16)
    with_external_data(path, "weights.bin", length=2**50)


def onnx_offset(path: Path) -> None:
    (path.parent / "weights.bin").write_bytes(b"\0" * 16)
    with_external_data(path, "weights.bin", offset=2**60)


def onnx_constant_of_any_shape(path: Path) -> None:
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2**31, 2**31])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    sizes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", sizes[:1], sizes[1:], [shape])
    path.write_bytes(helper.make_model(graph).SerializeToString())


FILES: dict[str, list[Callable[[Path], None]]] = {
    "net.safetensors": [long_header, large_shape, large_end, negative_shape, twice, deep_header],
    "net.pt": [expanded, bomb],
    "net.pt2": [archive_bomb],
    "net.onnx": [onnx_dims, onnx_length, onnx_offset, onnx_constant_of_any_shape],
}
CASES = [(file, make) for file, several in FILES.items() for make in several]


@pytest.mark.parametrize(("file", "make"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_claims_are_checked_before_memory_is_taken(
    folder: Path, file: str, make: Callable[[Path], None]
) -> None:
    make(folder / file)
    assert_refused(run(folder, "inspect", file, extra=2**28))


@pytest.mark.parametrize("make", [onnx_dims, onnx_length, onnx_offset, onnx_constant_of_any_shape])
def test_onnx_models_are_checked_too(folder: Path, make: Callable[[Path], None]) -> None:
    make(folder / "net.onnx")
    assert_refused(run(folder, "plan", "--model", "net.onnx", extra=2**28))


@pytest.mark.parametrize(
    "file",
    ["base.pt", "base.pth", "base.safetensors", "base.onnx", "base.pt2", "delta.safetensors", "plan.json"],
)
def test_a_file_that_breaks_off_is_refused(folder: Path, file: str) -> None:
    """At every hundredth of its length."""
    whole = (folder / file).read_bytes()
    command = {
        "delta.safetensors": ["delta", "show", "cut"],
        "plan.json": ["verify", "base.pt", "tuned.pt", "--plan", "cut"],
    }.get(file, ["inspect", "cut"])
    suffix = Path(file).suffix
    accepted = []
    for percent in range(100):
        (folder / f"cut{suffix}").write_bytes(whole[: len(whole) * percent // 100])
        ended = run(folder, *(part.replace("cut", f"cut{suffix}") for part in command))
        if ended.code == 0:
            accepted.append(percent)
        else:
            assert_refused(ended)
    assert accepted == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "command", [["inspect", "odd.pt"], ["plan", "--model", "network.py:make", "--checkpoint", "odd.pt"]]
)
def test_weights_that_are_not_numbers_are_named(folder: Path, value: float, command: list[str]) -> None:
    state = torch.load(folder / "base.pt", weights_only=True)
    state["3.weight"][0, 0] = value
    torch.save(state, folder / "odd.pt")
    line = assert_refused(run(folder, *command))
    assert "3" in line


def test_a_plan_with_a_name_twice_is_refused(folder: Path) -> None:
    text = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(text.replace('"phi": 0.5', '"phi": 0.5, "phi": 0.9', 1))
    assert_refused(run(folder, "verify", "base.pt", "tuned.pt", "--plan", "plan.json"))


def test_what_belongs_to_other_networks_is_refused(folder: Path) -> None:
    torch.save({"c.weight": torch.rand(4, 1, 3, 3)}, folder / "other.pt")
    for args in (
        ["delta", "apply", "other.pt", "delta.safetensors", "-o", "new.pt"],
        ["delta", "apply", "tuned.pt", "delta.safetensors", "-o", "new.pt"],
        ["verify", "other.pt", "tuned.pt", "--plan", "plan.json"],
        ["verify", "base.pt", "tuned.pt", "--plan", "other.json"],
        ["export", "other.pt", "--model", "network.py:make", "--format", "onnx", "-o", "new.onnx"],
        ["plan", "--model", "network.py:make", "--checkpoint", "other.pt"],
    ):
        ended = run(folder, *args)
        if "tuned.pt" in args and "delta" in args:  # only trainable rows differ from the base: the delta fits
            assert ended.code == 0
            (folder / "new.pt").unlink()
        else:
            assert_refused(ended)
