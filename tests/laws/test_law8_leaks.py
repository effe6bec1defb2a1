"""Law 8: after success or any failure the caller's model, and the world around it, is what it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from tests.laws.subjects import ACCEPTED, REFUSED, Method, operated
from tests.strategies import Case, call, cases, leaves, scalar_loss
from tests.topologies import case_of
from tgdsurgery import (
    ExampleInputError,
    PlanError,
    TGDError,
    UnsupportedOpError,
    apply_tgd,
    channel_map,
    plan_tgd,
)

ENTRANCES: dict[str, Callable[..., Any]] = {
    "channel_map": channel_map,
    "plan_tgd": plan_tgd,
    "apply_tgd": apply_tgd,
}
GLOBAL_HOOKS = [name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("hooks")]


def snapshot(case: Case) -> dict[str, Any]:
    """Everything that could be left behind, in a form that `==` compares by value."""
    model = case.model
    tensors = [*model.named_parameters(), *model.named_buffers()]
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    return {
        "tensors": {name: (id(t), t._version, t.requires_grad, bits(t)) for name, t in tensors},
        "gradients": {name: (id(gradient), bits(gradient)) for name, gradient in gradients},
        "inputs": [(id(t), t._version, t.requires_grad, bits(t)) for t in leaves(case.inputs)],
        "modules": {name: (id(m), type(m), m.training) for name, m in model.named_modules()},
        "attributes": {name: attributes(m) for name, m in model.named_modules()},
        "tensor hooks": {name: list(t._backward_hooks or ()) for name, t in tensors},
        "global hooks": {name: list(vars(torch_module)[name] or ()) for name in GLOBAL_HOOKS},
        "modes": (len(_get_current_dispatch_mode_stack()), len(_get_current_function_mode_stack())),
        "flags": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
        ),
        "random": (bits(torch.get_rng_state()), random.getstate(), str(np.random.get_state())),
    }


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def attributes(module: nn.Module) -> dict[str, Any]:
    """Names and identities of all a module holds; of its dicts (hooks, parameters, ...) what is in them."""
    return {
        key: [(name, id(item)) for name, item in value.items()] if isinstance(value, dict) else id(value)
        for key, value in vars(module).items()
    }


def lived_in(case: Case) -> Case:
    """The case as a user might have left it: mixed modes, some gradients, some frozen parameters, hooks."""
    model = case.model
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 1)
        if index % 3 == 0:
            parameter.grad = torch.ones_like(parameter)
    model.register_forward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: None)
    return case


class Breaks(nn.Module):
    """Runs a model, buffers and random numbers included, and then fails."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.model(*args, **kwargs)
        random.random(), np.random.rand(), torch.rand(1)
        raise ZeroDivisionError("the user's own")


@given(case=cases(), entrance=st.sampled_from(sorted(ENTRANCES)), phi=st.sampled_from([0.5, 1.0]))
def test_random_networks_after_success(case, entrance, phi):
    lived_in(case)
    before = snapshot(case)
    settings = {} if entrance == "channel_map" else {"phi": phi}
    ENTRANCES[entrance](case.model, case.inputs, **settings)
    assert snapshot(case) == before


@pytest.mark.parametrize("name", ACCEPTED)
def test_catalogue_after_success(name):
    case = lived_in(case_of(name))
    before = snapshot(case)
    apply_tgd(case.model, case.inputs)
    assert snapshot(case) == before


@given(case=cases(), entrance=st.sampled_from(sorted(ENTRANCES)))
def test_random_networks_after_their_forward_has_raised(case, entrance):
    case = lived_in(Case(Breaks(case.model), case.inputs))
    before = snapshot(case)
    with pytest.raises(TGDError, match="the user's own"):
        ENTRANCES[entrance](case.model, case.inputs)
    assert snapshot(case) == before


@given(case=cases(), entrance=st.sampled_from(["plan_tgd", "apply_tgd"]), data=st.data())
def test_random_networks_after_a_bad_argument(case, entrance, data):
    lived_in(case)
    before = snapshot(case)
    bad = data.draw(
        st.sampled_from(
            [
                {"phi": 2},
                {"budget": -1},
                {"overrides": {"no such layer": "train"}},
                {"k": 0},
                {"flow": "half"},
            ]
        )
    )
    with pytest.raises(PlanError):
        ENTRANCES[entrance](case.model, case.inputs, **bad)
    assert snapshot(case) == before


@given(case=cases(), entrance=st.sampled_from(sorted(ENTRANCES)))
def test_random_networks_after_inputs_that_do_not_fit(case, entrance):
    lived_in(case)
    before = snapshot(case)
    with pytest.raises(TGDError):
        ENTRANCES[entrance](case.model, case.inputs[:, :, :0])
    with pytest.raises(ExampleInputError):
        ENTRANCES[entrance](case.model, "no tensor")
    assert snapshot(case) == before


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("name", REFUSED)
def test_catalogue_after_a_refusal(name, entrance):
    case = lived_in(case_of(name))
    before = snapshot(case)
    with pytest.raises(UnsupportedOpError):
        ENTRANCES[entrance](case.model, case.inputs)
    assert snapshot(case) == before


@pytest.mark.parametrize("name", ["chain", "chain 3d", "u-net", "linear layers only"])
def test_catalogue_after_an_input_was_found(name):
    case = lived_in(case_of(name))
    before = snapshot(case)
    apply_tgd(case.model)
    assert snapshot(case) == before


@pytest.mark.parametrize("name", ["two inputs", "flatten head"])
def test_catalogue_after_no_input_was_found(name):
    case = lived_in(case_of(name))
    before = snapshot(case)
    with pytest.raises(ExampleInputError):
        apply_tgd(case.model)
    assert snapshot(case) == before


@pytest.mark.parametrize(
    "name", ["chain", "control flow on a value", "tied weights", "norms with statistics"]
)
def test_training_the_result_does_not_train_the_original(name):
    case = case_of(name).train()
    before = snapshot(case)
    tgd = operated(case, Method(norm_stats="batch"))
    optimizer = torch.optim.AdamW(tgd.parameters(), lr=0.1)
    start = copy.deepcopy(tgd.state_dict())
    scalar_loss(call(tgd, case.inputs)).backward()
    optimizer.step()
    assert any(not torch.equal(start[key], value) for key, value in tgd.state_dict().items())
    assert snapshot(case) == before


def test_a_snapshot_sees_what_could_be_left_behind():
    """The law's own oracle, against planted leaks."""
    case = lived_in(case_of("chain"))

    def leaks() -> list[Callable[[], object]]:
        model = case.model
        return [
            lambda: model[1].train(not model[1].training),
            lambda: model[0].weight.requires_grad_(not model[0].weight.requires_grad),
            lambda: model[1].running_mean.add_(1),
            lambda: model[3].register_forward_hook(lambda *_: None),
            lambda: setattr(model[3], "forward", model[3].forward),
            lambda: setattr(model[0].weight, "grad", None),
            lambda: model[3].weight.data.mul_(1 + 1e-6),
            lambda: model[3].register_buffer("mask", torch.ones(1)),
            lambda: torch.rand(1),
            random.random,
            np.random.rand,
            lambda: case.inputs.add_(1),
        ]

    for leak in leaks():
        before = snapshot(case)
        leak()
        assert snapshot(case) != before
