"""Tables in Markdown, and how their numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tgd_kit.report.statistics import Difference, Summary


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first are aligned to the right.

    Example:
        >>> print(markdown(["", "x"], [["a", "1"]]))
        |  | x |
        |---|---:|
        | a | 1 |
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    first, ruler = "| " + " | ".join(lines[0]) + " |", "|" + "|".join(lines[1]) + "|"
    return "\n".join([first, ruler, *("| " + " | ".join(row) + " |" for row in rows)])


def spread(found: Summary, form: str) -> str:
    """Mean ± standard deviation over the seeds.

    Example:
        >>> spread(Summary(1.25, 0.5, None), ".1f")
        '1.2 ± 0.5'
    """
    mean = format(found.mean, form)
    return mean if not found.over_seeds else f"{mean} ± {format(found.over_seeds, form.replace('+', ''))}"


def interval(found: Difference, form: str, *, bold: bool = False) -> str:
    """Difference and its 95% interval; no interval where there is none.

    Example:
        >>> interval(Difference(1.0, 0.5, 1.5, 0.01, 4), "+.1f", bold=True)
        '**+1.0 (+0.5 to +1.5)**'
    """
    mean, low, high = (format(value, form) for value in (found.mean, found.low, found.high))
    text = mean if np.isnan(found.low) else f"{mean} ({low} to {high})"
    return f"**{text}**" if bold else text
