"""Pickles that would run code, in every container that could carry one."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.attacks.harness import MARK, assert_refused, run

COMMANDS = {
    "inspect": ["inspect", "{}"],
    "delta save": ["delta", "save", "base.pt", "{}", "--plan", "plan.json", "-o", "new.safetensors"],
    "delta apply": ["delta", "apply", "{}", "delta.safetensors", "-o", "new.pt"],
    "verify": ["verify", "base.pt", "{}", "--plan", "plan.json", "-o", "certificate.json"],
    "export": ["export", "{}", "--format", "safetensors", "-o", "new.safetensors"],
    "plan": ["plan", "--model", "network.py:make", "--checkpoint", "{}", "-o", "new.json"],
}


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {MARK}",)


def pickled() -> bytes:
    return pickle.dumps({"conv.weight": torch.ones(2), "payload": Payload()}, protocol=2)


def zipped(path: Path) -> None:
    torch.save({"conv.weight": torch.rand(2, 2, 1, 1), "payload": Payload()}, path)


def legacy(path: Path) -> None:
    torch.save({"w": torch.rand(2, 2), "payload": Payload()}, path, _use_new_zipfile_serialization=False)


def bare(path: Path) -> None:
    path.write_bytes(pickled())


def tarred(path: Path) -> None:
    """The oldest of torch's formats was a tar with pickles in it."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(pickled())
            archive.addfile(info, io.BytesIO(pickled()))


def in_archive(path: Path) -> None:
    """A torch.export archive whose weights are pickles."""
    shutil.copy(path.parent / "base.pt2", path)
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept.items():
            is_weight = "/data/weights/" in name and not name.endswith(".json")
            archive.writestr(name, pickled() if is_weight else content)


CONTAINERS: dict[str, Callable[[Path], None]] = {
    "evil.pt": zipped,
    "evil.ckpt": zipped,
    "evil.pth": legacy,
    "evil.bin": bare,
    "evil.tar": tarred,
    "evil.pt2": in_archive,
    "evil.onnx": bare,
    "evil.safetensors": bare,
    "evil.safetensors.index.json": bare,
}


def test_the_payload_runs_where_nothing_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickled())
    assert (tmp_path / MARK).exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("file", CONTAINERS)
def test_no_container_runs_code(folder: Path, file: str, command: str) -> None:
    CONTAINERS[file](folder / file)
    assert_refused(run(folder, *(part.format(file) for part in COMMANDS[command])))


def test_a_shard_is_no_pickle_either(folder: Path) -> None:
    bare(folder / "shard.safetensors")
    index = {"weight_map": {"w": "shard.safetensors"}}
    (folder / "evil.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(run(folder, "inspect", "evil.safetensors.index.json"))


@pytest.mark.parametrize(
    "args",
    [
        ["delta", "show", "evil.safetensors"],
        ["delta", "apply", "base.pt", "evil.safetensors", "-o", "new.pt"],
        ["delta", "merge", "base.pt", "delta.safetensors", "evil.safetensors", "-o", "new.safetensors"],
        ["verify", "base.pt", "tuned.pt", "--plan", "evil.safetensors"],
    ],
)
def test_a_delta_or_plan_runs_no_code(folder: Path, args: list[str]) -> None:
    bare(folder / "evil.safetensors")
    assert_refused(run(folder, *args))
