"""The patient's recipes: what a second round of TGD is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pet.scans import RandomScans
from tests.pet.test_training import fitted
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import Tuned
from tgd_pet.experiment import recipes
from tgd_pet.experiment.recipes import Recipe, adapt
from tgd_pet.network import load_network
from tgd_pet.training.finetuning import finetune
from tgdsurgery import plan_tgd

SCHEDULE = Schedule(epochs=1, steps=20, batch=4, patch=16, rate=1e-2)
PHI = 0.4


def test_a_second_round_has_a_plan_and_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[Tuned] = []

    def recorded(*args: Any, **options: Any) -> Tuned:
        rounds.append(finetune(*args, **options))
        return rounds[-1]

    monkeypatch.setattr(recipes, "finetune", recorded)
    base, folder = fitted(tmp_path / "base"), tmp_path / "twice"
    recipe = Recipe("TGD2-net", "tgd", (PHI, PHI))
    share, kept = adapt(base, [RandomScans(1)], folder, SCHEDULE, recipe)
    first, second = rounds
    assert kept
    assert share == second.share
    # The same threshold, but scores of the tuned network.
    assert first.plan != second.plan
    again = plan_tgd(first.network, torch.zeros(1, 3, 32, 32), phi=PHI, flow="masked")
    assert second.plan == again
    for found, run in ((first, folder / "round 1"), (second, folder)):
        for name, value in load_network(run / "network.safetensors").state_dict().items():
            assert torch.equal(value, found.network.state_dict()[name])
