"""A training step of a TGD network asks nothing of the device: what does would stop a GPU until it has answered."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.strategies.case import randomise
from tgdsurgery import apply_tgd

# Ops whose result, or its shape, the host has to wait for.
ASKING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::equal",
    "aten::is_nonzero",
}


class Asked(TorchDispatchMode):
    """Notes what asks, among it an index by a mask, and a copy to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name.startswith("aten::index") and any(
            t is not None and t.dtype == torch.bool
            for t in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        if (
            name in ASKING
            or by_mask
            or ((kwargs or {}).get("device") is not None and name == "aten::_to_copy")
        ):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def asked(net: nn.Module, x: torch.Tensor) -> list[str]:
    """What forward and backward of a second step ask: the first makes what is kept."""
    for _ in range(2):
        with Asked() as mode:
            net(x).square().sum().backward()
    return mode.found


NETWORK = randomise(
    nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.PReLU(12),
        nn.Conv2d(12, 12, 3, padding=1, groups=3),
        nn.GroupNorm(3, 12),
        nn.ConvTranspose2d(12, 12, 2, 2),
        nn.InstanceNorm2d(12, affine=True, track_running_stats=True),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 8, 1),
        nn.Flatten(),
        nn.Linear(8 * 16 * 16, 10),
        nn.LayerNorm(10),
        nn.Linear(10, 3),
    ),
    seed=0,
)


@pytest.mark.parametrize("norm_stats", ["hold", "batch"])
@pytest.mark.parametrize("flow", ["full", "masked"])
@pytest.mark.parametrize("form", ["compact", "layers"])
def test_a_step_asks_nothing(form: Any, flow: Any, norm_stats: Any) -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert asked(copy.deepcopy(NETWORK).train(), x) == []
    tgd = apply_tgd(NETWORK, x, phi=0.6, flow=flow, form=form, norm_stats=norm_stats).train()
    assert 0 < tgd.tgd_plan.share < 1
    assert asked(tgd, x) == []


def test_what_asks_is_noticed() -> None:
    class Asking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.detach().max()) + x[x > 0].sum()

    x = torch.rand(3, requires_grad=True)
    found = asked(Asking(), x)
    assert "aten::_local_scalar_dense" in found
    assert "aten::index" in found
