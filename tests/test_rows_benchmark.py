"""The benchmark of channels taken out by numbers and as slices: both ways move the same amounts."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.rows import MOVES, Move, moved, recorded, saved
from tgdsurgery import apply_tgd
from tgdsurgery.surgery.compact import channels, layout


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 2, 1),
    )


def test_all_moves_of_a_step_are_found_and_timed():
    x = torch.randn(2, 3, 8, 8)
    tgd = apply_tgd(network(), x, phi=0.5).train()

    def step() -> None:
        tgd(x).square().sum().backward()

    with recorded() as moves:
        step()
    assert {move.function for move in moves} <= set(MOVES)
    assert {channels.select, layout.fill_} <= {move.function for move in moves}
    taken = moved(step)
    assert all(seconds > 0 for seconds in taken.values())
    assert saved(taken) < taken["numbers"] + taken["weights"]


def test_a_block_is_moved_as_its_numbers_are():
    part, whole = torch.randn(2, 3, 4, 4), torch.randn(2, 8, 4, 4)
    written = whole.clone()
    first = torch.arange(3)
    Move(channels.place_, (written, first, part, torch.contiguous_format)).as_block()
    assert torch.equal(written, channels.place_(whole.clone(), first, part, torch.contiguous_format))
