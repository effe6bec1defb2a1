"""What the peers hold on to: weights, outputs, or all but low-rank updates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.pet.scans import RandomScans
from tests.pet.test_training import fitted
from tgd_kit.training.lora import RANK
from tgd_kit.training.schedule import Schedule
from tgd_pet.network import DnCNN, load_network
from tgd_pet.training.finetuning import Method, finetune
from tgd_pet.training.patches import PatchPairs

PATIENTS = [RandomScans(1), RandomScans(2)]
SCHEDULE = Schedule(epochs=2, steps=10, batch=4, patch=16, rate=1e-2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> DnCNN:
    return fitted(tmp_path_factory.mktemp("base"))


def tuned(base: DnCNN, folder: Path, method: Method) -> DnCNN:
    return finetune(base, PATIENTS, "v2", folder, SCHEDULE, method=method, progress=False).network


@torch.inference_mode()
def distance(one: DnCNN, other: DnCNN) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum((a - b).square().sum() for a, b in pairs))


@torch.inference_mode()
def disagreement(one: DnCNN, other: DnCNN) -> float:
    pairs = PatchPairs(PATIENTS, "v2", 16, patch=16)
    noisy = torch.stack([pairs[i][0] for i in range(len(pairs))])
    return float((one.eval()(noisy) - other.eval()(noisy)).square().mean())


def test_l2_sp_stays_near_the_old_weights(
    tmp_path: Path, base: DnCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = distance(base, tuned(base, tmp_path / "free", "full"))
    usual = distance(base, tuned(base, tmp_path / "usual", "l2-sp"))
    monkeypatch.setattr("tgd_pet.training.peers.L2_SP_STRENGTH", 10.0)
    strong = distance(base, tuned(base, tmp_path / "strong", "l2-sp"))
    assert 0 < strong < usual < free


def test_learning_without_forgetting_stays_near_the_old_outputs(tmp_path: Path, base: DnCNN) -> None:
    free = disagreement(base, tuned(base, tmp_path / "free", "full"))
    held = disagreement(base, tuned(base, tmp_path / "held", "lwf"))
    assert 0 < held < free


def test_lora_moves_convolutions_by_low_rank_updates_alone(tmp_path: Path, base: DnCNN) -> None:
    pytest.importorskip("peft")
    result = finetune(base, PATIENTS, "v2", tmp_path, SCHEDULE, method="lora", progress=False)
    before, after = base.state_dict(), result.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("weight") and "conv" in name}
    for name in changed:
        update = (after[name] - before[name]).flatten(1)
        assert torch.linalg.matrix_rank(update, rtol=1e-3) <= RANK  # merged in float32
    sizes = sum(RANK * (w[0].numel() + len(w)) for w in (c.weight for c in base.convolutions))
    # PEFT's A keeps the kernel's extent and B is 1x1: rank * (C * 9 + N) for each layer.
    assert result.share == sizes / sum(p.numel() for p in base.parameters())
    loaded = load_network(tmp_path / "network.safetensors").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in after.items())
