"""Limits that are fixed before anything is measured: `<=0.125`."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass

from tgdsurgery.core.errors import PlanError

_HOLDS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Limit:
    """What the value of an evaluation of the tuned network has to keep to.

    Args:
        task: "old" or "new".
        evaluation: what the user calls the evaluation.
        text: the limit, as in `<=0.125`.
    """

    task: str
    evaluation: str
    text: str

    def __post_init__(self) -> None:
        self._parts()  # raises at once if it is none

    def met(self, value: float) -> bool:
        """Whether a value keeps to it.

        >>> Limit("old", "error", "<=0.125").met(0.12)
        True
        """
        sign, bound = self._parts()
        return bool(_HOLDS[sign](value, bound))

    def _parts(self) -> tuple[str, float]:
        found = re.fullmatch(r"\s*(<=|>=|<|>)\s*(\S+)\s*", self.text)
        try:
            if found and math.isfinite(bound := float(found[2])):
                return found[1], bound
        except ValueError:
            pass
        raise PlanError(
            f"{self.text!r} is not a limit.", "Write it like '<=0.125' for an error, '>=0.9' for a score."
        )
