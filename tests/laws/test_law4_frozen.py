"""Law 4: frozen entries stay, bit for bit, whatever the optimizer and the training loop do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.laws.subjects import (
    Method,
    assert_equal_tensors,
    in_both_forms,
    methods,
    on_every_topology,
    operated,
    with_flags_of,
)
from tests.strategies import Case, call, cases, leaves, scalar_loss
from tests.topologies import case_of
from tgdsurgery import TGDPlan, verify
from tgdsurgery.surgery.entries import trainable_entries

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "SGD": partial(optim.SGD, lr=0.1, weight_decay=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": partial(optim.Adam, lr=0.1, weight_decay=0.1),
    "AMSGrad": partial(optim.Adam, lr=0.1, amsgrad=True, weight_decay=0.1),
    "AdamW": partial(optim.AdamW, lr=0.1, weight_decay=0.1),
    "fused AdamW": partial(optim.AdamW, lr=0.1, weight_decay=0.1, fused=True),
    "foreach AdamW": partial(optim.AdamW, lr=0.1, weight_decay=0.1, foreach=True),
    "RMSprop": partial(optim.RMSprop, lr=0.1, momentum=0.9, centered=True, weight_decay=0.1),
    "Adagrad": partial(optim.Adagrad, lr=0.1, weight_decay=0.1),
    "NAdam": partial(optim.NAdam, lr=0.1, weight_decay=0.1),
    "LBFGS": partial(optim.LBFGS, lr=0.1, max_iter=3),
}
STEPS = 2


def frozen_part(tgd: nn.Module) -> dict[str, Tensor]:
    """A copy of every entry the plan freezes: of parameters, of statistics, and parameters in no layer."""
    plan: TGDPlan = tgd.tgd_plan
    masks = plan.parameter_masks()
    if plan.norm_stats == "hold":
        masks |= {name: plan.trainable(e.layer.name) for e in plan.entries for name in e.layer.statistics}
    state = tgd.state_dict()
    part = {name: state[name].detach()[~mask].clone() for name, mask in masks.items()}
    return part | {name: state[name].detach().clone() for name in plan.unmapped}


def trained(tgd: nn.Module, case: Case, optimizer: optim.Optimizer, steps: int = STEPS) -> None:
    """Some steps with accumulated and clipped gradients."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        for _ in range(2):
            loss = scalar_loss(call(tgd, case.inputs))
            if loss.requires_grad:  # not where nothing is trainable
                loss.backward()
        nn.utils.clip_grad_norm_(tgd.parameters(), 10.0)
        return loss.detach()

    for _ in range(steps):
        optimizer.step(closure)


def assert_frozen_stay(case: Case, method: Method, optimizer: str) -> None:
    """Raise unless all frozen entries are the same bits after some steps of training."""
    tgd = operated(case, method)
    if not list(tgd.parameters()):  # all is frozen: torch makes no optimizer of nothing
        assert method.form == "compact"
        assert not tgd.tgd_plan.share
        return
    before, state = frozen_part(tgd), {name: value.clone() for name, value in tgd.state_dict().items()}
    made = OPTIMIZERS[optimizer](tgd.parameters())
    trained(tgd, case, made)
    after = frozen_part(tgd)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert verify(state, tgd, tgd.tgd_plan).ok


@given(case=cases(), method=methods, optimizer=st.sampled_from(sorted(OPTIMIZERS)))
def test_random_networks(case, method, optimizer):
    assert_frozen_stay(case.train(), method, optimizer)


@on_every_topology
@in_both_forms
def test_catalogue(name, form):
    assert_frozen_stay(case_of(name).train(), Method(form=form), "AdamW")


@pytest.mark.parametrize("flow", ["masked", "full"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@in_both_forms
def test_optimizers(optimizer, flow, form):
    assert_frozen_stay(case_of("residual stages").train(), Method(phi=0.5, flow=flow, form=form), optimizer)


class Unhooked:
    """An optimizer's own step, around which no hook of torch runs."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.zero_grad = optimizer.zero_grad

    def step(self, closure: Any) -> None:
        type(self.optimizer).step.__wrapped__(self.optimizer, closure)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_hooks_decay_and_momentum_would_move_them(optimizer):
    """What the layers form protects itself from; where this holds no more, the tests above show nothing.

    Until the next forward or `state_dict`: then they are back.
    """
    case = case_of("residual stages").train()
    tgd = operated(case, Method(phi=0.5, form="layers"))
    before, masks = frozen_part(tgd), tgd.tgd_plan.parameter_masks()
    trained(tgd, case, Unhooked(OPTIMIZERS[optimizer](tgd.parameters())))
    parameters = {name: parameter.detach() for name, parameter in tgd.named_parameters()}
    moved = [name for name, value in parameters.items() if not torch.equal(value[~masks[name]], before[name])]
    # LBFGS has no weight decay: a zero gradient, accumulated over its history, stays a zero step.
    assert bool(moved) == (optimizer != "LBFGS")
    if optimizer != "fused AdamW":  # torch does not count what it writes: a forward does not see it
        call(tgd, case.inputs)
        assert all(torch.equal(value[~masks[name]], before[name]) for name, value in parameters.items())
    assert_equal_tensors(frozen_part(tgd), before)


def assert_no_parameter_holds_a_frozen_entry(case: Case, method: Method) -> None:
    """Raise unless every entry of every Parameter may move, whatever its `requires_grad`: no optimizer can do harm.

    And unless all of them are there, and the network runs on what was written to them.
    """
    tgd = operated(case, method)
    state = copy.deepcopy(tgd.state_dict())
    with torch.no_grad():
        for parameter in tgd.parameters():
            parameter.add_(torch.rand_like(parameter) + 0.1)
    assert verify(state, tgd).ok
    movable = sum(int(mask.sum()) for mask in trainable_entries(case.model, tgd.tgd_plan).values())
    assert sum(parameter.numel() for parameter in tgd.parameters()) == movable
    plain = copy.deepcopy(case.model)
    plain.load_state_dict(tgd.state_dict())
    assert_equal_tensors(*(leaves(call(net, case.inputs)) for net in (tgd, with_flags_of(plain, tgd))))


@given(case=cases(), method=methods)
def test_no_parameter_of_a_random_network_holds_a_frozen_entry(case, method):
    assert_no_parameter_holds_a_frozen_entry(case, method._replace(form="compact"))


@on_every_topology
@pytest.mark.parametrize("flow", ["masked", "full"])
def test_no_parameter_of_the_catalogue_holds_a_frozen_entry(name, flow):
    assert_no_parameter_holds_a_frozen_entry(case_of(name), Method(flow=flow))


@pytest.mark.parametrize("norm_stats", ["hold", "batch"])
@pytest.mark.parametrize("flow", ["masked", "full"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_statistics_and_weights_in_either_setting(optimizer, flow, norm_stats):
    case = case_of("residual stages").train()
    tgd = operated(case, Method(phi=0.5, flow=flow, norm_stats=norm_stats))
    state, before = copy.deepcopy(tgd.state_dict()), frozen_part(tgd)
    trained(tgd, case, OPTIMIZERS[optimizer](tgd.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in frozen_part(tgd).items())
    assert verify(state, tgd, tgd.tgd_plan).ok
    assert any(not torch.equal(value, state[name]) for name, value in tgd.state_dict().items())


def test_muon():
    case = case_of("linear layers only").train()
    tgd = operated(case)
    before = frozen_part(tgd)
    matrices = [
        parameter for parameter in tgd.parameters() if parameter.ndim == 2 and parameter.requires_grad
    ]
    made = optim.Muon(matrices, lr=0.1, weight_decay=0.1)
    trained(tgd, case, made)
    assert all(torch.equal(value, before[name]) for name, value in frozen_part(tgd).items())


def test_state_from_before():
    """An optimizer that has gathered momentum while all was trainable would move the frozen entries by it."""
    case = case_of("chain").train()
    old = optim.Adam(case.model.parameters(), lr=0.1)
    trained(case.model, case, old)
    tgd = operated(case, Method(form="layers"))
    new = optim.Adam(tgd.parameters(), lr=0.1)
    new.load_state_dict(old.state_dict())
    before = frozen_part(tgd)
    trained(tgd, case, new)
    assert all(torch.equal(value, before[name]) for name, value in frozen_part(tgd).items())


def test_average_of_weights():
    case = case_of("chain").train()
    tgd = operated(case)
    before = frozen_part(tgd)
    average = AveragedModel(tgd, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    made = OPTIMIZERS["AdamW"](tgd.parameters())
    for _ in range(3):
        trained(tgd, case, made, steps=1)
        average.update_parameters(tgd)
    assert not torch.equal(average.module.state_dict()["0.weight"], case.model[0].weight)
    assert all(torch.equal(value, before[name]) for name, value in frozen_part(average.module).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@in_both_forms
def test_mixed_precision(form, dtype):
    """With a step in between whose gradients overflow: the scaler skips it."""
    case = case_of("residual stages").train()
    tgd = operated(case, Method(form=form))
    before = frozen_part(tgd)
    made = OPTIMIZERS["AdamW"](tgd.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for overflow in (1.0, torch.inf, 1.0):
        made.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = overflow * scalar_loss(call(tgd, case.inputs))
        scaler.scale(loss).backward()
        weights = {name: parameter.clone() for name, parameter in tgd.named_parameters()}
        scaler.step(made)
        moved = {name for name, p in tgd.named_parameters() if not torch.equal(weights[name], p)}
        assert bool(moved) == (overflow == 1.0)
        scaler.update()
    assert not torch.equal(tgd.state_dict()["stem.weight"], case.model.stem.weight)
    assert all(torch.equal(value, before[name]) for name, value in frozen_part(tgd).items())
