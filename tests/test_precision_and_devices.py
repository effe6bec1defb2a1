"""Models in half precision, and models on the meta device, which have shapes but no values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tests.laws.subjects import ACCEPTED, Method, assert_equal_tensors, in_both_forms, operated
from tests.strategies import Case, call, leaves, scalar_loss
from tests.topologies import TOPOLOGIES, case_of
from tgdsurgery import CaptureError, PlanError, apply_tgd, channel_map, plan_tgd, remove_tgd, verify
from tgdsurgery.surgery.entries import trainable_entries

HALF = (torch.float16, torch.bfloat16)
on_half = pytest.mark.parametrize("dtype", HALF, ids=str)
# Convolutions of all kinds, norms, gates, linear layers, weights that are computed.
NAMES = ("residual stages", "u-net", "squeeze and excite", "standardised weights", "linear layers only")
on_names = pytest.mark.parametrize("name", NAMES)


def moved(inputs: Any, to: torch.dtype | str) -> Any:
    return tree_map_only(Tensor, lambda leaf: leaf.to(to), inputs)


def in_half(name: str, dtype: torch.dtype) -> Case:
    """The network of that name with weights, statistics and inputs in half precision."""
    case = case_of(name)
    return Case(case.model.to(dtype), moved(case.inputs, dtype))


# Networks with ops that torch has in full precision only, on a CPU.
FULL_PRECISION = ("orthogonal weights", "local response norm", "largest of neighbouring channels")


@on_half
@pytest.mark.parametrize("name", [name for name in ACCEPTED if name not in FULL_PRECISION])
def test_the_map_does_not_depend_on_the_precision(name, dtype):
    """Backends have other kernels for other types, and so other ops to follow."""
    half, full = in_half(name, dtype), case_of(name)
    assert channel_map(half.model, half.inputs) == channel_map(full.model, full.inputs)


@on_half
@pytest.mark.parametrize("name", FULL_PRECISION)
def test_ops_that_torch_has_in_full_precision_only(name, dtype):
    case = in_half(name, dtype)
    with pytest.raises(RuntimeError, match="not implemented for"):
        call(case.model, case.inputs)
    with pytest.raises(CaptureError, match="not implemented for"):
        channel_map(case.model, case.inputs)


@on_half
@pytest.mark.parametrize("name", [name for name in NAMES if name != "standardised weights"])
def test_scores_are_those_of_the_same_numbers_in_float32(name, dtype):
    half = in_half(name, dtype)
    full = Case(copy.deepcopy(half.model).float(), moved(half.inputs, torch.float32))
    assert plan_tgd(half.model, half.inputs) == plan_tgd(full.model, full.inputs)


@in_both_forms
@on_half
@on_names
def test_forward_in_half_precision(name, dtype, form):
    case = in_half(name, dtype)
    found, expected = (
        leaves(call(model, case.inputs)) for model in (operated(case, Method(form=form)), case.model)
    )
    assert {leaf.dtype for leaf in found} == {dtype}
    assert_equal_tensors(found, expected)


@in_both_forms
@on_half
@on_names
def test_training_in_half_precision(name, dtype, form):
    rate, decay = 0.1, 0.1
    case = in_half(name, dtype).train()
    tgd = operated(case, Method(form=form))
    optimizer = torch.optim.SGD(tgd.parameters(), lr=rate, weight_decay=decay)
    before = {name: parameter.detach().clone() for name, parameter in tgd.named_parameters()}
    scalar_loss(call(tgd, case.inputs)).backward()
    optimizer.step()
    assert verify(case.model, tgd, tgd.tgd_plan).ok
    any_moved, entries = False, trainable_entries(tgd, tgd.tgd_plan)
    for parameter, after in tgd.named_parameters():
        assert after.dtype == dtype
        if (mask := entries[after]).any():
            step = after.grad.add(before[parameter], alpha=decay)
            assert torch.equal(after[mask], before[parameter].add(step, alpha=-rate)[mask])
            any_moved |= bool((after != before[parameter]).any())
    assert any_moved
    assert_equal_tensors(remove_tgd(tgd).state_dict(), tgd.state_dict())


# Forwards that need a value, and where torch itself stops.
NEEDS_VALUES = {
    "control flow on a value": "reads a number from a tensor",
    "norms with statistics": "a cumulative average reads how many batches it has seen",
    "random depth and dropout": "draws numbers on the CPU",
}
CHECKS_VALUES = ("orthogonal weights",)  # when it is made
# Maps that are coarser without values: an index buffer could hold any order.
ORDER_UNKNOWN = ("reordered channels", "relative positions")


def on_meta(name: str) -> Case:
    """The network of that name without values. Most are made there: moving a network unties its weights."""
    case = case_of(name)
    if name in CHECKS_VALUES:
        return Case(case.model.to("meta"), moved(case.inputs, "meta"))
    with torch.device("meta"):
        return Case(TOPOLOGIES[name].factory().eval(), moved(case.inputs, "meta"))


def assert_on_meta(model: nn.Module) -> None:
    tensors = [*model.parameters(), *model.buffers()]
    assert tensors
    assert all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize(
    "name", [name for name in ACCEPTED if name not in NEEDS_VALUES and name not in ORDER_UNKNOWN]
)
def test_the_map_of_a_network_without_values(name):
    case, real = on_meta(name), case_of(name)
    found = channel_map(case.model, case.inputs)
    assert found == channel_map(real.model, real.inputs)
    assert_on_meta(case.model)


@pytest.mark.parametrize("name", NEEDS_VALUES)
def test_a_forward_that_needs_values_is_a_typed_error(name):
    case = on_meta(name)
    with pytest.raises(CaptureError, match="meta"):
        channel_map(case.model, case.inputs)
    assert_on_meta(case.model)


def test_an_input_is_found_for_a_network_without_values():
    case, real = on_meta("chain"), case_of("chain")
    assert channel_map(case.model) == channel_map(real.model)
    assert_on_meta(case.model)


@pytest.mark.parametrize("plan", [plan_tgd, apply_tgd])
def test_scores_need_weights(plan):
    case = on_meta("chain")
    with pytest.raises(PlanError, match=r"on the meta device\. Load the model's weights first"):
        plan(case.model, case.inputs)
    assert_on_meta(case.model)


def test_weights_loaded_afterwards_can_be_planned():
    real = case_of("chain")
    model = on_meta("chain").model.to_empty(device="cpu")
    model.load_state_dict(real.model.state_dict())
    assert plan_tgd(model, real.inputs) == plan_tgd(real.model, real.inputs)


@pytest.mark.parametrize("name", ORDER_UNKNOWN)
def test_an_order_without_values_is_never_guessed(name):
    """The map may hold more producers than the true one, and misses none."""
    case, real = on_meta(name), case_of(name)
    found, true = channel_map(case.model, case.inputs), channel_map(real.model, real.inputs)
    assert found.consumers == true.consumers
    for consumer in true.consumers:
        sets = zip(true.producers(consumer), found.producers(consumer), strict=True)
        assert all(want <= have for want, have in sets)
