"""`tgd ct adapt`: a trained denoiser, adapted to another dose, kernel or task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from tgd_ct.case import Task
from tgd_ct.cli.shared import EXTRACTOR, PATCH, SEGMENTER, TASK, dose_option, judges, loss_options, losses
from tgd_ct.loading import load_cases
from tgd_ct.networks.files import load_generator
from tgd_ct.training.adapting import METHODS, Method, adapt
from tgd_kit.cli.options import FILE, FOLDER, RUN, schedule_options
from tgd_kit.cli.tuned import say_tuned
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import PHI, Flow


@click.command("adapt")
@click.argument("network", type=FILE)
@click.argument("cases", type=FOLDER)
@RUN
@TASK
@dose_option(0.05)
@click.option("--method", type=click.Choice(METHODS), default="tgd", help="What is trained.")
@click.option("--phi", type=float, default=PHI, help="Threshold of TGD.")
@click.option(
    "--flow", type=click.Choice(get_args(Flow)), default="full", help="Whether gradients pass frozen maps."
)
@SEGMENTER
@EXTRACTOR
@loss_options(mse=1.0, gan=0.0, task=0.0)
@PATCH
@schedule_options(rate=3e-4, batch=4)
def adapt_command(
    network: Path,
    cases: Path,
    out: Path,
    task: Task,
    dose: float,
    method: Method,
    phi: float,
    flow: Flow,
    segmenter: Path | None,
    extractor: Path | None,
    patch: int,
    **rest: Any,
) -> None:
    """Adapt a trained denoiser NETWORK to the CASES of a folder; its useful filters stay as they are.

    \b
    Example:
        tgd ct adapt tod/network.safetensors patients/few \\
            --out adapted --dose 0.02
    """
    weights, schedule = losses(rest), Schedule(patch=patch, **rest)
    tuned = adapt(
        load_generator(network),
        load_cases(cases),
        dose,
        task,
        out,
        schedule,
        weights=weights,
        judges=judges(segmenter, extractor),
        method=method,
        phi=phi,
        flow=flow,
    )
    say_tuned(tuned, out)
