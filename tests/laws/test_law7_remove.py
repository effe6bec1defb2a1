"""Law 7: what was put in comes out again, and what was learnt stays."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

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
from tgdsurgery import remove_tgd
from tgdsurgery.core.constants import Constants
from tgdsurgery.surgery.derived import Derived


def hooks(model: nn.Module) -> dict[str, int]:
    """How many hooks of any kind each module and each of its own parameters has."""
    found = {}
    for name, module in model.named_modules():
        kinds = [value for key, value in vars(module).items() if key.endswith("_hooks") and value]
        found[name] = sum(len(kind) for kind in kinds)
    for name, parameter in model.named_parameters():
        found[f"{name} (parameter)"] = len(parameter._backward_hooks or {})
    return found


def assert_removed(case: Case, method: Method) -> None:
    """Raise unless training and removing TGD leaves a network like the original, with the trained weights."""
    tgd = operated(case, method)
    loss = scalar_loss(call(tgd, case.inputs))
    if loss.requires_grad:
        optimizer = torch.optim.SGD(tgd.parameters(), lr=0.01)
        loss.backward()
        optimizer.step()
    plain = remove_tgd(tgd)
    modules = dict(case.model.named_modules())
    assert {n: type(m) for n, m in plain.named_modules()} == {n: type(m) for n, m in modules.items()}
    assert not any(isinstance(module, Derived | Constants) for module in plain.modules())
    assert not any("tgd" in name for module in plain.modules() for name in vars(module))
    assert hooks(plain) == hooks(case.model)
    assert [name for name, _ in plain.named_buffers()] == [name for name, _ in case.model.named_buffers()]
    flags = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    assert flags == {name: parameter.requires_grad for name, parameter in case.model.named_parameters()}
    assert_equal_tensors(plain.state_dict(), tgd.state_dict())
    found, expected = (leaves(call(model.eval(), case.inputs)) for model in (with_flags_of(plain, tgd), tgd))
    assert_equal_tensors(found, expected)


@given(case=cases(), method=methods, training=st.booleans())
def test_random_networks(case, method, training):
    assert_removed(case.train(training), method)


@on_every_topology
@in_both_forms
def test_catalogue(name, form):
    assert_removed(case_of(name).train(), Method(form=form))


@on_every_topology
@in_both_forms
def test_catalogue_with_parameters_masked(name, form):
    assert_removed(case_of(name).train(), Method(flow="full", form=form))


@given(case=cases(), method=methods)
def test_a_removed_network_can_be_operated_again(case, method):
    once = operated(case, method)
    again = operated(Case(remove_tgd(once), case.inputs), method)
    assert again.tgd_plan == once.tgd_plan
