"""What adapters refuse, and why."""

from __future__ import annotations

from tgdsurgery import TGDError


class ImageError(TGDError):
    """An image that cannot be read without guessing, or a result that cannot be written."""


class RunError(TGDError):
    """A run that cannot start or continue as asked."""


class SimulationError(TGDError):
    """A scanner, phantom or scan that cannot be simulated."""
