"""Image quality and overlap of masks, per patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from tgd_ct.case import ORGAN, TUMOUR
from tgd_kit.arrays import FloatArray, Mask

WINDOW = (-160.0, 240.0)  # HU; of SSIM and PSNR, the usual window of the abdomen


@dataclass(frozen=True)
class Quality:
    """An image against the one of normal dose, over one region.

    Args:
        rmse: root mean squared error in HU.
        psnr: peak signal-to-noise ratio in dB, with 400 HU as the peak, of values clipped to the window.
        ssim: structural similarity of each slice, clipped to the window, averaged over the region.
    """

    rmse: float
    psnr: float
    ssim: float


def quality(image: FloatArray, reference: FloatArray, regions: dict[str, Mask]) -> dict[str, Quality]:
    """RMSE, PSNR and SSIM of an image over regions; a region without voxels has none.

    Args:
        image: (z, y, x) in HU.
        reference: of the same shape.
        regions: name to mask.

    Reference: SSIM as Wang et al., IEEE Trans Image Processing 2004, with scikit-image's uniform 7 x 7 window.

    >>> image = np.zeros((1, 8, 8), np.float32)
    >>> quality(image, image + 4, {"image": image == 0})["image"].psnr
    40.0
    """
    low, high = WINDOW
    seen, seen_reference = np.clip(image, low, high), np.clip(reference, low, high)
    similar = np.stack(
        [
            structural_similarity(one, other, data_range=high - low, full=True)[1]
            for one, other in zip(seen, seen_reference, strict=True)
        ]
    )
    found = {}
    for name, mask in regions.items():
        if mask.any():
            inside = (seen - seen_reference)[mask].astype(np.float64)
            psnr = 10 * np.log10((high - low) ** 2 / np.square(inside).mean())
            rmse = np.sqrt(np.square((image - reference)[mask].astype(np.float64)).mean())
            found[name] = Quality(float(rmse), float(psnr), float(similar[mask].mean()))
    return found


def dice(found: Mask, true: Mask) -> float | None:
    """Overlap ``2 |A and B| / (|A| + |B|)`` over the volume; None where nothing is to be found.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    if not true.any():
        return None
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


def organ_and_tumour(found: NDArray[np.uint8], true: NDArray[np.uint8]) -> dict[str, float | None]:
    """Dice of the organ, tumours included, and of the tumours."""
    return {"organ": dice(found >= ORGAN, true >= ORGAN), "tumour": dice(found == TUMOUR, true == TUMOUR)}
