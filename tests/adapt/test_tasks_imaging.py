"""The tasks of PET and CT: their data follow from the seed, splits differ, and TGD can adapt their networks."""

from __future__ import annotations

import math
from importlib import import_module
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.adapt.task import Task
from tgdsurgery import plan_tgd


@pytest.fixture(scope="module", params=["pet", "ct"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Path]:
    """A tiny task and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    return tiny(request.param, folder), folder


def tiny(name: str, folder: Path) -> Task:
    """A task, small."""
    task: Task = import_module(f"benchmarks.adapt.tasks.{name}").make("tiny", folder)
    return task


def batches(task: Task, seed: int) -> list[Tensor]:
    """The inputs and targets of a pass and a batch more."""
    return [tensor for batch in islice(task.batches(seed), 17) for tensor in batch]


def test_the_seed_draws_the_data(made: tuple[Task, Path]) -> None:
    task, _ = made
    first, again, other = batches(task, 1), batches(task, 1), batches(task, 2)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_batches_repeat_few_patches_in_another_order(made: tuple[Task, Path]) -> None:
    passes = [batch[0] for batch in islice(made[0].batches(1), 32)]
    first, second = torch.cat(passes[:16]), torch.cat(passes[16:])
    assert len(first) == 64
    assert not torch.equal(first, second)
    assert torch.equal(first.flatten(1).sum(1).sort()[0], second.flatten(1).sum(1).sort()[0])


def test_errors(made: tuple[Task, Path]) -> None:
    task, _ = made
    found = [error for split in ("validation", "test") for error in task.errors(task.network, split)]
    assert all(math.isfinite(error) and error > 0 for error in found)
    assert len(set(found)) == 4  # old and new data of two splits
    assert found == [e for split in ("validation", "test") for e in task.errors(task.network, split)]


def test_new_data_are_noisier(made: tuple[Task, Path]) -> None:
    old, new = made[0].errors(torch.nn.Identity(), "test")
    assert new > 1.2 * old


def test_the_network_is_plain_and_can_be_adapted(made: tuple[Task, Path]) -> None:
    task, _ = made
    assert not any(module.training for module in task.network.modules())
    assert all(parameter.requires_grad for parameter in task.network.parameters())
    inputs, targets = next(task.batches(0))
    assert plan_tgd(task.network, inputs, budget=0.5).layers
    assert task.loss(task.network(inputs), targets).isfinite()


def test_patients_and_network_are_kept(made: tuple[Task, Path]) -> None:
    task, folder = made
    kept = [*folder.rglob("*.npz"), *folder.rglob("*.safetensors")]
    stamps = [path.stat().st_mtime_ns for path in kept]
    again = tiny(task.name, folder)
    assert stamps == [path.stat().st_mtime_ns for path in kept]
    assert len([path for path in kept if path.suffix == ".safetensors"]) == 1
    weights = task.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in again.network.state_dict().items())
