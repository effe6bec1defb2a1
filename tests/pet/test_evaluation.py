"""Scores against plain numpy, and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image as pictures

from tests.pet.scans import RandomScans
from tests.pet.test_network import trained
from tgd_kit.report.pictures import draw_comparison
from tgd_pet.denoising import denoise
from tgd_pet.evaluation.scores import MARGIN, around, evaluate, lesion_bias, liver_cov
from tgd_pet.network import WIDTHS, DnCNN, new_network


@given(st.integers(0, 99), st.integers(2, 6))
def test_bias_and_cov_are_the_papers_formulas(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    target = random.gamma(5.0, 1.0, (3, 4, 4)).astype(np.float32)
    images = [(target * random.normal(1.0, 0.2, target.shape)).astype(np.float32) for _ in range(count)]
    mask = random.random(target.shape) < 0.5
    mask[0, 0, 0] = True
    voxels = [[float(image[index]) for image in images] for index in zip(*np.nonzero(mask), strict=True)]
    expected = [sum(values) / count for values in voxels]
    truth = [float(value) for value in target[mask]]
    bias = 100 * (sum(expected) - sum(truth)) / sum(truth)
    assert lesion_bias(images, target, mask) == pytest.approx(bias, abs=1e-8)  # float64 sums in another order
    spread = [
        (sum((value - mean) ** 2 for value in values) / (count - 1)) ** 0.5
        for values, mean in zip(voxels, expected, strict=True)
    ]
    cov = 100 * (sum(spread) / len(spread)) / (sum(expected) / len(expected))
    assert liver_cov(images, mask) == pytest.approx(cov, abs=1e-8)  # float64 sums in another order


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_scores_of_the_input_itself(version: str) -> None:
    patients = [RandomScans(seed, realisations=4) for seed in (1, 2)]
    scores = evaluate(None, patients, version)
    squares = [((low - s.full(version))[s.body()] ** 2).mean() for s in patients for low in s.low(version)]
    assert scores.rmse == pytest.approx(np.mean(squares) ** 0.5, rel=1e-5)  # float32 sums
    biases = [
        lesion_bias(s.realisations(version), s.full(version), m) for s in patients for m in s.lesion_masks()
    ]
    assert scores.bias == pytest.approx(np.mean(biases))
    assert scores.bias_error == pytest.approx(np.std(biases, ddof=1) / 2)
    assert scores.cov == pytest.approx(
        np.mean([liver_cov(s.realisations(version), s.liver()) for s in patients])
    )


def test_without_realisations_there_is_only_the_error() -> None:
    for scores in (
        evaluate(None, [RandomScans(1)], "v1"),
        evaluate(None, [RandomScans(1, realisations=3)], "v1", ensemble=False),
    ):
        assert scores.rmse > 0
        assert (scores.bias, scores.bias_error, scores.cov) == (None, None, None)


def test_the_network_is_applied() -> None:
    patient, steps = RandomScans(1, realisations=2), []
    scores = evaluate(trained(), [patient], "v1", progress=lambda: steps.append(1))
    done = [denoise(trained(), low) for low in patient.low("v1")]
    squares = [((image - patient.full("v1"))[patient.body()] ** 2).mean() for image in done]
    assert scores.rmse == pytest.approx(np.mean(squares) ** 0.5, rel=1e-5)  # float32 sums
    assert scores.rmse != pytest.approx(evaluate(None, [patient], "v1").rmse, rel=1e-2)
    assert len(steps) == 4


def farthest() -> DnCNN:
    """As deep as the paper's network; every pixel depends on the farthest one that it can depend on."""
    network = new_network(0, (3,) * MARGIN).eval()
    for convolution in network.convolutions:
        convolution.weight.data.zero_()[range(3), range(3), 0, 0] = 1.0
    return network


def test_the_box_around_the_body_changes_nothing_inside_it() -> None:
    assert len(WIDTHS) == MARGIN
    patient, network = RandomScans(3, (3, 72, 64)), farthest()
    body, image = patient.body(), patient.low("v1")[0]
    window = around(body)
    inside = body[window]
    assert inside.size < body.size
    whole, boxed = denoise(network, image), denoise(network, image[window])
    np.testing.assert_array_equal(boxed[inside], whole[window][inside])
    one_pixel_less = denoise(network, image[window][:, 1:-1, 1:-1])
    assert not np.array_equal(one_pixel_less[inside[:, 1:-1, 1:-1]], whole[window][inside])


@given(st.integers(0, 11), st.integers(0, 11), st.integers(1, 5))
def test_the_box_stays_inside_the_image(y: int, x: int, size: int) -> None:
    body = np.zeros((2, 16, 16), bool)
    body[1, y : y + size, x : x + size] = True
    window = around(body)
    assert body[window].sum() == body.sum()
    assert all(0 <= w.start < w.stop for w in window[1:])


def test_picture_is_drawn_dark_where_uptake_is_high(tmp_path: Path) -> None:
    hot = np.zeros((40, 40), np.float32)
    hot[15:25, 15:25] = 6.0
    draw_comparison(
        {"input": hot * 0.5, "target": hot},
        "target",
        tmp_path / "picture.png",
        unit="SUV",
        window=(0.0, 6.0),
        span=1.0,
        colours="gray_r",
    )
    drawn = pictures.imread(tmp_path / "picture.png")[..., :3]
    assert (drawn.sum(-1) == 0).sum() > 100  # black: SUV 6
    reds = (drawn[..., 2] - drawn[..., 0] > 0.5).sum()
    assert reds > 100  # blue: less than the target
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_untrained_network_scores_like_the_input() -> None:
    patient = [RandomScans(1, realisations=2)]
    assert evaluate(new_network(0, (4, 4, 3)), patient, "v2") == evaluate(None, patient, "v2")
