"""What this adapter refuses, and why."""

from __future__ import annotations

from tgdsurgery import TGDError


class ImageError(TGDError):
    """An image that cannot be read without guessing, or a result that cannot be written."""


class RunError(TGDError):
    """A training run that cannot start or go on as asked."""
