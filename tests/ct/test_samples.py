"""What training draws from cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ct.cases import DOSE, disc_case, disc_cases
from tgd_ct.case import TUMOUR, Case
from tgd_ct.networks.generator import KINDS, Kind
from tgd_ct.training.samples import DEPTH, Samples, fingerprint
from tgd_kit.errors import ImageError, RunError


def numbered(*, slices: int = 6, size: int = 20) -> Case:
    """A case whose voxels say where they are: z in the hundreds of HU, y and x in the fractions."""
    z, y, x = np.meshgrid(np.arange(slices), np.arange(size), np.arange(size), indexing="ij")
    where = (10000 * z + 100 * y + x).astype(np.float32)
    target = ((z + y + x) % 3).astype(np.uint8)
    return Case(
        "numbered",
        (4.0, 2.0, 2.0),
        {1.0: where, DOSE: -where},
        {"liver": target},
        np.ones(where.shape, bool),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patch", [8, 20, 24])
def test_the_three_images_of_a_sample_show_the_same_place(kind: Kind, patch: int) -> None:
    samples = Samples([numbered()], kind, DOSE, "liver", 20, patch=patch)
    for index in range(len(samples)):
        noisy, clean, labels = samples[index]
        depth = [DEPTH] if kind == "3d" else []
        assert noisy.shape == (3 if kind == "2.5d" else 1, *depth, patch, patch)
        assert clean.shape == labels.shape == (1, *depth, patch, patch)
        centre = noisy[1:2] if kind == "2.5d" else noisy
        assert torch.equal(centre, -clean)
        z, y, x = clean // 10000, clean % 10000 // 100, clean % 100
        assert torch.equal(labels, ((z + y + x) % 3).long())


def test_triplets_are_neighbours_and_ends_are_repeated() -> None:
    samples = Samples([numbered()], "2.5d", DOSE, "liver", 40, patch=8)
    slices = {tuple((-noisy[:, 0, 0] // 10000).int().tolist()) for noisy, _, _ in samples}  # type: ignore[attr-defined]
    assert slices <= {(max(z - 1, 0), z, min(z + 1, 5)) for z in range(6)}
    assert (0, 0, 1) in slices


def test_blocks_have_consecutive_slices() -> None:
    samples = Samples([numbered(slices=12)], "3d", DOSE, "liver", 20, patch=8)
    for index in range(len(samples)):
        z = samples[index][1][0, :, 0, 0] // 10000
        assert torch.equal(z, z[0] + torch.arange(DEPTH))
        assert z.max() < 12


def test_half_of_the_samples_are_at_a_tumour() -> None:
    cases = disc_cases(2)
    samples = _all(Samples(cases, "2d", DOSE, "liver", 400, patch=6))
    hits = np.mean([bool((labels == TUMOUR).any()) for _, _, labels in samples])
    # Those of the other half hit one now and then. A patch that covers all of its place after the shift hits always.
    assert 0.5 < hits < 0.8


def _all(samples: Samples) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    return [samples[index] for index in range(len(samples))]


def test_samples_follow_from_seed_and_index() -> None:
    def draw(seed: int) -> list[torch.Tensor]:
        return [a for a, _, _ in _all(Samples(disc_cases(), "2d", DOSE, "liver", 5, seed=(seed,), patch=16))]

    assert all(map(torch.equal, draw(1), draw(1)))
    assert not all(map(torch.equal, draw(1), draw(2)))
    with pytest.raises(IndexError):
        Samples(disc_cases(), "2d", DOSE, "liver", 5, patch=16)[5]


def test_what_cannot_be_trained_on_is_refused() -> None:
    case = disc_case(0)
    with pytest.raises(RunError, match="no case"):
        Samples([], "2d", DOSE, "liver", 1, patch=8)
    with pytest.raises(ImageError, match=r"no image at 2 %.*It has 100 %, 5 %"):
        Samples([case], "2d", 0.02, "liver", 1, patch=8)
    with pytest.raises(ImageError, match="no labels for kidney"):
        Samples([case], "2d", DOSE, "kidney", 1, patch=8)
    case.image(DOSE)[0, 0, 0] = np.nan
    with pytest.raises(RunError, match="NaN"):
        Samples([case], "2d", DOSE, "liver", 1, patch=8)
    empty = Case("empty", case.spacing_mm, disc_case(1).images, case.targets, np.zeros_like(case.body))
    with pytest.raises(RunError, match="body"):
        Samples([empty], "2d", DOSE, "liver", 1, patch=8)


def test_equal_data_have_equal_fingerprints() -> None:
    cases, changed = disc_cases(), disc_cases()
    assert fingerprint(cases, DOSE, "liver") == fingerprint(changed, DOSE, "liver")
    changed[1].target("liver")[0, 0, 0] = TUMOUR
    assert fingerprint(cases, DOSE, "liver") != fingerprint(changed, DOSE, "liver")
