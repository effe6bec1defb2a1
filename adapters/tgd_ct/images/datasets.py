"""Data sets of normal-dose CT with hand-drawn labels, as they come: LiTS and KiTS."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from tgd_ct.case import NORMAL, ORGAN, TUMOUR, Case, Task
from tgd_ct.images.body import body_mask
from tgd_ct.images.hu import HU
from tgd_ct.images.labels import read_labels
from tgd_ct.scanner import AIR_HU, check_dose
from tgd_kit.errors import ImageError
from tgd_kit.imaging.image import check_same_grid
from tgd_kit.simulation.grid import Vector

Shape = tuple[int, int, int]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Layout:
    """How a data set names its files.

    Attributes:
        name: of the data set.
        task: what is labelled.
        images: pattern of the images' paths; what stands for `*` names the patient.
        labels: the label map of a patient, `{}` being the patient.
        meaning: label in the files to `ORGAN`, `TUMOUR` or 0.
    """

    name: str
    task: Task
    images: str
    labels: str
    meaning: Mapping[int, int]

    def patients(self, folder: Path) -> dict[str, Path]:
        """The patients of a folder and their images, in the order of their numbers.

        Raises:
            ImageError: there is none.
        """
        found: dict[str, Path] = {}
        before, after = (re.escape(part) for part in self.images.split("*"))
        for suffix in (".nii", ".nii.gz"):
            for path in folder.glob(self.images + suffix):
                match = re.fullmatch(
                    f"{before}(.*){after}{re.escape(suffix)}", path.relative_to(folder).as_posix()
                )
                if match and found.setdefault(match[1], path) != path:
                    raise ImageError(
                        f"{folder} has the image of patient {match[1]} twice.", "Delete one of them."
                    )
        if not found:
            raise ImageError(
                f"{folder} holds no image {self.images}.nii or .nii.gz.", f"Pass the folder of {self.name}."
            )
        return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))

    def label_map(self, folder: Path, patient: str) -> Path:
        """The label map of a patient, whose name ends like NIfTI's."""
        path = folder / (self.labels.format(patient) + ".nii")
        return path if path.exists() else path.with_name(path.name + ".gz")


LITS = Layout("LiTS", "liver", "volume-*", "segmentation-{}", {0: 0, 1: ORGAN, 2: TUMOUR})
# Cysts (3, since KiTS21) are no tumours; they belong to the kidney, as in "kidney and masses" of the challenge.
KITS = Layout(
    "KiTS", "kidney", "case_*/imaging", "case_{}/segmentation", {0: 0, 1: ORGAN, 2: TUMOUR, 3: ORGAN}
)


def read_dataset(
    layout: Layout,
    folder: Path,
    *,
    patients: Sequence[str] | None = None,
    low_dose: Mapping[float, Path] | None = None,
    spacing_mm: Vector | None = None,
    shape: Shape | None = None,
) -> Iterator[Case]:
    """The patients of a data set, one after the other: a whole CT has hundreds of megabytes.

    Args:
        layout: `LITS` or `KITS`.
        folder: of the data set.
        patients: their names, such as "0" of `volume-0.nii`; all by default.
        low_dose: share of the dose to a folder that holds the images at this dose under the same names, as
            `tgd ct insert` writes them.
        spacing_mm: voxel size (z, y, x) to resample to: images linearly, labels by their nearest voxel.
        shape: voxels (z, y, x) to cut out around the middle of the organ, after resampling; beyond the image
            there is air.

    Raises:
        ImageError: a file is missing or damaged, is no CT in HU, or has other labels; or files of one patient are on
            different grids.

    Example:
        >>> cases = read_dataset(LITS, Path("lits"), spacing_mm=(3.0, 1.5, 1.5), shape=(32, 256, 256))
    """
    images = layout.patients(folder)
    unknown = set(patients or ()) - images.keys()
    if unknown:
        raise ImageError(f"{folder} has no patient {', '.join(sorted(unknown))}.", "Check the names.")
    for patient in patients or images:
        yield _case(layout, folder, patient, images[patient], low_dose or {}, spacing_mm, shape)


def _case(
    layout: Layout,
    folder: Path,
    patient: str,
    path: Path,
    low_dose: Mapping[float, Path],
    spacing_mm: Vector | None,
    shape: Shape | None,
) -> Case:
    image = HU.read(path)
    target = read_labels(layout.label_map(folder, patient), image, layout.meaning)
    if not target.any():
        raise ImageError(
            f"The label map of {layout.name} patient {patient} is empty.", "Leave the patient out."
        )
    spacing = image.axial_spacing_mm()
    region = _Region.around(target, spacing, spacing_mm or spacing, shape)
    volumes = {NORMAL: region.cut(image.axial(), order=1, beyond=AIR_HU)}
    for dose, other in low_dose.items():
        check_dose(dose)
        low = HU.read(other / path.relative_to(folder))
        check_same_grid(image, low, ("normal dose", f"{100 * dose:g} %"))
        volumes[dose] = region.cut(low.axial(), order=1, beyond=AIR_HU)
    name = f"{layout.name} {patient}"
    labels = region.cut(target, order=0, beyond=0)
    return Case(name, region.to_mm, volumes, {layout.task: labels}, body_mask(volumes[NORMAL]))


@dataclass(frozen=True)
class _Region:
    """Where voxels of a new grid lie in a volume.

    Attributes:
        from_mm: voxel size of the volume.
        to_mm: voxel size of the new grid.
        start: index in the volume of the new grid's first voxel, which need not be whole.
        shape: of the new grid.
    """

    from_mm: Vector
    to_mm: Vector
    start: tuple[float, ...]
    shape: Shape

    @classmethod
    def around(
        cls, target: NDArray[np.uint8], from_mm: Vector, to_mm: Vector, shape: Shape | None
    ) -> _Region:
        """The whole volume, or a part of it around the middle of what is labelled."""
        ratio = np.divide(to_mm, from_mm)
        centre = (np.array(target.shape) - 1) / 2
        if shape is None:
            z, y, x = (int((n - 1) / r) + 1 for n, r in zip(target.shape, ratio, strict=True))
            shape = z, y, x  # as many as lie between the centres of the outermost voxels
        else:
            labelled = [np.flatnonzero(target.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
            centre = np.array([(places[0] + places[-1]) / 2 for places in labelled])
        start = centre - (np.array(shape) - 1) / 2 * ratio
        if from_mm == to_mm:
            start = np.rint(start)  # whole voxels: nothing is interpolated
        return cls(from_mm, to_mm, tuple(start.tolist()), shape)

    def cut(self, volume: NDArray[Scalar], *, order: int, beyond: float) -> NDArray[Scalar]:
        """The values of a volume on the new grid."""
        ratio = np.divide(self.to_mm, self.from_mm)
        low = np.maximum(np.floor(self.start).astype(int), 0)  # what is read of the volume
        high = np.ceil(self.start + ratio * np.array(self.shape)).astype(int) + 1
        part = volume[tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))]
        found: NDArray[Scalar] = affine_transform(
            np.ascontiguousarray(part), np.diag(ratio), self.start - low, self.shape, order=order, cval=beyond
        )
        return found
