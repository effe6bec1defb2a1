"""`tgd pet denoise`: a scan in, the denoised scan out."""

from __future__ import annotations

from pathlib import Path

import click

from tgd_kit.cli.options import FILE, FOLDER, SCAN
from tgd_kit.cli.say import say
from tgd_kit.devices import best_device
from tgd_kit.errors import ImageError, RunError
from tgd_kit.imaging.dicom.tags import texts
from tgd_kit.imaging.files import check_output
from tgd_kit.imaging.image import Image
from tgd_kit.runs.record import denoised_by
from tgd_pet.cli.shared import denoise_with_progress
from tgd_pet.images.suv import SUV
from tgd_pet.network import load_network
from tgdsurgery import choose_delta, load_delta


@click.command("denoise")
@click.argument("source", metavar="IN", type=SCAN)
@click.argument("out", type=SCAN)
@click.option("--network", type=FILE, required=True, help="network.safetensors of a training run.")
@click.option(
    "--rows", type=FILE, help="A patient's retrained rows, from `tgd pet online` with that network."
)
@click.option(
    "--deltas",
    type=FOLDER,
    help="Folder of such files; that whose conditions (`tgd delta save --when`) the DICOM series meets is used.",
)
@click.option("--series", help="Number, description or UID of the DICOM series, where IN has several.")
def denoise_command(
    source: Path, out: Path, network: Path, rows: Path | None, deltas: Path | None, series: str | None
) -> None:
    """Denoise IN and write OUT on the grid of IN.

    IN is a folder or a zip of DICOM PET slices, converted to SUV by body weight (g/mL), or a NIfTI file, which
    is taken to be in SUV already. OUT is a NIfTI file in SUV (.nii, .nii.gz), or a new folder for a derived
    DICOM series in the units of IN.

    \b
    Example:
        tgd pet denoise scan/ denoised.nii.gz \\
            --network adapted/network.safetensors
    """
    check_output(out, source)
    if rows and deltas:
        raise RunError("--rows and --deltas are both given.", "Give one: a file, or a folder to choose from.")
    base = load_network(network)
    image = SUV.read(source, series=series)
    rows = _chosen(image, deltas) if deltas else rows
    model = (load_delta(base, rows) if rows else base).to(best_device())
    volume = denoise_with_progress(model, image.axial())
    say(SUV.write(image.with_axial(volume), out, denoised_by(network, *([rows] if rows else []))))
    say(f"Largest SUV {volume.max():.1f}")


def _chosen(image: Image, deltas: Path) -> Path | None:
    """The file of a folder that is meant for this image, by its DICOM tags."""
    if image.source is None:
        raise ImageError(
            "A NIfTI file does not say which rows it needs.", "Choose them yourself, with --rows."
        )
    files = sorted(deltas.glob("*.safetensors"))
    if not files:
        raise RunError(f"{deltas} holds no .safetensors file.", "Name the folder of the deltas.")
    rows = choose_delta(files, texts(image.source.slices))
    if rows is None:
        say(f"None of the {len(files)} deltas in {deltas} is for this scan: the base network is used.")
    else:
        say(f"Rows of {rows}, whose conditions this scan meets.")
    return rows
