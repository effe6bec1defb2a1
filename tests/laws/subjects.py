"""What the laws are tested on, and what they have in common."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.strategies import Case
from tests.topologies import TOPOLOGIES
from tgdsurgery import apply_tgd
from tgdsurgery.surgery.compact import Compact, full_parameters

# Networks that are refused, and why that is right.
REFUSED = {
    "cross product of channels": "no rule is worth having for it",
}
ACCEPTED = tuple(name for name in TOPOLOGIES if name not in REFUSED)
on_every_topology = pytest.mark.parametrize("name", ACCEPTED)
in_both_forms = pytest.mark.parametrize("form", ["compact", "layers"])

# High enough that every network of the catalogue has something trainable.
PHI = 0.95


class Method(NamedTuple):
    """The settings that change what training does."""

    phi: float = PHI
    flow: Any = "masked"
    norm_stats: Any = "hold"
    form: str = "compact"


CATALOGUE = Method()
methods = st.builds(
    Method,
    phi=st.sampled_from([0.5, 0.2, 0.8, 1.0]),
    flow=st.sampled_from(["masked", "full"]),
    norm_stats=st.sampled_from(["hold", "batch"]),
    form=st.sampled_from(("compact", "layers")),
)


def operated(case: Case, method: Method = CATALOGUE) -> nn.Module:
    """The network with TGD applied."""
    return apply_tgd(case.model, case.inputs, **method._asdict())


def with_flags_of(model: nn.Module, other: nn.Module) -> nn.Module:
    """The model with the other's `requires_grad`, for comparing outputs bit for bit.

    torch multiplies some matrices another way where the weight needs no gradient, with other rounding.
    """
    flags = {name: parameter.requires_grad for name, parameter in other.named_parameters()}
    # What is frozen whole is a buffer. A compact twin uses it as if it needed a gradient.
    twins = {name for name, module in other.named_modules() if isinstance(module, Compact)}
    buffers = {name for name, _ in other.named_buffers() if name.rpartition(".")[0] not in twins}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(name, parameter.requires_grad and name not in buffers))
    return model


def gradients(tgd: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter of the original, in its shape; zero where there is none."""
    own = {name: parameter.grad for name, parameter in tgd.named_parameters() if parameter.grad is not None}
    found = full_parameters(tgd, own)
    state, plan = tgd.state_dict(), tgd.tgd_plan
    names = dict.fromkeys([*(n for n, _ in tgd.named_parameters()), *plan.parameter_masks(), *plan.unmapped])
    return {name: found.get(name, torch.zeros_like(state[name])) for name in names if name in state}


def assert_equal_tensors(found: Any, expected: Any) -> None:
    """Raise unless both dicts or sequences hold the same tensors, bit for bit."""
    if not isinstance(expected, dict):
        found, expected = (dict(enumerate(tensors)) for tensors in (found, expected))
    if list(found) != list(expected):
        raise AssertionError(f"{list(found)} is not {list(expected)}")
    for key, tensor in expected.items():
        if found[key].dtype != tensor.dtype or not torch.equal(found[key], tensor):
            raise AssertionError(f"{key} differs")


def norms_of(net: nn.Module) -> list[Any]:
    """The modules that keep running statistics."""
    return [module for module in net.modules() if getattr(module, "running_mean", None) is not None]


def assigned(norm: Any) -> None:
    """As Lightning's StochasticWeightAveraging does it."""
    norm.running_mean = torch.zeros_like(norm.running_mean)
    norm.running_var = torch.ones_like(norm.running_var)
    norm.momentum = None
    if getattr(norm, "num_batches_tracked", None) is not None:  # norms written by hand have none
        norm.num_batches_tracked *= 0
