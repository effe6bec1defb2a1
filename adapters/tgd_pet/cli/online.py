"""`tgd pet online`: one patient's two half-count images train the network, which denoises the whole scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from tgd_kit.cli.options import FILE, FOLDER, SCAN, schedule_options
from tgd_kit.cli.say import say
from tgd_kit.devices import best_device
from tgd_kit.errors import ImageError
from tgd_kit.imaging.files import check_output
from tgd_kit.imaging.image import Image, check_same_grid
from tgd_kit.runs.record import denoised_by
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import PHI, Flow
from tgd_pet.cli.shared import denoise_with_progress
from tgd_pet.images.suv import SUV
from tgd_pet.network import load_network
from tgd_pet.training.online import PATIENCE, ROWS, Online, OnlineMethod, online


@click.command("online")
@click.argument("scan_a", type=SCAN)
@click.argument("scan_b", type=SCAN)
@click.option(
    "--checkpoint", type=FILE, required=True, help="The base: network.safetensors of a training run."
)
@click.option(
    "-o", "--out", type=SCAN, required=True, help="The denoised scan; NIfTI, or a folder for DICOM."
)
@click.option("--full", type=SCAN, help="The full-count image; the mean of both halves if not given.")
@click.option("--run", type=FOLDER, help="Folder of the training run; OUT.online if not given.")
@click.option(
    "--series", multiple=True, help="DICOM series, where a folder has several: once per scan, in their order."
)
@click.option(
    "--method", type=click.Choice(get_args(OnlineMethod)), default="tgd", help="full: plain noise2noise."
)
@click.option("--phi", type=float, default=PHI, help="Threshold of TGD.")
@click.option(
    "--flow", type=click.Choice(get_args(Flow)), default="full", help="Whether gradients pass frozen maps."
)
@click.option("--patience", type=click.IntRange(min=1), default=PATIENCE, help="Epochs without gain.")
@schedule_options(rate=3e-4, steps=50)
def online_command(
    scan_a: Path,
    scan_b: Path,
    checkpoint: Path,
    out: Path,
    full: Path | None,
    run: Path | None,
    series: Sequence[str],
    method: OnlineMethod,
    phi: float,
    flow: Flow,
    patience: int,
    **schedule: Any,
) -> None:
    """Adapt a network to one patient, from SCAN_A and SCAN_B, and denoise the whole scan.

    SCAN_A and SCAN_B are images of two independent halves of the counts, on one grid: NIfTI in SUV, or a folder
    or zip of DICOM. Each is input once and target once (noise2noise); only the filters that the network hardly
    uses are retrained, or all with --method full. A slab of slices in the middle decides when to stop. The same
    command continues an interrupted run.

    \b
    Example:
        tgd pet online half_a.nii.gz half_b.nii.gz --checkpoint v1/network.safetensors \\
            --out denoised.nii.gz
    """
    _check_paths(scan_a, scan_b, full, out)
    network = load_network(checkpoint)
    images = _read([scan_a, scan_b, *([full] if full else [])], series)
    run = run or out.with_name(f"{out.name.removesuffix('.gz').removesuffix('.nii')}.online")
    half_a, half_b = (image.axial() for image in images[:2])
    tuned = online(
        network,
        half_a,
        half_b,
        run,
        Schedule(**schedule),
        method=method,
        phi=phi,
        flow=flow,
        patience=patience,
    )
    _finish(tuned, images, out, run, checkpoint)


def _check_paths(scan_a: Path, scan_b: Path, full: Path | None, out: Path) -> None:
    for source in (scan_a, scan_b, full):
        if source is not None:
            check_output(out, source)
    if full is None and not out.suffix:
        raise ImageError(
            "The mean of two scans is not a DICOM series.", "Pass --full, or let OUT end with .nii.gz."
        )


def _read(paths: Sequence[Path], series: Sequence[str]) -> list[Image]:
    if series and len(series) != len(paths):
        raise ImageError(
            f"--series is given {len(series)} times for {len(paths)} scans.",
            "Give it once per scan, in order.",
        )
    names: Sequence[str | None] = series or [None] * len(paths)
    images = [SUV.read(path, series=name) for path, name in zip(paths, names, strict=True)]
    for path, image in zip(paths[1:], images[1:], strict=True):
        check_same_grid(images[0], image, (str(paths[0]), str(path)))
    return images


@rank_zero_only
def _finish(tuned: Online, images: Sequence[Image], out: Path, run: Path, checkpoint: Path) -> None:
    """Report, denoise and write; one process of several does it."""
    _say(tuned, run)
    a, b, *whole = images
    if not whole:
        say("The mean of both halves is used as the full-count image.")
    image = whole[0] if whole else replace(a, voxels=(a.voxels + b.voxels) / np.float32(2))
    volume = denoise_with_progress(tuned.network.to(best_device()), image.axial())
    say(SUV.write(image.with_axial(volume), out, denoised_by(checkpoint, _weights(tuned, run))))


def _weights(tuned: Online, run: Path) -> Path:
    """What was learnt: the trainable rows with TGD, a whole network without."""
    return run / (NETWORK if tuned.plan is None else ROWS)


def _say(tuned: Online, run: Path) -> None:
    if tuned.plan is None:
        say("Plain noise2noise: every filter is retrained.")
    else:
        say(tuned.plan)
        say(f"Frozen entries unchanged: {'yes' if tuned.kept else 'NO'}")
    gain = f"{tuned.before:.4f} before, {tuned.after:.4f} after"
    say(f"Held-out slices, RMSE to the other half with its noise, in SUV: {gain}")
    if not tuned.learnt:
        say("Training brought no gain there: the network is unchanged.")
    what = "network is" if tuned.plan is None else "retrained rows are"
    say(f"The patient's {what} in {_weights(tuned, run)}")
