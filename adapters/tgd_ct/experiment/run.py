"""The study of task-oriented denoising: simulate, train the task, find head-room, train denoisers, adapt, measure.

Every stage is a list of independent jobs, and every job leaves one file, so the same call continues where the last one
ended. A folder holds:

============================================  ===============================================================
`settings.json`                               what was asked
`run.json`                                    how long each stage took, on how many cores, with which versions
`patients/<set>/`                             train, validation, and test and adapt with each kernel
`networks/<task>/segmenters/<name>/`          the segmenters of normal dose
`networks/<task>/extractor/`                  the autoencoder of the perceptual loss
`networks/<task>/begun/<dose>/<seed>/`        the denoisers by MSE
`networks/<task>/<seed>/<name>/`              the denoisers of the tables, and what they are adapted to
`validation/<task>/`                          Dice at each dose, and with each weight of the task loss
`measures/<task>/<seed>/<name>.json`          the measures of each test patient
`adapted/<seed>/<change>/<method>.json`       those of the adapted networks
`step costs.json`                             the time of a training step of each method
============================================  ===============================================================
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

from tgd_ct.case import Task
from tgd_ct.experiment.choices import Choice, check_segmenter, choose_dose, choose_weight
from tgd_ct.experiment.jobs import (
    Adapt,
    Begin,
    Extract,
    Measure,
    OfTask,
    Pretrain,
    Retrain,
    TimeSteps,
    Train,
    TrainJointly,
    Validate,
    Weigh,
)
from tgd_ct.experiment.patients import simulate_patients
from tgd_ct.experiment.recipes import (
    JOINT,
    LOW,
    NLM,
    NORMAL_DOSE,
    RETRAINED,
    changes,
    recipes,
)
from tgd_ct.experiment.settings import GROWING, Settings
from tgd_ct.training.adapting import METHODS
from tgd_kit.runs.record import timed
from tgd_kit.runs.reserve import reserve
from tgd_kit.runs.stages import Job, run_stage


@dataclass(frozen=True)
class Study:
    """A study in its folder: its jobs, stage by stage; later ones depend on what earlier ones found."""

    out: Path
    settings: Settings

    def pretraining(self) -> list[Job]:
        """Segmenters, and extractors where there is no VGG."""
        here, settings = (self.out, self.settings), self.settings
        found: list[Job] = [
            Pretrain(*here, *pair) for pair in product(settings.tasks, settings.architectures)
        ]
        return found + [Extract(*here, task) for task in settings.tasks if not settings.vgg]

    def beginnings(self) -> list[Job]:
        """Denoisers by MSE at every dose, of the first seed."""
        tasks, doses = self.settings.tasks, self.settings.doses
        first = self.settings.seeds[0]
        return [Begin(self.out, self.settings, *pair, first) for pair in product(tasks, doses)]

    def validations(self) -> list[Job]:
        """Dice at every dose."""
        pairs = product(self.settings.tasks, self.settings.doses)
        return [Validate(self.out, self.settings, *pair) for pair in pairs]

    def choice(self, task: Task) -> Choice:
        """The dose of a task, once it is validated."""
        return choose_dose(OfTask(self.out, self.settings, task))

    def weighings(self, task: Task) -> list[Weigh]:
        """Each weight of the task loss."""
        dose = self.choice(task).dose
        named = [recipes(self.settings, weight)[-1] for weight in self.settings.task_weights]
        return [Weigh(self.out, self.settings, task, dose, recipe) for recipe in named]

    def weight(self, task: Task) -> float:
        """The chosen weight of the task loss, once they are weighed."""
        return choose_weight(self.weighings(task), self.choice(task).parts)

    def more_beginnings(self) -> list[Job]:
        """Denoisers by MSE at the chosen dose, of all seeds, with and without attention."""
        return [
            Begin(*self._at_dose(task), *pair)
            for task in self.settings.tasks
            for pair in product(self.settings.seeds, (False, True))
        ]

    def trainings(self) -> list[Job]:
        """All denoisers of the tables, and the two baselines whose segmenter moves."""
        found: list[Job] = []
        for task in self.settings.tasks:
            here, weight = self._at_dose(task), self.weight(task)
            for seed in self.settings.seeds:
                found += [Train(*here, seed, recipe) for recipe in recipes(self.settings, weight)]
                found += [Retrain(*here, seed), TrainJointly(*here, seed, weight)]
        return found

    def measurings(self) -> list[Measure]:
        """Every row of the tables."""
        names = [recipe.name for recipe in recipes(self.settings, 1.0)] + [RETRAINED, JOINT]
        found: list[Measure] = []
        for task in self.settings.tasks:
            here = self._at_dose(task)
            found += [Measure(*here, self.settings.seeds[0], name) for name in (LOW, NLM, NORMAL_DOSE)]
            found += [Measure(*here, *pair) for pair in product(self.settings.seeds, names)]
        return found

    def adaptations(self) -> list[Adapt]:
        """TOD-Net of the first task, adapted to each change in each way, and as it is."""
        first = self.settings.tasks[0]
        dose = self.choice(first).dose
        weights = recipes(self.settings, self.weight(first))[-1].weights
        wanted = product(self.settings.seeds, changes(self.settings, dose), (None, *METHODS))
        return [
            Adapt(self.out, self.settings, first, dose, seed, change, method, weights)
            for seed, change, method in wanted
        ]

    def step_timing(self) -> TimeSteps:
        """Of TOD-Net of the first task."""
        first = self.settings.tasks[0]
        weights = recipes(self.settings, self.weight(first))[-1].weights
        return TimeSteps(*self._at_dose(first), weights)

    def _at_dose(self, task: Task) -> tuple[Path, Settings, Task, float]:
        """What all jobs of a task begin with, once its dose is chosen."""
        return self.out, self.settings, task, self.choice(task).dose


def run_study(out: Path, settings: Settings, *, progress: bool = True) -> Study:
    """Run or resume a study; everything it makes is in `out`.

    Raises:
        RunError: `out` holds a study with other settings, a segmenter is not good enough, a process died, or training
            diverged.
    """
    reserve(out / "settings.json", asdict(settings), what="study", free=GROWING)
    study, workers = Study(out, settings), settings.workers
    with timed(out, "simulating patients"):
        simulate_patients(out, settings, progress=progress)
    run = partial(run_stage, out, workers=workers, progress=progress)
    run("training segmenters", study.pretraining())
    run("training denoisers by MSE", study.beginnings())
    run("looking for head-room", study.validations())
    for task in settings.tasks:
        check_segmenter(OfTask(out, settings, task))
    run("weighing the task loss", [job for task in settings.tasks for job in study.weighings(task)])
    run("training more denoisers by MSE", study.more_beginnings())
    run("training denoisers", study.trainings())
    run("measuring", study.measurings())
    run("adapting", study.adaptations())
    run_stage(out, "timing steps", [study.step_timing()], workers=1, progress=progress)
    return study
