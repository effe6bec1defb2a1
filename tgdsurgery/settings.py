"""The settings of a plan: one frozen record behind the keyword arguments of the API, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor, nn

from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.plan import (
    KSE,
    Flow,
    NormStats,
    Override,
    check_align,
    check_kse,
    check_overrides,
    check_share,
)

OnUnknown = Literal["raise", "mix"]
Form = Literal["compact", "layers"]
Score = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class TGDSettings:
    """How a plan is made. The defaults are those of `plan_tgd` and `apply_tgd`.

    Args:
        phi: the threshold in [0, 1]: feature maps with a KSE below it are retrained. A relative scale, per layer.
        budget: instead of phi, the largest share of filter parameters that may be trainable.
        overrides: layer name or module prefix -> "train", "freeze" or a phi of its own; the longest name wins.
        k: nearest neighbours in the kernel entropy.
        alpha: weight of the kernel entropy.
        flow: "full" masks parameters only; "masked" also stops gradients at frozen feature maps (the paper's layer).
        norm_stats: "hold" keeps the running statistics of frozen channels; "batch" lets them drift.
        on_unknown: "raise" at an op without a rule; "mix" keeps more filters than needed instead.
        score: what scores the input channels of a layer; None for KSE. See `plan_tgd`.
        align: the number of trainable channels of a layer is rounded to a multiple of it. See `plan_tgd`.

    Raises:
        PlanError: a value out of range; the message names it.

    >>> TGDSettings(phi=0.5).flow
    'full'
    """

    phi: float = 0.3
    budget: float | None = None
    overrides: Mapping[str, Override] = field(default_factory=dict)
    k: int = 5
    alpha: float = 1.0
    flow: Flow = "full"
    norm_stats: NormStats = "hold"
    on_unknown: OnUnknown = "raise"
    score: Score | None = None
    align: int = 1

    @property
    def score_name(self) -> str:
        """What the plan calls the score: the name of the function, or of its class."""
        return KSE if self.score is None else getattr(self.score, "__name__", type(self.score).__name__)

    def __post_init__(self) -> None:
        check_share("phi", self.phi)
        if self.budget is not None:
            check_share("budget", self.budget)
        check_overrides(self.overrides)
        check_kse(self.k, self.alpha)
        check_align(self.align)
        if self.score is not None:
            _check_score(self.score, self.k, self.alpha)
        check_choice("flow", self.flow, get_args(Flow))
        check_choice("norm_stats", self.norm_stats, get_args(NormStats))
        check_choice("on_unknown", self.on_unknown, get_args(OnUnknown))


def _check_score(score: object, k: int, alpha: float) -> None:
    if not callable(score):
        raise PlanError(f"score is {score!r}.", "Give a function of a module and a weight, or None for KSE.")
    if (k, alpha) != (TGDSettings.k, TGDSettings.alpha):
        raise PlanError(
            "k and alpha are settings of KSE, which score takes the place of.", "Leave them or score out."
        )


def check_choice(name: str, value: object, kinds: tuple[str, ...]) -> None:
    """Raise a PlanError unless the value is one of these words."""
    if value not in kinds:
        raise PlanError(f"{name} is {value!r}.", f"It can be {' or '.join(map(repr, kinds))}.")
