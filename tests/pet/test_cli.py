"""The commands: what they write, what they say, and how they refuse."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner, Result

from tests.pet.dicoms import series, write
from tgd_kit.errors import ImageError, RunError
from tgd_kit.imaging.image import Image
from tgd_kit.training.weights import save_weights
from tgd_pet.cli import pet
from tgd_pet.demo import PROFILES, run_demo
from tgd_pet.denoising import denoise
from tgd_pet.network import load_network, new_network
from tgd_pet.simulation.config import PatientConfig
from tgd_pet.simulation.files import load_patient, simulate_set
from tgdsurgery import TGDError, load_delta

QUICK = ("--epochs", 1, "--steps", 1, "--batch", 1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(pet, [str(argument) for argument in arguments])


def said(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    return result.output


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients")
    simulate_set(folder, [1, 2], PatientConfig.tiny(), progress=False)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "network.safetensors"
    save_weights(new_network(0, (4, 4, 4, 4, 3)), path)
    return path


def test_help_names_every_command() -> None:
    shown = said("--help")
    for command in ("simulate", "train", "finetune", "denoise", "online", "demo"):
        assert command in shown
        assert "Usage" in said(command, "--help")


def test_commands_are_found_without_heavy_imports() -> None:
    heavy = {"torch", "lightning", "numpy", "nibabel", "scipy", "pydicom"}
    code = f"import sys, tgd_pet.cli; print(*({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_simulate_passes_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def noted(folder: Path, seeds: range, config: PatientConfig, *, workers: int) -> list[Path]:
        asked.append((folder, list(seeds), config, workers))
        return [folder / "patient"] * len(seeds)

    monkeypatch.setattr("tgd_pet.cli.simulate.simulate_set", noted)
    options = (
        "--patients",
        3,
        "--seed",
        7,
        "--body-size",
        "low",
        "--realisations",
        5,
        "--feature",
        "line",
        "--workers",
        1,
    )
    assert "3 patients" in said("simulate", tmp_path, *options)
    ((folder, seeds, config, workers),) = asked
    assert (folder, seeds, workers) == (tmp_path, [7, 8, 9], 1)
    assert (config.body_size, config.realisations, config.feature) == ("low", 5, "line")
    assert config.scanner == PatientConfig.demo().scanner


def test_train_then_finetune(tmp_path: Path, patients: Path) -> None:
    out = tmp_path / "v1"
    assert "network.safetensors" in said("train", patients, "--out", out, "--validation", patients, *QUICK)
    written = (out / "network.safetensors").stat().st_mtime_ns
    said("train", patients, "--out", out, "--validation", patients, *QUICK)
    assert (out / "network.safetensors").stat().st_mtime_ns == written
    shown = said(
        "finetune", out / "network.safetensors", patients, "--out", tmp_path / "tgd", "--phi", 0.4, *QUICK
    )
    assert "TGD plan, phi 0.4" in shown
    assert "Frozen entries unchanged: yes" in shown
    assert json.loads((tmp_path / "tgd" / "run.json").read_text())["images"] == "v2"


@pytest.mark.parametrize(("method", "words"), [("last3", "unchanged: yes"), ("full", "Trainable: 100.0%")])
def test_finetune_in_the_other_ways(
    tmp_path: Path, patients: Path, network: Path, method: str, words: str
) -> None:
    assert words in said(
        "finetune", network, patients, "--out", tmp_path / method, "--method", method, *QUICK
    )


def test_train_without_patients_or_into_another_run_is_refused(
    tmp_path: Path, patients: Path, network: Path
) -> None:
    result = run("train", tmp_path, "--out", tmp_path / "run", *QUICK)
    assert isinstance(result.exception, RunError)
    said("finetune", network, patients, "--out", tmp_path / "run", *QUICK)
    result = run("finetune", network, patients, "--out", tmp_path / "run", "--phi", 0.5, *QUICK)
    assert isinstance(result.exception, RunError)


def test_denoise_dicom_to_nifti_in_suv(tmp_path: Path, network: Path) -> None:
    folder = write(series(), tmp_path / "series")
    assert "5 x 4 x 6 voxels" in said("denoise", folder, tmp_path / "out.nii.gz", "--network", network)
    written = nib.load(tmp_path / "out.nii.gz")
    assert written.shape == (5, 4, 6)
    assert written.get_fdata().max() > 1


def test_denoise_one_of_several_dicom_series_to_a_derived_one(tmp_path: Path, network: Path) -> None:
    datasets = [*series(), *series()]
    for number, dataset in enumerate(datasets):
        dataset.SeriesNumber = 3 + number // 6
    folder = write(datasets, tmp_path / "series")
    assert "2 series" in str(run("denoise", folder, tmp_path / "out", "--network", network).exception)
    shown = said("denoise", folder, tmp_path / "out", "--network", network, "--series", 4)
    assert "rounded by at most" in shown
    made = [pydicom.dcmread(file) for file in (tmp_path / "out").iterdir()]
    assert {int(dataset.SeriesNumber) for dataset in made} == {1004}
    digest = hashlib.sha256(network.read_bytes()).hexdigest()[:16]
    assert all(f"network.safetensors (sha256 {digest})" in dataset.DerivationDescription for dataset in made)


def test_denoise_keeps_the_grid_of_nifti(tmp_path: Path, network: Path) -> None:
    affine = np.array([[0, 0, -4.0, 10], [4, 0, 0, 20], [0, 4, 0, 30], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).random((6, 7, 8), dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "in.nii")
    said("denoise", tmp_path / "in.nii", tmp_path / "out.nii", "--network", network)
    written = nib.load(tmp_path / "out.nii")
    np.testing.assert_array_equal(written.affine, affine)
    np.testing.assert_array_equal(
        written.get_fdata(dtype=np.float32), voxels
    )  # an untrained network is the identity


def test_denoise_refuses_in_one_line_with_exit_code_2(tmp_path: Path, network: Path) -> None:
    datasets = series()
    for dataset in datasets:
        del dataset.PatientWeight
    folder, out = write(datasets, tmp_path / "series"), tmp_path / "out.nii"
    command = [Path(sys.executable).parent / "tgd", "pet", "denoise", folder, out, "--network", network]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == ImageError.exit_code == 2
    assert "no PatientWeight" in found.stderr
    assert "Traceback" not in found.stderr
    assert not out.exists()


def test_names_and_tags_cannot_send_control_characters(tmp_path: Path, network: Path) -> None:
    title = "\x1b]0;owned\x07\x1b[2J"
    datasets = series()
    for number, dataset in enumerate(datasets):
        dataset.SeriesDescription, dataset.SeriesNumber = title, number % 2
        dataset.SeriesInstanceUID = f"1.2.{number % 2}"
    several, one = write(datasets, tmp_path / f"several{title}"), write(series(), tmp_path / f"one{title}")
    shown = [str(run("denoise", several, tmp_path / "out", "--network", network).exception)]
    for out in ("nifti.nii", "dicom"):
        shown += said("denoise", one, tmp_path / f"{title}{out}", "--network", network).splitlines()
    for arguments in (
        ("denoise", tmp_path / title, tmp_path / "out.nii", "--network", network),
        ("study", "--config", tmp_path / title, "-o", tmp_path / "study"),
        ("train", tmp_path / title, "--out", tmp_path / "run"),
    ):
        shown.append(str(run(*arguments).exception))
    assert all(line.isprintable() for line in shown), shown
    assert sum("x1b" in line for line in shown) >= 5


def test_denoise_refuses_before_any_work(tmp_path: Path, network: Path) -> None:
    source = tmp_path / "in.nii"
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4)), source)
    for out in (source, tmp_path / "out.png"):
        result = run("denoise", source, out, "--network", tmp_path / "none")
        assert isinstance(result.exception, ImageError)


def test_demo_compares_and_a_second_run_reuses(tmp_path: Path) -> None:
    assert "last 3" in said("demo", "--out", tmp_path, "--profile", "tiny")
    kept = ("v1-net", "full", "last3", "tgd", "tgd-full-flow")
    times = [(tmp_path / name / "network.safetensors").stat().st_mtime_ns for name in kept]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == [
        "input",
        "v1-net",
        "full",
        "last 3",
        "TGD",
        "TGD full flow",
    ]
    for row in results["rows"]:
        assert row["v2"]["cov"] > 0
        assert row["v1"]["rmse"] > 0
        assert row["kept"] is (True if row["name"].startswith(("last", "TGD")) else None)
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    again = run_demo(tmp_path, PROFILES["tiny"], progress=False)
    assert times == [(tmp_path / name / "network.safetensors").stat().st_mtime_ns for name in kept]
    assert [row.v2.rmse for row in again.rows] == [row["v2"]["rmse"] for row in results["rows"]]
    assert isinstance(run("demo", "--out", tmp_path, "--profile", "tiny", "--seed", 1).exception, RunError)


# Online learning -----------------------------------------------------------------------------------------

AFFINE = np.array([[-9.0, 0, 0, 200], [0, -9, 0, 200], [0, 0, -9, 30], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, patients: Path) -> list[Path]:
    """Two halves and the whole of a simulated scan as NIfTI."""
    patient, folder = load_patient(patients / "patient_000001.npz"), tmp_path_factory.mktemp("halves")
    paths = [folder / f"{name}.nii.gz" for name in ("a", "b", "whole")]
    for volume, path in zip((*patient.halves("v2"), patient.low("v2")[0]), paths, strict=True):
        nib.save(nib.Nifti1Image(volume.T, AFFINE), path)
    return paths


def read(path: Path) -> np.ndarray:
    return nib.load(path).get_fdata(dtype=np.float32)


def test_online_learns_from_two_halves_and_denoises_their_mean(
    tmp_path: Path, network: Path, halves: list[Path]
) -> None:
    a, b, whole = halves
    out = tmp_path / "out.v2.nii.gz"
    command = ("online", a, b, "--checkpoint", network, "-o", out, "--phi", 0.5, *QUICK)
    shown = said(*command)
    for words in ("TGD plan, phi 0.5", "unchanged: yes", "Held-out slices, RMSE", "mean of both halves"):
        assert words in shown
    rows = tmp_path / "out.v2.online" / "patient.safetensors"
    assert str(rows) in shown.replace("\n", "")
    np.testing.assert_array_equal(nib.load(out).affine, AFFINE)
    mean = Image((read(a) + read(b)) / 2, AFFINE)
    adapted = load_delta(load_network(network), rows)
    np.testing.assert_array_equal(read(out), mean.with_axial(denoise(adapted, mean.axial())).voxels)

    written = rows.with_name("network.safetensors").stat().st_mtime_ns
    assert "mean of both halves" not in said(*command, "--full", whole)
    assert rows.with_name("network.safetensors").stat().st_mtime_ns == written
    full = Image(read(whole), AFFINE)
    np.testing.assert_array_equal(read(out), full.with_axial(denoise(adapted, full.axial())).voxels)
    said("denoise", whole, tmp_path / "again.nii.gz", "--network", network, "--rows", rows)
    np.testing.assert_array_equal(read(tmp_path / "again.nii.gz"), read(out))


def test_online_without_tgd_is_plain_noise2noise(tmp_path: Path, network: Path, halves: list[Path]) -> None:
    a, b, whole = halves
    out, run_folder = tmp_path / "out.nii.gz", tmp_path / "run"
    options = ("--checkpoint", network, "-o", out, "--full", whole, "--run", run_folder, "--method", "full")
    shown = said("online", a, b, *options, *QUICK)
    assert "every filter is retrained" in shown
    assert "TGD" not in shown
    assert not (run_folder / "patient.safetensors").exists()
    said("denoise", whole, tmp_path / "again.nii.gz", "--network", run_folder / "network.safetensors")
    np.testing.assert_array_equal(read(tmp_path / "again.nii.gz"), read(out))


def test_online_refuses_what_is_no_pair(tmp_path: Path, network: Path, halves: list[Path]) -> None:
    a, b, _ = halves
    moved, out = AFFINE.copy(), tmp_path / "out.nii.gz"
    moved[0, 3] += 4.5
    nib.save(nib.Nifti1Image(read(b), moved), tmp_path / "moved.nii.gz")
    nib.save(nib.Nifti1Image(read(b)[1:], AFFINE), tmp_path / "cut.nii.gz")
    options = ("--checkpoint", network, *QUICK)
    for arguments, words in (
        ((a, tmp_path / "moved.nii.gz", "-o", out), "not on one grid"),
        ((a, tmp_path / "cut.nii.gz", "-o", out), "47 x 48 x 8 voxels of 9.000 x 9.000 x 9.000 mm"),
        ((a, b, "--full", tmp_path / "moved.nii.gz", "-o", out), "not on one grid"),
        ((a, a, "-o", out), "the same"),
        ((a, b, "-o", b), "input itself"),
        ((a, b, "-o", tmp_path / "dicom"), "cannot be made from"),
        ((tmp_path, tmp_path, "-o", tmp_path.parent / "dicom"), "Pass --full"),
        ((a, b, "-o", out, "--series", "3"), "1 times for 2 scans"),
    ):
        result = run("online", *arguments, *options)
        assert isinstance(result.exception, TGDError), arguments
        assert words in str(result.exception)
    assert not out.exists()


def test_online_takes_three_dicom_series_of_one_folder(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.pet.dicoms.ROWS", 32)
    monkeypatch.setattr("tests.pet.dicoms.COLUMNS", 33)
    datasets = [*series(), *series(), *series()]
    for number, dataset in enumerate(datasets):
        dataset.SeriesNumber = 3 + number // 6
        pixels = np.frombuffer(dataset.PixelData, np.uint16) // 2 + 1000 * (number // 6)
        dataset.PixelData = pixels.astype(np.uint16).tobytes()
    folder, out = write(datasets, tmp_path / "series"), tmp_path / "out"
    names = [part for name in (3, 4, 5) for part in ("--series", name)]
    said("online", folder, folder, "--full", folder, *names, "--checkpoint", network, "-o", out, *QUICK)
    made = [pydicom.dcmread(file) for file in out.iterdir()]
    assert {int(dataset.SeriesNumber) for dataset in made} == {1005}
    assert all("patient.safetensors" in dataset.DerivationDescription for dataset in made)
