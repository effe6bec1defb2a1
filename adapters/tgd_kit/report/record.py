"""The numbers of a study as plain data for a JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """The same with five digits, which are more than a spread allows, and null for NaN, which JSON does not have.

    >>> plain({1: (1 / 3, float("nan"))})
    {'1': [0.33333, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.5g}")
    return value
