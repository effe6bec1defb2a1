"""Apply a denoiser to a whole volume, a few slices at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import ImageError
from tgd_kit.imaging.slabs import scratch
from tgd_kit.training.weights import check_finite

PIXELS_PER_BATCH = 2**17  # eight slices of 128x128: about 0.4 GB of activations in the widest layers


@torch.inference_mode()
def denoise(
    network: nn.Module,
    volume: FloatArray,
    *,
    slab: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FloatArray:
    """Denoise every slice of a volume from itself and its two neighbours.

    The first and the last slice stand in for their missing neighbour. The network runs in eval mode, and
    gets its mode back. It runs in channels-last layout, which its weights keep: there a slice comes out the same,
    up to rounding, whatever other slices are in its batch.

    Only a few slices are in memory at once beside `volume`, which may be a memory map; the result is one
    where it is large (`tgd_kit.imaging.slabs.scratch`).

    Args:
        network: maps triplets (B, 3, H, W) in SUV to denoised triplets.
        volume: (z, y, x) in SUV, g/mL.
        slab: slices per batch; by default as many as fit a fixed number of pixels.
        progress: called after each batch with the slices done and their total.

    Returns:
        (z, y, x) in SUV, g/mL; finite.

    Raises:
        CheckpointError: the network's weights are not finite.
        ImageError: the result would not be finite.
    """
    check_finite(network, "The network")
    depth, height, width = volume.shape
    slab = slab or max(1, PIXELS_PER_BATCH // (height * width))
    training, device = network.training, next(network.parameters()).device
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    result: FloatArray = scratch((width, height, depth)).transpose()
    try:
        for start in range(0, depth, slab):
            stop = min(start + slab, depth)
            first, last = max(start - 1, 0), min(stop + 1, depth)  # with the neighbours of both ends
            slices = torch.from_numpy(np.ascontiguousarray(volume[first:last]))
            batch = triplets(slices, torch.arange(start, stop) - first)
            denoised = network(batch.to(device, memory_format=torch.channels_last))[:, 1].cpu()
            if not denoised.isfinite().all():
                raise ImageError(
                    "The network makes NaN or infinite voxels of these values.",
                    "Pass another network, or an image in SUV.",
                )
            result[start:stop] = denoised.numpy()
            if progress:
                progress(stop, depth)
    finally:
        network.train(training)
    return result


def triplets(volume: Tensor, centres: Tensor) -> Tensor:
    """(B, 3, y, x): slices `centres` of a (z, y, x) volume between their neighbours; the ends are repeated.

    >>> triplets(torch.arange(4.0).view(4, 1, 1), torch.tensor([0, 1, 3])).flatten(1)
    tensor([[0., 0., 1.],
            [0., 1., 2.],
            [2., 3., 3.]])
    """
    neighbours = centres[:, None] + torch.tensor([-1, 0, 1])
    return volume[neighbours.clamp(0, len(volume) - 1)]
