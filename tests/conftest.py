"""Settings for all tests: one thread (small nets lose time to more), how much Hypothesis draws, small layers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tgdsurgery.surgery.compact import gain

torch.set_num_threads(1)
# The networks of tests are small. Their convs would all have the plain backward, for which less Python is run.
gain.PER_CALL = 0

# Nets are built and run inside an example: a slow machine must not turn that into a failure.
COMMON = {
    "max_examples": 25,
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("dev", **COMMON)
settings.register_profile("ci", **COMMON, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The zoo has an environment of its own (`make zoo`): it is collected only where it is asked for."""
    zoo = Path(__file__).parent / "zoo"
    asked = any(Path(argument).resolve().is_relative_to(zoo) for argument in config.args)
    return True if collection_path == zoo and not asked else None
