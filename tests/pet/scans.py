"""A stand-in for a simulated patient: smooth random activity with multiplicative noise, and masks."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from tgd_kit.simulation.grid import Grid


class RandomScans:
    """Volumes that follow from the seed; both versions have the same target, v2 has twice the noise."""

    def __init__(
        self, seed: int = 0, shape: tuple[int, int, int] = (5, 48, 40), *, realisations: int = 0
    ) -> None:
        random = np.random.default_rng(seed)
        self._target = gaussian_filter(random.gamma(1.0, 4.0, shape), 2).astype(np.float32)
        self._images = {
            version: [self._noisy(random, noise) for _ in range(2 + realisations)]
            for version, noise in (("v1", 0.2), ("v2", 0.4))
        }
        _, y, x = shape
        self._body = np.zeros(shape, bool)
        self._body[:, y // 4 : -y // 4, x // 4 : -x // 4] = True

    def _noisy(self, random: np.random.Generator, noise: float) -> np.ndarray:
        return (self._target * random.normal(1.0, noise, self._target.shape)).astype(np.float32)

    def full(self, version: str) -> np.ndarray:
        return self._target

    @property
    def true(self) -> np.ndarray:
        return np.float32(1.25) * self._target

    def low(self, version: str) -> list[np.ndarray]:
        return self._images[version][:2]

    def realisations(self, version: str) -> list[np.ndarray]:
        return self._images[version][2:]

    def body(self) -> np.ndarray:
        return self._body

    def liver(self) -> np.ndarray:
        return self._block(0)

    def lesion_masks(self) -> list[np.ndarray]:
        return [self._block(1), self._block(2)]

    def grid(self) -> Grid:
        return Grid(self._target.shape, (4.0, 4.0, 4.0))

    def _block(self, index: int) -> np.ndarray:
        """A 3x3x3 block inside the body."""
        mask = np.zeros_like(self._body)
        start = [size // 4 + 1 + 3 * index for size in mask.shape[1:]]
        mask[1:4, start[0] : start[0] + 3, start[1] : start[1] + 3] = True
        return mask
