"""An image on the grid of its file, and whether two images share a grid."""

from __future__ import annotations

from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import affines, orientations

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import ImageError
from tgd_kit.imaging.dicom.series import DicomSource

AXIAL = ("L", "P", "I")  # as in the simulated scans: z grows towards the feet


@dataclass(frozen=True)
class Image:
    """An image in an adapter's quantity, with the grid of the file it came from.

    Args:
        voxels: (I, J, K) float32, in the voxel order of the file.
        affine: (4, 4) voxel index to millimetres, in the RAS+ world of NIfTI.
        header: NIfTI header of the file; None if it was not NIfTI.
        source: slices of the DICOM series; None if it was not DICOM.
    """

    voxels: FloatArray
    affine: npt.NDArray[np.float64]
    header: nib.Nifti1Header | None = None
    source: DicomSource | None = None

    def axial(self) -> FloatArray:
        """The voxels as (z, y, x) along the axes nearest to inferior, posterior and left: axial slices."""
        turned: FloatArray = self._turned(self.voxels, to_axial=True).transpose(2, 1, 0)
        return turned

    def axial_spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size of `axial`, (z, y, x)."""
        world = orientations.io_orientation(self.affine)[:, 0]  # the world's axis of each of the voxels'
        z, y, x = affines.voxel_sizes(self.affine)[np.argsort(world)[::-1]].tolist()
        return z, y, x

    def with_axial(self, volume: FloatArray) -> Image:
        """The same grid with new values, given as `axial` gives them."""
        return replace(self, voxels=self._turned(volume.transpose(2, 1, 0), to_axial=False))

    def _turned(self, voxels: FloatArray, *, to_axial: bool) -> FloatArray:
        ends = orientations.io_orientation(self.affine), orientations.axcodes2ornt(AXIAL)
        start, end = ends if to_axial else ends[::-1]
        turned: FloatArray = orientations.apply_orientation(voxels, orientations.ornt_transform(start, end))
        return turned


def check_same_grid(first: Image, second: Image, names: tuple[str, str]) -> None:
    """Refuse two images whose voxels are not at the same places.

    Args:
        first: one image.
        second: the other.
        names: what to call the images in the message.

    Raises:
        ImageError: shapes differ, or places by more than a hundredth of a voxel anywhere.
    """
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.array(first.voxels.shape) - 1
    apart = np.abs((first.affine - second.affine) @ corners.T)[:3].max()
    size = affines.voxel_sizes(first.affine).min()
    if first.voxels.shape != second.voxels.shape or apart > size / 100:
        described = "; ".join(f"{n}: {_grid(image)}" for n, image in zip(names, (first, second), strict=True))
        raise ImageError(
            f"The images are not on one grid. {described}.", "Reconstruct or resample them on the same grid."
        )


def _grid(image: Image) -> str:
    shape = " x ".join(map(str, image.voxels.shape))
    spacing = " x ".join(f"{size:.3f}" for size in affines.voxel_sizes(image.affine))
    origin = ", ".join(f"{value:.2f}" for value in image.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm from ({origin})"
