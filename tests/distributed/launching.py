"""Start processes as torchrun does on machines, here two on one, and read what each of them wrote."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]
WORLD = 2


def launch(module: str, folder: Path) -> list[dict[str, Any]]:
    """Run `tests.distributed.MODULE FOLDER` in two processes; returns what each rank gave to `report`.

    Args:
        module: name of the worker module.
        folder: where the workers write.
    """
    done = run(module, folder)
    if done.returncode:
        raise AssertionError(f"{module} failed:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


def run(module: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The same, for workers that may fail."""
    if not dist.is_available():
        pytest.skip("torch was built without distributed")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
    command = [*torchrun, "--monitor-interval=0.1", "-m", f"tests.distributed.{module}", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def report(folder: Path, rank: int, results: dict[str, Any]) -> None:
    """Called by a worker, once, with plain data and tensors."""
    torch.save(results, folder / f"rank{rank}.pt")


def leave() -> None:
    """Called by a worker at its end: what still holds the group, in cycles, has to go before it.

    What is left to the interpreter's own end has been seen to abort there, once in many runs.
    """
    gc.collect()
    dist.destroy_process_group()
