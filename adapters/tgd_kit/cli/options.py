"""Types and options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
SCAN = click.Path(path_type=Path)
COUNT, SEED = click.IntRange(min=1), click.IntRange(min=0)
RATE = click.FloatRange(min=0, min_open=True)
RUN = click.option("--out", type=FOLDER, required=True, help="Folder of the run; the same again resumes it.")


def schedule_options(
    *, rate: float, epochs: int = 20, steps: int = 100, batch: int = 16
) -> Callable[[click.decorators.FC], click.decorators.FC]:
    """The options of a training run."""
    options = (
        click.option("--epochs", type=COUNT, default=epochs, help="A checkpoint is written after each."),
        click.option("--steps", type=COUNT, default=steps, help="Optimizer steps per epoch."),
        click.option("--batch", type=COUNT, default=batch, help="Patches per step."),
        click.option("--rate", type=RATE, default=rate, help="Highest learning rate of Adam."),
        click.option("--seed", type=SEED, default=0, help="Seed of patches, and of a new network's weights."),
        click.option("--devices", type=COUNT, default=1, help="GPUs, or CPU processes, of each machine."),
        click.option("--nodes", type=COUNT, default=1, help="Machines; start the same command on each."),
    )

    def with_options(command: click.decorators.FC) -> click.decorators.FC:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options
