"""What `advise` says of a task, to be compared with the long runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.adapt.analysis import FULL, TaskResults
from benchmarks.adapt.methods import METHODS, SHARES
from benchmarks.adapt.run import Profile, the_task
from benchmarks.adapt.task import Task
from tgd_kit.report.statistics import Difference
from tgd_kit.runs.files import write_json
from tgdsurgery import Advice, advise

STEPS = {"tiny": 3, "quick": 30, "full": 60}
GAIN = 0.5  # of full fine-tuning's, where `advise` compares


def write_advice(folder: Path, profile: Profile, name: str, path: Path) -> None:
    """Ask for advice on a task, with its validation data."""
    write_json(path, asked(the_task(name, profile, folder), STEPS[profile]))


def asked(task: Task, steps: int) -> dict[str, Any]:
    """What is recommended, in words and as the name of a method of the study; None if nothing is."""
    advice = advise(
        task.network,
        task.batches(0),
        task.loss,
        evaluate_old=lambda network: task.errors(network, "validation")[0],
        evaluate_new=lambda network: task.errors(network, "validation")[1],
        shares=[share / 100 for share in SHARES],
        steps=steps,
    )
    return {"method": _named(advice), "text": advice.text}


def _named(advice: Advice) -> str | None:
    best = advice.best
    if best is None:
        return None
    if best.share is None:
        return {"LoRA": "LoRA 8"}.get(best.method, FULL)
    return f"TGD {best.flow} {100 * best.share:g} %"


def against_long_runs(task: TaskResults) -> tuple[str | None, Difference | None]:
    """The best of what `advise` tries, by the long runs, and by how much more old error its own choice has."""
    tried = [FULL, "LoRA 8", *(f"TGD {flow} {share} %" for flow in ("masked", "full") for share in SHARES)]
    best = task.best([METHODS[name] for name in tried], GAIN)
    chosen = task.data["advice"]["method"]
    if best is None or chosen is None or task.at_gain(chosen, GAIN) is None:
        return best, None
    return best, task.difference(chosen, best, GAIN)
