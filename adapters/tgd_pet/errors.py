"""What the PET adapter refuses, under one roof; `tgdsurgery.TGDError` is the base of all."""

from __future__ import annotations

from tgd_kit.errors import ImageError, RunError, SimulationError

__all__ = ["ImageError", "RunError", "SimulationError"]
