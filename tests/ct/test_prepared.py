"""LiTS and KiTS as files of cases: written once, read as they were, damaged ones refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.ct.cases import DOSE, disc_case
from tests.ct.scans import body, target, write_nifti
from tgd_ct.case import Case
from tgd_ct.cli import ct
from tgd_ct.images.prepared import case_file, load_case, save_case
from tgd_ct.loading import load_cases
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.files import simulate_set
from tgd_kit.errors import ImageError, PatientError, RunError


def assert_same(one: Case, other: Case) -> None:
    assert (one.name, one.spacing_mm) == (other.name, other.spacing_mm)
    for read in (lambda case: case.images, lambda case: case.targets):
        assert read(one).keys() == read(other).keys()
        assert all(np.array_equal(read(one)[key], read(other)[key]) for key in read(one))
    np.testing.assert_array_equal(one.body, other.body)


def prepared(source: Path, out: Path, *options: object) -> Result:
    arguments = ["prepare", str(source), str(out), "--layout", "lits", *map(str, options)]
    return CliRunner().invoke(ct, arguments)


@pytest.fixture
def lits(tmp_path: Path) -> Path:
    for number in (10, 2):
        write_nifti(body() + number, tmp_path / "lits" / f"volume-{number}.nii")
        write_nifti(target(), tmp_path / "lits" / f"segmentation-{number}.nii")
        write_nifti(body(), tmp_path / "low" / f"volume-{number}.nii")
    return tmp_path / "lits"


def test_a_case_comes_back_as_it_was(tmp_path: Path) -> None:
    case = disc_case(0)
    save_case(case, tmp_path / "case.npz")
    assert_same(load_case(tmp_path / "case.npz"), case)


def test_lits_is_prepared_once(lits: Path, tmp_path: Path) -> None:
    options = ("--low", f"0.05={tmp_path / 'low'}", "--spacing", 5, 8, 8, "--shape", 4, 16, 16)
    result = prepared(lits, tmp_path / "cases", *options)
    assert result.exit_code == 0, result.exception
    assert "2 cases" in result.output
    cases = load_cases(tmp_path / "cases")
    assert {case.name for case in cases} == {"LiTS 2", "LiTS 10"}
    assert cases[0].image(0.05).shape == cases[0].target("liver").shape == (4, 16, 16)

    kept = case_file(tmp_path / "cases", "10")
    before, lost = kept.stat().st_mtime_ns, case_file(tmp_path / "cases", "2")
    lost.unlink()
    assert prepared(lits, tmp_path / "cases", *options).exit_code == 0
    assert kept.stat().st_mtime_ns == before
    assert lost.exists()
    assert isinstance(prepared(lits, tmp_path / "cases").exception, RunError)  # other settings


def test_simulated_and_prepared_cases_are_read_alike(lits: Path, tmp_path: Path) -> None:
    (path,) = simulate_set(tmp_path / "cases", [3], PatientConfig.tiny(), progress=False)
    save_case(disc_case(0), case_file(tmp_path / "cases", "0"))
    assert [case.name for case in load_cases(tmp_path / "cases")] == ["disc 0", path.stem]


@pytest.mark.parametrize("low", ["0.05", "=folder", "half=folder", "2=folder", "1=folder"])
def test_what_is_no_dose_with_a_folder_is_refused(lits: Path, tmp_path: Path, low: str) -> None:
    result = prepared(lits, tmp_path / "cases", "--low", low)
    assert isinstance(result.exception, RunError)
    assert "--low 0.05=FOLDER" in str(result.exception)
    assert not (tmp_path / "cases").exists()


def test_an_unknown_patient_is_refused(lits: Path, tmp_path: Path) -> None:
    assert isinstance(prepared(lits, tmp_path / "cases", "--patient", 7).exception, ImageError)


def test_what_is_no_case_is_refused(tmp_path: Path) -> None:
    case = disc_case(0)
    flawed = {
        "nan": replace(case, images={**case.images, DOSE: case.image(DOSE) * np.float32(np.nan)}),
        "shape": replace(case, body=case.body[1:]),
        "type": replace(case, body=case.body.astype(np.uint8)),
        "labels": replace(case, targets={"liver": case.target("liver") + np.uint8(3)}),
        "size": replace(case, spacing_mm=(0.0, 1.0, 1.0)),
        "normal": replace(case, images={DOSE: case.image(DOSE)}),
    }
    for name, one in flawed.items():
        save_case(one, tmp_path / f"{name}.npz")
        with pytest.raises(PatientError, match=r"not a whole case.*tgd ct prepare"):
            load_case(tmp_path / f"{name}.npz")
    whole = tmp_path / "case.npz"
    save_case(case, whole)
    whole.write_bytes(whole.read_bytes()[:-100])
    for path in (whole, tmp_path / "missing.npz"):
        with pytest.raises(PatientError, match="tgd ct prepare"):
            load_case(path)
    with pytest.raises(RunError, match=r"no case.*tgd ct simulate.*tgd ct prepare"):
        load_cases(tmp_path)
