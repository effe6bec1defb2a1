"""Label maps from NIfTI files and into them: whole numbers on the grid of their image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tgd_kit.errors import ImageError
from tgd_kit.imaging.image import Image, check_same_grid
from tgd_kit.imaging.nifti import is_nifti, read_nifti
from tgd_kit.imaging.quiet import quiet
from tgd_kit.runs.files import replacing, there

MOST_LISTED = 5


def read_labels(path: Path, image: Image, meaning: Mapping[int, int]) -> NDArray[np.uint8]:
    """A label map as (z, y, x), axial like `Image.axial`, with its labels replaced by what they mean here.

    Args:
        path: a NIfTI file.
        image: that was labelled.
        meaning: label in the file to label in the result; there are no others.

    Raises:
        ImageError: the file is missing or damaged, on another grid, or has values that are no such labels.
    """
    if not there(path):
        raise ImageError(f"There is no label map {path}.", "Check the path.")
    if not is_nifti(path):
        raise ImageError(f"{path} is no NIfTI file.", "Pass the label map as .nii or .nii.gz.")
    labels = read_nifti(path)
    check_same_grid(image, labels, ("image", "label map"))
    found = labels.axial()
    unknown = [value for value in np.unique(found).tolist() if value not in meaning]
    if unknown:
        shown = ", ".join(f"{value:g}" for value in unknown[:MOST_LISTED])
        raise ImageError(
            f"{path} has the labels {shown}{', ...' * (len(unknown) > MOST_LISTED)}.",
            f"Known are {', '.join(map(str, meaning))}: whole numbers, not probabilities.",
        )
    table = np.zeros(max(meaning) + 1, np.uint8)
    table[list(meaning)] = list(meaning.values())
    return table[found.astype(np.intp)]


def write_labels(labels: NDArray[np.uint8], image: Image, path: Path) -> None:
    """Write a label map as NIfTI on the grid of its image.

    Args:
        labels: (z, y, x), axial like `Image.axial`.
        image: that was labelled.
        path: ends with .nii or .nii.gz.
    """
    turned = image.with_axial(labels.astype(np.float32)).voxels.astype(np.uint8)
    nifti = nib.Nifti1Image(turned, image.affine)
    nifti.set_data_dtype(np.uint8)
    nifti.header.set_xyzt_units("mm")
    with replacing(path) as temporary, quiet():
        nib.save(nifti, temporary)
