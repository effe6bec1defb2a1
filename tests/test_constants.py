"""Masks and indices go where their module goes, and nothing else touches them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.laws.subjects import in_both_forms
from tgdsurgery import apply_tgd
from tgdsurgery.core.constants import Constants

CPU, META = torch.device("cpu"), torch.device("meta")
INDEX = torch.tensor([1, 5, 7])


class Sized(Constants):
    """With a parameter, as modules that have constants do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self._tgd_keep("index", INDEX, CPU)


def test_they_are_no_state():
    module = Sized()
    assert list(module.state_dict()) == ["weight"]
    assert not list(module.buffers())
    assert torch.equal(module.half()._tgd_constant("index", CPU), INDEX)


def test_they_follow_their_module_and_come_back():
    net = nn.Sequential(Sized()).to("meta")
    assert net[0]._tgd_placed["index"].is_meta
    net.to_empty(device="cpu")
    assert torch.equal(net[0]._tgd_placed["index"], INDEX)


def test_where_weights_are_assigned_they_follow_at_the_first_use():
    module = Sized().to("meta")
    module.load_state_dict({"weight": torch.ones(3)}, assign=True)
    with torch.inference_mode():
        found = module._tgd_constant("index", CPU)
    assert torch.equal(found, INDEX)
    assert not found.is_inference()  # or no backward could keep it
    assert module._tgd_constant("index", CPU) is found


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_have_their_own(duplicate):
    module = Sized()
    twin = duplicate(module)
    twin.to("meta")
    assert not module._tgd_placed["index"].is_meta
    assert torch.equal(duplicate(twin)._tgd_constant("index", CPU), INDEX)


@in_both_forms
def test_averages_leave_them_alone(form):
    """0.9 times an index and 0.1 times the same add up to a little less: an integer of that is another index."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(1, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 1, 3))
    tgd = apply_tgd(base, torch.zeros(2, 1, 8, 8), phi=0.8, form=form)
    average = AveragedModel(tgd, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        average.update_parameters(tgd)
    image = torch.randn(1, 1, 8, 8)
    assert torch.equal(average.eval()(image), tgd.eval()(image))
