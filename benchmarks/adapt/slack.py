"""When do the scores of a denoiser become bimodal, as the TGD paper's were? Against training length, decay and lasso.

The PET task's network is trained from the start on its old data, with Adam at a constant rate: plainly, with decoupled
weight decay, or with a group lasso on the filters (strength times the sum of their lengths). On the way its KSE scores
and its error are recorded. `make bench-adapt` runs it after the study, whose patients it uses: about ten minutes on two
cores. Beside that stand the scores of networks that wheels ship.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.adapt.tasks import pet, pitch, text
from benchmarks.adapt.tasks.denoising import BATCH, rmse
from benchmarks.measuring import RESULTS, setting
from benchmarks.measuring import write_json as write_results
from tgd_kit.report.pictures import new_figure, save_figure
from tgd_kit.runs.files import read_json, write_json
from tgd_kit.runs.jobs import run_jobs
from tgd_pet.network import DnCNN, new_network
from tgd_pet.training.patches import PatchPairs
from tgdsurgery import plan_tgd

FILE = RESULTS / "slack.json"
IMAGE = Path(__file__).parent.parent.parent / "docs" / "images" / "adapt_slack.png"
WHEELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "CREPE *tiny*": lambda: (pitch.crepe("tiny"), torch.zeros(2, pitch.FRAME)),
    "CREPE *full*": lambda: (pitch.crepe("full"), torch.zeros(2, pitch.FRAME)),
    "RapidOCR, direction": lambda: (
        text.rapidocr("ch_ppocr_mobile_v2.0_cls_infer"),
        torch.zeros(2, 3, 48, 192),
    ),
    "RapidOCR, detector": lambda: (text.rapidocr("ch_PP-OCRv4_det_infer"), torch.zeros(1, 3, 64, 64)),
    "RapidOCR, recogniser": lambda: (text.rapidocr("ch_PP-OCRv4_rec_infer"), torch.zeros(1, 3, 48, 320)),
}
MARKS = {"tiny": (0, 2), "quick": (0, 200, 800, 1600)}  # steps
RATE = 1e-3
LOW, HIGH = 0.3, 0.7


@dataclass(frozen=True)
class Way:
    """A way to train: AdamW's weight decay, and the strength of the group lasso."""

    name: str
    decay: float = 0.0
    lasso: float = 0.0


WAYS = (
    Way("plain"),
    Way("weight decay 0.1", decay=0.1),
    Way("weight decay 1", decay=1.0),
    Way("group lasso 0.00001", lasso=1e-5),
    Way("group lasso 0.0001", lasso=1e-4),
)


def train(profile: str, way: Way, folder: Path, path: Path) -> None:
    """Train in one way, and write what is found at each mark."""
    size = pet.SIZES[profile]
    patients = pet.simulated(pet.OLD, size, folder)
    measured = pet.slices(patients[-size.measured :], pet.OLD, size)
    network = new_network(0, size.widths)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=way.decay)
    marks = MARKS[profile]
    pairs = PatchPairs(patients[: size.old], pet.OLD, marks[-1] * BATCH, patch=pet.PATCH)
    found = {0: state(network, measured)}
    for step, (noisy, clean, *_) in enumerate(DataLoader(pairs, BATCH), 1):
        network.train()
        optimizer.zero_grad()
        loss = F.mse_loss(network(noisy), clean)
        if way.lasso:
            loss = loss + way.lasso * lengths(network)
        loss.backward()
        optimizer.step()
        if step in marks:
            found[step] = state(network, measured)
    write_json(path, found)


def lengths(network: DnCNN) -> torch.Tensor:
    """The sum of the filters' lengths."""
    return torch.stack([conv.weight.flatten(1).norm(dim=1).sum() for conv in network.convolutions]).sum()


def state(network: nn.Module, measured: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    """The scores of all filters, and the error."""
    scores = scores_of(network.eval(), torch.zeros(1, 3, pet.PATCH, pet.PATCH))
    return {"scores": scores, "error": rmse(network, *measured)}


def scores_of(network: nn.Module, inputs: Tensor) -> list[float]:
    """The scores of all filters that have one."""
    plan = plan_tgd(network, inputs, budget=1.0)
    filters = (entry for entry in plan.entries if entry.layer.role == "filter")
    return [round(score, 4) for entry in filters for score in entry.scores if score is not None]


def low_and_between(scores: Sequence[float]) -> tuple[float, float]:
    """The share of the scores below LOW, and of those from there to HIGH."""
    found = np.array(scores)
    return float(np.mean(found < LOW)), float(np.mean((found >= LOW) & (found <= HIGH)))


def of_wheels() -> dict[str, dict[str, float]]:
    """Size and scores of the networks that wheels ship."""
    found = {}
    for name, make in WHEELS.items():
        network, inputs = make()
        low, between = low_and_between(scores := scores_of(network, inputs))
        parameters = sum(parameter.numel() for parameter in network.parameters())
        found[name] = {"parameters": parameters, "scores": len(scores), "low": low, "between": between}
    return found


def draw(ways: dict[str, dict[str, Any]], path: Path) -> None:
    """A histogram for each way (row) and mark (column)."""
    marks = list(next(iter(ways.values())))
    figure = new_figure(2.3 * len(marks), 1.6 * len(ways), dpi=120)
    axes = figure.subplots(len(ways), len(marks), sharex=True, sharey="row", squeeze=False)
    for row, (name, found) in zip(axes, ways.items(), strict=True):
        row[0].set_ylabel(name.replace(" ", "\n", 2), fontsize=7)
        for axis, mark in zip(row, marks, strict=True):
            axis.hist(found[mark]["scores"], bins=20, range=(0, 1), color="tab:blue")
            axis.axvline(LOW, color="tab:red", linewidth=0.8)
            axis.tick_params(labelsize=6)
            axis.set_title(f"{mark} steps, RMSE {found[mark]['error']:.3f}", fontsize=7)
    save_figure(figure, path)


@click.command()
@click.option("--profile", type=click.Choice(list(MARKS)), default="quick", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/adapt"), show_default=True)
@click.option("--workers", default=2, show_default=True, help="Processes.")
def main(profile: str, out: Path, workers: int) -> None:
    """Train in all ways, and publish what is found."""
    folder = out / profile / "pet" / "task"
    paths = {way: out / profile / "slack" / f"{way.name}.json" for way in WAYS}
    left = [(profile, way, folder, path) for way, path in paths.items() if not path.exists()]
    for _ in run_jobs(train, left, workers):
        pass
    ways = {way.name: read_json(path) for way, path in paths.items()}
    image = IMAGE if profile == "quick" else out / profile / IMAGE.name
    draw(ways, image)
    file = FILE if profile == "quick" else out / profile / FILE.name
    data = {"setting": setting(profile=profile), "ways": ways, "wheels": of_wheels()}
    write_results(file, data)


if __name__ == "__main__":
    main()
