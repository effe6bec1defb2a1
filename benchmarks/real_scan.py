"""The README's picture: a real scan before and after denoising. docs/pet_scans.md has the whole recipe.

Run `python -m benchmarks.real_scan SCAN NETWORK` with a DICOM series, or a NIfTI file in SUV.
"""

from __future__ import annotations

from pathlib import Path

import click
import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tgd_pet.denoising import denoise
from tgd_pet.images.suv import SUV
from tgd_pet.network import load_network

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "real_scan.png"
TOP = 6.0  # SUV drawn black
BODY = 0.3  # SUV; what is above is nearly all body
MARGIN = 2  # voxels left and right of it


def draw(before: np.ndarray, after: np.ndarray, voxel: tuple[float, float], path: Path) -> None:
    """Draw coronal projections and the coronal slice through the middle of the body, before and after.

    Args:
        before: the scan, (z, y, x) in SUV.
        after: the denoised scan.
        voxel: size in mm along x and z.
        path: PNG file.
    """
    _, middle, _ = (int(axis.mean()) for axis in np.nonzero(before > BODY))
    columns = np.flatnonzero(before.max(axis=(0, 1)) > BODY)
    shown = slice(max(columns[0] - MARGIN, 0), columns[-1] + MARGIN + 1)
    panels = {
        "projection: scan": before.max(axis=1)[:, shown],
        "projection: denoised": after.max(axis=1)[:, shown],
        "slice: scan": before[:, middle, shown],
        "slice: denoised": after[:, middle, shown],
    }
    height, width = panels["slice: scan"].shape
    aspect = voxel[1] / voxel[0]
    size = (10.0, 10.0 / len(panels) * aspect * height / width + 0.3)
    figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axis, (title, values) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axis.imshow(values, cmap="gray_r", vmin=0, vmax=TOP, aspect=aspect, interpolation="bilinear")
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    figure.savefig(path)


@click.command()
@click.argument("scan", type=click.Path(path_type=Path))
@click.argument("network", type=click.Path(path_type=Path))
@click.option("--out", default=PICTURE, type=click.Path(path_type=Path), help="The picture.")
def main(scan: Path, network: Path, out: Path) -> None:
    """Denoise SCAN with NETWORK, as `tgd pet denoise` does, and draw both."""
    image = SUV.read(scan)
    sizes = nib.affines.voxel_sizes(image.affine)
    before = image.axial()
    draw(before, denoise(load_network(network), before), (sizes[0], sizes[2]), out)
    print(f"Written: {out}")


if __name__ == "__main__":
    main()
