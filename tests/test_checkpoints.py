"""Reading and writing weights: found wherever they are nested, never executed, never half written."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.storage.checkpoints import read_state_dict, write_state_dict

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Network(nn.Module):
    """A module of a class that torch does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)


def state() -> dict[str, Tensor]:
    return {
        "conv.weight": torch.rand(4, 3, 3, 3),
        "bn.running_mean": torch.rand(4),
        "bn.steps": torch.tensor(7),
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(tmp_path, suffix):
    expected = state()
    write_state_dict(expected, tmp_path / f"net{suffix}")
    assert_same(read_state_dict(tmp_path / f"net{suffix}"), expected)
    assert os.listdir(tmp_path) == [f"net{suffix}"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_shared_and_strided_tensors_are_stored_on_their_own(tmp_path, suffix):
    base = torch.rand(1000, 4)
    tied = {"a": base[:2], "b": base[:2], "c": base[:2].t(), "d": nn.Parameter(base[3:4])}
    write_state_dict(tied, tmp_path / f"net{suffix}")
    assert_same(read_state_dict(tmp_path / f"net{suffix}"), tied)
    assert (tmp_path / f"net{suffix}").stat().st_size < base.nbytes


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tensors_do_not_depend_on_the_file(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    write_state_dict({"w": torch.ones(5000)}, path)
    found = read_state_dict(path)
    with path.open("r+b") as file:  # in place, as torch.save does
        file.write(bytes(path.stat().st_size))
    assert torch.equal(found["w"], torch.ones(5000))


def test_legacy_torch_format_is_read(tmp_path):
    expected = state()
    torch.save(expected, tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    assert_same(read_state_dict(tmp_path / "net.pt"), expected)


names = st.from_regex(r"[a-l]{1,4}(\.[0-9a-z]{1,3}){1,2}", fullmatch=True)  # none that starts with "module."
wrappers = st.lists(
    st.sampled_from(["state_dict", "model", "net", "ema", "model_state_dict", "generator"]), max_size=2
)
prefixes = st.lists(st.sampled_from(["module.", "_orig_mod."]), max_size=2).map("".join)


@settings(max_examples=50, deadline=None)
@given(names=st.lists(names, min_size=1, max_size=4, unique=True), nesting=wrappers, prefix=prefixes)
def test_nesting_and_prefixes_come_off(tmp_path_factory, names, nesting, prefix):
    expected = {name: torch.rand(2) for name in names}
    saved: object = OrderedDict((prefix + name, tensor) for name, tensor in expected.items())
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    for key in nesting:
        saved = {"epoch": 3, "best": torch.tensor(0.5), key: saved, "optimizer": optimizer.state_dict()}
    path = tmp_path_factory.mktemp("nested") / "net.pt"
    torch.save(saved, path)
    found = read_state_dict(path)
    assert_same(found, expected)
    assert list(found) == names


def test_a_prefix_of_some_names_stays(tmp_path):
    expected = {"module.weight": torch.rand(2), "n_averaged": torch.tensor(3)}
    torch.save(expected, tmp_path / "net.pt")
    assert_same(read_state_dict(tmp_path / "net.pt"), expected)


def test_weights_win_over_other_tensors(tmp_path):
    expected = state()
    torch.save({"normaliser": {"mean": torch.rand(3)}, "model": expected}, tmp_path / "net.pt")
    assert_same(read_state_dict(tmp_path / "net.pt"), expected)


def test_extra_state_is_no_nested_state_dict(tmp_path):
    expected = state()
    torch.save({**expected, "quant._extra_state": {"amax": torch.rand(2)}}, tmp_path / "net.pt")
    assert_same(read_state_dict(tmp_path / "net.pt"), expected)


@pytest.mark.parametrize("keys", [("model", "ema"), ("generator", "discriminator")])
def test_several_candidates_are_listed(tmp_path, keys):
    torch.save({key: state() for key in keys}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=rf"several sets of weights: {keys[0]}, {keys[1]}\."):
        read_state_dict(tmp_path / "net.pt")


@pytest.mark.parametrize(
    "content",
    [
        3,
        torch.ones(2),
        [torch.ones(2)],
        {},
        {"epoch": 3},
        {0: torch.ones(2)},
        {"x._extra_state": {"a": torch.ones(2)}},
    ],
    ids=str,
)
def test_no_tensors_by_name(tmp_path, content):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        read_state_dict(tmp_path / "net.pt")


def save_plain(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_plain])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
def test_code_in_a_pickle_is_never_run(tmp_path, save, suffix):
    path, made = tmp_path / f"net{suffix}", tmp_path / "made"
    save({"state_dict": state(), "payload": Payload(made)}, path)
    with pytest.raises(CheckpointError, match=r"could run any code, so it was not loaded.*state_dict"):
        read_state_dict(path)
    assert not made.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load = pickle.loads if save is save_plain else lambda _: torch.load(path, weights_only=False)
        load(path.read_bytes())
    assert made.exists()  # the payload works, so its absence above means something


@pytest.mark.parametrize("save", [torch.save, save_legacy])
@pytest.mark.parametrize("module", [Network(), nn.Sequential(nn.Conv2d(1, 1, 1))], ids=["custom", "torch"])
def test_whole_modules_are_refused(tmp_path, save, module):
    save(module, tmp_path / "net.pt")
    with pytest.raises(
        CheckpointError, match=rf"\(.*{type(module).__name__}\).*not loaded.*model\.state_dict\(\)"
    ):
        read_state_dict(tmp_path / "net.pt")


def test_torchscript_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"is a TorchScript archive.*jit.load"):
        read_state_dict(tmp_path / "net.pt")


@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_truncated(tmp_path, save):
    save(state(), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="is damaged or cut off"):
        read_state_dict(truncate(tmp_path / "net.pt"))


@pytest.mark.parametrize("content", [b"hello world\n", b"<html>404</html>", bytes(100)])
@pytest.mark.parametrize(
    ("suffix", "problem"), [(".pt", "is not a checkpoint"), (".safetensors", "not a safetensors file")]
)
def test_not_a_checkpoint(tmp_path, content, suffix, problem):
    (tmp_path / f"net{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        read_state_dict(tmp_path / f"net{suffix}")


def test_truncated_safetensors(tmp_path):
    write_state_dict(state(), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="damaged, cut off"):
        read_state_dict(truncate(tmp_path / "net.safetensors"))


def test_missing_empty_directory_and_suffix(tmp_path):
    (tmp_path / "empty.pt").touch()
    (tmp_path / "net.h5").write_bytes(b"x")
    for name, problem in {
        "none.pt": "does not exist",
        "empty.pt": "is empty",
        ".": "is a directory",
        "net.h5": r"the suffix of a checkpoint\. Supported are \.safetensors, \.pt, \.pth",
    }.items():
        with pytest.raises(CheckpointError, match=problem):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_failed_write_leaves_the_old_file(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"net{suffix}"
    write_state_dict({"w": torch.ones(2)}, path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        write_state_dict({"w": torch.zeros(2)}, path)
    assert torch.equal(read_state_dict(path)["w"], torch.ones(2))
    assert os.listdir(tmp_path) == [path.name]


def test_a_dtype_that_safetensors_lacks(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be written.*save as .pt"):
        write_state_dict({"w": torch.ones(2, dtype=torch.complex128)}, tmp_path / "net.safetensors")
    assert not os.listdir(tmp_path)


def test_write_refuses_other_suffixes_and_places(tmp_path):
    with pytest.raises(CheckpointError, match="the suffix of a checkpoint"):
        write_state_dict(state(), tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match=r"folder of .* does not exist"):
        write_state_dict(state(), tmp_path / "none" / "net.pt")
    (tmp_path / "net.pt").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        write_state_dict(state(), tmp_path / "net.pt")


def test_replacing_keeps_a_link_and_forgets_a_failed_body(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with replacing(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"

    def fail() -> None:
        with replacing(tmp_path / "link.txt") as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "real.txt").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link.txt", "real.txt"]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EFBIG, errno.EACCES])
def test_what_the_system_says_is_shown_with_a_remedy_that_fits_all(tmp_path, reason):
    said = (
        f"net.txt cannot be written: {os.strerror(reason)}. Check the folder, its permissions and the disk."
    )
    with pytest.raises(CheckpointError, match=said), replacing(tmp_path / "net.txt"):
        raise OSError(reason, os.strerror(reason))
    assert not os.listdir(tmp_path)


class TestSmallFilesThatClaimMuch:
    """A file under 100 MB is read in little memory and time, or refused."""

    def refuse(self, path: Path, match: str) -> None:
        with pytest.raises(CheckpointError, match=match) as raised:
            read_state_dict(path)
        assert len(str(raised.value)) < 2000

    def test_an_expanded_tensor(self, tmp_path):
        torch.save({"w": torch.ones(1).expand(1 << 18, 3072)}, tmp_path / "net.pt")
        self.refuse(tmp_path / "net.pt", r"claims 3,221,225,472 bytes of weights.*clone")

    def test_many_views_of_the_same_memory(self, tmp_path):
        whole = torch.ones(2**20)
        torch.save({f"w{i}": whole[i:] for i in range(60)}, tmp_path / "net.pt")
        self.refuse(tmp_path / "net.pt", "bytes of weights")

    def test_a_packed_archive(self, tmp_path):
        torch.save({"w": torch.zeros(2**26)}, tmp_path / "net.pt")
        with (
            zipfile.ZipFile(tmp_path / "net.pt") as plain,
            zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
        assert (tmp_path / "packed.pt").stat().st_size < 2**20
        self.refuse(tmp_path / "packed.pt", r"claims .* bytes of data")

    def test_a_mapping_that_holds_itself(self, tmp_path):
        circle: dict[str, object] = {"epoch": 3}
        circle["self"] = circle
        torch.save(circle, tmp_path / "net.pt")
        self.refuse(tmp_path / "net.pt", "no tensors by name")
        circle["w"] = torch.ones(2)
        torch.save(circle, tmp_path / "net.pt")
        assert_same(read_state_dict(tmp_path / "net.pt"), {"w": torch.ones(2)})

    def test_names_that_are_long(self, tmp_path):
        name = "a" * 2**21
        torch.save({f"{name}{i}": {"w": torch.ones(2)} for i in range(3)}, tmp_path / "net.pt")
        self.refuse(tmp_path / "net.pt", "several sets of weights")


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested tensors", "ignore:.*quant")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(3, 3).to_sparse(),
        lambda: torch.ones(3, 3).to_sparse_csr(),
        lambda: torch.ones(3, device="meta"),
        lambda: torch.nested.nested_tensor([torch.ones(2)]),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.ones(3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    ],
    ids=["sparse", "csr", "meta", "nested", "quantised", "two in a byte"],
)
def test_tensors_without_plain_entries_are_refused(tmp_path, make):
    torch.save({"w": make()}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError):
        read_state_dict(tmp_path / "net.pt")


def test_two_names_of_one_tensor_share_memory(tmp_path):
    w = torch.rand(3)
    torch.save({"a": w, "b": w, "c": w[1:]}, tmp_path / "net.pt")
    found = read_state_dict(tmp_path / "net.pt")
    assert found["a"] is found["b"]
    assert torch.equal(found["c"], w[1:])


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"w": torch.rand(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("net/data/0").header_offset + 200
    content = bytearray(path.read_bytes())
    content[start] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="a checksum is wrong"):
        read_state_dict(path)


def test_archives_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "net.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_state_dict(tmp_path / "net.pt"), {"w": torch.ones(3)})


@pytest.mark.parametrize("name", ["a" * 300 + ".pt", "a\0b.pt"])
def test_names_that_no_file_can_have(tmp_path, name):
    for work in (read_state_dict, lambda path: write_state_dict({"w": torch.ones(1)}, path)):
        with pytest.raises(CheckpointError, match=r"cannot be (read|written)|does not exist"):
            work(tmp_path / name)


class TestReplacing:
    def test_permissions_are_those_of_any_new_file(self, tmp_path):
        (tmp_path / "plain").touch()
        for suffix in (".pt", ".safetensors"):
            write_state_dict({"w": torch.ones(1)}, tmp_path / f"net{suffix}")
            assert (tmp_path / f"net{suffix}").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_permissions_of_the_replaced_file_stay(self, tmp_path):
        path = tmp_path / "net.safetensors"
        write_state_dict({"w": torch.ones(1)}, path)
        path.chmod(0o640)
        write_state_dict({"w": torch.ones(1)}, path)
        assert path.stat().st_mode & 0o777 == 0o640

    def test_what_a_killed_process_left_is_removed(self, tmp_path):
        code = (
            "import os, signal\nfrom tgdsurgery.core.atomic import replacing\n"
            "with replacing('net.pt') as temporary:\n"
            "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
        assert len(os.listdir(tmp_path)) == 1
        with replacing(tmp_path / "net.pt") as mine:
            assert os.listdir(tmp_path) == [mine.name]
            with replacing(tmp_path / "net.pt") as other:  # a living process's file is left alone
                assert mine.exists()
                other.write_text("other")
            mine.write_text("mine")
        assert os.listdir(tmp_path) == ["net.pt"]
        assert (tmp_path / "net.pt").read_text() == "mine"


def test_a_zip_that_claims_several_parts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"weight": torch.ones(2)}, path)
    content = path.read_bytes()
    end = content.rindex(b"PK\5\6")
    path.write_bytes(content[:end] + b"PK\6\7" + struct.pack("<LQL", 0, 0, 2) + content[end:])
    with pytest.raises(CheckpointError):
        read_state_dict(path)
