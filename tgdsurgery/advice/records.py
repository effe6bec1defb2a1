"""What is measured: the errors of a network, and a trial with those on its way."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tgdsurgery.core.plan import Flow

Method = Literal["TGD", "full fine-tuning", "LoRA"]


@dataclass(frozen=True)
class Errors:
    """What the user's functions say of a network.

    Args:
        old: error on old data.
        new: error on new data.
    """

    old: float
    new: float


@dataclass(frozen=True)
class Trial:
    """A short training.

    Args:
        method: TGD, or what it is compared with.
        flow: of TGD, else None.
        share: TGD's budget, else None.
        rate: of Adam.
        trained: how many parameters were trained.
        seconds: CPU seconds of a step, the median; only ratios mean something.
        points: errors at a third, two thirds and all of the steps.
    """

    method: Method
    flow: Flow | None
    share: float | None
    rate: float
    trained: int
    seconds: float
    points: tuple[Errors, ...]

    @property
    def name(self) -> str:
        """As in tables."""
        return self.method if self.share is None else f"TGD, {self.share:.0%}, {self.flow} flow"

    @property
    def last(self) -> Errors:
        """Errors after all steps."""
        return self.points[-1]

    def old_at(self, target: float, untouched: Errors) -> float | None:
        """The old error where the new one first falls to `target`; None if the trial ends above it.

        Between two points that were measured, the old error is taken as linear in the new one.

        Args:
            target: a new error below that of the untouched network.
            untouched: errors before the first step.

        >>> trial = Trial("LoRA", None, None, 1e-3, 100, 0.5, (Errors(1.0, 8.0), Errors(3.0, 4.0)))
        >>> trial.old_at(6.0, untouched=Errors(1.0, 10.0))
        2.0
        >>> trial.old_at(3.0, untouched=Errors(1.0, 10.0)) is None
        True
        """
        if self.last.new > target:
            return None
        path = pairwise((untouched, *self.points))
        before, after = next((before, after) for before, after in path if after.new <= target)
        share = (before.new - target) / (before.new - after.new)
        return before.old + share * (after.old - before.old)
