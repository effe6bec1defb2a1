"""Lightning's own launcher: two CPU processes train one network together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.pet.scans import RandomScans
from tgd_kit.training.schedule import Schedule
from tgd_pet.network import load_network, new_network
from tgd_pet.training.fit import fit
from tgdsurgery import load_delta

ROOT = Path(__file__).parents[2]
TGD = Path(sys.executable).parent / "tgd"
TOGETHER = ("--devices", 2, "--epochs", 2, "--steps", 2, "--batch", 2, "--phi", 0.6)


def run(*command: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was trained a little on other images."""
    folder = tmp_path_factory.mktemp("base")
    schedule = Schedule(epochs=1, steps=40, batch=4)
    fit(new_network(0, (8, 8, 8, 8, 3)), [RandomScans(7)], "v2", folder, schedule, progress=False)
    return folder / "network.safetensors"


def worker(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "tests.pet.launcher_worker", *arguments)


def found(folder: Path) -> list[dict[str, Any]]:
    """What each process ended with."""
    return [torch.load(folder.with_name(f"{folder.name} {rank}.pt"), weights_only=True) for rank in (0, 1)]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def assert_trained_together(base: Path, folder: Path) -> None:
    one, other = found(folder)
    assert_same(one["state"], other["state"])
    assert one["kept"] is other["kept"] is True
    assert 0 < one["share"] < 1
    assert_same(load_network(folder / "network.safetensors").state_dict(), one["state"])
    before = load_network(base).state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in one["state"].items())
    assert json.loads((folder / "run.json").read_text())["devices"] == 2


def test_two_processes_finetune_one_network(tmp_path: Path, base: Path) -> None:
    done = worker(base, tmp_path / "tgd", "finetune")
    assert done.returncode == 0, done.stderr
    assert_trained_together(base, tmp_path / "tgd")
    assert {file.name for file in (tmp_path / "tgd").iterdir()} == {"network.safetensors", "run.json"}


def test_two_processes_learn_online_and_go_on_after_one_was_killed(tmp_path: Path, base: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = worker(base, whole, "online")
    assert done.returncode == 0, done.stderr
    assert_trained_together(base, whole)
    patched = load_delta(load_network(base), whole / "patient.safetensors")
    assert_same(patched.state_dict(), found(whole)[0]["state"])

    assert worker(base, broken, "die").returncode == 9
    assert {file.name for file in broken.iterdir()} == {"checkpoints", "run.json"}
    done = worker(base, broken, "online")
    assert done.returncode == 0, done.stderr
    assert_trained_together(base, broken)
    assert_same(found(broken)[0]["state"], found(whole)[0]["state"])


def test_the_command_that_learns_online_speaks_and_writes_once(tmp_path: Path, base: Path) -> None:
    for name, half in zip("ab", RandomScans(0, (12, 48, 40)).low("v1"), strict=True):
        nib.save(nib.Nifti1Image(half.T, np.diag([-4.0, -4, -4, 1])), tmp_path / f"{name}.nii.gz")
    out = tmp_path / "out.nii.gz"
    halves = (tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    done = run(TGD, "pet", "online", *halves, "--checkpoint", base, "-o", out, *TOGETHER)
    assert done.returncode == 0, done.stderr
    for words in ("TGD plan", "unchanged: yes", "Held-out", "Wrote"):
        assert done.stdout.count(words) == 1
    for words in ("arning", "GLOBAL_RANK", "recommended"):
        assert words not in done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"a.nii.gz", "b.nii.gz", "out.nii.gz", "out.online"}
