"""PET images in SUV on their own grid: read from NIfTI or DICOM, written as NIfTI or as derived DICOM."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import orientations

from tgd_kit.imaging.dicom.series import DicomSource, read_series
from tgd_kit.imaging.dicom.derived import write_derived
from tgd_kit.errors import ImageError
from tgd_kit.runs.files import replacing
from tgd_kit.imaging.slabs import Voxels, scratch, slabs

NIFTI_SUFFIXES = (".nii", ".nii.gz")
MOST_MEAN = 50.0  # SUV; that of a body is about 1, and Bq/mL are thousands of times as large
MOST_NEGATIVE = 0.5  # of the sum of positive values; noise around zero stays below, Hounsfield units do not
AXIAL = ("L", "P", "I")  # as in the simulated studies: z grows towards the feet


@dataclass(frozen=True)
class PETImage:
    """A PET image in SUV, with the grid of the file it came from.

    Args:
        voxels: (I, J, K) float32 SUV in g/mL, in the voxel order of the file.
        affine: (4, 4) voxel index to millimetres, in the RAS+ world of NIfTI.
        header: NIfTI header of the file; None if it was not NIfTI.
        source: slices of the DICOM series; None if it was not DICOM.
    """

    voxels: Voxels
    affine: npt.NDArray[np.float64]
    header: nib.Nifti1Header | None = None
    source: DicomSource | None = None

    def axial(self) -> Voxels:
        """The voxels as (z, y, x) along the axes nearest to inferior, posterior and left: axial slices."""
        return self._turned(self.voxels, to_axial=True).transpose(2, 1, 0)

    def with_axial(self, volume: Voxels) -> PETImage:
        """The same grid with new values, given as `axial` gives them."""
        return replace(self, voxels=self._turned(volume.transpose(2, 1, 0), to_axial=False))

    def _turned(self, voxels: Voxels, *, to_axial: bool) -> Voxels:
        ends = orientations.io_orientation(self.affine), orientations.axcodes2ornt(AXIAL)
        start, end = ends if to_axial else ends[::-1]
        return orientations.apply_orientation(voxels, orientations.ornt_transform(start, end))


def read_image(path: Path, *, series: str | None = None) -> PETImage:
    """Read a NIfTI file (taken to be in SUV already), or a folder or zip of DICOM PET slices.

    Args:
        series: number, description or UID of the DICOM series, where there are several.

    Raises:
        ImageError: the file is missing, damaged, not a PET image, or lacks what SUV needs.
    """
    if not path.exists():
        raise ImageError(f"There is no file or folder {path}.", "Check the path.")
    if _is_nifti(path):
        return _read_nifti(path)
    if path.is_dir() or path.suffix.lower() == ".zip":
        voxels, affine, source = read_series(path, series=series)
        return PETImage(voxels, affine, source=source)
    raise ImageError(
        f"{path} is neither a folder nor a .zip, .nii or .nii.gz file.",
        "Pass the folder of a DICOM series, a zip of it, or a NIfTI file in SUV.",
    )


def check_output(path: Path, source: Path) -> None:
    """Refuse a path that `write_image` could not write, before any long work is done.

    Args:
        path: a NIfTI name, or a new folder for DICOM.
        source: where the image comes from: DICOM cannot be derived from NIfTI.

    Raises:
        ImageError: the name is neither, the folder is not new, or the path is the input's.
    """
    where, origin = path.resolve(), source.resolve()
    if path.exists() and where == origin:
        raise ImageError(f"{path} is the input itself.", "Choose another name for the result.")
    if _is_nifti(path):
        return
    if path.suffix:
        raise ImageError(
            f"{path} is no NIfTI name.", "Let it end with .nii or .nii.gz, or name a new folder for DICOM."
        )
    if _is_nifti(source):
        raise ImageError(
            f"A DICOM series cannot be made from {source}, which says nothing of patient and scan.",
            "Let the result end with .nii or .nii.gz.",
        )
    if origin in where.parents:
        raise ImageError(f"{path} lies within the input.", "Choose a folder outside of it.")
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ImageError(f"{path} exists and is not empty.", "Name a new folder for the DICOM series.")


def check_same_grid(first: PETImage, second: PETImage, names: tuple[str, str]) -> None:
    """Refuse two images whose voxels are not at the same places.

    Args:
        names: what to call the images in the message.

    Raises:
        ImageError: shapes differ, or places by more than a hundredth of a voxel anywhere.
    """
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.array(first.voxels.shape) - 1
    apart = np.abs((first.affine - second.affine) @ corners.T)[:3].max()
    size = nib.affines.voxel_sizes(first.affine).min()
    if first.voxels.shape != second.voxels.shape or apart > size / 100:
        described = "; ".join(f"{n}: {_grid(image)}" for n, image in zip(names, (first, second), strict=True))
        raise ImageError(
            f"The images are not on one grid. {described}.", "Reconstruct or resample them on the same grid."
        )


def _grid(image: PETImage) -> str:
    shape = " x ".join(map(str, image.voxels.shape))
    spacing = " x ".join(f"{size:.3f}" for size in nib.affines.voxel_sizes(image.affine))
    origin = ", ".join(f"{value:.2f}" for value in image.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm from ({origin})"


def write_image(image: PETImage, path: Path, description: str) -> str:
    """Write the image as NIfTI, or as a derived DICOM series where the name is not NIfTI's.

    Args:
        description: what was done to the image, for DICOM.

    Returns:
        What was written, in one sentence.
    """
    size = " x ".join(map(str, image.voxels.shape))
    if _is_nifti(path):
        write_nifti(image, path)
        return f"Wrote {path}: {size} voxels in SUV (g/mL)"
    if image.source is None:
        raise ImageError(
            "A DICOM series is derived from another.", "Let the result end with .nii or .nii.gz."
        )
    step = write_derived(image.voxels, image.source, path, description)
    return f"Wrote {path}: a DICOM series of {size} voxels, rounded by at most {step / 2:.2g} SUV"


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


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def _read_nifti(path: Path) -> PETImage:
    try:
        # A compressed file is read from front to back: opened anew for every slab, it would be unpacked anew.
        nifti = nib.load(path, keep_file_open=True)
        if len(nifti.shape) != 3:
            raise ImageError(
                f"{path} has {len(nifti.shape)} dimensions {nifti.shape}, not 3.",
                "Pass one volume; split a dynamic series first.",
            )
        voxels = scratch(nifti.shape)
        for part in slabs(nifti.shape):
            voxels[..., part] = nifti.dataobj[..., part]
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ImageError(
            f"{path} cannot be read as NIfTI ({error}).", "Pass a complete .nii or .nii.gz file."
        ) from error
    if not np.isfinite(nifti.affine).all() or abs(np.linalg.det(nifti.affine[:3, :3])) < 1e-9:
        raise ImageError(
            f"The affine of {path} is singular.", "Write the file anew with its true voxel size and axes."
        )
    _check_suv(path, voxels)
    return PETImage(voxels, nifti.affine, nifti.header)


def _check_suv(path: Path, voxels: Voxels) -> None:
    """Refuse values that SUV cannot have; a NIfTI file does not say what its values are."""
    above = below = 0.0
    for part in slabs(voxels.shape):
        values = voxels[..., part]
        if not np.isfinite(values).all():
            raise ImageError(
                f"{path} holds NaN or infinite voxels.", "Set them to a number, usually 0, first."
            )
        above += values[values > 0].sum(dtype=np.float64)
        below -= values[values < 0].sum(dtype=np.float64)
    if below > MOST_NEGATIVE * above:
        raise ImageError(f"The values of {path} are largely negative.", "Pass a PET image in SUV (g/mL).")
    if above > MOST_MEAN * voxels.size:
        raise ImageError(
            f"The mean of {path} is {above / voxels.size:.3g}, too much for SUV.",
            "Divide Bq/mL by the dose per gram of body weight, or pass the DICOM series itself.",
        )
