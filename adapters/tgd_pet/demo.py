"""The comparison of the TGD paper in small: one network, new images, four ways to adapt, all simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich import box
from rich.table import Table

from tgd_kit.devices import best_device, one_thread
from tgd_kit.progress import progress as shown
from tgd_kit.report.pictures import draw_comparison
from tgd_kit.runs.clock import Clock
from tgd_kit.runs.files import write_json
from tgd_kit.runs.jobs import run_jobs
from tgd_kit.runs.reserve import reserve
from tgd_kit.runs.settings import read_record
from tgd_kit.simulation.patients import patient_file
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import PHI, Flow, Outcome
from tgd_pet.denoising import denoise
from tgd_pet.evaluation.scores import Scores, around, evaluate
from tgd_pet.network import WIDTHS, load_network, new_network
from tgd_pet.simulation.config import PatientConfig
from tgd_pet.simulation.files import load_set, simulate_files
from tgd_pet.training.finetuning import Method, finetune
from tgd_pet.training.fit import fit

INPUT, FIRST, TGD = "input", "v1-net", "TGD"
# name in the table -> folder, method, flow
VARIANTS: dict[str, tuple[str, Method, Flow]] = {
    "full": ("full", "full", "masked"),
    "last 3": ("last3", "last3", "masked"),
    TGD: ("tgd", "tgd", "masked"),
    "TGD full flow": ("tgd-full-flow", "tgd", "full"),
}
FOLDERS = {INPUT: INPUT, FIRST: FIRST, **{name: folder for name, (folder, _, _) in VARIANTS.items()}}
ADAPT_SEED, TEST_SEED = 10_000, 20_000  # added to the seed, so that no patient is in two sets
WORKERS = 2
AGAIN = "Delete it, and the same command makes it again."


@dataclass(frozen=True)
class Profile:
    """The size of a demo.

    Args:
        config: how patients are simulated.
        train: number of patients of all sizes, for the first network.
        adapt: number of thin patients, for fine-tuning.
        test: number of thin patients, for the comparison.
        realisations: repeated scans of each test patient.
        training: schedule of the first network.
        tuning: schedule of every fine-tuning.
        widths: output channels of each convolution.
    """

    config: PatientConfig
    train: int
    adapt: int
    test: int
    realisations: int
    training: Schedule
    tuning: Schedule
    widths: Sequence[int] = WIDTHS


PROFILES = {
    "quick": Profile(
        config=PatientConfig.demo(),
        train=10,
        adapt=4,
        test=2,
        realisations=5,
        training=Schedule(epochs=8, steps=60, rate=1e-3),
        tuning=Schedule(epochs=4, steps=40, rate=3e-4),
        widths=(32, 32, 64, 64, 64, 128, 128, 3),  # half the paper's, for a third of the time
    ),
    "tiny": Profile(
        config=PatientConfig.tiny(),
        train=2,
        adapt=1,
        test=1,
        realisations=2,
        training=Schedule(epochs=2, steps=3, batch=4),
        tuning=Schedule(epochs=1, steps=3, batch=4),
        widths=(8, 8, 8, 8, 3),
    ),
}


@dataclass(frozen=True)
class PerVersion:
    """The scores of one network, on file."""

    v1: Scores
    v2: Scores


@dataclass(frozen=True)
class Row:
    """One line of the comparison: scores on the new and on the old images."""

    name: str
    v2: Scores
    v1: Scores
    share: float | None = None
    kept: bool | None = None


@dataclass(frozen=True)
class Results:
    """The comparison, and the seconds each part took in this run."""

    rows: list[Row]
    seconds: dict[str, float] = field(default_factory=dict)

    def table(self) -> Table:
        """The comparison as a `rich` table."""
        columns = ("", "bias % v2", "CoV % v2", "RMSE v2", "RMSE v1", "share", "kept")
        cells = [
            (
                row.name,
                "" if row.v2.bias is None else f"{row.v2.bias:+.1f} ± {row.v2.bias_error or 0:.1f}",
                "" if row.v2.cov is None else f"{row.v2.cov:.2f}",
                f"{row.v2.rmse:.4f}",
                f"{row.v1.rmse:.4f}",
                "" if row.share is None else f"{row.share:.1%}",
                {None: "", True: "yes", False: "NO"}[row.kept],
            )
            for row in self.rows
        ]
        caption = (
            "Bias of lesions (± standard error), CoV in the liver, RMSE in SUV over the\n"
            "body, against the full-count image of the same reconstruction. v2: the new\n"
            "images; v1: the old ones. Share of the parameters that trained; whether the\n"
            "frozen ones were kept bit for bit. TGD stops gradients at frozen feature maps,\n"
            "as the paper does; full flow lets them through."
        )
        title = f"Fine-tuning on v2 images of few patients, TGD at phi {PHI:g}"
        table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, caption_justify="left")
        for column in columns:
            table.add_column(column, justify="right" if column else "left")
        for row in cells:
            table.add_row(*row)
        return table


def run_demo(out: Path, profile: Profile, *, seed: int = 0, progress: bool = True) -> Results:
    """Run or resume the demo; everything it makes is in `out`.

    Args:
        out: gets patients, networks (`<name>/network.safetensors`), `results.json` and `comparison.png`.
        profile: how much of everything.
        seed: of patients, first weights and patches.
        progress: show it on standard error.

    Raises:
        RunError: `out` holds a demo with other settings.
    """
    reserve(out / "settings.json", {"seed": seed, **asdict(profile)}, what="demo")
    clock = Clock(show=progress)
    with clock.part("simulating patients"):
        _simulate(out / "patients", profile, seed, progress)
    with clock.part("training v1-net on v1 images"), one_thread():
        schedule = replace(profile.training, seed=seed)
        patients = load_set(out / "patients" / "train")
        fit(new_network(seed, profile.widths), patients, "v1", out / FIRST, schedule, progress=progress)
    with clock.part("fine-tuning on v2 images in four ways"):
        schedule = replace(profile.tuning, seed=seed)
        with shown("fine-tuned networks", len(VARIANTS), show=progress) as task:
            for _ in run_jobs(_tune, [(out, name, schedule) for name in VARIANTS], WORKERS):
                task.advance()
    with clock.part("measuring"):
        with shown("measured networks", len(FOLDERS), show=progress) as task:
            for _ in run_jobs(_measure, [(out, name) for name in FOLDERS], WORKERS):
                task.advance()
        _draw(out)
    results = Results([_row(out, name) for name in FOLDERS], clock.seconds)
    write_json(out / "results.json", {"seed": seed, "phi": PHI, **asdict(results)})
    return results


def _simulate(folder: Path, profile: Profile, seed: int, progress: bool) -> None:
    thin = replace(profile.config, body_size="low")
    sets = (  # test patients have the most images: they come first, so that no process ends long after the others
        ("test", TEST_SEED, profile.test, replace(thin, realisations=profile.realisations)),
        ("adapt", ADAPT_SEED, profile.adapt, thin),
        ("train", 0, profile.train, replace(profile.config, body_size="mixed")),
    )
    wanted = {
        patient_file(folder / name, number): (number, config)
        for name, start, count, config in sets
        for number in range(start + 100 * seed, start + 100 * seed + count)
    }
    simulate_files(wanted, workers=WORKERS, progress=progress)


def _tune(out: Path, name: str, schedule: Schedule) -> None:
    """One way to adapt v1-net to v2 images: a run's folder, and what was trained and kept."""
    folder, method, flow = VARIANTS[name]
    first, patients = load_network(out / FIRST / NETWORK), load_set(out / "patients" / "adapt")
    tuned = finetune(first, patients, "v2", out / folder, schedule, method=method, flow=flow, progress=False)
    write_json(out / folder / "tuned.json", {"share": tuned.share, "kept": tuned.kept})


def _measure(out: Path, name: str) -> None:
    """The scores of one network, or of the noisy images, on the new and on the old images."""
    folder, patients = out / FOLDERS[name], load_set(out / "patients" / "test")
    network = None if name == INPUT else load_network(folder / NETWORK).to(best_device())
    scores = {
        "v2": asdict(evaluate(network, patients, "v2")),
        "v1": asdict(evaluate(network, patients, "v1", ensemble=False)),
    }
    write_json(folder / "scores.json", scores)


def _row(out: Path, name: str) -> Row:
    folder = out / FOLDERS[name]
    scores = read_record(folder / "scores.json", PerVersion, AGAIN)
    tuned = read_record(folder / "tuned.json", Outcome, AGAIN) if name in VARIANTS else {}
    return Row(name, Scores(**scores["v2"]), Scores(**scores["v1"]), **tuned)


def _draw(out: Path) -> None:
    """The slice with the largest section of liver and lesions, from the lowest counts."""
    patient = load_set(out / "patients" / "test")[0]
    section = sum(patient.lesion_masks(), start=patient.liver()).sum(axis=(1, 2))
    z, window = int(section.argmax()), around(patient.body())
    low = patient.low("v2")[0][window]
    slices = {INPUT: low}
    for name in (FIRST, TGD):
        slices[name] = denoise(load_network(out / FOLDERS[name] / NETWORK), low)
    slices["target"] = patient.full("v2")[window]
    drawn = {name: volume[z] for name, volume in slices.items()}
    draw_comparison(
        drawn, "target", out / "comparison.png", unit="SUV", window=(0.0, 6.0), span=1.0, colours="gray_r"
    )
