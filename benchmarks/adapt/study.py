"""Adapt four pretrained networks to new data with every method, and write docs/adapting.md.

1. Each method with a learning rate of its own is run once with each rate of the task. The one with the lowest error on
   validation data of the new task stays.
2. Each method is run with that rate and all seeds.
3. `advise` is asked.
4. The cost of a step is measured, all methods taking turns.

Run `make bench-adapt`. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import click
from rich.progress import track

from benchmarks.adapt import cost
from benchmarks.adapt.advice import write_advice
from benchmarks.adapt.methods import METHODS, Method, applies
from benchmarks.adapt.page import FILE, write_page
from benchmarks.adapt.run import TASKS, Profile, Run, do, errors, the_task
from benchmarks.adapt.slack import low_and_between, scores_of
from benchmarks.measuring import setting
from benchmarks.measuring import write_json as write_results
from tgd_kit.devices import one_thread
from tgd_kit.runs.files import read_json, write_json
from tgd_kit.runs.jobs import run_jobs

SEEDS = {"tiny": 2, "quick": 5, "full": 10}
ROUNDS = {"tiny": 2, "quick": 11, "full": 21}  # of the measurement of costs
TUNING_SEED = 0


def run_all(runs: Iterable[Run], workers: int, what: str) -> None:
    """Do the runs that are not done yet."""
    left = [(run,) for run in runs if not run.path.exists()]
    for _ in track(run_jobs(do, left, workers), total=len(left), description=what):
        pass


def lowest_new(run: Run) -> float:
    """The lowest error on validation data of the new task, over the steps of a run."""
    points = read_json(run.path)["points"]
    return min(point["validation"][1] for point in points if point["scale"] == 1)


class Study:
    """The runs of one task."""

    def __init__(self, folder: Path, profile: Profile, task: str) -> None:
        self.folder, self.profile, self.name = folder, profile, task
        self.task = the_task(task, profile, folder)
        self.methods = [method for method in METHODS.values() if applies(method, self.task.network)]

    def run(self, method: Method, rate: float, seed: int) -> Run:
        """One run of it."""
        return Run(self.folder, self.profile, self.name, method.name, rate, seed)

    def tuning(self) -> list[Run]:
        """Every method with a rate of its own, with every rate."""
        own = (method for method in self.methods if not method.rate_of)
        return [self.run(method, rate, TUNING_SEED) for method in own for rate in self.task.rates]

    def rate(self, method: Method) -> float:
        """The rate with the lowest error on validation data of the new task."""
        tuned = METHODS[method.rate_of] if method.rate_of else method
        return min(self.task.rates, key=lambda rate: lowest_new(self.run(tuned, rate, TUNING_SEED)))

    def final(self) -> list[Run]:
        """Every method with its rate and every seed."""
        seeds = range(1, SEEDS[self.profile] + 1)
        return [self.run(method, self.rate(method), seed) for method in self.methods for seed in seeds]

    def measured(self) -> dict[str, Any]:
        """What the steps cost; measured once."""
        path = self.folder / self.name / "costs.json"
        if not path.exists():
            with one_thread():
                write_json(path, cost.costs(self.task, ROUNDS[self.profile]))
        found: dict[str, Any] = read_json(path)
        return found

    @property
    def advice(self) -> Path:
        """The file of what `advise` says of the task."""
        return self.folder / self.name / "advice.json"

    def results(self) -> dict[str, Any]:
        """All that the page is made of."""
        final = self.final()
        low, _ = low_and_between(scores_of(self.task.network, next(self.task.batches(0))[0]))
        runs = {method.name: [run for run in final if run.method == method.name] for method in self.methods}
        return {
            "title": self.task.title,
            "about": self.task.about,
            "error": self.task.error,
            "steps": self.task.steps,
            "rates": list(self.task.rates),
            "parameters": sum(p.numel() for p in self.task.network.parameters()),
            "untouched": errors(self.task, self.task.network),
            "low": low,
            "costs": self.measured(),
            "advice": read_json(self.advice),
            "tuning": {
                method.name: {
                    f"{rate:g}": read_json(self.run(method, rate, TUNING_SEED).path)["points"]
                    for rate in self.task.rates
                }
                for method in self.methods
                if not method.rate_of
            },
            "methods": {
                name: {"rate": found[0].rate, "seeds": [read_json(run.path)["points"] for run in found]}
                for name, found in runs.items()
            },
        }


@click.command()
@click.option("--profile", type=click.Choice(get_args(Profile)), default="quick", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/adapt"), show_default=True)
@click.option("--only", multiple=True, type=click.Choice(TASKS), help="Only this task; may be repeated.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Processes.")
def main(profile: Profile, out: Path, only: tuple[str, ...], workers: int) -> None:
    """Run the study and publish it."""
    studies = [Study(out / profile, profile, task) for task in only or TASKS]
    for study in studies:
        run_all(study.tuning(), workers, f"{study.name}: rates")
        run_all(study.final(), workers, f"{study.name}: seeds")
    asked = [(s.folder, profile, s.name, s.advice) for s in studies if not s.advice.exists()]
    for _ in run_jobs(write_advice, asked, workers):
        pass
    found = {study.name: study.results() for study in studies}
    data = {"setting": setting("peft", profile=profile, seeds=SEEDS[profile]), "tasks": found}
    write_results(out / profile / FILE.name, data)
    if profile == "tiny" or only:
        write_page(data, out / profile)
    else:
        write_results(FILE, data)
        write_page(data)


if __name__ == "__main__":
    main()
