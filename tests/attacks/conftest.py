"""A folder with a small network, its checkpoint in every format, a plan, a tuned checkpoint and a delta."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tgdsurgery import apply_tgd, plan_tgd, remove_tgd, save_delta
from tgdsurgery.cli import main
from tgdsurgery.storage.checkpoints import write_state_dict

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
                         nn.Conv2d(12, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))

def other():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacks")
    (folder / "network.py").write_text(NETWORK)
    found: dict[str, object] = {}
    exec(NETWORK, found)
    base = found["make"]()  # type: ignore[operator]
    images = torch.rand(2, 1, 8, 8)
    write_state_dict(base.state_dict(), folder / "base.pt")
    write_state_dict(base.state_dict(), folder / "base.safetensors")
    torch.save(base.state_dict(), folder / "base.pth", _use_new_zipfile_serialization=False)
    plan = plan_tgd(base, images, phi=0.5)
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "other.json").write_text(plan_tgd(found["other"](), images).to_json())  # type: ignore[operator]
    tgd = apply_tgd(base, images, plan=plan)
    with torch.no_grad():
        for parameter in tgd.parameters():
            parameter.add_(0.1)
    write_state_dict(remove_tgd(tgd).state_dict(), folder / "tuned.pt")
    save_delta(tgd, folder / "delta.safetensors")
    for form, file in (("onnx", "base.onnx"), ("pt2", "base.pt2")):
        args = [
            "export",
            str(folder / "base.pt"),
            "--model",
            f"{folder / 'network.py'}:make",
            "--format",
            form,
        ]
        args += ["--input-shape", "2x1x8x8", "-o", str(folder / file)]
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    copy = tmp_path / "work"
    shutil.copytree(made, copy)
    return copy
