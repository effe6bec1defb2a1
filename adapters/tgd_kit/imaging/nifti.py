"""NIfTI files: read a few slices at a time, written with the grid and header they came with."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tgd_kit.errors import ImageError
from tgd_kit.imaging.image import Image
from tgd_kit.imaging.slabs import scratch, slabs
from tgd_kit.runs.files import replacing

NIFTI_SUFFIXES = (".nii", ".nii.gz")


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def read_nifti(path: Path) -> Image:
    """Read one volume; its values are finite.

    Raises:
        ImageError: the file is damaged, or not one volume on a grid.
    """
    try:
        # A compressed file is read from front to back: opened anew for every slab, it would be unpacked anew.
        nifti: Any = nib.load(path, keep_file_open=True)
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
    if not all(np.isfinite(voxels[..., part]).all() for part in slabs(voxels.shape)):
        raise ImageError(f"{path} holds NaN or infinite voxels.", "Set them to a number, usually 0, first.")
    return Image(voxels, nifti.affine, nifti.header)


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
    with replacing(path) as temporary:
        nib.save(nifti, temporary)
