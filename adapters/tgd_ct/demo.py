"""Task-oriented denoising in small, and its adaptation to a lower dose with TGD, all simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table
from torch import nn

from tgd_ct.case import NORMAL, TUMOUR, Case, Task
from tgd_ct.evaluation.compare import FULL, LOW, Comparison, compare, mean
from tgd_ct.inference import denoise
from tgd_ct.networks.files import load_generator, load_segmenter
from tgd_ct.networks.generator import new_generator
from tgd_ct.networks.segmenters import new_segmenter
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.files import Part, load_set, part_seeds, simulate_set
from tgd_ct.training.adapting import Method, adapt
from tgd_ct.training.denoiser import Judges, train_denoiser
from tgd_ct.training.losses import Weights
from tgd_ct.training.segmenter import train_segmenter
from tgd_kit.devices import best_device
from tgd_kit.progress import progress as shown
from tgd_kit.report.pictures import draw_comparison
from tgd_kit.runs.clock import Clock
from tgd_kit.runs.files import write_json
from tgd_kit.runs.jobs import run_jobs
from tgd_kit.runs.reserve import reserve
from tgd_kit.runs.settings import read_record
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import PHI, Outcome

TASK: Task = "liver"
OLD, NEW = 0.05, 0.02  # doses: of the first training, and of the adaptation
SEGMENTER, MSE, TOD = "segmenter", "MSE", "TOD-Net"
# Name in the table -> folder and method, of what TOD-Net is adapted by.
ADAPTED: dict[str, tuple[str, Method]] = {
    "full": ("full", "full"),
    "last 3": ("last3", "last3"),
    "TGD": ("tgd", "tgd"),
}
FOLDERS = {MSE: "mse", TOD: "tod", **{name: folder for name, (folder, _) in ADAPTED.items()}}
WORKERS = 2
WINDOW = (-160.0, 240.0)
AGAIN = "Delete it, and the same command makes it again."


@dataclass(frozen=True)
class Profile:
    """The size of a demo.

    Args:
        config: how patients are simulated.
        train: number of patients for the segmenter and the denoisers.
        adapt: number of other patients, for the adaptation.
        test: number of patients for the comparison.
        pretraining: schedule of the segmenter.
        training: schedule of the denoiser by MSE alone.
        hybrid: schedule of TOD-Net, which goes on from there.
        tuning: schedule of every adaptation.
        weights: losses of TOD-Net and of its adaptations.
        widths: output channels of the denoiser's first four convolutions.
    """

    config: PatientConfig
    train: int
    adapt: int
    test: int
    pretraining: Schedule
    training: Schedule
    hybrid: Schedule
    tuning: Schedule
    weights: Weights
    widths: Sequence[int]


PROFILES = {
    "quick": Profile(
        config=PatientConfig.quick(),
        train=40,
        adapt=4,
        test=6,
        pretraining=Schedule(epochs=10, steps=80, batch=8, rate=1e-2, patch=128),
        training=Schedule(epochs=8, steps=60, batch=4, rate=3e-3, patch=128),
        hybrid=Schedule(epochs=4, steps=40, batch=4, rate=3e-4, patch=128),
        tuning=Schedule(epochs=3, steps=40, batch=4, rate=3e-4, patch=128),
        weights=Weights(mse=1.0, gan=1e-3, task=1e-2),
        widths=(8, 16, 32, 64),  # a quarter of the published ones, for a sixteenth of the work
    ),
    "tiny": Profile(
        config=PatientConfig.tiny(),
        train=2,
        adapt=1,
        test=2,
        pretraining=Schedule(epochs=1, steps=3, batch=2, rate=1e-2, patch=32),
        training=Schedule(epochs=1, steps=3, batch=2, rate=3e-3, patch=32),
        hybrid=Schedule(epochs=1, steps=2, batch=2, rate=1e-4, patch=32),
        tuning=Schedule(epochs=1, steps=2, batch=2, rate=3e-4, patch=32),
        weights=Weights(mse=1.0, gan=1e-3, task=1e-3),
        widths=(3, 4, 4, 6),
    ),
}


@dataclass(frozen=True)
class Results:
    """What was found at both doses, what was trained and kept, and the seconds each part took in this run."""

    new: Comparison
    old: Comparison
    outcomes: Mapping[str, Outcome]
    seconds: dict[str, float] = field(default_factory=dict)

    def table(self) -> Table:
        """The comparison as a `rich` table."""
        title = f"{TOD} of {100 * OLD:g} % dose, adapted to {100 * NEW:g} % with few patients, phi {PHI:g}"
        caption = (
            "Means over the test patients. RMSE in HU against normal dose over the liver;\n"
            "Dice of liver and tumours by the fixed segmenter, of the denoised images.\n"
            "Share of the parameters that trained; whether the frozen ones were kept\n"
            "bit for bit."
        )
        table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, caption_justify="left")
        columns = ["RMSE", "liver", "tumour"]
        heads = [
            "",
            *(f"{name}\n{100 * dose:g} %" for dose in (NEW, OLD) for name in columns),
            "share",
            "kept",
        ]
        for head in heads:
            table.add_column(head, justify="right" if head else "left", no_wrap=True)
        for name in self.new.patients:
            outcome = self.outcomes.get(name)
            share = "" if outcome is None else f"{outcome.share:.1%}"
            kept = "" if outcome is None else {None: "", True: "yes", False: "NO"}[outcome.kept]
            table.add_row(name, *self._cells(self.new, name), *self._cells(self.old, name), share, kept)
        return table

    @staticmethod
    def _cells(found: Comparison, name: str) -> list[str]:
        patients = found.patients[name]
        rmse = [one.quality["ROI"].rmse if "ROI" in one.quality else None for one in patients]
        dice = [[one.dice[SEGMENTER][part] for one in patients] for part in ("organ", "tumour")]
        return [mean(rmse, 1), *(mean(values, 3) for values in dice)]


def run_demo(out: Path, profile: Profile, *, seed: int = 0, progress: bool = True) -> Results:
    """Run or resume the demo; everything it makes is in `out`.

    Args:
        out: gets patients, networks (`<name>/network.safetensors`), `results.json` and `comparison.png`.
        profile: how much of everything.
        seed: of patients, first weights and samples.
        progress: show it on standard error.

    Raises:
        RunError: `out` holds a demo with other settings.
    """
    reserve(out / "settings.json", {"seed": seed, **asdict(profile)}, what="demo")
    clock = Clock(show=progress)
    with clock.part("simulating patients"):
        _simulate(out / "patients", profile, seed, progress)
    with clock.part(f"training a segmenter on normal dose, and a denoiser of {100 * OLD:g} % by MSE"):
        _each([(_pretrain, out, profile, seed), (_train, out, profile, seed)], progress)
    with clock.part(f"training {TOD}: from there on with critic and task loss"):
        _tod(out, profile, seed, progress)
    with clock.part(f"adapting {TOD} to {100 * NEW:g} % dose in {len(ADAPTED)} ways"):
        _each([(_adapt, out, profile, seed, name) for name in ADAPTED], progress)
    with clock.part("measuring"):
        new, old = (_compare(out, dose, progress) for dose in (NEW, OLD))
        _draw(out)
    outcomes = {name: _outcome(out, name) for name in ADAPTED}
    results = Results(new, old, outcomes, clock.seconds)
    write_json(out / "results.json", {"seed": seed, "phi": PHI, **asdict(results)})
    return results


def _simulate(folder: Path, profile: Profile, seed: int, progress: bool) -> None:
    sets: tuple[tuple[str, Part, int, int], ...] = (
        ("train", "train", 1000 * seed, profile.train),
        ("adapt", "train", 1000 * seed + profile.train, profile.adapt),
        ("test", "test", 1000 * seed, profile.test),
    )
    for name, part, first, count in sets:
        seeds = part_seeds(part, first, count)
        simulate_set(folder / name, seeds, profile.config, workers=WORKERS, progress=progress)


def _each(jobs: Sequence[tuple[object, ...]], progress: bool) -> None:
    """Independent trainings, a process each."""
    with shown("trained networks", len(jobs), show=progress) as task:
        for _ in run_jobs(_call, jobs, WORKERS):
            task.advance()


def _call(function: object, *arguments: object) -> None:
    assert callable(function)
    function(*arguments)


def _pretrain(out: Path, profile: Profile, seed: int) -> None:
    cases, schedule = load_set(out / "patients" / "train"), replace(profile.pretraining, seed=seed)
    train_segmenter(new_segmenter(seed, "unet"), cases, TASK, out / SEGMENTER, schedule, progress=False)


def _train(out: Path, profile: Profile, seed: int) -> None:
    cases, schedule = load_set(out / "patients" / "train"), replace(profile.training, seed=seed)
    network = new_generator(seed, "2d", profile.widths)
    train_denoiser(network, cases, OLD, TASK, out / FOLDERS[MSE], schedule, weights=Weights(), progress=False)


def _tod(out: Path, profile: Profile, seed: int, progress: bool) -> None:
    train_denoiser(
        load_generator(out / FOLDERS[MSE] / NETWORK),
        load_set(out / "patients" / "train"),
        OLD,
        TASK,
        out / FOLDERS[TOD],
        replace(profile.hybrid, seed=seed),
        weights=profile.weights,
        judges=_judges(out),
        progress=progress,
    )


def _adapt(out: Path, profile: Profile, seed: int, name: str) -> None:
    folder, method = ADAPTED[name]
    tuned = adapt(
        load_generator(out / FOLDERS[TOD] / NETWORK),
        load_set(out / "patients" / "adapt"),
        NEW,
        TASK,
        out / folder,
        replace(profile.tuning, seed=seed),
        weights=replace(profile.weights, gan=0.0),
        judges=_judges(out),
        method=method,
        progress=False,
    )
    write_json(out / folder / "tuned.json", {"share": tuned.share, "kept": tuned.kept})


def _judges(out: Path) -> Judges:
    return Judges(load_segmenter(out / SEGMENTER / NETWORK))


def _outcome(out: Path, name: str) -> Outcome:
    return Outcome(**read_record(out / FOLDERS[name] / "tuned.json", Outcome, AGAIN))


def _compare(out: Path, dose: float, progress: bool) -> Comparison:
    device = best_device()
    denoisers: dict[str, nn.Module] = {
        name: load_generator(out / folder / NETWORK).to(device) for name, folder in FOLDERS.items()
    }
    segmenters = {SEGMENTER: load_segmenter(out / SEGMENTER / NETWORK).to(device)}
    return compare(load_set(out / "patients" / "test"), TASK, dose, denoisers, segmenters, progress=progress)


def _draw(out: Path) -> None:
    """The slice with the largest section of tumours, at the new dose."""
    case = max(load_set(out / "patients" / "test"), key=_largest_section)
    z = int((case.target(TASK) == TUMOUR).sum(axis=(1, 2)).argmax())
    low, normal = case.image(NEW), case.image(NORMAL)
    volumes = {LOW: low}
    for name in (TOD, "TGD"):
        volumes[name] = denoise(load_generator(out / FOLDERS[name] / NETWORK), low)
    slices = {name: volume[z] for name, volume in {**volumes, FULL: normal}.items()}
    draw_comparison(slices, FULL, out / "comparison.png", unit="HU", window=WINDOW, span=100.0)


def _largest_section(case: Case) -> int:
    return int((case.target(TASK) == TUMOUR).sum(axis=(1, 2), dtype=np.int64).max())
