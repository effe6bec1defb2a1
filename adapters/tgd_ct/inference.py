"""Apply networks to whole volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from skimage.restoration import denoise_nl_means
from torch import Tensor, nn

from tgd_ct.networks.generator import kind_of
from tgd_ct.networks.segmenters import Segmenter
from tgd_kit.arrays import FloatArray
from tgd_kit.errors import ImageError
from tgd_kit.imaging.slabs import scratch
from tgd_kit.training.weights import check_finite

PIXELS_PER_BATCH = 2**17
BLOCK = (16, 96, 96)  # of a volume in 3-D
OVERLAP = 0.25  # of neighbouring blocks

Progress = Callable[[int], None]  # slices done since the last call


@torch.inference_mode()
def denoise(network: nn.Module, volume: FloatArray, *, progress: Progress | None = None) -> FloatArray:
    """Denoise a volume: slice by slice, or in overlapping blocks where the network is one of volumes.

    The first and the last slice stand in for their missing neighbour. The network runs in eval mode, and gets its mode
    back.

    Args:
        network: a denoiser.
        volume: (z, y, x) in HU.
        progress: called after each batch with the number of slices done in it.

    Returns:
        (z, y, x) in HU; finite.

    Raises:
        CheckpointError: the network's weights are not finite.
        ImageError: the result would not be finite.
    """
    check_finite(network, "The network")
    kind, training = kind_of(network), network.training
    network.eval()
    try:
        if kind == "3d":
            result = _in_blocks(network, volume, progress)
        else:
            result = _by_slices(network, volume, 1 if kind == "2.5d" else 0, progress)
    finally:
        network.train(training)
    return result


@torch.inference_mode()
def segment(network: Segmenter, volume: FloatArray, *, progress: Progress | None = None) -> NDArray[np.uint8]:
    """The label of every voxel, slice by slice.

    Args:
        network: a segmenter.
        volume: (z, y, x) in HU.
        progress: called after each batch with the number of slices done in it.

    Returns:
        (z, y, x): `tgd_ct.case.ORGAN`, `TUMOUR` or 0.
    """
    training, device = network.training, _device(network)
    network.eval()
    labels = np.empty(volume.shape, np.uint8)
    try:
        for part in _batches(volume):
            slices = torch.from_numpy(np.ascontiguousarray(volume[part]))[:, None]
            labels[part] = network(slices.to(device)).argmax(1).byte().cpu().numpy()
            if progress:
                progress(part.stop - part.start)
    finally:
        network.train(training)
    return labels


def non_local_means(volume: FloatArray, noise: float) -> FloatArray:
    """Non-local means of every slice: the classical baseline.

    Args:
        volume: (z, y, x) in HU.
        noise: its standard deviation in HU. Distances between patches are cut off at .8 of it (scikit-image's advice).

    Reference: Buades, Coll and Morel, CVPR 2005, in scikit-image's fast form.
    """
    result = np.empty_like(volume)
    for z, image in enumerate(volume):
        result[z] = denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=0.8 * noise, sigma=noise, fast_mode=True
        )
    return result


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _batches(volume: FloatArray) -> Iterator[slice]:
    depth, height, width = volume.shape
    step = max(1, PIXELS_PER_BATCH // (height * width))
    yield from (slice(start, min(start + step, depth)) for start in range(0, depth, step))


def _by_slices(
    network: nn.Module, volume: FloatArray, neighbours: int, progress: Progress | None
) -> FloatArray:
    """Each slice with so many neighbours on either side as channels."""
    depth, height, width = volume.shape
    result: FloatArray = scratch((width, height, depth)).transpose()
    around = np.arange(-neighbours, neighbours + 1)
    for part in _batches(volume):
        centres = np.arange(part.start, part.stop)
        index = np.clip(centres[:, None] + around, 0, depth - 1)
        slices = torch.from_numpy(np.ascontiguousarray(volume[index]))
        result[part] = _finite(network(slices.to(_device(network)))[:, 0])
        if progress:
            progress(len(centres))
    return result


def _in_blocks(network: nn.Module, volume: FloatArray, progress: Progress | None) -> FloatArray:
    images = torch.from_numpy(np.ascontiguousarray(volume))[None, None]
    block = [min(size, most) for size, most in zip(volume.shape, BLOCK, strict=True)]
    device = _device(network)
    blended = sliding_window_inference(
        images, block, 1, network, overlap=OVERLAP, mode="gaussian", sw_device=device, device="cpu"
    )
    assert isinstance(blended, Tensor)
    if progress:
        progress(len(volume))
    return _finite(blended[0, 0])


def _finite(denoised: Tensor) -> FloatArray:
    if not denoised.isfinite().all():
        raise ImageError(
            "The network makes NaN or infinite voxels of these values.",
            "Pass another network, or an image in HU.",
        )
    values: FloatArray = denoised.cpu().numpy()
    return values
