"""What is measured of one patient, against plain numpy and cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from tests.pet.scans import RandomScans
from tests.pet.test_network import trained
from tgd_kit.simulation.grid import Grid
from tgd_pet.denoising import denoise
from tgd_pet.evaluation.measures import RANGE_SUV, around_hot_object, measure, measure_images
from tgd_pet.evaluation.scores import liver_cov

STUDY = RandomScans(3, realisations=4)


def test_of_the_input_itself() -> None:
    found = measure(None, STUDY, "v1")
    target, scans, body = STUDY.full("v1"), STUDY.realisations("v1"), STUDY.body()
    masks = STUDY.lesion_masks()
    rmse = np.sqrt(np.mean([((scan - target)[body].astype(np.float64) ** 2).mean() for scan in scans]))
    assert found.body.rmse == pytest.approx(rmse, rel=1e-6)  # float32 differences
    assert found.body.psnr == pytest.approx(20 * np.log10(RANGE_SUV / rmse), rel=1e-6)
    assert found.suv_max == pytest.approx(np.mean([scan[m].max() for scan in scans for m in masks]))
    assert found.suv_mean == pytest.approx(np.mean([scan[m].mean() for scan in scans for m in masks]))
    tops = [100 * (np.mean([scan[m].max() for scan in scans]) / target[m].max() - 1) for m in masks]
    assert found.bias_max == pytest.approx(np.mean(tops), abs=1e-4)  # float32 maxima
    assert found.cov == liver_cov(scans, STUDY.liver())
    # The truth is 1.25 times the target.
    assert 100 + found.bias_true == pytest.approx((100 + found.bias) / 1.25, rel=1e-6)


def test_similarity_is_the_usual_one() -> None:
    found = measure(None, STUDY, "v1", images=1)
    scan, target = (np.clip(v, 0, RANGE_SUV) for v in (STUDY.realisations("v1")[0], STUDY.full("v1")))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    maps = [
        structural_similarity(one, other, data_range=RANGE_SUV, **settings)[1]
        for one, other in zip(scan, target, strict=True)
    ]
    # Both reflect at the edges, but 10 voxels inside none of that is seen.
    assert found.body.ssim == pytest.approx(np.stack(maps)[STUDY.body()].mean(), abs=1e-4)
    assert found.cov is None  # one scan has no spread


def test_denoises_first() -> None:
    network = trained(shape=(4, 4, 3))
    denoised = [denoise(network, scan) for scan in STUDY.realisations("v2")[:2]]
    masks, liver = STUDY.lesion_masks(), STUDY.liver()
    expected = measure_images(denoised, STUDY.full("v2"), STUDY.true, STUDY.body(), masks, liver, 64.0)
    found = measure(network, STUDY, "v2", images=2)
    # In the box around the body sums run in another order.
    assert found.bias == pytest.approx(expected.bias, abs=1e-3)
    assert found.body.rmse == pytest.approx(expected.body.rmse, rel=1e-4)
    assert found.roi.ssim == pytest.approx(expected.roi.ssim, rel=1e-4)


def test_small_lesions_are_those_below_15_mm() -> None:
    target = np.ones((9, 9, 9), np.float32)
    small, large = (np.zeros(target.shape, bool) for _ in range(2))
    small[1:3, 1:3, 1:3] = True
    large[4:8, 4:8, 4:8] = True
    scan = np.where(small, 0.5, 1.0).astype(np.float32)
    body, liver = target > 0, target < 0
    found = measure_images([scan], target, target, body, [small, large], liver, 4.0**3)  # 512 and 4096 mm^3
    assert (found.bias_small, found.bias) == (-50.0, -25.0)
    assert measure_images([scan], target, target, body, [large], liver, 4.0**3).bias_small is None


def test_artefacts_are_looked_for_near_the_object_and_in_the_body() -> None:
    grid = Grid((1, 61, 61), (4.0, 4.0, 4.0))
    hot, body = (np.zeros(grid.shape, bool) for _ in range(2))
    hot[0, 30, 30] = True
    body[0, :31] = True
    distance = grid.distance((0.0, 0.0, 0.0))
    target = np.where(hot, 50.0, 1.0).astype(np.float32)
    near = (distance > 12) & (distance <= 40) & body
    image = target.copy()
    image[near] -= 0.5
    image[(distance > 44) | ~body] = -9.0  # too far, or outside
    image[hot] = 45.0
    found = around_hot_object(image, target, hot, body, grid)
    assert (found.mean, found.rmse, found.lowest) == (-0.5, 0.5, 0.5)
    assert found.volume == pytest.approx(near.sum() * 64 / 1000)
    assert found.hot == pytest.approx(-10.0)
    clean = around_hot_object(target, target, hot, body, grid)
    assert (clean.volume, clean.halo) == (0.0, 0.0)
    assert found.halo == 0.0


def test_a_halo_that_hugs_the_object_is_felt() -> None:
    grid = Grid((1, 31, 31), (4.0, 4.0, 4.0))
    hot, body = np.zeros(grid.shape, bool), np.ones(grid.shape, bool)
    hot[0, 14:17, 14:17] = True
    target = np.where(hot, 50.0, 1.0).astype(np.float32)
    image = target.copy()
    image[0, 12:19, 12:19] = np.where(hot[0, 12:19, 12:19], 50.0, -1.0)  # two voxels around it
    found = around_hot_object(image, target, hot, body, grid)
    assert found.halo is not None
    assert found.halo > 1.0
    assert found.rmse == 0.0  # not further out
    away = body & (np.add.outer(*2 * [np.abs(np.arange(31) - 15)]) > 8)[None]
    assert around_hot_object(image, target, hot, away, grid).halo is None
