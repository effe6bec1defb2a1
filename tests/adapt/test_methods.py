"""What each method trains, and what it leaves as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.adapt.methods import METHODS, Method, added_loss, prepared, scaled
from benchmarks.adapt.run import errors, train
from benchmarks.adapt.scores import scorer
from tests.adapt import toy
from tgdsurgery import plan_of, remove_tgd, verify

TASK = toy.make("tiny", Path())


def trained(method: Method, seed: int = 1) -> nn.Module:
    return train(TASK, method, 1e-2, seed, lambda steps, network: None)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_starts_at_the_untouched_network_and_moves(name: str) -> None:
    method = METHODS[name]
    assert errors(TASK, prepared(method, TASK, 1)) == errors(TASK, TASK.network)
    before = {key: value.clone() for key, value in TASK.network.state_dict().items()}
    network = trained(method)
    assert errors(TASK, network) != errors(TASK, TASK.network)
    assert all(torch.equal(value, before[key]) for key, value in TASK.network.state_dict().items())


@pytest.mark.parametrize("name", ["TGD masked 25 %", "TGD sampled 25 %", "TGD full 25 % + Keep", "by random"])
def test_tgd_keeps_what_its_plan_freezes(name: str) -> None:
    network = trained(METHODS[name])
    assert verify(TASK.network, remove_tgd(network), plan_of(network)).ok


@pytest.mark.parametrize(
    ("trains", "kinds"),
    [("norms", {"1", "4", "7"}), ("last", {"3", "4", "6", "7", "9"}), ("all", set("0134679"))],
)
def test_parts_are_trained(trains: str, kinds: set[str]) -> None:
    (method,) = (m for m in METHODS.values() if m.trains == trains and not (m.anchor or m.distil))
    network = prepared(method, TASK, 1)
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} == kinds


def test_running_statistics_stay_in_ordinary_methods() -> None:
    network = trained(METHODS["full fine-tuning"])
    for name, buffer in TASK.network.named_buffers():
        assert torch.equal(network.get_buffer(name), buffer)


@pytest.mark.parametrize("name", ["full fine-tuning", "LoRA 8", "TGD full 25 %"])
def test_a_part_of_the_change(name: str) -> None:
    network = trained(METHODS[name])
    whole = errors(TASK, network)
    with scaled(network, TASK.network, 0.0) as none:
        for values, others in zip(
            errors(TASK, none).values(), errors(TASK, TASK.network).values(), strict=True
        ):
            assert values == pytest.approx(others, rel=1e-6)
    with scaled(network, TASK.network, 1.0) as all_:
        for values, others in zip(errors(TASK, all_).values(), whole.values(), strict=True):
            assert values == pytest.approx(others, rel=1e-6)
    assert errors(TASK, network) == whole


def test_the_pull_to_the_old_weights_is_zero_there_and_grows() -> None:
    network = prepared(METHODS["L2-SP"], TASK, 1)
    pull = added_loss(METHODS["L2-SP"], TASK, network)
    assert pull is not None
    x = toy.images(1)
    assert pull(x, x).item() == 0
    with torch.no_grad():
        network[0].bias += 1.0  # type: ignore[index, operator]
    assert pull(x, x).item() == pytest.approx(0.05 * 12)


@pytest.mark.parametrize("name", ["lowest L1", "FPGM", "KSE x gradient", "random", "highest KSE"])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 6, 3), nn.Conv2d(8, 6, 3, groups=2), nn.ConvTranspose2d(8, 6, 3), nn.Linear(8, 6)]
)
def test_scores_are_in_range_one_per_channel(name: str, layer: nn.Module) -> None:
    x = torch.rand(2, 8) if isinstance(layer, nn.Linear) else torch.rand(2, 8, 5, 5)
    score = scorer(name, layer, x, lambda outputs: outputs.square().sum(), 0)
    assert score is not None
    found = score(layer, layer.weight)
    assert found.shape == (8,)
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_score_ranks_what_it_says() -> None:
    layer = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        layer.weight[:, 1] *= 10
        layer.weight[:, 2] *= 0.1
    score = scorer("lowest L1", layer, torch.rand(1, 3, 5, 5), lambda outputs: outputs.sum(), 0)
    assert score is not None
    assert score(layer, layer.weight).tolist() == [0.5, 1.0, 0.0]


def test_the_scale_of_the_batch_norm_a_channel_comes_from() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([-3.0, 1.0, 2.0]))  # type: ignore[operator]
    score = scorer("batch-norm scale", network, torch.rand(2, 1, 8, 8), lambda outputs: outputs.sum(), 0)
    assert score is not None
    last = network[3]
    assert score(last, last.weight).tolist() == [1.0, 0.0, 0.5]  # type: ignore[arg-type]
