"""A patient's CT at several doses with what is to be segmented in it: what training and measuring work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tgd_kit.arrays import FloatArray, Mask
from tgd_kit.errors import ImageError
from tgd_kit.simulation.grid import Vector

Task = Literal["liver", "kidney"]  # as LiTS and as KiTS have them
TASKS: tuple[Task, ...] = get_args(Task)
ORGAN, TUMOUR = 1, 2  # labels of a target; 0 is the rest
NORMAL = 1.0  # the normal dose
DOSES = (1.0, 0.25, 0.1, 0.05, 0.02, 0.01)  # shares of the normal dose


@dataclass(frozen=True)
class Case:
    """One patient; all volumes are (z, y, x), axial, with z towards the feet.

    Args:
        name: unique in its set.
        spacing_mm: voxel size (z, y, x).
        images: dose, as a share of the normal one, to the image in HU.
        targets: task to label map, uint8: `ORGAN` (around tumours) and `TUMOUR`.
        body: everything inside the skin.
    """

    name: str
    spacing_mm: Vector
    images: Mapping[float, FloatArray]
    targets: Mapping[Task, NDArray[np.uint8]]
    body: Mask

    def image(self, dose: float) -> FloatArray:
        """The image at this share of the normal dose, in HU.

        Raises:
            ImageError: the case does not have it.
        """
        if dose not in self.images:
            have = ", ".join(f"{100 * known:g} %" for known in self.images)
            raise ImageError(f"{self.name} has no image at {100 * dose:g} % of the dose.", f"It has {have}.")
        return self.images[dose]

    def target(self, task: Task) -> NDArray[np.uint8]:
        """The label map of a task.

        Raises:
            ImageError: the case does not have it.
        """
        if task not in self.targets:
            raise ImageError(
                f"{self.name} has no labels for {task}.",
                f"It has them for {', '.join(self.targets) or 'none'}.",
            )
        return self.targets[task]
