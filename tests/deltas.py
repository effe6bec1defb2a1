"""Deltas for the tests: random networks adapted without a training loop, and what a file holds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.laws.subjects import CATALOGUE, Method
from tests.strategies import Case, call
from tgdsurgery import TGDPlan, apply_tgd, save_delta


def adapted(
    case: Case, seed: int = 1, *, plan: TGDPlan | None = None, method: Method = CATALOGUE
) -> nn.Module:
    """A TGD network of which everything that may move has moved: rows by noise, statistics by a forward."""
    settings: dict[str, Any] = method._asdict()
    if plan is not None:
        settings = {"plan": plan, "form": method.form}
    tgd = apply_tgd(copy.deepcopy(case.model), case.inputs, **settings).train()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        call(tgd, case.inputs)
        for parameter in tgd.parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(parameter.dtype)
            parameter.copy_(parameter + noise)
    return tgd.eval()


def saved(case: Case, path: Path, seed: int = 1, **more: Any) -> nn.Module:
    """The adapted network, whose delta is in a file."""
    when = more.pop("when", None)
    base = more.pop("base", None)
    tgd = adapted(case, seed, **more)
    save_delta(tgd, path, base=base, when=when)
    return tgd


def bits(state: dict[str, Tensor]) -> dict[str, bytes]:
    """What is in memory: a NaN equals itself, and 0.0 is not -0.0."""
    return {
        name: tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, tensor in state.items()
    }
