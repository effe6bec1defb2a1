"""`tgd ct insert`: a CT of normal dose in, the CT of a lower dose out."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import click
import numpy as np

from tgd_ct.images.body import body_mask
from tgd_ct.images.hu import HU
from tgd_ct.images.insertion import insert_low_dose
from tgd_ct.scanner import PHOTONS
from tgd_kit.cli.options import SCAN, SEED
from tgd_kit.cli.say import say
from tgd_kit.imaging.files import check_output
from tgd_kit.progress import progress


@click.command("insert")
@click.argument("source", metavar="IN", type=SCAN)
@click.argument("out", type=SCAN)
@click.option(
    "--dose",
    type=click.FloatRange(0, 1, min_open=True),
    required=True,
    help="Share of the normal dose, such as 0.05 for 5 %.",
)
@click.option("--seed", type=SEED, default=0, help="Seed of the noise.")
@click.option(
    "--photons",
    type=click.FloatRange(min=1),
    default=PHOTONS,
    help="That enter each ray at the normal dose: four times as many stand for half the noise.",
)
@click.option("--series", help="Number, description or UID of the DICOM series, where IN has several.")
def insert_command(
    source: Path, out: Path, dose: float, seed: int, photons: float, series: str | None
) -> None:
    """Insert low dose into IN, a CT of normal dose, and write OUT on the grid of IN.

    IN is a folder or a zip of DICOM CT slices, or a NIfTI file in HU. OUT is a NIfTI file in HU (.nii, .nii.gz), or a
    new folder for a derived DICOM series. The noise that the lower dose has, and the normal one has not, is added;
    the image itself is not reconstructed again.

    \b
    Example:
        tgd ct insert scan/ low.nii.gz --dose 0.05
    """
    check_output(out, source)
    image = HU.read(source, series=series)
    volume = image.axial()
    with progress("slices", len(volume)) as task:
        low = insert_low_dose(
            volume,
            image.axial_spacing_mm(),
            dose,
            photons=photons,
            seed=seed,
            progress=lambda done: task.advance(done - task.done),
        )
    made = f"{100 * dose:g} % of the dose inserted by tgdsurgery {version('tgdsurgery')}"
    settings = f"{photons:g} photons a ray at the normal dose, seed {seed}"
    say(HU.write(image.with_axial(low), out, f"{made} ({settings})", word=f"{100 * dose:g} % dose"))
    middle = len(volume) // 2
    inside = body_mask(volume[middle : middle + 1])[0]
    if dose < 1 and inside.any():
        added = float((low[middle] - volume[middle])[inside].std())
        normal = added / np.sqrt(1 / dose - 1)
        say(f"Noise added in the body: {added:.1f} HU. IN is taken to have {normal:.1f} HU (--photons).")
