"""`tgd pet denoise`: a scan in, the denoised scan out."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from tgd_pet.cli.options import FILE, SCAN
from tgd_pet.denoising import best_device, denoise
from tgd_pet.images import check_output, read_image, write_nifti
from tgd_pet.network import load_network


@click.command("denoise")
@click.argument("source", metavar="IN", type=SCAN)
@click.argument("out", type=FILE)
@click.option("--network", type=FILE, required=True, help="network.safetensors of a training run.")
def denoise_command(source: Path, out: Path, network: Path) -> None:
    """Denoise IN and write OUT, a NIfTI file in SUV on the grid of IN.

    IN is a folder or a zip of DICOM PET slices, converted to SUV by body weight, or a NIfTI file, which is
    taken to be in SUV already.
    """
    check_output(out, source)
    model = load_network(network).to(best_device())
    image = read_image(source)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("denoising slices")
        volume = denoise(
            model, image.axial(), progress=lambda done, of: bar.update(task, completed=done, total=of)
        )
    write_nifti(image.with_axial(volume), out)
    size = " x ".join(map(str, image.voxels.shape))
    click.echo(f"Wrote {out}: {size} voxels, largest SUV {volume.max():.1f}")
