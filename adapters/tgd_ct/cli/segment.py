"""`tgd ct segment`: a scan in, a map of the organ and its tumours out."""

from __future__ import annotations

from math import prod
from pathlib import Path

import click

from tgd_ct.case import ORGAN, TUMOUR
from tgd_ct.images.hu import HU
from tgd_ct.images.labels import write_labels
from tgd_ct.inference import segment
from tgd_ct.networks.files import load_segmenter
from tgd_kit.cli.options import FILE, SCAN
from tgd_kit.cli.say import say
from tgd_kit.devices import best_device
from tgd_kit.errors import ImageError
from tgd_kit.imaging.files import check_output
from tgd_kit.imaging.nifti import is_nifti
from tgd_kit.progress import progress


@click.command("segment")
@click.argument("source", metavar="IN", type=SCAN)
@click.argument("out", type=FILE)
@click.option("--network", type=FILE, required=True, help="network.safetensors of a `tgd ct pretrain` run.")
@click.option("--series", help="Number, description or UID of the DICOM series, where IN has several.")
def segment_command(source: Path, out: Path, network: Path, series: str | None) -> None:
    """Segment IN and write OUT, a NIfTI label map on the grid of IN: 0, organ 1, tumour 2.

    \b
    Example:
        tgd ct segment denoised.nii.gz labels.nii.gz \\
            --network unet/network.safetensors
    """
    if not is_nifti(out):
        raise ImageError(f"{out} is not a NIfTI name.", "Let it end with .nii or .nii.gz.")
    if not is_nifti(out):
        raise ImageError(f"{out} is not a NIfTI name.", "Let it end with .nii or .nii.gz.")
    check_output(out, source)
    model = load_segmenter(network).to(best_device())
    image = HU.read(source, series=series)
    volume = image.axial()
    with progress("segmented slices", len(volume)) as task:
        labels = segment(model, volume, progress=task.advance)
    write_labels(labels, image, out)
    say(f"Wrote {out}: 0, organ {ORGAN}, tumour {TUMOUR}")
    millilitres = prod(image.axial_spacing_mm()) / 1000
    for name, label in (("organ", ORGAN), ("tumour", TUMOUR)):
        say(f"{name}: {(labels == label).sum() * millilitres:.1f} mL")
