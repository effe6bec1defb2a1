"""Where networks run: the accelerator there is, and how many threads of a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def best_device() -> torch.device:
    """The accelerator of this machine if it has one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on one CPU thread inside the block.

    Small convolutions are quicker on one thread than on two that wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
