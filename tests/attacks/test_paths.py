"""Paths that lead out of a folder: external data of ONNX, shards of an index, members of archives, and links."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from tests.attacks.harness import assert_refused, run


def with_external_data(path: Path, location: str, *, length: int = 16, offset: int = 0) -> None:
    """A convolution whose weight is said to be in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 1, 1, 1])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        weight.external_data.add(key=key, value=value)
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    sizes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, 4, 4]) for name in ("x", "y")]
    graph = helper.make_graph([node], "graph", sizes[:1], sizes[1:], [weight])
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    )


@pytest.fixture
def secret(folder: Path) -> Path:
    """A file outside of the working directory."""
    path = folder.parent / "secret.bin"
    path.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    return path


def test_data_in_the_folder_are_read(folder: Path, secret: Path) -> None:
    (folder / "weights.bin").write_bytes(secret.read_bytes())
    with_external_data(folder / "net.onnx", "weights.bin")
    assert run(folder, "inspect", "net.onnx").code == 0


@pytest.mark.parametrize(
    "where", ["../secret.bin", "{}", "a/../../secret.bin", "linked.bin", "linked/secret.bin"]
)
@pytest.mark.parametrize("command", [["inspect"], ["plan", "--model"]])
def test_external_data_stay_in_the_folder(folder: Path, secret: Path, where: str, command: list[str]) -> None:
    (folder / "linked.bin").symlink_to(secret)
    (folder / "linked").symlink_to(folder.parent)
    with_external_data(folder / "net.onnx", where.format(secret))
    assert_refused(run(folder, *command, "net.onnx"))


@pytest.mark.parametrize(
    "where", ["../secret.safetensors", "{}", "linked.safetensors", "linked/secret.safetensors"]
)
def test_shards_stay_in_the_folder(folder: Path, where: str) -> None:
    secret = folder.parent / "secret.safetensors"
    save_file({"c.weight": torch.rand(2, 2, 1, 1)}, secret)
    (folder / "linked.safetensors").symlink_to(secret)
    (folder / "linked").symlink_to(folder.parent)
    index = {"weight_map": {"c.weight": where.format(secret)}}
    (folder / "net.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(run(folder, "inspect", "net.safetensors.index.json"))


@pytest.mark.parametrize("file", ["base.pt", "base.pt2"])
def test_members_of_archives_are_not_unpacked(folder: Path, file: str) -> None:
    with zipfile.ZipFile(folder / file, "a") as archive:
        archive.writestr("../escaped", b"x")
        archive.writestr("/tmp/escaped-from-archive", b"x")
    ended = run(folder, "inspect", file)
    assert ended.code in (0, 2)
    assert ended.after == ended.before
    assert not (folder.parent / "escaped").exists()
    assert not Path("/tmp/escaped-from-archive").exists()


def test_a_checkpoint_may_be_a_link(folder: Path) -> None:
    """The user named it: only what a file names is confined."""
    (folder / "link.pt").symlink_to(folder / "base.pt")
    assert run(folder, "inspect", "link.pt").code == 0
    assert onnx.__version__  # the ONNX files above are made by it
