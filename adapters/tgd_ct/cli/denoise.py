"""`tgd ct denoise`: a scan in, the denoised scan out."""

from __future__ import annotations

from pathlib import Path

import click

from tgd_ct.cli.shared import denoise_with_progress
from tgd_ct.images.hu import HU
from tgd_ct.networks.files import load_generator
from tgd_kit.cli.options import FILE, SCAN
from tgd_kit.cli.say import say
from tgd_kit.devices import best_device
from tgd_kit.imaging.files import check_output
from tgd_kit.runs.record import denoised_by


@click.command("denoise")
@click.argument("source", metavar="IN", type=SCAN)
@click.argument("out", type=SCAN)
@click.option("--network", type=FILE, required=True, help="network.safetensors of a denoiser's run.")
@click.option("--series", help="Number, description or UID of the DICOM series, where IN has several.")
def denoise_command(source: Path, out: Path, network: Path, series: str | None) -> None:
    """Denoise IN and write OUT on the grid of IN.

    IN is a folder or a zip of DICOM CT slices, or a NIfTI file in HU. OUT is a NIfTI file in HU (.nii, .nii.gz), or a
    new folder for a derived DICOM series.

    \b
    Example:
        tgd ct denoise scan/ denoised.nii.gz \\
            --network tod/network.safetensors
    """
    check_output(out, source)
    model = load_generator(network).to(best_device())
    image = HU.read(source, series=series)
    volume = denoise_with_progress(model, image.axial())
    say(HU.write(image.with_axial(volume), out, denoised_by(network)))
