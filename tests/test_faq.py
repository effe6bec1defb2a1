"""docs/faq.md: each answer holds, on more than the page's own network."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from tests.deltas import bits
from tests.laws.subjects import in_both_forms
from tests.topologies import case_of
from tgdsurgery import (
    DeltaSwitch,
    RewriteError,
    apply_tgd,
    load_delta,
    plan_tgd,
    remove_tgd,
    save_delta,
    verify,
)

PAGE = Path(__file__).parent.parent / "docs" / "faq.md"
IMAGES = torch.linspace(-1, 1, 2048).view(8, 1, 16, 16)


def network(*, depthwise: bool = False) -> nn.Sequential:
    """A small network with norms and a grouped convolution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16 if depthwise else 4), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1),
        ).eval()  # fmt: skip


def train(
    tgd: nn.Module, steps: int = 3, optimizer: torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    optimizer = optimizer or torch.optim.AdamW(tgd.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        tgd(IMAGES).square().mean().backward()
        optimizer.step()
    return optimizer


def stored(path: Path) -> dict[str, int]:
    """How many entries of each tensor are in a delta."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118 (no mapping)


def test_is_the_base_exactly_the_same_after_the_adaptation_is_taken_off(tmp_path):
    net = network()
    before = bits(net.state_dict())
    for seed in range(3):
        tgd = apply_tgd(net, IMAGES, phi=0.3 * (seed + 1)).train()
        train(tgd)
        save_delta(tgd, tmp_path / f"{seed}.safetensors")
    deltas = DeltaSwitch(net, {name: tmp_path / f"{name}.safetensors" for name in "012"})
    for name in "012" * 20:
        with deltas(name):
            assert bits(net.state_dict()) != before
        assert bits(net.state_dict()) == before


@in_both_forms
def test_what_is_in_the_optimizers_state_and_how_do_i_resume(form):
    plan = plan_tgd(network(), IMAGES, phi=0.5)

    def made() -> nn.Module:
        return apply_tgd(network(), IMAGES, plan=plan, form=form).train()

    whole, first, second = made(), made(), made()
    train(whole, 6)
    halfway = train(first)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed = torch.optim.AdamW(second.parameters(), lr=1e-2, weight_decay=0.1)
    resumed.load_state_dict(copy.deepcopy(halfway.state_dict()))
    train(second, 3, resumed)
    assert bits(second.state_dict()) == bits(whole.state_dict())
    if form == "compact":
        rows = sum(int(mask.sum()) for mask in plan.parameter_masks().values())
        assert sum(entry["exp_avg"].numel() for entry in halfway.state.values()) == rows
        assert rows < sum(parameter.numel() for parameter in network().parameters())


@pytest.mark.parametrize("norm_stats", ["hold", "batch"])
def test_are_batch_norm_statistics_in_the_file(norm_stats, tmp_path):
    tgd = apply_tgd(network(), IMAGES, phi=0.5, norm_stats=norm_stats).train()
    train(tgd)
    save_delta(tgd, tmp_path / "delta.safetensors")
    found = stored(tmp_path / "delta.safetensors")
    for name in ("1", "4"):
        trainable = int(tgd.tgd_plan.trainable(name).sum())
        assert 0 < trainable < 16
        for statistic in ("running_mean", "running_var"):
            assert found[f"{name}.{statistic}"] == (trainable if norm_stats == "hold" else 16)
        assert found[f"{name}.num_batches_tracked"] == 1
    adapted = load_delta(network(), tmp_path / "delta.safetensors")
    assert bits(adapted.state_dict()) == bits(remove_tgd(tgd).state_dict())


@pytest.mark.parametrize("depthwise", [False, True])
def test_do_grouped_and_depthwise_convolutions_work(depthwise, tmp_path):
    net = network(depthwise=depthwise)
    tgd = apply_tgd(net, IMAGES, phi=0.5).train()
    train(tgd)
    save_delta(tgd, tmp_path / "delta.safetensors")
    trainable = tgd.tgd_plan.trainable("3")
    assert trainable.any()
    assert not trainable.all()
    assert (
        stored(tmp_path / "delta.safetensors")["3.weight"]
        == int(trainable.sum()) * (1 if depthwise else 4) * 9
    )
    adapted = load_delta(net, tmp_path / "delta.safetensors")
    assert bits(adapted.state_dict()) == bits(remove_tgd(tgd).state_dict())
    moved = (adapted[3].weight != net[3].weight).flatten(1).any(1)
    assert torch.equal(moved, trainable)


def test_my_batch_norms_are_frozen_or_in_eval_mode_what_then(tmp_path):
    net = network()
    for norm in (net[1], net[4]):
        norm.requires_grad_(False)
    tgd = apply_tgd(net, IMAGES, phi=0.5).train()
    for norm in (tgd[1], tgd[4]):
        norm.eval()
    train(tgd)
    assert not any(name.startswith(("1.", "4.")) for name, _ in tgd.named_parameters())
    save_delta(tgd, tmp_path / "delta.safetensors")
    adapted = load_delta(net, tmp_path / "delta.safetensors")
    for norm in (1, 4):
        assert bits(adapted[norm].state_dict()) == bits(net[norm].state_dict())
    assert bits(adapted.state_dict()) == bits(remove_tgd(tgd).state_dict())
    assert not torch.equal(adapted[0].weight, net[0].weight)


def test_frozen_batch_norms_of_other_libraries_come_back_as_they_were(tmp_path):
    case = case_of("frozen batch norms")
    tgd = apply_tgd(case.model, case.inputs, phi=0.95).train()
    train_any = torch.optim.SGD(tgd.parameters(), lr=0.1)
    tgd(case.inputs).square().mean().backward()
    train_any.step()
    save_delta(tgd, tmp_path / "delta.safetensors")
    adapted = load_delta(case.model, tmp_path / "delta.safetensors")
    assert bits(dict(adapted.named_buffers())) == bits(dict(case.model.named_buffers()))
    assert bits(adapted.state_dict()) != bits(case.model.state_dict())


def test_i_replace_the_head_when(tmp_path):
    net = network()
    net[8] = nn.Conv2d(8, 5, 3, padding=1)
    tgd = apply_tgd(net, IMAGES, phi=0.5, overrides={"8": "train"}).train()
    train(tgd)
    save_delta(tgd, tmp_path / "delta.safetensors")
    assert verify(net, tgd).ok
    assert stored(tmp_path / "delta.safetensors")["8.weight"] == net[8].weight.numel()
    adapted = load_delta(net, tmp_path / "delta.safetensors")
    assert bits(adapted.state_dict()) == bits(remove_tgd(tgd).state_dict())
    tgd[8] = nn.Conv2d(8, 3, 3)
    with pytest.raises(RewriteError, match="8"):
        save_delta(tgd, tmp_path / "late.safetensors")


def test_each_question_has_a_test():
    titles = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    names = ["test_" + re.sub(r"\W+", "_", re.sub(r"[',]", "", title.lower())).strip("_") for title in titles]
    assert len(names) >= 6
    assert [name for name in names if name not in globals()] == []
