"""The TGD paper's study on simulated scans: simulate, train, adapt, learn online, measure.

Every stage is a list of independent jobs, and every job leaves one file, so the same call continues where the
last one ended. A folder holds:

==================================  =====================================================================
`settings.json`                     what was asked
`run.json`                          how long each stage took, on how many cores, with which versions
`patients/<set>/`                   the simulated patients: train, adapt, test low, test high, and the unseen
`networks/base-<number>/<name>/`    the training runs of v1-net and v2-net, which seeds may share
`networks/<seed>/<name>/`           those of the adaptations
`adapted/<seed>/<name>.json`        share of the parameters that trained, whether the others were kept
`measures/<seed>/<name>.json`       the measures of each test patient on v1 and on v2 images
`sweep/base-<number>.json`          the threshold study of a v1-net
`online/<seed>/<case>/<name>/`      the runs of online learning
`unseen/<seed>/<case>/<name>.json`  the measures of each of them, and whether it learnt
==================================  =====================================================================
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import product
from pathlib import Path

from tgd_kit.runs.record import timed
from tgd_kit.runs.reserve import reserve
from tgd_kit.runs.stages import run_stage
from tgd_pet.experiment.jobs import Adapt, Job, Learn, Measure, Sweep, Train
from tgd_pet.experiment.patients import CASES, simulate_patients
from tgd_pet.experiment.recipes import BASES, recipes, variants
from tgd_pet.experiment.settings import GROWING, Settings


def run_study(out: Path, settings: Settings, *, progress: bool = True) -> None:
    """Run or resume a study; everything it makes is in `out`.

    Raises:
        RunError: `out` holds a study with other settings, a process died, or training diverged.
    """
    reserve(out / "settings.json", asdict(settings), what="study", free=GROWING)
    with timed(out, "simulating patients"):
        simulate_patients(out, settings, progress=progress)
    for title, jobs in stages(out, settings).items():
        run_stage(out, title, jobs, settings.workers, progress=progress)


def stages(out: Path, settings: Settings) -> dict[str, list[Job]]:
    """The jobs of each stage after the simulation; those of one stage need no other of it."""
    seeds, named = settings.seeds, recipes(settings)
    first_of_each_base = {settings.base(seed): seed for seed in reversed(seeds)}.values()
    adapted = [recipe for recipe in named if recipe.method is not None]
    names = [recipe.name for recipe in adapted]
    bases = list(product(first_of_each_base, BASES))
    return {
        "training v1-net and v2-net": [Train(out, settings, *job) for job in bases],
        "adapting to v2 images": [Adapt(out, settings, *job) for job in product(seeds, adapted)],
        "measuring": [
            Measure(out, settings, seeds[0], None),
            *(Measure(out, settings, *job) for job in (*bases, *product(seeds, names))),
        ],
        "threshold study": [Sweep(out, settings, seed) for seed in first_of_each_base],
        "online learning": [Learn(out, settings, *job) for job in product(seeds, CASES, variants(settings))],
    }
