"""`tgd ct simulate` and `tgd ct insert`: what is typed, what is written, and what is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.ct.scans import REAL, body, series, write, write_nifti
from tgd_ct.cli import ct
from tgd_ct.images.hu import HU
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.files import load_set
from tgdsurgery import TGDError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(ct, [str(argument) for argument in arguments])


def said(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    return result.output


def test_help_names_both_commands() -> None:
    for command in ("simulate", "insert"):
        assert command in said("--help")
        assert "Usage" in said(command, "--help")


def test_commands_are_found_without_heavy_imports() -> None:
    heavy = {"torch", "lightning", "numpy", "nibabel", "scipy", "pydicom"}
    code = f"import sys, tgd_ct.cli; print(*({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_simulated_patients_of_the_parts_differ(tmp_path: Path) -> None:
    for part, seed in (("train", 3), ("test", 200_003)):
        folder = tmp_path / part
        shown = said("simulate", folder, "--patients", 1, "--part", part, "--seed", 3, "--size", "tiny")
        assert "1 patients in" in shown
        (case,) = load_set(folder)
        assert case.name == f"patient_{seed:06d}"


def test_simulate_passes_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def noted(folder: Path, seeds: range, config: PatientConfig, *, workers: int) -> list[Path]:
        asked.append((folder, list(seeds), config, workers))
        return [folder / "patient"] * len(seeds)

    monkeypatch.setattr("tgd_ct.cli.simulate.simulate_set", noted)
    options = "--patients", 2, "--size", "full", "--kernel", "sharp", "--body-size", "low", "--workers", 1
    assert "2 patients" in said("simulate", tmp_path, *options)
    ((folder, seeds, config, workers),) = asked
    assert (folder, seeds, workers) == (tmp_path, [0, 1], 1)
    assert (config.scanner.kernel, config.body_size, config.slices) == ("sharp", "low", 32)
    assert config.scanner.geometry == PatientConfig.full().scanner.geometry
    result = run("simulate", tmp_path, "--seed", 99_999, "--patients", 2)
    assert isinstance(result.exception, TGDError)


def test_insert_keeps_grid_and_header_of_nifti(tmp_path: Path) -> None:
    source = write_nifti(body(), tmp_path / "in.nii.gz")
    shown = said("insert", source, tmp_path / "out.nii.gz", "--dose", 0.1, "--photons", 1e4)
    before, after = nib.load(source), nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.get_data_dtype() == np.float32
    noise = after.get_fdata() - before.get_fdata()
    inside = before.get_fdata() > 0
    assert noise[inside].std() > 5
    assert "Noise added in the body: " in shown
    assert "IN is taken to have" in shown
    said("insert", source, tmp_path / "again.nii.gz", "--dose", 0.1, "--photons", 1e4)
    said("insert", source, tmp_path / "other.nii.gz", "--dose", 0.1, "--photons", 1e4, "--seed", 1)
    again, other = (nib.load(tmp_path / f"{name}.nii.gz").get_fdata() for name in ("again", "other"))
    np.testing.assert_array_equal(again, after.get_fdata())
    assert not np.array_equal(other, again)


def test_insert_writes_a_derived_dicom_series(tmp_path: Path) -> None:
    folder = write(series(body()), tmp_path / "series")
    said("insert", folder, tmp_path / "out", "--dose", 0.1)
    before, after = HU.read(folder), HU.read(tmp_path / "out")
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.source is not None
    made = after.source.slices[0]
    assert made.SeriesDescription == "Abdomen 10 % dose"
    assert made.DerivationDescription.startswith("10 % of the dose inserted by tgdsurgery")
    assert (after.axial() - before.axial())[before.axial() > 0].std() > 1


def test_insert_refuses_before_any_work(tmp_path: Path) -> None:
    source = write_nifti(body(), tmp_path / "in.nii")
    for out in (source, tmp_path / "folder"):
        assert isinstance(run("insert", source, out, "--dose", 0.1).exception, TGDError)
    for dose in (0, 5, -1):
        assert run("insert", source, tmp_path / "out.nii", "--dose", dose).exit_code == 2
    assert not (tmp_path / "out.nii").exists()
    write_nifti(body() + 1024, tmp_path / "shifted.nii")
    assert isinstance(
        run("insert", tmp_path / "shifted.nii", tmp_path / "out.nii", "--dose", 0.1).exception, TGDError
    )


@pytest.mark.skipif(not REAL.exists(), reason="the real CT ct_abdomen is not here (TGD_TEST_DATA)")
def test_a_real_ct_goes_through(tmp_path: Path) -> None:
    shown = said("insert", REAL / "ct.nii.gz", tmp_path / "low.nii.gz", "--dose", 0.05)
    before, after = nib.load(REAL / "ct.nii.gz"), nib.load(tmp_path / "low.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.shape == before.shape
    liver = nib.load(REAL / "labels.nii.gz").get_fdata() == 5
    noise = (after.get_fdata() - before.get_fdata())[liver]
    assert abs(noise.mean()) < 0.05 * noise.std()
    assert noise.std() > 20
    assert "Noise added" in shown
