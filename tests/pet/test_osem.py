from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tgd_kit.simulation.projector import Projector, blur, system_matrices
from tgd_pet.simulation.acquisition import Acquisition, Scanner
from tgd_pet.simulation.geometry import Geometry, TimeOfFlight
from tgd_pet.simulation.osem import V1, V2, Reconstruction, reconstruct

GEOMETRY = Geometry(
    size=24, voxel_mm=8.0, angles=24, bins=24, bin_mm=8.0, subsets=1, tof=TimeOfFlight(bins=5)
)
SCANNER = Scanner(GEOMETRY, slice_mm=8.0)
MLEM = Reconstruction("mlem", iterations=1, psf_mm=0.0, tof=False, filter_mm=0.0)


def disc(scanner: Scanner, slices: int = 3) -> np.ndarray:
    size = scanner.geometry.size
    centres = (np.arange(size) - (size - 1) / 2) * scanner.geometry.voxel_mm
    radius = np.hypot(centres[:, None], centres)
    image = np.where(radius < 60, 2.0, 0.0) + np.where(
        np.hypot(centres[:, None] - 20, centres - 10) < 15, 6.0, 0.0
    )
    return np.repeat(image[None], slices, axis=0).astype(np.float32)


def scan(
    scanner: Scanner, *, noise: bool = True, background: float = 0.1, resolution_mm: float = 0.0
) -> Acquisition:
    rng = np.random.default_rng(2)
    activity = blur(disc(scanner), resolution_mm, scanner.spacing_mm)
    shape = (*scanner.geometry.sinogram_shape[:3], 1, len(activity))
    factors = rng.uniform(0.02, 0.05, shape).astype(np.float32)
    trues = factors * Projector(scanner.geometry).forward(activity)
    extra = np.full_like(trues, background)
    counts = rng.poisson(trues + extra) if noise else trues + extra
    return Acquisition(counts.astype(np.int32 if noise else np.float32), factors, extra)


def expected_counts(data: Acquisition, scanner: Scanner, image: np.ndarray, psf_mm: float) -> np.ndarray:
    resolved = blur(image, psf_mm, scanner.spacing_mm)
    return data.factors * Projector(scanner.geometry).forward(resolved).astype(np.float64) + data.background


def test_equals_mlem_written_with_dense_matrices() -> None:
    data = scan(SCANNER)
    found = reconstruct(data, SCANNER, replace(MLEM, iterations=3))
    system = system_matrices(GEOMETRY.without_tof())[0].toarray().astype(np.float64)
    summed = data.without_tof()
    for z in range(3):
        y, f, b = (
            part[..., z].reshape(-1).astype(np.float64)
            for part in (summed.counts, summed.factors, summed.background)
        )
        matrix = f[:, None] * system
        x = (found[z].ravel() > 0).astype(np.float64)  # the field of view
        for _ in range(3):
            x = x / np.maximum(matrix.sum(axis=0), 1e-6) * (matrix.T @ (y / (matrix @ x + b)))
        np.testing.assert_allclose(found[z].ravel(), x, rtol=1e-4, atol=1e-6)  # float32 against float64


def test_the_field_of_view_is_the_inscribed_circle() -> None:
    image = reconstruct(scan(SCANNER), SCANNER, MLEM)
    centres = np.arange(24) - 11.5
    np.testing.assert_array_equal(image[1] > 0, np.hypot(centres[:, None], centres) <= 12)


@pytest.mark.parametrize("psf_mm", [0.0, 10.0])
def test_every_iteration_raises_the_likelihood(psf_mm: float) -> None:
    data = scan(SCANNER, resolution_mm=10.0)
    likelihoods = []
    for iterations in range(1, 8):
        settings = replace(MLEM, iterations=iterations, psf_mm=psf_mm, tof=True)
        mean = expected_counts(data, SCANNER, reconstruct(data, SCANNER, settings), psf_mm)
        likelihoods.append((data.counts * np.log(mean) - mean).sum())
    assert (np.diff(likelihoods) > 0).all()  # rises of 10 and more; float32 errors are far below 1


def test_an_iteration_without_background_keeps_the_counts() -> None:
    data = scan(SCANNER, background=0.0)
    image = reconstruct(data, SCANNER, replace(MLEM, iterations=2, psf_mm=10.0, tof=True))
    total = expected_counts(data, SCANNER, image, 10.0).sum()
    assert total == pytest.approx(data.counts.sum(), rel=1e-4)  # exact for MLEM; float32


@pytest.mark.parametrize("settings", [V1, V2], ids=lambda settings: settings.name)
def test_noiseless_data_give_the_activity(settings: Reconstruction) -> None:
    scanner = replace(SCANNER, geometry=replace(GEOMETRY, angles=48, subsets=12))
    data = scan(scanner, noise=False, resolution_mm=settings.psf_mm)
    image, true = reconstruct(data, scanner, settings), disc(scanner)
    background = np.zeros(true.shape, bool)
    background[:, 8:10, 8:16] = True  # well inside the disc and away from the hot spot
    # 24 to 36 updates are short of convergence, and edges ring: a few per cent.
    assert image[background].mean() == pytest.approx(2.0, rel=0.04)
    outside = (true == 0) & (blur(true, 20.0, scanner.spacing_mm) < 1e-3)
    assert image[outside].mean() < 0.05


def test_the_duration_of_a_scan_does_not_change_the_scale() -> None:
    scanner = replace(SCANNER, geometry=replace(GEOMETRY, subsets=12))
    data = scan(scanner, noise=False)
    short = Acquisition(data.counts / 4, data.factors / 4, data.background / 4)
    for settings in (V1, V2):
        # A factor of 4 changes only exponents, except where the guards against 0 / 0 act, outside the body.
        np.testing.assert_allclose(
            reconstruct(short, scanner, settings), reconstruct(data, scanner, settings), rtol=1e-4, atol=1e-4
        )


def test_v1_does_not_look_at_the_time_of_flight() -> None:
    scanner = replace(SCANNER, geometry=replace(GEOMETRY, subsets=12))
    data = scan(scanner)
    mixed = replace(data, counts=data.counts[:, :, :, ::-1], background=data.background[:, :, :, ::-1])
    np.testing.assert_array_equal(reconstruct(mixed, scanner, V1), reconstruct(data, scanner, V1))
    assert not np.allclose(reconstruct(mixed, scanner, V2), reconstruct(data, scanner, V2))
