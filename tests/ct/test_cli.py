"""The commands that train, apply and measure: what they write, what they say, and how they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tgd_ct.cli import ct
from tgd_ct.demo import ADAPTED, PROFILES, run_demo
from tgd_ct.inference import denoise, segment
from tgd_ct.networks.files import load_generator, load_segmenter
from tgd_ct.networks.generator import new_generator
from tgd_ct.networks.segmenters import new_segmenter
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.files import load_set, part_seeds, simulate_set
from tgd_kit.errors import ImageError, RunError
from tgd_kit.imaging.image import Image
from tgd_kit.imaging.nifti import read_nifti, write_nifti
from tgd_kit.training.weights import save_weights
from tgdsurgery import CheckpointError

QUICK = ("--epochs", 1, "--steps", 2, "--batch", 2, "--patch", 32)
WIDTHS = ("--widths", 3, 4, 4, 5)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(ct, [str(argument) for argument in arguments])


def said(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    return result.output


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients")
    simulate_set(folder, part_seeds("train", 0, 2), PatientConfig.tiny(), progress=False)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("networks")
    save_weights(new_generator(0, "2d", (3, 4, 4, 5)), folder / "denoiser.safetensors")
    save_weights(new_segmenter(0, "unet", 4), folder / "segmenter.safetensors")
    return folder / "denoiser.safetensors", folder / "segmenter.safetensors"


@pytest.fixture
def scan(patients: Path, tmp_path: Path) -> Path:
    """An abdomen whose axes are neither in the usual order nor in the usual direction."""
    volume = load_set(patients)[0].image(0.05)
    affine = np.array([[0, -8.0, 0, 10], [0, 0, 8.0, 20], [8.0, 0, 0, 30], [0, 0, 0, 1]])
    path = tmp_path / "scan.nii.gz"
    write_nifti(Image(np.ascontiguousarray(volume), affine), path)
    return path


def test_help_names_every_command() -> None:
    shown = said("--help")
    for command in (
        "simulate",
        "insert",
        "prepare",
        "pretrain",
        "train",
        "adapt",
        "denoise",
        "segment",
        "evaluate",
        "demo",
    ):
        assert command in shown
        assert "Usage" in said(command, "--help")


def test_commands_are_found_without_heavy_imports() -> None:
    heavy = {"torch", "lightning", "numpy", "nibabel", "scipy", "pydicom", "monai"}
    code = f"import sys, tgd_ct.cli; print(*({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_from_pretraining_to_adaptation(patients: Path, tmp_path: Path) -> None:
    said("pretrain", patients, "--out", tmp_path / "unet", "--width", 4, *QUICK)
    segmenter = tmp_path / "unet" / "network.safetensors"
    said("train", patients, "--out", tmp_path / "mse", *WIDTHS, *QUICK)
    first = tmp_path / "mse" / "network.safetensors"
    losses = ("--gan", 0.1, "--task-loss", 0.1, "--segmenter", segmenter)
    said("train", patients, "--out", tmp_path / "tod", "--start", first, *losses, *QUICK)
    trained = tmp_path / "tod" / "network.safetensors"
    assert load_generator(trained).state_dict().keys() == load_generator(first).state_dict().keys()
    shown = said(
        "adapt", trained, patients, "--out", tmp_path / "tgd", "--dose", 0.02, "--phi", 0.6, *losses, *QUICK
    )
    assert "Frozen entries unchanged: yes" in shown
    assert (tmp_path / "tgd" / "network.safetensors").exists()

    record = tmp_path / "found.json"
    shown = said(
        "evaluate", patients, "--network", f"TOD={trained}", "--segmenter", f"U={segmenter}", "--json", record
    )
    assert "TOD" in shown
    assert "normal dose" in shown
    assert json.loads(record.read_text())["patients"].keys() == {"as it is", "TOD", "normal dose"}


def test_a_perceptual_loss_takes_an_autoencoder(patients: Path, tmp_path: Path) -> None:
    said(
        "pretrain",
        patients,
        "--out",
        tmp_path / "auto",
        "--architecture",
        "autoencoder",
        "--width",
        4,
        *QUICK,
    )
    extractor = tmp_path / "auto" / "network.safetensors"
    losses = ("--perceptual", 1e4, "--extractor", extractor)
    said("train", patients, "--out", tmp_path / "mse", *WIDTHS, *QUICK)
    said("train", patients, "--out", tmp_path / "both", *losses, *WIDTHS, *QUICK)
    first, other = (load_generator(tmp_path / name / "network.safetensors") for name in ("mse", "both"))
    assert not torch.equal(first.convolutions[-1].weight, other.convolutions[-1].weight)
    wrong = run("train", patients, "--out", tmp_path / "no", "--perceptual", 1, *WIDTHS, *QUICK)
    assert isinstance(wrong.exception, RunError)
    wrong = run(
        "train",
        patients,
        "--out",
        tmp_path / "no",
        *losses[:3],
        tmp_path / "mse" / "network.safetensors",
        *QUICK,
    )
    assert isinstance(wrong.exception, CheckpointError)


def test_a_joint_training_moves_both(patients: Path, tmp_path: Path) -> None:
    said("pretrain", patients, "--out", tmp_path / "unet", "--width", 4, *QUICK)
    before = tmp_path / "unet" / "network.safetensors"
    given = ("--joint", "--task-loss", 0.1, "--segmenter", before)
    said("train", patients, "--out", tmp_path / "both", *given, *WIDTHS, *QUICK)
    load_generator(tmp_path / "both" / "denoiser" / "network.safetensors")
    moved = load_segmenter(tmp_path / "both" / "segmenter" / "network.safetensors").state_dict()
    pairs = [(value, moved[name]) for name, value in load_segmenter(before).state_dict().items()]
    assert not all(torch.equal(old, new) for old, new in pairs)
    wrong = run("train", patients, "--out", tmp_path / "no", *given, "--gan", 1, *WIDTHS, *QUICK)
    assert isinstance(wrong.exception, RunError)
    assert not (tmp_path / "no").exists()


def test_task_loss_without_a_segmenter_is_refused(patients: Path, tmp_path: Path) -> None:
    result = run("train", patients, "--out", tmp_path / "tod", "--task-loss", 1, *WIDTHS, *QUICK)
    assert isinstance(result.exception, RunError)
    assert "tgd ct pretrain" in str(result.exception)
    assert not (tmp_path / "tod").exists()


def test_a_scan_is_denoised_on_its_grid(scan: Path, networks: tuple[Path, Path], tmp_path: Path) -> None:
    shown = said("denoise", scan, tmp_path / "out.nii.gz", "--network", networks[0])
    assert "HU" in shown
    before, after = read_nifti(scan), read_nifti(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(before.affine, after.affine)
    wanted = denoise(load_generator(networks[0]), before.axial())
    np.testing.assert_allclose(after.axial(), wanted, atol=1e-3)


def test_a_scan_is_segmented_on_its_grid(scan: Path, networks: tuple[Path, Path], tmp_path: Path) -> None:
    shown = said("segment", scan, tmp_path / "labels.nii.gz", "--network", networks[1])
    assert "organ:" in shown
    assert "mL" in shown
    labels = nib.load(tmp_path / "labels.nii.gz")
    assert labels.get_data_dtype().kind in "iu"
    before = read_nifti(scan)
    np.testing.assert_allclose(labels.affine, before.affine)
    wanted = segment(load_segmenter(networks[1]), before.axial())
    found = Image(np.asarray(labels.dataobj, np.float32), labels.affine).axial()
    np.testing.assert_array_equal(found, wanted)


def test_networks_that_are_something_else_are_refused(
    scan: Path, networks: tuple[Path, Path], tmp_path: Path
) -> None:
    for command, wrong in (("denoise", networks[1]), ("segment", networks[0])):
        result = run(command, scan, tmp_path / "out.nii.gz", "--network", wrong)
        assert isinstance(result.exception, CheckpointError)
    assert isinstance(run("denoise", scan, scan, "--network", networks[0]).exception, ImageError)
    assert isinstance(run("evaluate", tmp_path, "--network", "no-name").exception, RunError)


def test_the_demo_ends_with_a_table_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tgd_ct.demo.WORKERS", 1)  # processes take longer to start than these jobs
    shown = said("demo", "--out", tmp_path, "--profile", "tiny")
    for words in ("TOD-Net", "TGD", "yes", "normal dose"):
        assert words in shown
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["outcomes"].keys() == ADAPTED.keys()
    assert record["outcomes"]["TGD"]["kept"] is True

    networks = {path: path.read_bytes() for path in tmp_path.rglob("network.safetensors")}
    again = run_demo(tmp_path, PROFILES["tiny"], progress=False)
    assert len(networks) == 6
    assert all(path.read_bytes() == before for path, before in networks.items())
    assert again.new.record()["patients"] == record["new"]["patients"]
    assert isinstance(run("demo", "--out", tmp_path, "--profile", "tiny", "--seed", 1).exception, RunError)
