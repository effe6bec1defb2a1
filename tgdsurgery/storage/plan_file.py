"""A plan in a file of its own."""

from __future__ import annotations

from pathlib import Path

from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.tables import shortened


def read_plan(path: Path) -> TGDPlan:
    """The plan that `tgd plan` or `TGDPlan.to_json` wrote.

    Raises:
        PlanError: the file cannot be read, or holds no plan; the message names it.
    """
    try:
        return TGDPlan.from_json(path.read_text(encoding="utf-8"))
    except PlanError as error:
        raise PlanError(f"{shortened(str(path))}: {error.problem}", error.remedy) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise PlanError(
            f"{shortened(str(path))} cannot be read: {reason}.", "Write one with `tgd plan ... -o plan.json`."
        ) from error
