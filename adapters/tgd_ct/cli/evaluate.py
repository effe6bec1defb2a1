"""`tgd ct evaluate`: denoisers and segmenters on the same cases, as one table."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from tgd_ct.case import Task
from tgd_ct.cli.shared import TASK, dose_option
from tgd_ct.evaluation.compare import compare
from tgd_ct.loading import load_cases
from tgd_ct.networks.files import load_generator, load_segmenter
from tgd_kit.cli.options import FILE, FOLDER
from tgd_kit.devices import best_device
from tgd_kit.errors import RunError
from tgd_kit.runs.files import write_json


@click.command("evaluate")
@click.argument("cases", type=FOLDER)
@TASK
@dose_option(0.05)
@click.option("--network", multiple=True, help="NAME=FILE of a denoiser; as often as there are.")
@click.option("--segmenter", multiple=True, help="NAME=FILE of a segmenter; as often as there are.")
@click.option("--json", "record", type=FILE, help="Also write what was found.")
def evaluate_command(
    cases: Path,
    task: Task,
    dose: float,
    network: tuple[str, ...],
    segmenter: tuple[str, ...],
    record: Path | None,
) -> None:
    """Measure denoisers on the CASES of a folder: image quality, and Dice of segmenters on what they make.

    The image itself is measured as well, and, for Dice, the one of normal dose.

    \b
    Example:
        tgd ct evaluate patients/test --dose 0.05 \\
            --network TOD=tod/network.safetensors \\
            --segmenter U-Net=unet/network.safetensors
    """
    device = best_device()
    denoisers = {name: load_generator(path).to(device) for name, path in _named(network)}
    segmenters = {name: load_segmenter(path).to(device) for name, path in _named(segmenter)}
    found = compare(load_cases(cases), task, dose, denoisers, segmenters)
    Console().print(found.table())
    if record:
        write_json(record, found.record())


def _named(given: tuple[str, ...]) -> list[tuple[str, Path]]:
    pairs = [one.partition("=") for one in given]
    if not all(name and path for name, _, path in pairs):
        raise RunError("A network lacks its name.", "Write --network NAME=FILE.")
    return [(name, Path(path)) for name, _, path in pairs]
