"""Scores of the user's own in place of KSE: a function of a consumer and its weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tgdsurgery.core.errors import PlanError
from tgdsurgery.scoring.gather import Scorer
from tgdsurgery.settings import Score

REMEDY = "score(module, weight) gives one number in [0, 1] for each input channel: low means retrain."


def by(score: Score, model: nn.Module) -> Scorer:
    """`score` for the consumers of `model`, checked."""
    modules = dict(model.named_modules(remove_duplicate=False))

    def scored(name: str, weight: Tensor, groups: int, transposed: bool) -> Tensor:
        channels = weight.shape[0] if transposed else weight.shape[1] * groups
        return _checked(name, score(_owner(modules, name), weight.detach()), channels)

    return scored


def _owner(modules: dict[str, nn.Module], name: str) -> nn.Module:
    """The module of a layer; for one that is called by its parameter's name, the module that has the parameter."""
    while name not in modules:
        name = name.rpartition(".")[0]
    return modules[name]


def _checked(name: str, found: Any, channels: int) -> Tensor:
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape != (channels,):
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise PlanError(
            f"The score of layer {name!r} is {what}, not a real tensor of shape ({channels},).", REMEDY
        )
    scores = found.detach().to("cpu", torch.float64)
    outside = scores[~((scores >= 0) & (scores <= 1))]  # NaN too
    if len(outside):
        raise PlanError(f"The score of layer {name!r} has {outside[0].item():g}.", REMEDY)
    return scores
