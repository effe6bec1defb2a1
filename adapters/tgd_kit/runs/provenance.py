"""What made a result, in words that go into its file."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path


def denoised_by(*weights: Path) -> str:
    """The package and its version, and each file of weights by name and digest."""
    files = (f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})" for path in weights)
    return f"Denoised by tgdsurgery {version('tgdsurgery')} with {', '.join(files)}"
