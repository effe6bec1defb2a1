"""From the runs to what the page says: errors after training, and old errors where the new one has fallen as far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.adapt.methods import METHODS, Method
from tgd_kit.report.statistics import Difference, compare

FULL = "full fine-tuning"
GAINS = (0.5, 0.75)  # shares of what full fine-tuning gains on the new task
FloatArray = npt.NDArray[np.float64]
Point = dict[str, Any]


@dataclass(frozen=True)
class Errors:
    """Errors of a method's runs on test data.

    Args:
        old: (seeds,) on the old data.
        new: (seeds,) on the new data.
        validation: (seeds,) the old errors on validation data, by which methods are chosen.
    """

    old: FloatArray
    new: FloatArray
    validation: FloatArray


class TaskResults:
    """What one task's runs say.

    Args:
        data: of the task, as the study wrote it.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.methods = [METHODS[name] for name in data["methods"]]

    def untouched(self, split: str = "test") -> tuple[float, float]:
        """Old and new error of the network as it was."""
        old, new = self.data["untouched"][split]
        return old, new

    def runs(self, name: str) -> list[list[Point]]:
        """The points of each seed."""
        found: list[list[Point]] = self.data["methods"][name]["seeds"]
        return found

    def curve(self, name: str) -> FloatArray:
        """(marks, 3): steps, mean old and new error on test data; untouched first."""
        steps = [point["steps"] for point in _along(self.runs(name)[0])]
        errors = np.array([[point["test"] for point in _along(run)] for run in self.runs(name)]).mean(axis=0)
        return np.vstack([[0, *self.untouched()], np.column_stack([steps, errors])])

    def front(self, name: str) -> FloatArray:
        """(points, 2): old and new test errors over all rates and steps that no other point beats in both.

        Of the runs that looked for the rate; the untouched network counts, too. In the order of the old error.
        """
        runs = self.data["tuning"][name].values()
        found = [self.untouched(), *(tuple(point["test"]) for run in runs for point in run)]
        best, lowest = [], float("inf")
        for old, new in sorted(found):
            if new < lowest:
                best.append((old, new))
                lowest = new
        return np.array(best)

    def stopped(self, name: str) -> Errors:
        """Where the new error on validation data was lowest, over the steps."""
        best = [min(_along(run), key=lambda point: point["validation"][1]) for run in self.runs(name)]
        return _errors(best)

    def last(self, name: str, split: str) -> FloatArray:
        """(seeds, 2): old and new error after all steps."""
        return np.array([_along(run)[-1][split] for run in self.runs(name)])

    def target(self, gain: float) -> float:
        """The new error, on validation data, with this share of what full fine-tuning gains."""
        untouched = self.untouched("validation")[1]
        best = [min(point["validation"][1] for point in _along(run)) for run in self.runs(FULL)]
        return float(untouched - gain * (untouched - np.mean(best)))

    def at_gain(self, name: str, gain: float) -> Errors | None:
        """Where the old error is lowest among the points whose new error is at the target, both on validation data.

        The points are those along the steps, and those at the end with a part of the change. None if a seed has
        none.
        """
        target, chosen = self.target(gain), []
        for run in self.runs(name):
            reached = [point for point in run if point["validation"][1] <= target]
            if not reached:
                return None
            chosen.append(min(reached, key=lambda point: point["validation"][0]))
        return _errors(chosen)

    def best(self, methods: Sequence[Method], gain: float) -> str | None:
        """The one with the lowest old error on validation data, of those that reach the gain."""
        found = {method.name: self.at_gain(method.name, gain) for method in methods if method in self.methods}
        reached = {name: errors.validation.mean() for name, errors in found.items() if errors is not None}
        return min(reached, key=reached.__getitem__) if reached else None

    def difference(self, first: str, second: str, gain: float) -> Difference:
        """Of the old errors of two methods at a gain, paired by seed."""
        one, other = self.at_gain(first, gain), self.at_gain(second, gain)
        if one is None or other is None:
            raise ValueError(f"{first} or {second} does not reach the gain.")
        return over_seeds(one.old, other.old)


def over_seeds(first: FloatArray, second: FloatArray | float) -> Difference:
    """The mean difference and its 95% interval."""
    pairs = np.broadcast_to(second, first.shape)
    return compare(first[:, None], pairs[:, None], over="seeds")


def _along(run: list[Point]) -> list[Point]:
    """The points along the steps."""
    return [point for point in run if point["scale"] == 1]


def _errors(points: Sequence[Point]) -> Errors:
    old, new = np.array([point["test"] for point in points]).T
    return Errors(old, new, np.array([point["validation"][0] for point in points]))
