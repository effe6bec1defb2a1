"""The measures of a finished study, gathered from its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tgd_ct.case import Task
from tgd_ct.evaluation.compare import Patient
from tgd_ct.experiment.choices import Choice, validated, weighed
from tgd_ct.experiment.jobs import AGAIN, Adapt, Measure, OfTask
from tgd_ct.experiment.recipes import JOINT, LOW, NLM, NORMAL_DOSE, RETRAINED, TOD, denoisers
from tgd_ct.experiment.run import Study
from tgd_ct.experiment.settings import Settings
from tgd_kit.report.statistics import Difference, Summary, column, compare, summarise
from tgd_kit.runs.files import read_json
from tgd_kit.runs.record import study_record
from tgd_kit.runs.settings import checked, read_record

Table = npt.NDArray[np.float64]  # (seed, patient)
WITHOUT_SEED = (LOW, NLM, NORMAL_DOSE)  # measured once


@dataclass(frozen=True)
class Measured:
    """What `Measure` leaves."""

    low: tuple[Patient, ...]
    normal: tuple[Patient, ...]
    detectability: dict[str, float]


@dataclass(frozen=True)
class Adapted:
    """What `Adapt` leaves."""

    share: float
    kept: bool | None
    new: tuple[Patient, ...]
    old: tuple[Patient, ...]


@dataclass(frozen=True)
class StudyResults:
    """All measures of a study.

    Args:
        settings: of the study.
        choices: task to dose, and to what has head-room there.
        weights: task to the chosen weight of the task loss.
        validated: task to dose to image to each validation patient's Dice.
        weighed: task to weight to Dice and RMSE of each validation patient.
        measures: task to seed to row of the tables to `Measured`.
        adapted: seed to change to method to `Adapted`.
        step_costs: method of adapting to the time of its step over that of full fine-tuning.
        run: how long each stage took, on how many cores, with which versions.
    """

    settings: Settings
    choices: Mapping[Task, Choice]
    weights: Mapping[Task, float]
    validated: Mapping[Task, Mapping[float, Any]]
    weighed: Mapping[Task, Mapping[float, Any]]
    measures: Mapping[Task, Mapping[int, Mapping[str, Any]]]
    adapted: Mapping[int, Mapping[str, Mapping[str, Any]]]
    step_costs: Mapping[str, float]
    run: Mapping[str, Any]

    @property
    def rows(self) -> list[str]:
        """Denoisers, in the order of the tables."""
        return [*denoisers(self.settings), NORMAL_DOSE]

    @property
    def moving(self) -> list[str]:
        """The baselines whose segmenter is another one."""
        return [RETRAINED, JOINT]

    @property
    def changes(self) -> list[str]:
        """What TOD-Net was adapted to."""
        return list(self.adapted[self.settings.seeds[0]])

    @property
    def methods(self) -> list[str]:
        """How it was adapted; TOD-Net itself first."""
        return list(self.adapted[self.settings.seeds[0]][self.changes[0]])

    def values(self, task: Task, row: str, images: str, key: str) -> Table:
        """(seed, patient) of one measure, such as "quality.ROI.rmse" or "dice.unet.organ"; NaN where there is none."""
        by_seed = self.measures[task]
        first = by_seed[self.settings.seeds[0]]
        found = [
            (first if row in WITHOUT_SEED else by_seed[seed])[row][images] for seed in self.settings.seeds
        ]
        return np.array([column(patients, key) for patients in found])

    def summary(self, task: Task, row: str, images: str, key: str) -> Summary:
        """Mean and spread of one measure."""
        return summarise(self.values(task, row, images, key))

    def difference(
        self, task: Task, pair: tuple[str, str], images: str, key: str, over: str = "patients"
    ) -> Difference:
        """First minus second, paired."""
        first, second = (self.values(task, row, images, key) for row in pair)
        return compare(first, second, over)

    def detectability(self, task: Task, row: str, diameter: float) -> Summary:
        """Area under the observer's ROC curve, one for each seed."""
        seeds = self.settings.seeds[:1] if row in WITHOUT_SEED else self.settings.seeds
        found = [self.measures[task][seed][row]["detectability"][f"{diameter:g}"] for seed in seeds]
        return summarise(np.array(found)[:, None])

    def adapted_values(self, change: str, method: str, images: str, key: str) -> Table:
        """(seed, patient) of one measure after adaptation; `images` is "new" or "old"."""
        return np.array(
            [column(self.adapted[seed][change][method][images], key) for seed in self.settings.seeds]
        )

    def share(self, change: str, method: str) -> float:
        """Mean share of the parameters that trained."""
        return float(np.mean([self.adapted[seed][change][method]["share"] for seed in self.settings.seeds]))

    def kept(self, change: str, method: str) -> bool | None:
        """Whether all that was frozen was kept, for every seed; None where nothing was frozen."""
        found = [self.adapted[seed][change][method]["kept"] for seed in self.settings.seeds]
        return None if None in found else all(found)


def gather(study: Study) -> StudyResults:
    """Read what the jobs of a finished study left.

    Raises:
        RunError: a file is missing, damaged, or holds something else.
    """
    out, settings = study.out, study.settings
    return StudyResults(
        settings,
        choices={task: study.choice(task) for task in settings.tasks},
        weights={task: study.weight(task) for task in settings.tasks},
        validated={
            task: {dose: validated(OfTask(out, settings, task), dose) for dose in settings.doses}
            for task in settings.tasks
        },
        weighed={
            task: {job.recipe.weights.task: weighed(job) for job in study.weighings(task)}
            for task in settings.tasks
        },
        measures=_measures(study.measurings()),
        adapted=_adapted(study.adaptations()),
        step_costs=read_record(study.step_timing().path, dict[str, float], AGAIN),
        run=study_record(out),
    )


def read_results(path: Path) -> StudyResults:
    """The results in the `results.json` of a report.

    Raises:
        RunError: the file is missing, damaged, or holds something else.
    """
    remedy = "Pass a results.json of a study."
    given = checked(dict[str, Any], read_json(path, remedy), str(path), remedy)
    given.pop("claims", None)
    found: StudyResults = checked(StudyResults, given, str(path), remedy)
    return found


def _measures(jobs: Sequence[Measure]) -> dict[Task, dict[int, dict[str, Any]]]:
    found: dict[Task, dict[int, dict[str, Any]]] = {}
    for job in jobs:
        rows = found.setdefault(job.task, {}).setdefault(job.seed, {})
        rows[job.name] = read_record(job.path, Measured, AGAIN)
    return found


def _adapted(jobs: Sequence[Adapt]) -> dict[int, dict[str, dict[str, Any]]]:
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for job in jobs:
        methods = found.setdefault(job.seed, {}).setdefault(job.change.name, {})
        methods[job.method or TOD] = read_record(job.path, Adapted, AGAIN)
    return found
