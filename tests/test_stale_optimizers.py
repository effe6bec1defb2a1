"""An optimizer that was made before apply_tgd is an error, and nothing else is."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim.optimizer import _global_optimizer_post_hooks

from tests.laws.subjects import in_both_forms
from tgdsurgery import RewriteError, apply_tgd, remove_tgd
from tgdsurgery.training.optimizers import _watched

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: optim.AdamW(p, 0.1),
    "LBFGS": lambda p: optim.LBFGS(p, 0.1, max_iter=2),
}
MADE_BEFORE = "made before apply_tgd.*Make it from the parameters of the network that apply_tgd returned"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3))


def operated(net: nn.Module, **settings: Any) -> nn.Module:
    return apply_tgd(net, X, phi=0.9, **settings)


def loss_of(net: nn.Module) -> Tensor:
    return net(X).square().mean()


def step(optimizer: optim.Optimizer, net: nn.Module, *, inside: bool = True) -> None:
    """One step, with the backward inside of it, as Lightning does it, or before."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    done = None if inside else closure()
    optimizer.step(closure if done is None else lambda: done)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
@in_both_forms
def test_made_before_it_is_an_error_at_its_first_step(name: str, form: str, inside: bool):
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters())
    step(optimizer, net)  # was of use until now, and left gradients behind
    net = operated(net, form=form)
    with pytest.raises(RewriteError, match=f"This {name} was {MADE_BEFORE}"):
        step(optimizer, net, inside=inside)
    made = OPTIMIZERS[name](net.parameters())
    step(made, net)


def test_a_part_of_a_model_counts_too():
    model = nn.Sequential(network(), nn.Conv2d(2, 2, 1))
    optimizer = optim.Adam(model.parameters())
    model[0] = operated(model[0])
    with pytest.raises(RewriteError, match=MADE_BEFORE):
        step(optimizer, model)
    step(optim.Adam(model.parameters()), model)


def test_a_scheduler_and_accumulation_change_nothing():
    net = network()
    optimizer = optim.SGD(net.parameters(), 0.1)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1)
    tgd = operated(net)
    for _ in range(2):
        loss_of(tgd).backward()
    with pytest.raises(RewriteError, match=MADE_BEFORE):
        optimizer.step()
    del scheduler


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_original_can_still_be_trained(name: str):
    net = network()
    optimizer, tgd = OPTIMIZERS[name](net.parameters()), operated(net)
    other = OPTIMIZERS[name](tgd.parameters())
    for _ in range(2):
        step(other, tgd)
        step(optimizer, net)
        step(optimizer, net)


def test_other_networks_and_idle_steps_are_none_of_its_business():
    net, bystander = network(), network()
    optimizer, tgd = optim.SGD(net.parameters(), 0.1), operated(net)
    optimizer.step()  # no gradients anywhere
    loss_of(tgd).backward()
    step(optim.SGD(bystander.parameters(), 0.1), bystander)


def test_one_optimizer_of_teacher_and_student():
    """A module that holds both, with all its parameters in one optimizer: only one of them is trained."""
    teacher = network()
    both = nn.ModuleList([teacher, operated(teacher)])
    optimizer = optim.AdamW(both.parameters())
    teacher.requires_grad_(False)
    (both[1](X) - teacher(X)).square().mean().backward()
    optimizer.step()


def test_an_original_that_serves_frozen_in_another_model():
    backbone = network()
    tgd = operated(backbone)
    step(optim.SGD(tgd.parameters(), 0.1), tgd)
    model = nn.Sequential(backbone.requires_grad_(False), nn.Conv2d(2, 2, 1))
    step(optim.SGD(model.parameters(), 0.1), model)


@in_both_forms
def test_nothing_is_kept_alive_and_nothing_is_left_behind(form: str):
    gc.collect()
    before, hooks = len(_watched), len(_global_optimizer_post_hooks)
    net = network()
    tgd = operated(net, form=form)
    assert len(_watched) == before + 1
    assert len(_global_optimizer_post_hooks) == hooks
    parameters = [weakref.ref(parameter) for parameter in net.parameters()]
    weights = [weakref.ref(parameter) for parameter in tgd.parameters()]
    del net
    gc.collect()
    assert not any(ref() is not None for ref in parameters)
    assert all(ref() is not None for ref in weights)
    del tgd
    gc.collect()
    assert len(_watched) == before
    assert not any(ref() is not None for ref in weights)


def test_networks_that_vanish_between_steps_do_no_harm():
    for _ in range(3):
        net = network()
        tgd = operated(net, form="layers")  # a torch.fx graph: the garbage collector has to find it
        optimizer = optim.SGD(tgd.parameters(), 0.1)
        step(optimizer, tgd)
        del net, tgd


@in_both_forms
def test_copies_files_and_the_plain_network_carry_no_trace(form: str):
    net = network()
    optimizer = optim.SGD(net.parameters(), 0.1)
    tgd = operated(net, form=form)
    for other in (copy.deepcopy(tgd), pickle.loads(pickle.dumps(tgd)), remove_tgd(tgd)):
        assert vars(other).keys() <= vars(tgd).keys()
        loss_of(other).backward()
        optimizer.step()  # of another network, as far as anyone can tell


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # by torch's own compiler
def test_compiled_steps_are_seen_as_well():
    net = network()
    old, tgd = optim.SGD(net.parameters(), 0.1), operated(net)
    before = copy.deepcopy(tgd.state_dict())
    loss_of(tgd).backward()
    torch.compile(optim.SGD(tgd.parameters(), 0.1).step, backend="eager")()
    assert not torch.equal(tgd.state_dict()["0.weight"], before["0.weight"])
    with pytest.raises(RewriteError, match=MADE_BEFORE):
        torch.compile(old.step, backend="eager")()
