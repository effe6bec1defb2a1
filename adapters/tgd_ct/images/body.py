"""The patient in a CT, without table, cushions and clothes."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_fill_holes, binary_opening, label

from tgd_kit.arrays import FloatArray, Mask

LOWEST_HU = -500.0  # between air and skin
THINNEST = 2  # voxels: what is thinner in a slice, such as a table's surface, is cut off


def body_mask(volume: FloatArray) -> Mask:
    """Everything inside the skin, lungs and gas included: the largest connected part that is no air.

    Args:
        volume: (z, y, x) in HU.
    """
    cross = np.zeros((3, 3, 3), bool)
    cross[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]  # within slices: the first and the last one are no surface
    dense = volume > LOWEST_HU
    parts, number = label(binary_opening(dense, cross, iterations=THINNEST))
    if not number:
        return np.zeros(volume.shape, np.bool_)
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    body: Mask = np.stack([binary_fill_holes(part) for part in largest])
    return body
