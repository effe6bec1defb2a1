"""Law 6: the state is the original's, both ways; and the rewritten model can be copied and stored."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.laws.subjects import (
    ACCEPTED,
    Method,
    assert_equal_tensors,
    gradients,
    in_both_forms,
    methods,
    on_every_topology,
    operated,
)
from tests.strategies import Case, call, cases, leaves, scalar_loss
from tests.topologies import case_of


def by_torch_save(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


# torch stores networks with parametrizations by their state only.
UNPICKLABLE = ("weight norm", "spectral norm", "orthogonal weights", "parametrizations of one's own")
COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": by_torch_save,
}


def assert_same_state(case: Case, method: Method) -> None:
    """Raise unless names, order, shapes, dtypes and values agree, and both take the other's state."""
    tgd, plain = operated(case, method), copy.deepcopy(case.model)
    state = tgd.state_dict()
    assert_equal_tensors(state, plain.state_dict())
    if method.form == "layers":
        assert [name for name, _ in tgd.named_parameters()] == [name for name, _ in plain.named_parameters()]
    changed = {
        name: value + 1 if value.is_floating_point() else value.clone() for name, value in state.items()
    }
    plain.load_state_dict(changed, strict=True)
    tgd.load_state_dict(plain.state_dict(), strict=True)
    assert_equal_tensors(tgd.state_dict(), changed)
    assert_equal_tensors(plain.state_dict(), changed)


def assert_true_copy(case: Case, method: Method, how: str) -> None:
    """Raise unless the copy has the original's plan, output and gradients, and memory of its own."""
    case = case.double()
    tgd = operated(case, method)
    twin = COPIES[how](tgd)
    assert twin.tgd_plan == tgd.tgd_plan
    assert [module.training for module in twin.modules()] == [module.training for module in tgd.modules()]
    shared = {p.data_ptr() for p in tgd.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert not shared
    outputs = []
    for model in (tgd, twin):
        outputs.append(call(model, case.inputs))
        loss = scalar_loss(outputs[-1])
        if loss.requires_grad:
            loss.backward()
    assert_equal_tensors(leaves(outputs[1]), leaves(outputs[0]))
    assert_equal_tensors(gradients(twin), gradients(tgd))
    assert_equal_tensors(twin.state_dict(), tgd.state_dict())


@given(case=cases(), method=methods)
def test_random_networks_have_the_same_state(case, method):
    assert_same_state(case, method)


@given(case=cases(), method=methods, how=st.sampled_from(sorted(COPIES)), training=st.booleans())
def test_random_networks_can_be_copied(case, method, how, training):
    assert_true_copy(case.train(training), method, how)


@on_every_topology
@in_both_forms
def test_catalogue_has_the_same_state(name, form):
    assert_same_state(case_of(name), Method(form=form))


@on_every_topology
@in_both_forms
def test_catalogue_can_be_copied(name, form):
    assert_true_copy(case_of(name).train(), Method(form=form), "deepcopy")


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name not in UNPICKLABLE])
@in_both_forms
def test_catalogue_can_be_stored(name, form):
    assert_true_copy(case_of(name).train(), Method(form=form), "torch.save")


@pytest.mark.parametrize("name", UNPICKLABLE)
def test_what_torch_does_not_store_whole_is_not_stored_either(name):
    case = case_of(name)
    for model in (case.model, operated(case)):
        with pytest.raises(RuntimeError, match="parametrized"):
            by_torch_save(model)
