"""Distillation of a network's own outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tgd_kit.training.distillation import Distillation


def test_it_is_zero_for_the_same_network_and_grows_with_the_distance() -> None:
    torch.manual_seed(0)
    base, x = nn.Conv2d(1, 2, 3), torch.rand(2, 1, 8, 8)
    keep = Distillation(base, weight=0.5)
    assert keep(x, base(x)).item() == 0
    assert keep(x, base(x) + 2).item() == pytest.approx(2.0)


def test_the_teacher_is_a_copy_in_eval_mode() -> None:
    """Training the network afterwards moves neither the teacher's weights nor its statistics."""
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), torch.rand(4, 1, 8, 8)
    before = base.eval()(x).detach()
    keep = Distillation(base.train())
    assert base.training
    base(x)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(1.0)
    assert keep(x, before).item() == 0


def test_only_the_outputs_get_a_gradient() -> None:
    base, x = nn.Conv2d(1, 1, 3), torch.rand(1, 1, 5, 5)
    outputs = torch.zeros(1, 1, 3, 3, requires_grad=True)
    Distillation(base, distance=nn.functional.l1_loss)(x, outputs).backward()
    assert outputs.grad is not None
    assert base.weight.grad is None
