"""Weights in ONNX files, archives of torch.export and sharded safetensors: read one by one, and nothing else is."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from tests.onnx.graphs import drawn, node, save
from tgdsurgery import CheckpointError, from_onnx
from tgdsurgery.storage.checkpoints import open_tensors, read_state_dict
from tgdsurgery.storage.safetensors_files import INDEX


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


class TestSharded:
    @pytest.fixture
    def index(self, tmp_path: Path) -> Path:
        state = {
            "a.weight": torch.rand(3, 2),
            "b.weight": torch.rand(2),
            "c": torch.ones(2, dtype=torch.bfloat16),
        }
        places = {
            "a.weight": "model-1.safetensors",
            "b.weight": "model-2.safetensors",
            "c": "model-2.safetensors",
        }
        for shard in set(places.values()):
            part = {name: state[name] for name in state if places[name] == shard}
            safetensors.torch.save_file(part, tmp_path / shard)
        torch.save(state, tmp_path / "whole.pt")
        path = tmp_path / f"model{INDEX}"
        path.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return path

    def test_all_shards_are_read(self, index):
        assert_same(read_state_dict(index), read_state_dict(index.with_name("whole.pt")))

    @pytest.mark.parametrize("place", ["../out.safetensors", "{outside}/out.safetensors", "link.safetensors"])
    def test_no_shard_is_outside_of_the_folder(self, index, tmp_path_factory, place):
        outside = tmp_path_factory.mktemp("outside")
        safetensors.torch.save_file({"a.weight": torch.rand(2)}, outside / "out.safetensors")
        safetensors.torch.save_file({"a.weight": torch.rand(2)}, index.parent.parent / "out.safetensors")
        (index.parent / "link.safetensors").symlink_to(outside / "out.safetensors")
        index.write_text(json.dumps({"weight_map": {"a.weight": place.format(outside=outside)}}))
        with pytest.raises(CheckpointError, match="outside of its folder"):
            read_state_dict(index)

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("{", "is damaged, or no index"),
            ("[" * 100_000, "is damaged, or no index"),
            ('{"weight_map": {}}', "is damaged, or no index"),
            ('{"weight_map": {"a": 3}}', "is damaged, or no index"),
            ('{"weight_map": {"a": "none.safetensors"}}', "is not there"),
            ('{"weight_map": {"a": "a\\u0000b"}}', "is not there"),
            ('{"weight_map": {"z": "model-1.safetensors"}}', "lacks 'z'"),
        ],
    )
    def test_damaged_indices(self, index, content, problem):
        index.write_text(content)
        with pytest.raises(CheckpointError, match=problem):
            read_state_dict(index)


class Network(nn.Module):
    """With a tied layer, a buffer that is not saved, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.again = self.norm
        self.small = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        self.register_buffer("passing", torch.ones(4, 1, 1), persistent=False)
        self.constant = torch.full((4, 1, 1), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.norm(self.conv(x))) * self.passing * self.constant * self.small.float()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    path, net = tmp_path_factory.mktemp("exported") / "net.pt2", Network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says about its own export
        torch.export.save(torch.export.export(net, (torch.ones(1, 2, 5, 5),)), path)
    return path, net


class TestExported:
    def repacked(self, source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
            for member in old.infolist():
                content = change(member.filename, old.read(member))
                if content is not None:
                    new.writestr(member.filename, content)
        return target

    @pytest.mark.parametrize("suffix", [".pt2", ".pt"])
    def test_the_state_dict_is_read(self, made, tmp_path, suffix):
        path, net = made
        (tmp_path / f"net{suffix}").write_bytes(path.read_bytes())
        found = read_state_dict(tmp_path / f"net{suffix}")
        assert_same(found, dict(net.state_dict()))
        assert found["norm.weight"] is found["again.weight"]

    def test_of_an_older_torch(self, tmp_path):
        state = {"a.weight": torch.rand(2, 3)}
        torch.save(state, tmp_path / "state")
        with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
            archive.writestr("serialized_exported_program.json", "{}")
            archive.writestr("serialized_state_dict.pt", (tmp_path / "state").read_bytes())
        assert_same(read_state_dict(tmp_path / "net.pt2"), state)

    @pytest.mark.parametrize("member", ["weight_0", "serialized_state_dict.pt"])
    def test_pickles_that_run_code_do_not(self, made, tmp_path, member):
        class Payload:
            def __reduce__(self):
                return Path.touch, (tmp_path / "made",)

        torch.save(Payload(), tmp_path / "payload")
        content = (tmp_path / "payload").read_bytes()

        def change(name: str, old: bytes) -> bytes:
            if name.endswith("weights_config.json"):
                return old.replace(b'"use_pickle": false', b'"use_pickle": true')
            return content if name.endswith(member) else old

        if member == "weight_0":
            path = self.repacked(made[0], tmp_path / "bad.pt2", change)
        else:
            path = tmp_path / "bad.pt2"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(member, content)
        with pytest.raises(CheckpointError, match="would run code"):
            read_state_dict(path)
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b'{"as_int": 4}', b'{"as_int": 400000000}'),
            (b'{"as_int": 4}', b'{"as_int": -4}'),
            (b'{"as_int": 4}', b'{"as_name": "s0"}'),
            (b'{"as_int": 4}', b'{"as_int": 4611686018427387904}'),
            (b'"storage_offset": {"as_int": 0}', b'"storage_offset": {"as_int": 999}'),
            (b'"dtype": 7', b'"dtype": 99'),
            (b'"weight_0"', b'"../../weight_0"'),
            (b'"config"', b'"confio"'),
            (b"{", b"["),
        ],
    )
    def test_sizes_that_are_not_there(self, made, tmp_path, old, new):
        def change(name: str, content: bytes) -> bytes:
            return content.replace(old, new) if name.endswith("weights_config.json") else content

        with pytest.raises(CheckpointError):
            read_state_dict(self.repacked(made[0], tmp_path / "bad.pt2", change))

    def test_without_weights(self, made, tmp_path):
        path = self.repacked(
            made[0], tmp_path / "bad.pt2", lambda name, old: None if "/weights/" in name else old
        )
        with pytest.raises(CheckpointError, match=r"holds no weights.*torch\.export\.load"):
            read_state_dict(path)


@pytest.mark.parametrize("suffix", [".jit", ".ts", ".pt", ".zip", ""])
def test_torchscript_is_refused_by_what_it_is(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)), path)
    with pytest.raises(CheckpointError, match=r"is a TorchScript archive.*jit.load"):
        read_state_dict(path)


X = {"x": (2, 3, 8, 8)}


class TestONNX:
    def external(self, folder: Path, *, location: str = "weights.bin", **entries: int) -> Path:
        """A convolution whose weight is in another file."""
        path = save(folder / "net.onnx", [node("Conv", "x a.weight")], X, {"a.weight": drawn(4, 3, 3, 3)})
        model = onnx.load(path)
        (tensor,) = model.graph.initializer
        content = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": 64, "length": len(content), **entries}.items():
            tensor.external_data.add(key=key, value=str(value))
        onnx.save(model, path)
        (folder / "weights.bin").write_bytes(bytes(64) + content)
        return path

    def test_external_data(self, tmp_path):
        found = read_state_dict(self.external(tmp_path))
        assert_same(found, {"a.weight": torch.from_numpy(drawn(4, 3, 3, 3))})
        assert torch.equal(from_onnx(tmp_path / "net.onnx").a.weight, found["a.weight"])

    @pytest.mark.parametrize(
        "location", ["../weights.bin", "{outside}/weights.bin", "link.bin", "folder/../../weights.bin"]
    )
    def test_external_data_stays_in_the_folder(self, tmp_path, tmp_path_factory, location):
        outside = tmp_path_factory.mktemp("outside")
        for folder in (outside, tmp_path.parent):
            (folder / "weights.bin").write_bytes(bytes(10_000))
        (tmp_path / "folder").mkdir()
        (tmp_path / "link.bin").symlink_to(outside / "weights.bin")
        path = self.external(tmp_path, location=location.format(outside=outside))
        for read in (read_state_dict, from_onnx):
            with pytest.raises(CheckpointError, match="outside of its folder"):
                read(path)

    @pytest.mark.parametrize(
        "entries",
        [{"location": "none.bin"}, {"location": "."}, {"offset": 1000}, {"offset": -1}, {"length": 3}],
    )
    def test_external_data_that_is_not_there(self, tmp_path, entries):
        path = self.external(tmp_path, **entries)
        for read in (read_state_dict, from_onnx):
            with pytest.raises(CheckpointError, match="is damaged"):
                read(path)

    @pytest.mark.parametrize("sizes", [[4, 3, 3, 4], [2**40, 2**40], [-1, 3], [2**31]])
    @pytest.mark.parametrize("literal", [False, True])
    def test_sizes_that_are_not_there(self, tmp_path, sizes, literal):
        path = save(
            tmp_path / "net.onnx", [node("Conv", "x w")], X, {"w": drawn(4, 3, 3, 3)}, literal=literal
        )
        model = onnx.load(path)
        tensor = model.graph.node[0].attribute[0].t if literal else model.graph.initializer[0]
        tensor.dims[:] = sizes
        onnx.save(model, path)
        with pytest.raises(CheckpointError):
            read_state_dict(path)

    def test_a_small_file_that_asks_for_much(self, tmp_path):
        """What is constant is computed ahead, but not if it is large."""
        nodes = [node("ConstantOfShape", "s", "c"), node("Slice", "c zero one one", "d"), node("Add", "x d")]
        weights = {"s": np.array([2**20, 2**20]), "zero": np.array([0]), "one": np.array([1])}
        path = save(tmp_path / "net.onnx", nodes, X, weights)
        assert set(read_state_dict(path)) == {"s", "zero", "one"}

    @pytest.mark.parametrize("opset", [6, 0])
    def test_old_files(self, tmp_path, opset):
        path = save(tmp_path / "net.onnx", [node("Relu", "x")], X, opset=opset)
        with pytest.raises(CheckpointError, match=rf"is of ONNX opset {opset}.*convert_version"):
            read_state_dict(path)

    @pytest.mark.parametrize("content", [b"hello", b"\x08\x08", bytes(99), b"PK\x03\x04"])
    def test_no_onnx(self, tmp_path, content):
        (tmp_path / "net.onnx").write_bytes(content)
        for read in (read_state_dict, from_onnx):
            with pytest.raises(CheckpointError, match=r"not an ONNX model|is of ONNX opset"):
                read(tmp_path / "net.onnx")

    def test_a_circle(self, tmp_path):
        path = save(
            tmp_path / "net.onnx", [node("Add", "x b", "a"), node("Relu", "a", "b"), node("Neg", "b")], X
        )
        with pytest.raises(CheckpointError, match="form a circle"):
            from_onnx(path)

    def test_a_value_that_nothing_computes(self, tmp_path):
        path = save(tmp_path / "net.onnx", [node("Add", "x b")], X)
        with pytest.raises(CheckpointError, match=r"nothing computes 'b'"):
            from_onnx(path)

    def test_texts_and_integers(self, tmp_path):
        path = save(tmp_path / "net.onnx", [node("Conv", "x a.weight")], X, {"a.weight": drawn(4, 3, 3, 3)})
        model = onnx.load(path)
        model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"x"]))
        model.graph.initializer.append(helper.make_tensor("table", TensorProto.INT64, [2], [3, 4]))
        onnx.save(model, path)
        found = read_state_dict(path)
        assert set(found) == {"a.weight", "table"}
        assert found["table"].tolist() == [3, 4]

    def test_an_import_of_onnx_is_put_off(self):
        code = "import sys, tgdsurgery.cli.inspect, tgdsurgery.cli.models; print('onnx' in sys.modules)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "False"


LAYERS, ENTRIES = 20, 2**23  # of 32 MiB each

# What `tgd inspect` does, but for the scores, whose own memory is bounded (tests/test_kse.py).
PEAK = """
import resource, sys
from pathlib import Path
import tgdsurgery.storage.onnx_files
from tgdsurgery.cli.layer_rows import open_weights
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = open_weights(Path(sys.argv[1]))
assert len(weights) == int(sys.argv[2])
for weight in weights.values():
    assert not weight.read().any()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def sparse_safetensors(path: Path) -> Path:
    """640 MiB of zeros that take no room on the disk."""
    size = 4 * ENTRIES
    header = {
        f"l{i}.weight": {
            "dtype": "F32",
            "shape": [2, ENTRIES // 2],
            "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(LAYERS)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + LAYERS * size)
    return path


def sparse_shards(path: Path) -> Path:
    sparse_safetensors(path.with_name("model-1.safetensors"))
    path.write_text(
        json.dumps({"weight_map": {f"l{i}.weight": "model-1.safetensors" for i in range(LAYERS)}})
    )
    return path


def sparse_onnx(path: Path) -> Path:
    size = 4 * ENTRIES
    nodes = [node("Gemm", f"x l{i}.weight", f"y{i}", transB=1) for i in range(LAYERS)]
    save(path, nodes, {"x": (1, ENTRIES // 2)}, outputs=("y0",))
    model = onnx.load(path)
    for i in range(LAYERS):
        tensor = model.graph.initializer.add(name=f"l{i}.weight", data_type=TensorProto.FLOAT)
        tensor.dims[:] = [2, ENTRIES // 2]
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "weights.bin", "offset": i * size, "length": size}.items():
            tensor.external_data.add(key=key, value=str(value))
    onnx.save(model, path)
    with path.with_name("weights.bin").open("wb") as file:
        file.truncate(LAYERS * size)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize(
    ("name", "make"),
    [("net.safetensors", sparse_safetensors), (f"model{INDEX}", sparse_shards), ("net.onnx", sparse_onnx)],
)
def test_inspection_takes_the_memory_of_one_layer(tmp_path, name, make):
    """640 MiB in layers of 32 MiB: one, and a copy of it."""
    path = make(tmp_path / name)
    command = [sys.executable, "-c", PEAK, str(path), str(LAYERS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 100 * 1024, f"{int(run.stdout) // 1024} MiB"


def test_names_are_there_before_entries(tmp_path):
    file = open_tensors(sparse_safetensors(tmp_path / "net.safetensors"))
    assert file.size > 600 * 2**20
    assert all(tensor.is_meta and tensor.shape == (2, ENTRIES // 2) for tensor in file.tensors.values())
    assert not file.read("l3.weight").any()


def test_the_cache_of_hugging_face_is_read(tmp_path: Path) -> None:
    """Its names are links to files with other names in one folder, the index's among them."""
    blobs, names = tmp_path / "blobs", tmp_path / "snapshots" / "1234"
    blobs.mkdir()
    names.mkdir(parents=True)
    safetensors.torch.save_file({"c.weight": torch.arange(4.0).view(2, 2)}, blobs / "a1")
    (blobs / "b2").write_text(json.dumps({"weight_map": {"c.weight": "model-1.safetensors"}}))
    (names / "model-1.safetensors").symlink_to("../../blobs/a1")
    (names / "model.safetensors.index.json").symlink_to("../../blobs/b2")
    found = read_state_dict(names / "model.safetensors.index.json")
    assert torch.equal(found["c.weight"], torch.arange(4.0).view(2, 2))
