"""PET images in SUV on their own grid: read from NIfTI or DICOM, written as NIfTI."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import orientations

from tgd_pet.dicom import read_series
from tgd_pet.errors import ImageError
from tgd_pet.files import replacing

NIFTI_SUFFIXES = (".nii", ".nii.gz")
AXIAL = ("L", "P", "I")  # as in the simulated studies: z grows towards the feet


@dataclass(frozen=True)
class PETImage:
    """A PET image in SUV, with the grid of the file it came from.

    Args:
        voxels: (I, J, K) float32 SUV, in the voxel order of the file.
        affine: (4, 4) voxel index to millimetres, in the RAS+ world of NIfTI.
        header: NIfTI header of the file; None if it was not NIfTI.
    """

    voxels: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    header: nib.Nifti1Header | None = None

    def axial(self) -> npt.NDArray[np.float32]:
        """The voxels as (z, y, x) along the axes nearest to inferior, posterior and left: axial slices."""
        return self._turned(self.voxels, to_axial=True).transpose(2, 1, 0)

    def with_axial(self, volume: npt.NDArray[np.float32]) -> PETImage:
        """The same grid with new values, given as `axial` gives them."""
        return replace(self, voxels=self._turned(volume.transpose(2, 1, 0), to_axial=False))

    def _turned(self, voxels: npt.NDArray[np.float32], *, to_axial: bool) -> npt.NDArray[np.float32]:
        ends = orientations.io_orientation(self.affine), orientations.axcodes2ornt(AXIAL)
        start, end = ends if to_axial else ends[::-1]
        return orientations.apply_orientation(voxels, orientations.ornt_transform(start, end))


def read_image(path: Path) -> PETImage:
    """Read a NIfTI file (taken to be in SUV already), or a folder or zip of DICOM PET slices.

    Raises:
        ImageError: the file is missing, damaged, not a PET image, or lacks what SUV needs.
    """
    if not path.exists():
        raise ImageError(f"There is no file or folder {path}.", "Check the path.")
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        return _read_nifti(path)
    if path.is_dir() or path.suffix.lower() == ".zip":
        return PETImage(*read_series(path))
    raise ImageError(
        f"{path} is neither a folder nor a .zip, .nii or .nii.gz file.",
        "Pass the folder of a DICOM series, a zip of it, or a NIfTI file in SUV.",
    )


def check_output(path: Path, source: Path) -> None:
    """Refuse a path that `write_nifti` could not write, before any long work is done.

    Raises:
        ImageError: the name is not NIfTI's, or the file is the input.
    """
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        raise ImageError(f"{path} is no NIfTI name.", "Let it end with .nii or .nii.gz.")
    if path.exists() and path.resolve() == source.resolve():
        raise ImageError(f"{path} is the input itself.", "Choose another name for the result.")


def write_nifti(image: PETImage, path: Path) -> None:
    """Write the image as float32 NIfTI in SUV; header and grid are those of the input where it was NIfTI."""
    header = None if image.header is None else image.header.copy()
    made = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    nifti = made(image.voxels, image.affine, header)
    nifti.set_data_dtype(np.float32)
    if header is None:
        nifti.header.set_xyzt_units("mm")
        nifti.header["descrip"] = b"PET SUVbw"
    with replacing(path) as temporary:
        nib.save(nifti, temporary)


def _read_nifti(path: Path) -> PETImage:
    try:
        nifti = nib.load(path)
        voxels = np.asanyarray(nifti.dataobj, dtype=np.float32)
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ImageError(
            f"{path} cannot be read as NIfTI ({error}).", "Pass a complete .nii or .nii.gz file."
        ) from error
    if voxels.ndim != 3:
        raise ImageError(
            f"{path} has {voxels.ndim} dimensions {voxels.shape}, not 3.",
            "Pass one volume; split a dynamic series first.",
        )
    if not np.isfinite(voxels).all():
        raise ImageError(f"{path} holds NaN or infinite voxels.", "Set them to a number, usually 0, first.")
    if not np.isfinite(nifti.affine).all() or abs(np.linalg.det(nifti.affine[:3, :3])) < 1e-9:
        raise ImageError(
            f"The affine of {path} is singular.", "Write the file anew with its true voxel size and axes."
        )
    return PETImage(voxels, nifti.affine, nifti.header)
