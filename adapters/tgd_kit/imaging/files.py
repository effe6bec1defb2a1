"""Images of one quantity from files and into files: NIfTI, or a folder or zip of DICOM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import ImageError
from tgd_kit.imaging.dicom.derived import write_derived
from tgd_kit.imaging.dicom.series import read_series
from tgd_kit.imaging.image import Image
from tgd_kit.imaging.nifti import is_nifti, read_nifti, write_nifti
from tgd_kit.imaging.slabs import slabs
from tgd_kit.runs.files import there


@dataclass(frozen=True)
class Quantity:
    """What an adapter's voxels mean, and how files hold it.

    Args:
        name: short, such as "SUV".
        unit: such as "g/mL".
        modality: of DICOM series, in DICOM's two letters.
        factor: the quantity per unit of a DICOM series, from the tags of all its slices.
        check: refuses values that the quantity cannot have: a NIfTI file does not say what they are, and a DICOM
            series may say what is not so.
    """

    name: str
    unit: str
    modality: str
    factor: Callable[[Sequence[Dataset]], float]
    check: Callable[[Path, FloatArray], None]

    def read(self, path: Path, *, series: str | None = None) -> Image:
        """Read a NIfTI file, whose values are taken to be in this quantity, or a folder or zip of DICOM slices.

        Args:
            path: the file or folder.
            series: number, description or UID of the DICOM series, where there are several.

        Raises:
            ImageError: the file is missing, damaged, not such an image, or lacks what the quantity needs.
        """
        image = self._image(path, series)
        self.check(path, image.voxels)
        return image

    def _image(self, path: Path, series: str | None) -> Image:
        if not there(path):
            raise ImageError(f"There is no file or folder {path}.", "Check the path.")
        if is_nifti(path):
            return read_nifti(path)
        if path.is_dir() or path.suffix.lower() == ".zip":
            voxels, affine, source = read_series(path, self.modality, self.factor, series=series)
            return Image(voxels, affine, source=source)
        raise ImageError(
            f"{path} is neither a folder nor a .zip, .nii or .nii.gz file.",
            f"Pass the folder of a DICOM series, a zip of it, or a NIfTI file in {self.name}.",
        )

    def write(self, image: Image, path: Path, description: str, *, word: str = "denoised") -> str:
        """Write an image as NIfTI, or as a derived DICOM series where the name is not NIfTI's.

        Args:
            image: in this quantity.
            path: a NIfTI name, or a new folder for DICOM.
            description: what was done to the image, for DICOM.
            word: the same in one word, for the name of the DICOM series.

        Returns:
            What was written, in one sentence.

        Raises:
            ImageError: the name is that of a DICOM series, and the image does not come from one; or voxels are not
                finite.
        """
        if not all(np.isfinite(image.voxels[..., part]).all() for part in slabs(image.voxels.shape)):
            raise ImageError("The result holds NaN or infinite voxels.", "Pass another network or scan.")
        size = " x ".join(map(str, image.voxels.shape))
        if is_nifti(path):
            write_nifti(image, path, f"{self.modality} {self.name}")
            unit = f" ({self.unit})" * (self.unit != self.name)
            return f"Wrote {path}: {size} voxels in {self.name}{unit}"
        if image.source is None:
            raise ImageError(
                "A DICOM series is derived from another.", "Let the result end with .nii or .nii.gz."
            )
        step = write_derived(image.voxels, image.source, path, description, word=word)
        return f"Wrote {path}: a DICOM series of {size} voxels, rounded by at most {step / 2:.2g} {self.name}"


def check_output(path: Path, source: Path) -> None:
    """Refuse a path that `Quantity.write` could not write, before any long work is done.

    Args:
        path: a NIfTI name, or a new folder for DICOM.
        source: where the image comes from: DICOM cannot be derived from NIfTI.

    Raises:
        ImageError: the name is neither, the folder is not new, or the path is the input's.
    """
    found, where, origin = there(path), path.resolve(), source.resolve()
    if found and where == origin:
        raise ImageError(f"{path} is the input itself.", "Choose another name for the result.")
    if is_nifti(path):
        return
    if path.suffix:
        raise ImageError(
            f"{path} is not a NIfTI name.",
            "Let it end with .nii or .nii.gz, or name a new folder for DICOM.",
        )
    if is_nifti(source):
        raise ImageError(
            f"A DICOM series cannot be made from {source}, which says nothing of patient and scan.",
            "Let the result end with .nii or .nii.gz.",
        )
    if origin in where.parents:
        raise ImageError(f"{path} lies within the input.", "Choose a folder outside of it.")
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ImageError(f"{path} exists and is not empty.", "Name a new folder for the DICOM series.")
