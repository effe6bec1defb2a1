"""The benchmark for GPUs runs on a CPU, too, so that it is right before it meets a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu, gpu_page
from benchmarks.gpu_networks import OWN


def test_it_runs_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gpu, "SUBJECTS", {"U-Net 2-d": gpu.SUBJECTS["U-Net 2-d"], "none": gpu.SUBJECTS["EfficientNet-B0"]}
    )
    monkeypatch.setattr(gpu, "OWN", {name: OWN[name] for name in ("DnCNN", "U-Net 2-d")})
    monkeypatch.setattr(gpu, "OTHERS", ("no such network",))
    monkeypatch.setattr(gpu, "STEPS", 2)
    done = CliRunner().invoke(
        gpu.main, ["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.json")], catch_exceptions=False
    )
    assert done.exit_code == 0
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["laws"]["DnCNN"] == {
        form: {"forward": True, "frozen": True, "removed": True} for form in ("compact", "layers")
    }
    key = "U-Net 2-d, float32, channels last"
    assert set(result["steps"][key]) >= {"full", "forward", "TGD, masked flow", "TGD, full flow"}
    assert result["steps"][key]["full"]["time"] == 1.0
    assert result["kse"]["U-Net 2-d"] > 0
    assert result["kse"]["VGG-16"] > 0
    moves = result["moved"]["U-Net 2-d, TGD, full flow"]
    assert moves["numbers"] > 0
    assert moves["weights"] > 0
    assert "2 networks compared bit for bit: all equal" in done.stdout
    text = gpu_page.text(result)
    assert "All were equal." in text
    assert f"| {key} |" in text


def test_nothing_new_is_started_when_the_time_is_up(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    CliRunner().invoke(gpu.main, ["--device", "cpu", "--tiny", "--seconds", "0", "--out", str(out)])
    assert json.loads(out.read_text())["steps"] == {}


@pytest.mark.parametrize("name", OWN)
def test_the_networks_are_what_they_say(name: str) -> None:
    net = OWN[name]().eval()
    shape = gpu.SUBJECTS[name].small
    with torch.no_grad():
        y = net(torch.rand(shape))
    assert len(y) == shape[0]
    if name == "ResNet-50":
        assert sum(p.numel() for p in net.parameters()) == 25_557_032  # torchvision's
    elif name != "DnCNN":
        assert y.shape == (shape[0], 2, *shape[2:])
