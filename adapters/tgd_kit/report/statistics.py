"""Mean and spread of a measure over seeds and patients, and paired differences between two networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
PAIRS = ("patients", "seeds")


@dataclass(frozen=True)
class Summary:
    """A measure over seeds and patients.

    Args:
        mean: over all.
        over_seeds: standard deviation of the seeds' means over patients; None for one seed.
        over_patients: standard deviation of the patients' means over seeds; None for one patient.
    """

    mean: float
    over_seeds: float | None
    over_patients: float | None


@dataclass(frozen=True)
class Difference:
    """A paired comparison: first minus second.

    Args:
        mean: difference.
        low: lower end of the 95% confidence interval (paired t).
        high: upper end.
        p: two-sided p of the paired t-test, not corrected for the number of comparisons.
        n: number of pairs.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def sign(self) -> int | None:
        """1 or -1 where the interval lies above or below 0, 0 where it includes it; None without an interval."""
        if np.isnan(self.low):
            return None
        return int(self.low > 0) - int(self.high < 0)


def agreed_sign(*found: Difference) -> int:
    """The sign that all intervals have; 0 where they have none in common. One that is missing says nothing."""
    signs = {difference.sign for difference in found} - {None}
    return signs.pop() or 0 if len(signs) == 1 else 0


def summarise(values: npt.ArrayLike) -> Summary:
    """Mean and spread of (seed, patient) values; those without any value (NaN) do not count.

    Example:
        >>> summarise([[1.0, 2.0], [3.0, 4.0]])
        Summary(mean=2.5, over_seeds=1.4142135623730951, over_patients=0.7071067811865476)
    """
    table = _known(values)
    if not table.size:
        return Summary(float("nan"), None, None)
    seeds, patients = table.mean(axis=1), table.mean(axis=0)
    return Summary(float(table.mean()), _spread(seeds), _spread(patients))


def compare(
    first: npt.ArrayLike, second: npt.ArrayLike, over: str = "patients", bases: Sequence[int] | None = None
) -> Difference:
    """Paired t-test between two networks' (seed, patient) values.

    The pairs are patients, each averaged over the seeds, or seeds, each averaged over the patients: all
    (seed, patient) cells together would count the same patient again and again. For the same reason seeds that
    start from the same networks are averaged, and are one pair together.

    Args:
        first: values of one network.
        second: those of the other, of the same seeds and patients.
        over: "patients" or "seeds".
        bases: for each seed the number of the networks that it starts from; each has its own by default.

    Returns:
        The difference; an interval of NaN where there are fewer than two pairs.

    Example:
        >>> compare([[1.0, 2.0, 4.0]], [[0.0, 1.0, 2.0]]).mean.__round__(3)
        1.333
    """
    table = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if over == "seeds" and bases is not None:
        known = np.ma.masked_invalid(table)
        same = [known[np.equal(bases, base)].mean(axis=0).filled(np.nan) for base in dict.fromkeys(bases)]
        table = np.stack(same)
    pairs = _known(table).mean(axis=0 if over == "patients" else 1)
    if len(pairs) < 2 or np.ptp(pairs) == 0:
        return Difference(float(pairs.mean()), np.nan, np.nan, np.nan, len(pairs))
    test = stats.ttest_1samp(pairs, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return Difference(float(pairs.mean()), float(low), float(high), float(test.pvalue), len(pairs))


def _known(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Without the patients that have no value (no liver, no small lesion), and seeds whose only patient has none."""
    table = np.asarray(values, dtype=np.float64)
    table = table[:, ~np.isnan(table).all(axis=0)]
    return table[~np.isnan(table).any(axis=1)]


def _spread(values: npt.NDArray[np.float64]) -> float | None:
    """Exactly 0 for the same value again and again, whose mean is rounded."""
    if len(values) < 2:
        return None
    return 0.0 if np.ptp(values) == 0 else float(values.std(ddof=1))


def column(patients: Sequence[dict[str, object]], key: str) -> list[float]:
    """One measure of each patient; `key` may be nested ("body.rmse"); None becomes NaN.

    Example:
        >>> column([{"body": {"rmse": 0.1}}, {"body": None}], "body.rmse")
        [0.1, nan]
    """
    found = []
    for patient in patients:
        value: object = patient
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found.append(float("nan") if value is None else float(value))  # type: ignore[arg-type]
    return found
