"""What is measured of a denoiser on one patient: lesions, liver noise, image error, artefacts at hot objects.

Images are (z, y, x) in SUV (g/mL) and are compared with the full-count image of the same reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import binary_dilation, distance_transform_edt
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from tgd_kit.arrays import FloatArray, Mask
from tgd_kit.simulation.grid import Grid
from tgd_pet.denoising import denoise
from tgd_pet.evaluation.scores import RepeatedScans, around, lesion_bias, liver_cov

RANGE_SUV = 10.0  # the data range of PSNR and SSIM: fixed, so that patients can be compared
LARGEST_SMALL_LESION_MM3 = 4 / 3 * np.pi * 7.5**3  # a sphere of 15 mm
ROI_VOXELS = 2  # how far a lesion's region of interest reaches beyond the lesion
HALO_MM = 12.0  # the halo of a hot object reaches up to this distance from it; it is measured by itself
NEAR_MM = 40.0  # artefacts are measured beyond the halo, up to this distance
SMALLEST_ARTEFACT_SUV = 0.3  # a larger error near a hot object counts as artefact


@dataclass(frozen=True)
class RegionError:
    """Error over a region, pooled over images: RMSE in SUV, PSNR in dB, mean SSIM; data range `RANGE_SUV`."""

    rmse: float
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Patient:
    """The measures of one denoiser on one reconstruction of one patient; the means are over the lesions.

    Args:
        bias: ensemble bias of the lesions' mean SUV, in % (`lesion_bias`).
        bias_true: the same against the phantom instead of the full-count image.
        bias_small: the same for lesions of less than 15 mm diameter; None without any.
        bias_max: ensemble bias of the lesions' largest SUV, in %.
        suv_mean: mean SUV.
        suv_max: largest SUV.
        cov: noise of the liver from scan to scan, in % (`liver_cov`); None where there is no liver.
        body: error inside the skin.
        roi: error in and near the lesions.
    """

    bias: float
    bias_true: float
    bias_small: float | None
    bias_max: float
    suv_mean: float
    suv_max: float
    cov: float | None
    body: RegionError
    roi: RegionError


@dataclass(frozen=True)
class Artefacts:
    """What a denoiser does around one hot object: tissue from 12 to 40 mm from its surface, and the halo within.

    Args:
        halo: root mean squared error in SUV from the voxels that touch the object to 12 mm; None where no
            tissue is so near.
        mean: mean error in SUV.
        rmse: root mean squared error in SUV.
        lowest: the lowest voxel in SUV; tissue cannot be below zero.
        volume: of the tissue whose error exceeds 0.3 SUV, in mL.
        hot: bias of the object's mean SUV, in %.
    """

    halo: float | None
    mean: float
    rmse: float
    lowest: float
    volume: float
    hot: float


@dataclass(frozen=True)
class Learnt:
    """How an online learning went: what of `tgd_pet.training.online.Online` is kept on file."""

    share: float
    before: float
    after: float
    learnt: bool


@dataclass(frozen=True)
class Unseen(Patient):
    """The measures of an unseen case on file; artefacts where there is a hot object."""

    online: Learnt | None
    artefacts: Artefacts | None = None


def measure(
    network: nn.Module | None, patient: RepeatedScans, version: str, *, images: int | None = None
) -> Patient:
    """Denoise the short scans of a patient and measure them; without a network the scans themselves.

    Args:
        network: maps triplets (B, 3, H, W) in SUV to denoised triplets.
        patient: a simulated patient with repeated short scans and lesions.
        version: which reconstruction, "v1" or "v2".
        images: number of scans; all by default.
    """
    window = around(patient.body())
    target, body = patient.full(version)[window], patient.body()[window]
    lesions = [mask[window] for mask in patient.lesion_masks()]
    scans = denoised(network, [scan[window] for scan in patient.realisations(version)[:images]])
    true, liver = patient.true[window], patient.liver()[window]
    return measure_images(scans, target, true, body, lesions, liver, _voxel_mm3(patient))


def denoised(network: nn.Module | None, scans: Sequence[FloatArray]) -> list[FloatArray]:
    """The scans after the network; as they are where it is None."""
    return list(scans) if network is None else [denoise(network, scan) for scan in scans]


def measure_images(
    scans: Sequence[FloatArray],
    target: FloatArray,
    true: FloatArray,
    body: Mask,
    lesions: Sequence[Mask],
    liver: Mask,
    voxel_mm3: float,
) -> Patient:
    """`measure` for images that are denoised already.

    Example:
        >>> target = np.ones((1, 16, 16), np.float32)
        >>> mask = target > 0
        >>> found = measure_images([target * 0.9, target * 1.1], target, target, mask, [mask], mask, 1.0)
        >>> round(found.bias, 4), round(found.cov, 2), round(found.body.rmse, 4), round(found.body.psnr, 2)
        (0.0, 14.14, 0.1, 40.0)
    """
    biases = [lesion_bias(scans, target, mask) for mask in lesions]
    sizes = [mask.sum() * voxel_mm3 for mask in lesions]
    small = [bias for bias, size in zip(biases, sizes, strict=True) if size < LARGEST_SMALL_LESION_MM3]
    tops = [(np.mean([scan[mask].max() for scan in scans]), target[mask].max()) for mask in lesions]
    similar = [_similarity(scan, target) for scan in scans]
    roi = body & np.any([binary_dilation(mask, iterations=ROI_VOXELS) for mask in lesions], axis=0)
    return Patient(
        bias=float(np.mean(biases)),
        bias_true=float(np.mean([lesion_bias(scans, true, mask) for mask in lesions])),
        bias_small=float(np.mean(small)) if small else None,
        bias_max=float(np.mean([100 * (found - true) / true for found, true in tops])),
        suv_mean=float(np.mean([scan[mask].mean() for scan in scans for mask in lesions])),
        suv_max=float(np.mean([found for found, _ in tops])),
        cov=liver_cov(scans, liver) if liver.any() and len(scans) > 1 else None,
        body=_error(scans, similar, target, body),
        roi=_error(scans, similar, target, roi),
    )


def around_hot_object(image: FloatArray, target: FloatArray, hot: Mask, body: Mask, grid: Grid) -> Artefacts:
    """What `image` has around the hot object and the full-count image of the same reconstruction has not.

    Args:
        image: (z, y, x) in SUV.
        target: the full-count image.
        hot: the object.
        body: inside of the skin.
        grid: voxels of all of them.
    """
    around_it = _within(hot, HALO_MM, grid)
    near = _within(hot, NEAR_MM, grid) & ~around_it & body
    halo = around_it & ~hot & body
    error = image[near].astype(np.float64) - target[near]
    return Artefacts(
        halo=_rms(image[halo] - target[halo]) if halo.any() else None,
        mean=float(error.mean()),
        rmse=_rms(error),
        lowest=float(image[near].min()),
        volume=float((np.abs(error) > SMALLEST_ARTEFACT_SUV).sum() * np.prod(grid.spacing_mm) / 1000),
        hot=lesion_bias([image], target, hot),
    )


def _rms(values: FloatArray | npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def _within(mask: Mask, distance_mm: float, grid: Grid) -> Mask:
    distance: npt.NDArray[np.float64] = distance_transform_edt(~mask, sampling=grid.spacing_mm)
    return distance <= distance_mm


def _similarity(image: FloatArray, target: FloatArray) -> FloatArray:
    """SSIM of every voxel within its slice (Wang et al., IEEE Trans Image Process 2004; 11x11 Gaussian)."""
    found, expected = (torch.from_numpy(np.ascontiguousarray(volume))[:, None] for volume in (image, target))
    _, full = structural_similarity_index_measure(
        found, expected, data_range=(0.0, RANGE_SUV), return_full_image=True
    )
    similar: FloatArray = full[:, 0].numpy()
    return similar


def _error(
    scans: Sequence[FloatArray], similar: Sequence[FloatArray], target: FloatArray, region: Mask
) -> RegionError:
    squares = [np.square(scan[region].astype(np.float64) - target[region]).mean() for scan in scans]
    rmse = float(np.sqrt(np.mean(squares)))
    return RegionError(
        rmse=rmse,
        psnr=float(20 * np.log10(RANGE_SUV / rmse)) if rmse else float("inf"),
        ssim=float(np.mean([values[region].mean() for values in similar])),
    )


def _voxel_mm3(patient: RepeatedScans) -> float:
    return float(np.prod(patient.grid().spacing_mm))
