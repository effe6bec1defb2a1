"""What the trials found and what they speak for: prints as a table with three sentences, goes to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from dataclasses import dataclass
from typing import Literal

from tgdsurgery.core.plan import Flow
from tgdsurgery.core.reading import read_record
from tgdsurgery.core.tables import as_text, histogram, table

ADVICE_FORMAT = "tgdsurgery-advice-1"
WIDTH = 110  # of the text, as of tables
LOW = 0.3  # the paper's phi, below which 51 % of its network's scores lie
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

    def at(self, target: float) -> Errors | None:
        """The point with the lowest old error whose new error is at most `target`; None if there is none."""
        reached = [point for point in self.points if point.new <= target]
        return min(reached, key=lambda point: point.old) if reached else None


@dataclass(frozen=True)
class Advice:
    """What the trials found; `print` shows it.

    Args:
        untouched: errors of the network as it is.
        steps: of each trial.
        trials: all of them.
        histogram: how many scores lie in each tenth of [0, 1].
        low: share of the scores below 0.3.
        slack: the largest phi tried below which all channels can be left out for at most `tolerance` more old error;
            None if there is none.
        tolerance: see there.
        target: the new error at which the trials are compared: half of what full fine-tuning gained is gained there.
            None if full fine-tuning gained nothing.
        chosen: the number of the trial that is recommended; None if none is.
    """

    untouched: Errors
    steps: int
    trials: tuple[Trial, ...]
    histogram: tuple[int, ...]
    low: float
    slack: float | None
    tolerance: float
    target: float | None
    chosen: int | None

    @property
    def best(self) -> Trial | None:
        """The trial that is recommended."""
        return None if self.chosen is None else self.trials[self.chosen]

    @property
    def text(self) -> str:
        """The recommendation in three sentences."""
        return " ".join((self._what(), self._why(), self._slack()))

    def to_json(self) -> str:
        """The advice as JSON text; `Advice.from_json` reads it back to an equal one."""
        return json.dumps({"format": ADVICE_FORMAT, "text": self.text, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Advice:
        """An advice from the text of `to_json`.

        Raises:
            PlanError: the text is not JSON, or no advice of this format.
        """
        remedy = "Write one with `tgd advise ... -o advice.json`."
        return read_record(cls, text, ADVICE_FORMAT, "an advice", remedy, derived=("text",))

    def __str__(self) -> str:
        full = next(trial for trial in self.trials if trial.method == "full fine-tuning")
        rows = [("untouched", "", "", "", f"{self.untouched.new:.4g}", f"{self.untouched.old:.4g}", "")]
        for trial in self.trials:
            at = None if self.target is None else trial.at(self.target)
            name = f"{trial.name} *" if trial is self.best else trial.name
            last = trial.points[-1]
            cells = (f"{trial.rate:g}", f"{trial.trained:,}", f"{trial.seconds / full.seconds:.2f}")
            old = "-" if at is None else f"{at.old:.4g}"
            rows.append((name, *cells, f"{last.new:.4g}", f"{last.old:.4g}", old))
        columns = ("", "rate", "trained", "time", "new", "old", "old at target")
        target = "" if self.target is None else f" Target: a new error of {self.target:.4g}."
        caption = (
            f"Errors after {self.steps} steps; time of a step over that of full fine-tuning.{target}\n"
            f"KSE from 0 to 1: {histogram(self.histogram)}"
        )
        shown = as_text(table(columns, rows, title="Trials", caption=caption))
        return f"{shown}\n\n{textwrap.fill(self.text, WIDTH, break_on_hyphens=False)}"

    def _what(self) -> str:
        best = self.best
        if best is None:
            return f"Do not adapt like this: in {self.steps} steps no method lowered the new error."
        if best.method == "TGD":
            call = f"apply_tgd(model, budget={best.share:g}, flow={best.flow!r})"
            return f"Use TGD: {call}, with a learning rate of about {best.rate:g}."
        return f"Use {best.method}, with a learning rate of about {best.rate:g}: TGD did not do as well here."

    def _why(self) -> str:
        if self.target is None:
            return f"Full fine-tuning left it at {self.untouched.new:.4g} or above at every rate."
        parts = []
        for method in ("TGD", "full fine-tuning", "LoRA"):
            found = [
                point for trial in self.trials if trial.method == method and (point := trial.at(self.target))
            ]
            if any(trial.method == method for trial in self.trials):
                lowest = f"{min(point.old for point in found):.4g}" if found else "not reached"
                parts.append(f"{method} {lowest}")
        return (
            f"With half of full fine-tuning's gain on new data (error {self.untouched.new:.4g} to {self.target:.4g}), "
            f"the old error goes from {self.untouched.old:.4g} to: {', '.join(parts)}."
        )

    def _slack(self) -> str:
        share = f"{self.low:.0%} of the scores lie below {LOW:g}"
        if self.slack is None:
            return f"The network has no slack: {share}, and leaving out any of them costs the old task."
        return (
            f"The network has slack: {share}, and all channels below {self.slack:g} can be left out for at most "
            f"{self.tolerance:.0%} more old error."
        )
