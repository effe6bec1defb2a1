"""One run: a method trains a task's network, and the errors on old and new data are taken on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.adapt.methods import METHODS, Method, added_loss, another_round, prepared, scaled
from benchmarks.adapt.sampled import sampling
from benchmarks.adapt.task import Task
from tgd_kit.runs.files import write_json

Profile = Literal["tiny", "quick", "full"]
TASKS = ("pet", "ct", "pitch", "text")
MARKS = (0.25, 0.5, 1.0)  # shares of the steps at which the errors are taken
SCALES = (0.5,)  # of the change, at the end
WARM_UP = 0.1  # share of the steps in which the rate rises to its value


@dataclass(frozen=True)
class Run:
    """One run of the study.

    Args:
        folder: of the study.
        profile: the sizes.
        task: name of the task.
        method: name of the method.
        rate: of Adam.
        seed: of the data to train on, their order, and all that the method draws.
    """

    folder: Path
    profile: Profile
    task: str
    method: str
    rate: float
    seed: int

    @property
    def path(self) -> Path:
        """Where its results are."""
        name = "-".join("".join(c if c.isalnum() or c == "." else " " for c in self.method).split())
        return self.folder / self.task / name / f"{self.rate:g}-{self.seed}.json"


@lru_cache(maxsize=2)
def the_task(name: str, profile: Profile, folder: Path) -> Task:
    """The task, made once per process."""
    task: Task = import_module(f"benchmarks.adapt.tasks.{name}").make(profile, folder / name / "task")
    return task


def do(run: Run) -> None:
    """Do a run and write its results."""
    task = the_task(run.task, run.profile, run.folder)
    write_json(run.path, results(task, METHODS[run.method], run.rate, run.seed))


def results(task: Task, method: Method, rate: float, seed: int) -> dict[str, Any]:
    """The errors along the steps, and at the end those with a part of the change."""
    points = []

    def at_mark(steps: int, network: nn.Module) -> None:
        points.append({"steps": steps, "scale": 1.0, **errors(task, network)})

    network = train(task, method, rate, seed, at_mark)
    for scale in SCALES:
        with scaled(network, task.network, scale) as less:
            points.append({"steps": task.steps, "scale": scale, **errors(task, less)})
    return {"points": points}


def errors(task: Task, network: nn.Module) -> dict[str, list[float]]:
    """Old and new error on both splits; the network is in the mode that it was in afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    found = {split: list(task.errors(network, split)) for split in ("validation", "test")}
    for module, training in modes:
        module.training = training
    return found


def train(
    task: Task, method: Method, rate: float, seed: int, at_mark: Callable[[int, nn.Module], None]
) -> nn.Module:
    """Train with Adam at a constant rate after a short rise; the network at the end."""
    batches, generator = task.batches(seed), torch.Generator().manual_seed(seed)
    network = prepared(method, task, seed)
    marks = {max(1, round(share * task.steps)) for share in MARKS}
    for round_ in range(method.rounds):
        if round_:
            network = another_round(network, method, task, seed)
        done = round_ * task.steps // method.rounds
        end = (round_ + 1) * task.steps // method.rounds
        step = stepper(task, method, network, rate, generator)
        for count in range(done + 1, end + 1):
            inputs, targets = next(batches)
            step(inputs, targets, min(1.0, count / (WARM_UP * task.steps)))
            if count in marks:
                at_mark(count, network)
    return network


def stepper(
    task: Task, method: Method, network: nn.Module, rate: float, generator: torch.Generator
) -> Callable[[Tensor, Tensor, float], None]:
    """One step of training on a batch, at a share of the rate."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate, fused=True)
    added = added_loss(method, task, network)

    def step(inputs: Tensor, targets: Tensor, warm: float) -> None:
        optimizer.param_groups[0]["lr"] = rate * warm
        optimizer.zero_grad()
        with sampling(method.sampled, generator):
            outputs = network(inputs)
            loss = task.loss(outputs, targets)
            if added is not None:
                loss = loss + added(inputs, outputs)
            loss.backward()
        optimizer.step()

    return step
