"""NIfTI files: read a few slices at a time, written with the grid and header they came with."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from tgd_kit.errors import ImageError, reason
from tgd_kit.imaging.image import Image
from tgd_kit.imaging.quiet import quiet
from tgd_kit.imaging.slabs import scratch, slabs
from tgd_kit.runs.files import replacing

NIFTI_SUFFIXES = (".nii", ".nii.gz")
MOST_EXPANSION, SMALL = 20, 2**30  # a file may take so many times its size, or so many bytes


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def read_nifti(path: Path) -> Image:
    """Read one volume; its values are finite. Axes of length 1 after the third do not count.

    Raises:
        ImageError: the file is damaged, or not one volume of numbers on a grid.
    """
    try:
        with quiet():  # nibabel prints what it mends
            image = _read(path)
    except ImageError:
        raise
    except Exception as error:  # nibabel raises anything on damaged bytes
        raise ImageError(
            f"{path} cannot be read as NIfTI ({reason(error)}).", "Pass a complete .nii or .nii.gz file."
        ) from error
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise ImageError(
            f"The affine of {path} is singular.", "Write the file anew with its true voxel size and axes."
        )
    if not all(np.isfinite(image.voxels[..., part]).all() for part in slabs(image.voxels.shape)):
        raise ImageError(f"{path} holds NaN or infinite voxels.", "Set them to a number, usually 0, first.")
    return image


def _read(path: Path) -> Image:
    # A compressed file is read from front to back: opened anew for every slab, it would be unpacked anew.
    nifti: Any = nib.load(path, keep_file_open=True)
    shape = nifti.shape[:3]
    if len(shape) < 3 or prod(nifti.shape) != prod(shape) or not prod(shape):
        raise ImageError(
            f"{path} has {len(nifti.shape)} dimensions {nifti.shape}, not 3.",
            "Pass one volume; split a dynamic series first.",
        )
    if nifti.get_data_dtype().kind not in "iuf":
        raise ImageError(
            f"The voxels of {path} are no plain numbers, but {nifti.get_data_dtype()}.",
            "Pass one image of numbers.",
        )
    _check_voxel_size(path, type(nifti.header))
    if 4 * prod(shape) > max(SMALL, MOST_EXPANSION * path.stat().st_size):
        raise ImageError(
            f"{path} would take {4 * prod(shape):,} bytes when unpacked.",
            "Crop the image, or pass it as .nii.",
        )
    voxels, last = scratch(shape), (0,) * (len(nifti.shape) - 3)
    for part in slabs(shape):
        index = (slice(None), slice(None), part, *last)
        voxels[..., part] = nifti.dataobj[index]
    return Image(voxels, nifti.affine, nifti.header)


def _check_voxel_size(path: Path, header: type[nib.Nifti1Header]) -> None:
    """As it is written: nibabel makes 1 of 0, and a positive size of a negative one."""
    with ImageOpener(str(path)) as file:
        size = header.from_fileobj(file, check=False)["pixdim"][1:4]
    if not (np.isfinite(size).all() and size.min() > 0):
        shown = " x ".join(f"{value:g}" for value in size)
        raise ImageError(
            f"The voxels of {path} have a size of {shown} mm (pixdim).",
            "Write the file anew with its true voxel size.",
        )


def write_nifti(image: Image, path: Path, description: str = "") -> None:
    """Write the image as float32; header and grid are those of the input where it was NIfTI.

    Args:
        image: what to write.
        path: ends with .nii or .nii.gz.
        description: what the values are, for a header that is new; at most 79 characters.
    """
    header = None if image.header is None else image.header.copy()
    made: Any = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    nifti = made(image.voxels, image.affine, header)
    nifti.set_data_dtype(np.float32)
    if header is None:
        nifti.header.set_xyzt_units("mm")
        nifti.header["descrip"] = description.encode()
    with replacing(path) as temporary, quiet():
        nib.save(nifti, temporary)
