"""Ordered-subsets expectation maximisation, and the two reconstructions that the experiments compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tgd_kit.arrays import FloatArray
from tgd_kit.simulation.projector import Projector, blur
from tgd_pet.simulation.acquisition import Acquisition, Scanner

_TINY = 1e-6  # counts, or counts per SUV: keeps lines that see nothing from dividing by zero


@dataclass(frozen=True)
class Reconstruction:
    """Settings of an OSEM reconstruction; the number of subsets is the scanner geometry's.

    Attributes:
        name: short name.
        iterations: passes over all subsets.
        psf_mm: FWHM of the resolution model in image space; 0 for none.
        tof: use the time of flight, or sum over it.
        filter_mm: FWHM of the Gaussian post-filter.
    """

    name: str
    iterations: int
    psf_mm: float
    tof: bool
    filter_mm: float


V1 = Reconstruction("v1", iterations=3, psf_mm=0.0, tof=False, filter_mm=5.0)
V2 = Reconstruction("v2", iterations=3, psf_mm=5.0, tof=True, filter_mm=3.0)
RECONSTRUCTIONS = {"v1": V1, "v2": V2}


def reconstruct(acquisition: Acquisition, scanner: Scanner, settings: Reconstruction) -> FloatArray:
    """Reconstruct SUV (z, y, x) in g/mL (Hudson and Larkin, IEEE Trans Med Imaging 1994).

    With `P` the projector and `G` the resolution model, each subset s updates
    `x <- x / (G P_s' f) * G P_s' (f y / (f P_s G x + b))`: counts y, factors f, background b.

    Args:
        acquisition: time-of-flight data as `tgd_pet.simulation.acquisition.acquire` makes them.
        scanner: the scanner that made them.
        settings: `V1`, `V2` or others.
    """
    geometry = scanner.geometry
    without_tof = Projector(geometry.without_tof())
    projector = Projector(geometry) if settings.tof else without_tof
    data = acquisition if settings.tof else acquisition.without_tof()

    def resolution(volume: FloatArray) -> FloatArray:
        return blur(volume, settings.psf_mm, scanner.spacing_mm)

    # The TOF bins sum to the whole line, so the sensitivity needs no TOF.
    sensitivity = [
        np.maximum(resolution(without_tof.back_subset(factors, s)), _TINY)
        for s, factors in enumerate(data.factors)
    ]
    image = np.broadcast_to(_field_of_view(geometry.size), sensitivity[0].shape).astype(np.float32)
    for _ in range(settings.iterations):
        for s, factors in enumerate(data.factors):
            expected = factors * projector.forward_subset(resolution(image), s) + data.background[s]
            ratio = factors * (data.counts[s] / np.maximum(expected, _TINY))
            image *= resolution(projector.back_subset(ratio, s)) / sensitivity[s]
    return blur(image, settings.filter_mm, scanner.spacing_mm)


def _field_of_view(size: int) -> FloatArray:
    """1 inside the circle that every angle sees, 0 outside."""
    centred = np.arange(size) - (size - 1) / 2
    inside: FloatArray = (np.hypot(centred[:, None], centred) <= size / 2).astype(np.float32)
    return inside
