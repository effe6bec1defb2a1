"""The comparison of the TGD paper in small: one network, new images, four ways to adapt, all simulated."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from tgd_pet.denoising import best_device, denoise
from tgd_pet.evaluation.scores import Scores, around, evaluate
from tgd_kit.report.comparison import draw_comparison
from tgd_kit.runs.files import replacing
from tgd_pet.training.finetuning import PHI, Flow, Method, Tuned, finetune
from tgd_pet.network import WIDTHS, DnCNN, new_network
from tgd_pet.simulation.files import Study, StudyConfig, load_study, simulate_set
from tgd_kit.training.fit import Schedule, fit

# name in the table -> folder, method, flow
TGD = "TGD"
VARIANTS: dict[str, tuple[str, Method, Flow]] = {
    "full": ("full", "full", "masked"),
    "last 3": ("last3", "last3", "masked"),
    TGD: ("tgd", "tgd", "masked"),
    "TGD full flow": ("tgd-full-flow", "tgd", "full"),
}
ADAPT_SEED, TEST_SEED = 10_000, 20_000  # added to the seed, so that no patient is in two sets


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

    config: StudyConfig
    train: int
    adapt: int
    test: int
    realisations: int
    training: Schedule
    tuning: Schedule
    widths: Sequence[int] = WIDTHS


PROFILES = {
    "quick": Profile(
        config=StudyConfig.demo(),
        train=10,
        adapt=4,
        test=2,
        realisations=5,
        training=Schedule(epochs=8, steps=40, rate=1e-3),
        tuning=Schedule(epochs=4, steps=25, rate=3e-4),
    ),
    "tiny": Profile(
        config=StudyConfig.tiny(),
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
        title = f"Fine-tuning on few v2 studies, TGD at phi {PHI:g}"
        shown = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, caption_justify="left")
        for column in columns:
            shown.add_column(column, justify="right" if column else "left")
        for row in cells:
            shown.add_row(*row)
        return shown


def run_demo(out: Path, profile: Profile, *, seed: int = 0, progress: bool = True) -> Results:
    """Run or resume the demo; everything it makes is in `out`.

    Args:
        out: gets studies, networks (`<name>/network.safetensors`), `results.json` and `comparison.png`.
        profile: how much of everything.
        seed: of patients, first weights and patches.
        progress: show bars on standard error.

    Raises:
        RunError: `out` holds a demo with other settings.
    """
    clock = _Clock(Console(stderr=True, quiet=not progress))
    with clock.part("simulating patients"):
        train, adapt, test = _simulate(out / "studies", profile, seed, progress)
    first = new_network(seed, profile.widths)
    with clock.part("training v1-net on v1 images"):
        fit(first, train, "v1", out / "v1-net", replace(profile.training, seed=seed), progress=progress)
    tuned: dict[str, Tuned] = {}
    for name, (folder, method, flow) in VARIANTS.items():
        with clock.part(f"fine-tuning on v2 images: {name}"):
            schedule = replace(profile.tuning, seed=seed)
            tuned[name] = finetune(
                first, adapt, "v2", out / folder, schedule, method=method, flow=flow, progress=progress
            )
    with clock.part("evaluating"):
        rows = _compare(first, tuned, test, progress)
        _draw(first, tuned[TGD].network, test[0], out / "comparison.png")
    results = Results(rows, clock.seconds)
    with replacing(out / "results.json") as temporary:
        temporary.write_text(json.dumps({"seed": seed, "phi": PHI, **asdict(results)}, indent=1) + "\n")
    return results


def _simulate(folder: Path, profile: Profile, seed: int, progress: bool) -> Iterator[list[Study]]:
    thin = replace(profile.config, body_size="low", realisations=0)
    for name, start, count, config in (
        ("train", 0, profile.train, replace(profile.config, body_size="mixed", realisations=0)),
        ("adapt", ADAPT_SEED, profile.adapt, thin),
        ("test", TEST_SEED, profile.test, replace(thin, realisations=profile.realisations)),
    ):
        seeds = range(start + 100 * seed, start + 100 * seed + count)
        paths = simulate_set(folder / name, seeds, config, workers=2, progress=progress)
        yield [load_study(path) for path in paths]


def _compare(first: DnCNN, tuned: dict[str, Tuned], test: Sequence[Study], progress: bool) -> list[Row]:
    networks: dict[str, nn.Module | None] = {"input": None, "v1-net": first}
    networks |= {name: result.network for name, result in tuned.items()}
    for network in networks.values():
        if network is not None:
            network.to(best_device())
    images = sum(
        len(study.low("v1")) + len(study.low("v2")) + len(study.realisations("v2")) for study in test
    )
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("evaluating", total=images * len(networks))
        step = partial(bar.advance, task)
        return [
            Row(
                name,
                v2=evaluate(network, test, "v2", progress=step),
                v1=evaluate(network, test, "v1", ensemble=False, progress=step),
                share=tuned[name].share if name in tuned else None,
                kept=tuned[name].kept if name in tuned else None,
            )
            for name, network in networks.items()
        ]


def _draw(first: DnCNN, targeted: DnCNN, study: Study, path: Path) -> None:
    """The slice with the largest section of liver and lesions, from the lowest counts."""
    shown = study.liver() | sum(study.lesion_masks())
    window = around(study.body())
    z = int(shown.sum(axis=(1, 2)).argmax())
    low, target = study.low("v2")[0][window], study.full("v2")[window]
    slices = {"input": low, "v1-net": denoise(first, low), "TGD": denoise(targeted, low), "target": target}
    draw_comparison({name: volume[z] for name, volume in slices.items()}, "target", path, top=6.0)


class _Clock:
    """Announces the parts of the demo and notes how long each took."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._console.rule(name, align="left")
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
