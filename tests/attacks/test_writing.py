"""Output that cannot be written, and processes that die while they write: the old file is whole, or there is none."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.attacks.harness import assert_refused, run
from tgdsurgery.cli import main
from tgdsurgery.storage.checkpoints import write_state_dict

WRITERS = {
    "plan": ["plan", "--model", "network.py:make", "-o", "{}.json"],
    "delta save": ["delta", "save", "base.pt", "tuned.pt", "--plan", "plan.json", "-o", "{}.safetensors"],
    "delta apply": ["delta", "apply", "base.pt", "delta.safetensors", "-o", "{}.pt"],
    "verify": ["verify", "base.pt", "tuned.pt", "--plan", "plan.json", "-o", "{}.json"],
    "verify, page": ["verify", "base.pt", "tuned.pt", "--plan", "plan.json", "--html", "{}.html"],
    "export": ["export", "tuned.pt", "--format", "safetensors", "-o", "{}.safetensors"],
    "export, onnx": ["export", "tuned.pt", "--format", "onnx", "--model", "network.py:make", "-o", "{}.onnx"],
}
on_every_writer = pytest.mark.parametrize("writer", WRITERS)


def filled(writer: str, where: object) -> list[str]:
    return [part.format(where) for part in WRITERS[writer]]


@on_every_writer
@pytest.mark.parametrize("where", ["missing/new", "base.pt/new", "/proc/new"])
def test_a_place_that_cannot_be_written_to(folder: Path, writer: str, where: str) -> None:
    assert_refused(run(folder, *filled(writer, where)))


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system with room for one page."""
    disk = folder.parent / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@on_every_writer
def test_a_full_disk(folder: Path, small_disk: Path, writer: str) -> None:
    (small_disk / "filler").write_bytes(b"x" * 4096)
    assert_refused(run(folder, *filled(writer, small_disk / "new")))
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def _limited(folder: Path, args: list[str], most: int, results: object) -> None:
    os.chdir(folder)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    result = CliRunner().invoke(main, args, prog_name="tgd")
    results.send((result.exit_code, result.stderr))  # type: ignore[attr-defined]


@on_every_writer
def test_a_file_that_may_not_grow(folder: Path, writer: str) -> None:
    """As on a full disk or over a quota: the write fails in the middle."""
    before = sorted(path.name for path in folder.iterdir())
    ours, theirs = multiprocessing.Pipe(duplex=False)
    args = (folder, filled(writer, "new"), 300, theirs)
    child = multiprocessing.get_context("fork").Process(target=_limited, args=args)
    child.start()
    theirs.close()
    code, err = ours.recv()
    child.join()
    assert code == 2, err
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == before


def _apply(folder: Path) -> None:
    os.chdir(folder)
    CliRunner().invoke(
        main, ["delta", "apply", "large.pt", "large.safetensors", "-o", "out.pt"], prog_name="tgd"
    )


@pytest.fixture
def large(folder: Path) -> Path:
    """A base of 16 MB and a delta over it, so that a kill meets the write."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(256, 1024, 3), torch.nn.ReLU(), torch.nn.Conv2d(1024, 64, 3))
    from tgdsurgery import apply_tgd, save_delta

    write_state_dict(net.state_dict(), folder / "large.pt")
    save_delta(apply_tgd(net, torch.rand(1, 256, 8, 8), phi=0.5), folder / "large.safetensors")
    return folder


def test_a_kill_during_the_write_leaves_the_old_file(large: Path) -> None:
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_apply, args=(large,))
    begun = time.monotonic()
    child.start()
    child.join()
    whole, took = (large / "out.pt").read_bytes(), time.monotonic() - begun
    old = b"what was there before"
    met = set()
    for number in range(24):
        (large / "out.pt").write_bytes(old)
        child = context.Process(target=_apply, args=(large,))
        child.start()
        time.sleep(took * number / 20)
        child.kill()
        child.join()
        found = (large / "out.pt").read_bytes()
        assert found in (old, whole)
        met.add(found == whole)
    assert met == {False, True}  # some were killed before the end, some after it
    child = context.Process(target=_apply, args=(large,))
    child.start()
    child.join()
    left = [path.name for path in large.iterdir() if "out" in path.name]
    assert left == ["out.pt"]  # what killed processes left is gone
