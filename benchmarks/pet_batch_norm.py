"""Does batch norm in the paper's place train, and with which batch, first weights and rates?

A v1-net an eighth as wide as the paper's is trained on a few simulated patients in every combination, several times
with other first weights and patches, for the same number of Adam steps:

* norm: batch norm after all but the first and the last convolution, as in the paper; or none, and biases instead;
* batch: 8 or 16 patches of 32 x 32 pixels;
* last convolution: zero, so that an untrained network returns its input; or torch's default;
* rate: the paper's constant 0.001; or one cycle up to the highest rate of `tgd pet study`.

What counts is the error on the v1 images of other patients. A seed draws the same patches for all.

Run `make bench-pet`, about ten minutes on two cores; it also writes docs/pet_batch_norm.md.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

from benchmarks.measuring import RESULTS, markdown, setting, write_json
from tgd_kit.report.statistics import compare
from tgd_kit.runs.jobs import run_jobs
from tgd_pet.evaluation.scores import evaluate
from tgd_pet.experiment.settings import PROFILES, Settings, read_settings
from tgd_pet.network import DnCNN, new_network
from tgd_pet.simulation.files import load_patient, simulate_set
from tgd_pet.simulation.patient import SimulatedPatient
from tgd_pet.training.patches import PatchPairs

PAGE = Path(__file__).parent.parent / "docs" / "pet_batch_norm.md"
WIDTHS = (8, 8, 16, 16, 16, 32, 32, 3)
TRAIN, TEST = 6, 3  # patients
CONSTANT = 1e-3
Row = Mapping[str, Any]  # a trial and its error

TEXT = """\
# Does batch norm train here?

Made by `make bench-pet` from [its results](../benchmarks/results/pet_batch_norm.json); do not edit. {setting}.

The TGD paper has a batch norm after every convolution but the first and the last. A prototype trained worse with them,
in batches of 8. This page tries what could matter. A v1-net of widths {widths} is trained on the v1 images of {train}
simulated patients for {steps} steps of Adam: with batch norms in the paper's places, or with biases instead. Each is
trained {seeds} times with other first weights and patches. *Last*: the last convolution starts at zero, so that an
untrained network returns its input, or as torch draws it. *Rate*: the paper's constant {constant:g}, or one cycle,
which rises to {peak:g} over the first tenth of the steps and falls along a cosine. A batch of 16 sees twice as many
patches as one of 8.

The error is the RMSE in SUV over the body, against the full-count image, on the v1 images of {test} other patients. ±
is the standard deviation over the seeds. A seed draws the same patches for all, so differences are paired. The noisy
images themselves have {noisy:.4f}.

{table}

## What each choice changes

The mean difference of the RMSE over all combinations of the other choices, with 95% intervals over the seeds (paired
t). Bold: the interval does not contain 0. Negative is better.

{effects}

The smallest error with batch norms is {best:.4f}, with {best_way}. The smallest without is {plain:.4f}, with
{plain_way}. `tgd pet train`, `demo` and `study` use batch norms, batches of 16, a last convolution that starts at zero,
and one cycle: {used:.4f} here.
"""
LAST = {True: "zero", False: "drawn"}
RATE = {True: "one cycle", False: "constant"}


@dataclass(frozen=True)
class Trial:
    """One way to train, with one seed.

    Args:
        norm: batch norms in the paper's places.
        batch: patches per step.
        zero: the last convolution starts at zero.
        cycle: one cycle of the rate; else it is constant.
        seed: of first weights and patches.
    """

    norm: bool
    batch: int
    zero: bool
    cycle: bool
    seed: int


def trials(seeds: int) -> list[Trial]:
    """All combinations."""
    return [
        Trial(*way) for way in product((True, False), (8, 16), (True, False), (True, False), range(seeds))
    ]


def network(trial: Trial, limit: float) -> DnCNN:
    """The untrained network of a trial."""
    net = new_network(trial.seed, WIDTHS, limit)
    with torch.random.fork_rng():
        torch.manual_seed(trial.seed)
        if not trial.zero:
            net.convolutions[-1].reset_parameters()
        if not trial.norm:
            drop_norms(net)
    return net


def drop_norms(net: DnCNN) -> None:
    """Each batch norm is replaced by nothing, and the convolution before it gets the bias that torch would draw."""
    for index, convolution in enumerate(net.convolutions, start=1):
        if convolution.bias is None:
            bound = convolution.weight[0].numel() ** -0.5
            convolution.bias = nn.Parameter(torch.empty(len(convolution.weight)).uniform_(-bound, bound))
            setattr(net.noise, f"norm{index}", nn.Identity())


def train(net: DnCNN, patients: Sequence[SimulatedPatient], trial: Trial, steps: int, peak: float) -> None:
    """Adam on the mean squared error."""
    net.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=CONSTANT)
    rate: LRScheduler = ConstantLR(optimizer, factor=1.0)
    if trial.cycle:
        rate = OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)
    pairs = PatchPairs(patients, "v1", steps * trial.batch, seed=(trial.seed,))
    for noisy, clean in DataLoader(pairs, trial.batch):
        optimizer.zero_grad()
        denoised = net(noisy.contiguous(memory_format=torch.channels_last))
        nn.functional.mse_loss(denoised, clean).backward()
        optimizer.step()
        rate.step()


def run(trial: Trial, path: Path, settings: Settings, steps: int) -> None:
    """In a process of its own: train on the first patients beside `path`, measure on the others, write the error."""
    patients = [load_patient(file) for file in sorted(path.parent.glob("patient_*.npz"))]
    net = network(trial, settings.suv_limit)
    train(net, patients[:TRAIN], trial, steps, settings.training.rate)
    write_json(path, asdict(trial) | {"rmse": evaluate(net, patients[TRAIN:], "v1").rmse})


def measure(settings: Settings, steps: int, seeds: int) -> dict[str, Any]:
    """All trials; what they have in common is told beside them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulated = simulate_set(folder, range(TRAIN + TEST), settings.simulated(), workers=settings.workers)
        jobs = [(trial, folder / f"{n}.json", settings, steps) for n, trial in enumerate(trials(seeds))]
        for _ in track(run_jobs(run, jobs, settings.workers), "training", len(jobs)):
            pass
        others = [load_patient(file) for file in simulated[TRAIN:]]
        return {
            "setting": setting("numpy", "scipy", workers=settings.workers),
            "steps": steps,
            "seeds": seeds,
            "peak": settings.training.rate,
            "noisy": evaluate(None, others, "v1").rmse,
            "rows": [json.loads(file.read_text(encoding="utf-8")) for _, file, *_ in jobs],
        }


def errors(rows: Sequence[Row], **chosen: Any) -> npt.NDArray[np.float64]:
    """(seed, way) of all ways with these choices."""
    found = [row for row in rows if all(row[name] == value for name, value in chosen.items())]
    seeds = sorted({row["seed"] for row in found})
    return np.array([[row["rmse"] for row in found if row["seed"] == seed] for seed in seeds])


def page(found: Mapping[str, Any]) -> str:
    """docs/pet_batch_norm.md, from the results."""
    rows = found["rows"]
    best, plain = (_best(rows, norm) for norm in (True, False))
    return TEXT.format(
        setting=", ".join(f"{name} {value}" for name, value in found["setting"].items()),
        widths=", ".join(map(str, WIDTHS)),
        train=TRAIN,
        test=TEST,
        constant=CONSTANT,
        **{name: found[name] for name in ("steps", "seeds", "peak", "noisy")},
        table=_table(rows),
        effects=_effects(rows),
        best=best[0],
        best_way=best[1],
        plain=plain[0],
        plain_way=plain[1],
        used=errors(rows, norm=True, batch=16, zero=True, cycle=True).mean(),
    )


def _ways() -> list[dict[str, Any]]:
    return [
        dict(zip(("batch", "zero", "cycle"), way, strict=True))
        for way in product((8, 16), (True, False), (True, False))
    ]


def _best(rows: Sequence[Row], norm: bool) -> tuple[float, str]:
    error, way = min(
        ((errors(rows, norm=norm, **way).mean(), way) for way in _ways()), key=lambda pair: pair[0]
    )
    return error, f"batches of {way['batch']}, last {LAST[way['zero']]}, {RATE[way['cycle']]}"


def _table(rows: Sequence[Row]) -> str:
    lines = []
    for way in _ways():
        normed, plain = (errors(rows, norm=norm, **way) for norm in (True, False))
        lines.append(
            [
                str(way["batch"]),
                LAST[way["zero"]],
                RATE[way["cycle"]],
                *(f"{table.mean():.4f} ± {table.std(ddof=1):.4f}" for table in (normed, plain)),
                _difference(normed, plain),
            ]
        )
    return markdown(("batch", "last", "rate", "batch norm", "none", "batch norm minus none"), lines)


def _effects(rows: Sequence[Row]) -> str:
    choices = {
        "batches of 16 minus 8": ("batch", 16, 8),
        "last at zero minus drawn": ("zero", True, False),
        "one cycle minus constant": ("cycle", True, False),
    }
    lines = [
        [name, *(_difference(*(errors(rows, norm=n, **{key: v}) for v in pair)) for n in (True, False))]
        for name, (key, *pair) in choices.items()
    ]
    overall = _difference(errors(rows, norm=True), errors(rows, norm=False))
    return markdown(
        ("", "with batch norm", "without"), [*lines, ["batch norm minus none, all ways", overall, ""]]
    )


def _difference(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> str:
    found = compare(first, second, over="seeds")
    text = f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
    return f"**{text}**" if found.sign else text


@click.command()
@click.option("--profile", default="quick", show_default=True, help="Scans, as in `tgd pet study --config`.")
@click.option("--steps", default=800, show_default=True, help="Of every training.")
@click.option("--seeds", default=3, show_default=True, help="Two at least.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "pet_batch_norm.json")
@click.option("--text", type=click.Path(path_type=Path), default=PAGE, help="The page.")
def main(profile: str, steps: int, seeds: int, out: Path, text: Path) -> None:
    """Train with and without batch norm, in many ways."""
    found = measure(read_settings(PROFILES / f"{profile}.yaml"), steps, seeds)
    write_json(out, found)
    text.write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
