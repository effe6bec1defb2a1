"""What is not finite, or too small, is refused before the work; no such image is written, no such run finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from tests.pet.dicoms import series, write
from tests.pet.scans import RandomScans
from tgd_kit.errors import ImageError, RunError
from tgd_kit.imaging.image import Image
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.weights import save_weights
from tgd_pet.cli import pet
from tgd_pet.denoising import denoise
from tgd_pet.images.suv import SUV
from tgd_pet.network import DnCNN, load_network, new_network
from tgd_pet.training.finetuning import METHODS, finetune
from tgd_pet.training.fit import fit
from tgd_pet.training.online import online
from tgdsurgery import CheckpointError, TGDError

WIDTHS = (8, 8, 8, 8, 3)
SHORT = Schedule(epochs=1, steps=2, batch=2, patch=16)
DIVERGING = Schedule(epochs=3, steps=4, batch=2, patch=16, rate=1e30)


def _spoiled(edit: Callable[[DnCNN], object]) -> DnCNN:
    network = new_network(0, WIDTHS)
    with torch.no_grad():
        edit(network)
    return network


def _nan_weight(network: DnCNN) -> None:
    network.noise.conv2.weight[3, 2, 0, 0] = float("nan")


def _infinite_statistics(network: DnCNN) -> None:
    network.noise.norm2.running_var[1] = float("inf")


def _overflowing(network: DnCNN) -> None:
    """Finite weights, whose result is not."""
    for convolution in network.convolutions:
        convolution.weight.fill_(1e38)


@pytest.mark.parametrize("edit", [_nan_weight, _infinite_statistics, _overflowing])
def test_no_image_is_written_with_a_spoiled_network(tmp_path: Path, edit: Callable[[DnCNN], object]) -> None:
    save_weights(_spoiled(edit), tmp_path / "network.safetensors")
    voxels = np.random.default_rng(0).random((6, 7, 8), dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "in.nii")
    write(series(), tmp_path / "series")
    for source, out in (("in.nii", "out.nii"), ("series", "out"), ("series", "dicom.nii")):
        options = ("--network", str(tmp_path / "network.safetensors"))
        result = CliRunner().invoke(pet, ["denoise", str(tmp_path / source), str(tmp_path / out), *options])
        assert isinstance(result.exception, TGDError)
        assert "NaN or infinite" in str(result.exception)
        assert not (tmp_path / out).exists()


def test_a_result_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    voxels = np.ones((3, 3, 3), np.float32)
    voxels[1, 1, 1] = np.inf
    with pytest.raises(ImageError, match="NaN or infinite"):
        SUV.write(Image(voxels, np.eye(4)), tmp_path / "out.nii", "")
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_not_finite_is_refused_before_the_work(tmp_path: Path) -> None:
    spoiled, patients = _spoiled(_nan_weight), [RandomScans(1)]
    half = patients[0].low("v1")
    for work in (
        lambda: denoise(spoiled, half[0]),
        lambda: fit(spoiled, patients, "v1", tmp_path / "run", SHORT, progress=False),
        lambda: online(spoiled, *half, tmp_path / "run", SHORT, progress=False),
        *(
            lambda method=method: finetune(
                spoiled, patients, "v1", tmp_path / "run", SHORT, method=method, progress=False
            )
            for method in METHODS
        ),
    ):
        with pytest.raises(TGDError):
            work()
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").rglob("network.safetensors"))


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_diverges_is_not_finished(tmp_path: Path, method: str) -> None:
    network = _spoiled(lambda new: new.convolutions[-1].weight.fill_(0.1))  # at 0, nothing before it counts
    with pytest.raises(RunError, match="diverged"):
        finetune(network, [RandomScans(1)], "v1", tmp_path, DIVERGING, method=method, phi=0.9, progress=False)
    assert not list(tmp_path.rglob("network.safetensors"))


def test_online_learning_that_diverges_is_not_finished(tmp_path: Path) -> None:
    scans = RandomScans(1, (12, 40, 40))
    with pytest.raises(RunError, match="diverged"):
        online(new_network(0, WIDTHS), *scans.low("v1"), tmp_path, DIVERGING, method="full", progress=False)
    assert not (tmp_path / "network.safetensors").exists()


class _Spoiled(RandomScans):
    def low(self, version: str) -> list[np.ndarray]:
        return [volume / np.float32(0) for volume in super().low(version)]


class _Bodiless(RandomScans):
    def body(self) -> np.ndarray:
        return np.zeros_like(super().body())


@pytest.mark.parametrize(
    ("patient", "said"),
    [
        (RandomScans(1, (5, 15, 40)), "40 x 15 pixels hold no patch of 16 x 16"),
        (RandomScans(1, (5, 40, 2)), "2 x 40 pixels hold no patch"),
        (_Spoiled(1), "NaN or infinite"),
        (_Bodiless(1), "no voxel in the body"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_images_that_cannot_be_trained_on_are_refused(
    tmp_path: Path, patient: RandomScans, said: str
) -> None:
    network = new_network(0, WIDTHS)
    for patients, watched in (([RandomScans(2), patient], []), ([RandomScans(2)], [patient])):
        with pytest.raises(RunError, match=said):
            fit(network, patients, "v1", tmp_path / "run", SHORT, validation=watched, progress=False)
    assert not (tmp_path / "run").exists()


def test_files_that_claim_a_large_network_are_refused_before_it_is_made(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    for weights in (
        {"noise.conv1.weight": torch.empty(900_000, 0, 3, 3)},
        {f"noise.conv{i}.weight": torch.empty(90_000, 0, 3, 3) for i in range(1, 9)},
        {"noise.conv1.weight": torch.empty(0, 0, 3, 3)},
        {"noise.conv1.weight": torch.empty(3, 3, 3, 3), "noise.conv1.other": torch.empty(3, 3, 3, 3)},
        {},
    ):
        save_file(weights, path)
        with pytest.raises(CheckpointError, match="does not hold"):
            load_network(path)
