"""What a training step of each method costs, beside one of full fine-tuning, and how large what it leaves is."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.adapt.methods import METHODS, applies, prepared
from benchmarks.adapt.run import stepper
from benchmarks.adapt.task import Task
from tgdsurgery import save_delta

FULL = "full fine-tuning"
TOGETHER = 4  # methods that take turns: all of them together would not fit into the caches


def costs(task: Task, rounds: int) -> dict[str, dict[str, Any]]:
    """For each method: the ratio of the CPU time of a step to a full one's, that of the memory, and bytes to store.

    The methods take turns with full fine-tuning, one step each. The ratio is the median over the rounds, with
    quartiles.
    """
    found: dict[str, dict[str, Any]] = {}
    os.environ["KINETO_LOG_LEVEL"] = "5"  # the profiler writes to the terminal
    methods = (method for method in METHODS.values() if method.group != "choice")  # they cost the same
    names = [method.name for method in methods if applies(method, task.network)]
    for start in range(0, len(names), TOGETHER):
        found |= _together(task, list(dict.fromkeys([FULL, *names[start : start + TOGETHER]])), rounds)
    return found


def _together(task: Task, names: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    networks = {name: prepared(METHODS[name], task, seed=0) for name in names}
    steps = {name: _step(task, name, network) for name, network in networks.items()}
    for step in steps.values():
        step()
    memory = {name: _peak(step) for name, step in steps.items()}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        seconds = {name: _seconds(step) for name, step in steps.items()}
        for name in names:
            ratios[name].append(seconds[name] / seconds[FULL])
    return {
        name: {
            "time": [round(q, 4) for q in statistics.quantiles(ratios[name], n=4)],
            "memory": round(memory[name] / memory[FULL], 4),
            "trained": sum(p.numel() for p in networks[name].parameters() if p.requires_grad),
            "bytes": _bytes(networks[name]),
        }
        for name in names
    }


def _step(task: Task, name: str, network: nn.Module) -> Callable[[], None]:
    step = stepper(task, METHODS[name], network, 1e-6, torch.Generator().manual_seed(0))
    inputs, targets = next(task.batches(0))
    return lambda: step(inputs, targets, 1.0)


def _seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def _peak(step: Callable[[], None]) -> int:
    """Bytes that torch's allocator holds at most during a step, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _bytes(network: nn.Module) -> int:
    """To store what was trained: TGD's delta file, or the trained parameters as they are."""
    if not hasattr(network, "tgd_plan"):
        return sum(p.nbytes for p in network.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        save_delta(network, Path(folder) / "delta.safetensors")
        return (Path(folder) / "delta.safetensors").stat().st_size
