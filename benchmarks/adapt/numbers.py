"""How the page writes its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.adapt.analysis import over_seeds
from tgd_kit.report.markdown import interval
from tgd_kit.report.statistics import Difference


def number(value: float) -> str:
    """Three significant digits.

    Example:
        >>> number(12.34), number(123.4)
        ('12.3', '123')
    """
    return f"{value:#.3g}".rstrip(".")


def with_interval(values: Sequence[float] | Any) -> str:
    """Mean and half width of the 95% interval; no interval of one value."""
    found = over_seeds(values, 0.0)
    if found.n == 1:
        return number(found.mean)
    half = "0" if min(values) == max(values) else number(found.high - found.mean)
    return f"{number(found.mean)} ± {half}"


def change(found: Difference) -> str:
    """Difference and 95% interval, to two digits of the interval's width; bold where it does not contain 0.

    Example:
        >>> change(Difference(-5.04e-05, -0.00168, 0.00157, 0.9, 5))
        '-0.0001 (-0.0017 to +0.0016)'
    """
    half = (found.high - found.low) / 2
    decimals = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 2
    return interval(found, f"+.{decimals}f", bold=bool(found.sign))
