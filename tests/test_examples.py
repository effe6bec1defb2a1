"""The examples run as they stand, keep what is frozen, and adapt: each prints errors before and after."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
MOST_LINES = 80
# The error on the new task over that before: one noisy scan, its own target, teaches less than data with a truth.
MOST_LEFT = {"fifty_patients.py": 0.95}
# timm needs a torchvision of the same torch: tests/zoo/test_examples.py runs its example.
NEEDS = {"segmenter_second_scanner.py": "monai", "timm_classifier.py": "timm"}


def assert_adapts(example: str, seconds: float = 300) -> None:
    """Run an example in a process of its own; warnings are errors."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / example)],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    verdicts = re.findall(r"frozen weights unchanged: (\w+)", done.stdout, re.IGNORECASE)
    assert verdicts
    assert set(verdicts) == {"True"}
    for task in ("old task", "new task"):
        assert task in done.stdout
    new = re.findall(r"\(new task\)\s+([\d.]+)%?[\s>-]+([\d.]+)", done.stdout)
    assert new
    assert all(float(after) < MOST_LEFT.get(example, 0.7) * float(before) for before, after in new)


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_adapt(example: str) -> None:
    if needed := NEEDS.get(example):
        pytest.importorskip(needed, reason=f"{example} needs `pip install {needed}`", exc_type=ImportError)
    assert_adapts(example)


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_are_short(example: str) -> None:
    assert len((EXAMPLES / example).read_text(encoding="utf-8").splitlines()) <= MOST_LINES
