"""What the trials found and what they speak for: prints as a table with three sentences, goes to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Collection
from dataclasses import dataclass
from typing import get_args

from tgdsurgery.advice.records import Errors, Method, Trial
from tgdsurgery.core.reading import read_record
from tgdsurgery.core.tables import as_text, histogram, table
from tgdsurgery.sweep.result import SweepResult

ADVICE_FORMAT = "tgdsurgery-advice-2"
DERIVED = ("text", "target", "chosen", "slack")  # in JSON for readers
WIDTH = 110  # of the text, as of tables
LOW = 0.3  # the paper's phi, below which 51 % of its network's scores lie
GAIN = 0.5  # of what full fine-tuning gains: where the methods are compared
ALIKE = 0.02  # relative difference of old errors that a short trial cannot tell
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Advice:
    """What the trials found; `print` shows it.

    Args:
        untouched: errors of the network as it is.
        steps: of each trial.
        trials: all of them.
        histogram: how many scores of filters lie in each tenth of [0, 1].
        low: share of these scores below 0.3.
        sweep: what it costs the old task to leave out the channels below each phi; None where the untouched network
            has an old error of 0 or below, over which nothing rises by a share.
    """

    untouched: Errors
    steps: int
    trials: tuple[Trial, ...]
    histogram: tuple[int, ...]
    low: float
    sweep: SweepResult | None

    @property
    def target(self) -> float | None:
        """The new error at which the trials are compared; None if full fine-tuning gains nothing.

        It has half of what full fine-tuning gains at the end of its best trial.
        """
        lowest = self._ending_lowest()["full fine-tuning"].last.new
        target = self.untouched.new - GAIN * (self.untouched.new - lowest)
        return target if target < self.untouched.new else None

    @property
    def old_at_target(self) -> tuple[float | None, ...]:
        """The old error of each trial at the target, see `Trial.old_at`; None if it ends above the target."""
        target = self.target
        return tuple(
            None if target is None else trial.old_at(target, self.untouched) for trial in self.trials
        )

    @property
    def chosen(self) -> int | None:
        """The number of the trial that is recommended; None if none is.

        It has the lowest old error at the target. TGD's lowest counts as that if it is at most 2 % above.
        """
        lowest, ours = self._lowest(METHODS), self._lowest(["TGD"])
        if lowest is None:
            return None
        if ours is None or ours[0] > lowest[0] + ALIKE * abs(lowest[0]):
            return lowest[1]
        return ours[1]

    @property
    def best(self) -> Trial | None:
        """The trial that is recommended."""
        return None if self.chosen is None else self.trials[self.chosen]

    @property
    def slack(self) -> float | None:
        """The largest phi tried below which there are channels, and all can be left out at little cost; or None.

        Little is at most 5 % more old error, also at all smaller ones.
        """
        if self.sweep is None:
            return None
        left_out = {row.phi: row.dropped for row in self.sweep.rows}
        proposed = self.sweep.proposed
        return proposed if proposed is not None and left_out[proposed] > 0 else None

    @property
    def text(self) -> str:
        """The recommendation in three sentences."""
        return " ".join((self._what(), self._why(), self._slack()))

    def to_json(self) -> str:
        """The advice as JSON text; `Advice.from_json` reads it back to an equal one."""
        derived = {name: getattr(self, name) for name in DERIVED}
        return json.dumps({"format": ADVICE_FORMAT, **derived, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Advice:
        """An advice from the text of `to_json`.

        Raises:
            PlanError: the text is not JSON, or no advice of this format.
        """
        remedy = "Write one with `tgd advise ... -o advice.json`."
        return read_record(cls, text, ADVICE_FORMAT, "an advice", remedy, derived=DERIVED)

    def __str__(self) -> str:
        full = next(trial for trial in self.trials if trial.method == "full fine-tuning")
        rows = [("untouched", "", "", "", f"{self.untouched.new:.4g}", f"{self.untouched.old:.4g}", "")]
        for trial, at_target in zip(self.trials, self.old_at_target, strict=True):
            name = f"{trial.name} *" if trial is self.best else trial.name
            cells = (f"{trial.rate:g}", f"{trial.trained:,}", f"{trial.seconds / full.seconds:.2f}")
            errors = (f"{trial.last.new:.4g}", f"{trial.last.old:.4g}", _shown(at_target, "-"))
            rows.append((name, *cells, *errors))
        columns = ("", "rate", "trained", "time", "new", "old", "old at target")
        shown = as_text(table(columns, rows, title="Trials", caption=self._caption()))
        return f"{shown}\n\n{textwrap.fill(self.text, WIDTH, break_on_hyphens=False)}"

    def _caption(self) -> str:
        lines = [f"Errors after {self.steps} steps; time of a step over that of full fine-tuning."]
        if self.target is not None:
            lines += [
                f"Old at target: where the new error first is {self.target:.4g}, between measured points; "
                "- if it ends above.",
                f"* recommended: the lowest old error at the target, or TGD's if that is at most {ALIKE:.0%} above.",
            ]
        return "\n".join([*lines, f"KSE of the filters from 0 to 1: {histogram(self.histogram)}"])

    def _ending_lowest(self) -> dict[Method, Trial]:
        """Of each method that was tried, the trial with the lowest new error at its end."""
        falling = sorted(self.trials, key=lambda trial: trial.last.new, reverse=True)
        found = {trial.method: trial for trial in falling}  # the last one stays
        return {method: found[method] for method in METHODS if method in found}

    def _lowest(self, methods: Collection[Method]) -> tuple[float, int] | None:
        """The lowest old error at the target among the trials of some methods, and the number of its trial."""
        at_target = zip(self.trials, self.old_at_target, strict=True)
        found = [
            (old, number)
            for number, (trial, old) in enumerate(at_target)
            if old is not None and trial.method in methods
        ]
        return min(found, default=None)

    def _what(self) -> str:
        best = self.best
        if best is None:
            return (
                f"Do not adapt like this: in {self.steps} steps full fine-tuning did not lower the new error."
            )
        if best.method == "TGD":
            call = f"apply_tgd(model, budget={best.share:g}, flow={best.flow!r})"
            return f"Use TGD: {call}, with a learning rate of about {best.rate:g}."
        ours, lowest = self._lowest(["TGD"]), self._lowest([best.method])
        reason = (
            "no trial of TGD ends at the target or below"
            if ours is None or lowest is None
            else f"its old error at the target is {lowest[0]:.4g}, that of TGD {ours[0]:.4g}"
        )
        return f"Use {best.method}, with a learning rate of about {best.rate:g}: {reason}."

    def _why(self) -> str:
        return self._no_gain() if self.target is None else self._at_target()

    def _no_gain(self) -> str:
        ends = ", ".join(f"{method} {trial.last.new:.4g}" for method, trial in self._ending_lowest().items())
        return f"It was {self.untouched.new:.4g}, and at the end of the best trial of each method: {ends}."

    def _at_target(self) -> str:
        found = {method: self._lowest([method]) for method in self._ending_lowest()}
        parts = [f"{method} {_shown(at and at[0], 'not reached')}" for method, at in found.items()]
        return (
            f"With half of full fine-tuning's gain on new data (error {self.untouched.new:.4g} to {self.target:.4g}), "
            f"the old error goes from {self.untouched.old:.4g} to: {', '.join(parts)}."
        )

    def _slack(self) -> str:
        share = f"{self.low:.0%} of the filters' scores lie below {LOW:g}"
        if self.sweep is None:
            return (
                f"Slack was not measured: the old error of the untouched network is {self.untouched.old:.4g}, and a "
                f"relative rise needs one above 0; {share}."
            )
        rows = [row for row in self.sweep.rows if row.dropped > 0]
        if not rows:
            return f"There is no slack to measure: no channel has a score below {self.sweep.rows[-1].phi:g}."
        row = next((row for row in rows if row.phi == self.slack), rows[0])
        left_out = f"all channels below {row.phi:g} ({row.dropped:.1%} of the parameters) are left out"
        if self.slack is None:
            return (
                f"No slack was found: {share}, and the old error rises by {row.change:.1%}, more than "
                f"{self.sweep.tolerance:.0%}, where {left_out}."
            )
        return f"The network has slack: {share}, and the old error changes by {row.change:+.1%} where {left_out}."


def _shown(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.4g}"
