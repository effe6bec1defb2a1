"""Small cases without a simulation: a round body, an organ, a tumour, and white noise."""

from __future__ import annotations

import numpy as np

from tgd_ct.case import ORGAN, TUMOUR, Case

DOSE = 0.05


def disc_case(seed: int, *, size: int = 32, slices: int = 6) -> Case:
    random = np.random.default_rng(seed)
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) / size
    shape = slices, size, size
    body = np.broadcast_to(np.hypot(y, x) < 0.45, shape).copy()
    target = np.zeros(shape, np.uint8)
    shift = random.uniform(-0.05, 0.05)
    target[:, np.hypot(y, x + 0.1 + shift) < 0.25] = ORGAN
    target[1:-1, np.hypot(y + shift, x + 0.1) < 0.1] = TUMOUR
    hu = np.array([40.0, 110.0, 50.0])[target] * body - 1000.0 * ~body
    images = {dose: (hu + random.normal(0, 10 / dose**0.5, shape)).astype(np.float32) for dose in (1.0, DOSE)}
    return Case(f"disc {seed}", (4.0, 3.0, 3.0), images, {"liver": target}, body)


def disc_cases(count: int = 3, *, first: int = 0, size: int = 32) -> list[Case]:
    return [disc_case(seed, size=size) for seed in range(first, first + count)]
