"""Networks on whole volumes, and the measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics.meandice import DiceMetric
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tests.ct.cases import DOSE, disc_case, disc_cases
from tests.ct.test_networks import stirred
from tgd_ct import inference
from tgd_ct.evaluation.compare import FULL, LOW, compare
from tgd_ct.evaluation.measures import WINDOW, dice, organ_and_tumour, quality
from tgd_ct.inference import denoise, non_local_means, segment
from tgd_ct.networks.generator import KINDS, Generator, Kind
from tgd_ct.networks.segmenters import new_segmenter
from tgd_kit.errors import ImageError
from tgdsurgery import CheckpointError

WIDTHS = (3, 4, 4, 5)


def volume() -> np.ndarray:
    return disc_case(0).image(DOSE)


def network(kind: Kind) -> Generator:
    stirred_one = stirred(Generator(kind, WIDTHS))
    assert isinstance(stirred_one, Generator)
    return stirred_one


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_slices_are_denoised_as_the_network_does(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = volume()
    monkeypatch.setattr(inference, "PIXELS_PER_BATCH", batch * given[0].size)
    slices = torch.from_numpy(given)
    flat, triple = network("2d").eval(), network("2.5d").eval()
    with torch.inference_mode():
        wanted = torch.cat([flat(one[None, None]) for one in slices])[:, 0]
        padded = torch.cat([slices[:1], slices, slices[-1:]])
        by_triplets = torch.cat([triple(padded[None, z : z + 3]) for z in range(len(slices))])[:, 0]
    # Sums of a batch may come in another order.
    np.testing.assert_allclose(denoise(flat, given), wanted.numpy(), rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(denoise(triple, given), by_triplets.numpy(), rtol=1e-4, atol=1e-2)


def test_a_small_volume_is_one_block() -> None:
    given, solid = volume(), network("3d").eval()
    with torch.inference_mode():
        wanted = solid(torch.from_numpy(given)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(denoise(solid, given), wanted, rtol=1e-4, atol=1e-2)


def test_blocks_are_blended() -> None:
    given = np.concatenate([volume()] * 4)
    untrained = Generator("3d", WIDTHS)
    np.testing.assert_allclose(denoise(untrained, given), given, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mode_comes_back_and_progress_adds_up(kind: Kind) -> None:
    done: list[int] = []
    model = network(kind).train()
    denoise(model, volume(), progress=done.append)
    assert model.training
    assert sum(done) == len(volume())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_refused(kind: Kind) -> None:
    broken = network(kind)
    with torch.no_grad():
        broken.convolutions[-1].bias.fill_(3e38)
    with pytest.raises(ImageError, match="NaN or infinite"):
        denoise(broken, volume())
    with torch.no_grad():
        broken.convolutions[-1].bias.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        denoise(broken, volume())


def test_segments_are_the_largest_logits() -> None:
    model, done = new_segmenter(0, "unet", 4).train(), []
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(volume())[:, None]).argmax(1)
    assert np.array_equal(segment(model.train(), volume(), progress=done.append), wanted.numpy())
    assert model.training
    assert sum(done) == len(volume())


def test_non_local_means_lowers_the_noise() -> None:
    case = disc_case(0)
    noise = float((case.image(DOSE) - case.image(1.0))[case.body].std())
    denoised = non_local_means(case.image(DOSE), noise)
    before, after = (
        quality(image, case.image(1.0), {"body": case.body})["body"].rmse
        for image in (case.image(DOSE), denoised)
    )
    assert after < 0.7 * before


def test_quality_is_that_of_scikit_image() -> None:
    random = np.random.default_rng(0)
    reference = random.uniform(-300, 300, (3, 20, 20)).astype(np.float32)
    image = reference + random.normal(0, 20, reference.shape).astype(np.float32)
    everywhere = np.ones(image.shape, bool)
    found = quality(image, reference, {"image": everywhere, "nothing": ~everywhere})
    assert found.keys() == {"image"}
    seen, wanted = np.clip(image, *WINDOW), np.clip(reference, *WINDOW)
    assert found["image"].rmse == pytest.approx(np.sqrt(np.mean((image - reference) ** 2)), rel=1e-5)
    assert found["image"].psnr == pytest.approx(
        peak_signal_noise_ratio(wanted, seen, data_range=400), rel=1e-5
    )
    similar = [
        structural_similarity(a, b, data_range=400, full=True)[1].mean()
        for a, b in zip(seen, wanted, strict=True)
    ]
    assert found["image"].ssim == pytest.approx(np.mean(similar), rel=1e-5)


def test_dice_is_that_of_monai() -> None:
    random = np.random.default_rng(0)
    found, true = random.integers(0, 3, (2, 4, 8, 8)).astype(np.uint8)
    one = DiceMetric(reduction="none")(
        (torch.from_numpy(found == 2)[None, None]).float(), torch.from_numpy(true == 2)[None, None].float()
    )
    assert organ_and_tumour(found, true)["tumour"] == pytest.approx(float(one), rel=1e-6)
    assert organ_and_tumour(found, true)["organ"] == dice(found > 0, true > 0)
    assert organ_and_tumour(found, np.zeros_like(true)) == {"organ": None, "tumour": None}


def test_a_comparison_has_every_denoiser_and_both_ends() -> None:
    cases = disc_cases(2)
    found = compare(
        cases,
        "liver",
        DOSE,
        {"net": Generator("2d", WIDTHS), "half": lambda image: image / np.float32(2)},
        {"U-Net": new_segmenter(0, "unet", 4)},
        progress=False,
    )
    assert list(found.patients) == [LOW, "net", "half", FULL]
    rmse = {name: [one.quality["body"].rmse for one in found.patients[name]] for name in (LOW, "net", "half")}
    assert rmse["net"] == rmse[LOW]  # an untrained network returns the image
    assert rmse["half"] != rmse[LOW]
    assert len(rmse[LOW]) == len(cases)
    assert not found.patients[FULL][0].quality
    assert found.table().row_count == 4
    assert found.record()["dose"] == DOSE
