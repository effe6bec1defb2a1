"""Law 4, the loops people write: averaged weights, checkpoints of both kinds, resuming, functions of weights.

A loop on a TGD network does what it does on a plain one; what is frozen stays, and what is trainable moves.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn, optim
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

from tests.laws.subjects import Method, assert_equal_tensors, gradients, in_both_forms, methods, operated
from tests.laws.test_law4_frozen import OPTIMIZERS, frozen_part, trained
from tests.strategies import Case, call, cases, scalar_loss
from tests.topologies import case_of

RESUMABLE = ("momentum", "AdamW", "fused AdamW", "RMSprop", "NAdam", "LBFGS")


def subject(form: str = "compact", **settings: Any) -> tuple[Case, nn.Module]:
    """A network with norms, in training mode, and the same with TGD."""
    case = case_of("residual stages").train()
    return case, operated(case, Method(phi=0.5, form=form, **settings))


def made_for(tgd: nn.Module, name: str = "AdamW") -> optim.Optimizer:
    return OPTIMIZERS[name](tgd.parameters())


def assert_only_trainable_moved(tgd: nn.Module, before: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Raise unless the frozen entries are `before`, bit for bit, and some others are not as in `state`."""
    assert_equal_tensors(frozen_part(tgd), before)
    masks, after = tgd.tgd_plan.parameter_masks(), tgd.state_dict()
    assert any(not torch.equal(after[name], state[name]) for name in masks)


# Averages of weights --------------------------------------------------------------------------------------


@given(case=cases(), method=methods, use_buffers=st.booleans())
def test_random_networks_under_stochastic_weight_averaging(case, method, use_buffers):
    case = case.train()
    tgd = operated(case, method)
    if not any(parameter.requires_grad for parameter in tgd.parameters()):
        return  # all is frozen
    before = frozen_part(tgd)
    average, optimizer = AveragedModel(tgd, use_buffers=use_buffers), made_for(tgd)
    for _ in range(2):
        trained(tgd, case, optimizer, steps=1)
        average.update_parameters(tgd)
    update_bn([case.inputs] * 2 if isinstance(case.inputs, Tensor) else [], average)
    assert_equal_tensors(frozen_part(average.module), before)


@pytest.mark.parametrize("use_buffers", [False, True])
@in_both_forms
def test_stochastic_weight_averaging(form, use_buffers):
    """And the statistics that torch's `update_bn` gathers afterwards are those of the trainable channels."""
    case, tgd = subject(form)
    before, state = frozen_part(tgd), copy.deepcopy(tgd.state_dict())
    optimizer = made_for(tgd, "momentum")
    average, schedule = AveragedModel(tgd, use_buffers=use_buffers), SWALR(optimizer, swa_lr=0.05)
    for _ in range(3):
        trained(tgd, case, optimizer, steps=1)
        average.update_parameters(tgd)
        schedule.step()
    update_bn([case.inputs, 2 * case.inputs], average)
    assert_only_trainable_moved(average.module, before, state)
    mask = tgd.tgd_plan.trainable("blocks.0.1")
    mean = average.module.state_dict()["blocks.0.1.running_mean"]
    assert mask.any()
    assert (mean[mask] != tgd.state_dict()["blocks.0.1.running_mean"][mask]).all()


@pytest.mark.parametrize("name", ["residual stages", "norms with statistics"])
@in_both_forms
def test_new_statistics_are_those_of_a_plain_network(name, form):
    """With `norm_stats="batch"` no channel is held: `update_bn` gives what it gives for the same plain weights."""
    case = case_of(name).train()
    tgd, plain = operated(case, Method(norm_stats="batch", form=form)), copy.deepcopy(case.model)
    for net in (tgd, plain):
        update_bn([case.inputs] * 2, net)
    assert_equal_tensors(tgd.state_dict(), plain.state_dict())


@in_both_forms
def test_exponential_average(form):
    case, tgd = subject(form)
    before, state = frozen_part(tgd), copy.deepcopy(tgd.state_dict())
    average = AveragedModel(tgd, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = made_for(tgd)
    for _ in range(3):
        trained(tgd, case, optimizer, steps=1)
        average.update_parameters(tgd)
    assert_only_trainable_moved(average.module, before, state)


@in_both_forms
def test_exponential_average_by_hand(form):
    """On the tensors of a `state_dict`, which goes back by `load_state_dict`."""
    case, tgd = subject(form)
    before, state = frozen_part(tgd), copy.deepcopy(tgd.state_dict())
    average, optimizer = copy.deepcopy(tgd), made_for(tgd)
    for _ in range(3):
        trained(tgd, case, optimizer, steps=1)
        mean, present = average.state_dict(), tgd.state_dict()
        for name, value in mean.items():
            value.copy_(value.lerp(present[name], 0.1) if value.is_floating_point() else present[name])
        average.load_state_dict(mean)
    assert_only_trainable_moved(average, before, state)


# Leaving off and going on ---------------------------------------------------------------------------------


def stored(value: Any) -> Any:
    """What comes back from a file."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed_from_file(
    case: Case, tgd: nn.Module, optimizer: optim.Optimizer, method: Method, name: str
) -> Any:
    """TGD applied to the base network again, as a new process would, then weights and optimizer loaded."""
    kept = stored({"network": tgd.state_dict(), "optimizer": optimizer.state_dict()})
    fresh = operated(case, method)
    other = made_for(fresh, name)
    fresh.load_state_dict(kept["network"])
    other.load_state_dict(kept["optimizer"])
    return fresh, other


def resumed_from_copy(
    case: Case, tgd: nn.Module, optimizer: optim.Optimizer, method: Method, name: str
) -> Any:
    """A deep copy, and an optimizer of its own with the state of the first."""
    twin = copy.deepcopy(tgd)
    other = made_for(twin, name)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return twin, other


def copied_together(case: Case, tgd: nn.Module, optimizer: optim.Optimizer, method: Method, name: str) -> Any:
    """Network and optimizer in one deep copy."""
    return copy.deepcopy((tgd, optimizer))


# An LBFGS that was copied has lost its list of parameters (torch's own, found at its next step).
NOT_COPIED = ("LBFGS",)
RESUMED: dict[str, Callable[..., Any]] = {
    "file": resumed_from_file,
    "copy": resumed_from_copy,
    "copied together": copied_together,
}


def assert_resumed_is_uninterrupted(case: Case, method: Method, name: str, how: str) -> None:
    tgd = operated(case, method)
    if not any(parameter.requires_grad for parameter in tgd.parameters()):
        return  # all is frozen
    if name in NOT_COPIED and how == "copied together":
        how = "copy"
    before, optimizer = frozen_part(tgd), made_for(tgd, name)
    trained(tgd, case, optimizer)
    other, other_optimizer = RESUMED[how](case, tgd, optimizer, method, name)
    middle = copy.deepcopy(tgd.state_dict())
    for net, made in ((tgd, optimizer), (other, other_optimizer)):
        trained(net, case, made)
    assert_equal_tensors(other.state_dict(), tgd.state_dict())
    assert_equal_tensors(frozen_part(other), before)
    moving = any(p.grad is not None and p.grad.any() for p in tgd.parameters())
    assert not moving or any(not torch.equal(value, middle[key]) for key, value in tgd.state_dict().items())


@given(case=cases(), method=methods, name=st.sampled_from(RESUMABLE), how=st.sampled_from(sorted(RESUMED)))
def test_random_networks_go_on_as_if_never_stopped(case, method, name, how):
    assert_resumed_is_uninterrupted(case.train(), method, name, how)


@pytest.mark.parametrize("how", RESUMED)
@pytest.mark.parametrize("name", RESUMABLE)
@in_both_forms
def test_training_goes_on_as_if_never_stopped(name, how, form):
    case = case_of("residual stages").train()
    assert_resumed_is_uninterrupted(case, Method(phi=0.5, form=form), name, how)


# Activations computed again, weights as arguments ------------------------------------------------------------


class Checkpointed(nn.Module):
    """A network whose activations are thrown away, and computed again in the backward."""

    def __init__(self, net: nn.Module, *, use_reentrant: bool) -> None:
        super().__init__()
        self.net, self.use_reentrant = net, use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.net, x, use_reentrant=self.use_reentrant)


def assert_checkpointing_changes_nothing(case: Case, method: Method, *, use_reentrant: bool) -> None:
    tgd = operated(case, method)
    other = copy.deepcopy(tgd)
    if not any(parameter.requires_grad for parameter in tgd.parameters()):
        return
    before = frozen_part(tgd)
    checkpointed = Checkpointed(tgd, use_reentrant=use_reentrant)
    x = case.inputs.clone().requires_grad_()  # without, reentrant checkpoints have no gradient at all
    for net in (checkpointed, other):
        scalar_loss(call(net, x)).backward()
    assert_equal_tensors(gradients(tgd), gradients(other))
    made_for(tgd).step()
    assert_equal_tensors(frozen_part(tgd), before)


@given(case=cases(), method=methods, use_reentrant=st.booleans())
def test_random_networks_with_activation_checkpoints(case, method, use_reentrant):
    assert_checkpointing_changes_nothing(case.train(), method, use_reentrant=use_reentrant)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["residual stages", "u-net", "norms with statistics", "linear layers only"])
@in_both_forms
def test_activation_checkpoints(name, use_reentrant, form):
    case = case_of(name).train()
    assert_checkpointing_changes_nothing(case, Method(phi=0.5, form=form), use_reentrant=use_reentrant)


@pytest.mark.parametrize("flow", ["masked", "full"])
@in_both_forms
def test_functional_call(form, flow):
    """Weights as arguments of a function, and their gradients by `torch.func.grad`."""
    case, tgd = subject(form, flow=flow)
    before, state = frozen_part(tgd), copy.deepcopy(tgd.state_dict())
    reference = copy.deepcopy(tgd)
    scalar_loss(reference(case.inputs)).backward()
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    weights = {name: p.detach() for name, p in tgd.named_parameters() if p.requires_grad}
    buffers = {name: b.clone() for name, b in tgd.named_buffers()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        copies = {name: b.clone() for name, b in buffers.items()}
        return scalar_loss(torch.func.functional_call(tgd, {**weights, **copies}, (case.inputs,)))

    found = torch.func.grad(loss)(weights)
    assert_equal_tensors({name: found[name] for name in expected}, expected)
    with torch.no_grad():
        for name, parameter in tgd.named_parameters():
            parameter.sub_(found.get(name, 0.0), alpha=0.1)
    assert_only_trainable_moved(tgd, before, state)
