"""Simulated patients: what they promise, what they depend on, and their files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from tgd_ct.case import DOSES, ORGAN, TASKS, TUMOUR
from tgd_ct.simulation import files
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.files import (
    PARTS,
    SEEDS_PER_PART,
    load_patient,
    load_set,
    part_seeds,
    save_patient,
    simulate_set,
)
from tgd_ct.simulation.patient import SimulatedPatient, simulate_patient
from tgd_ct.simulation.phantom import Tumours
from tgd_kit.errors import ImageError, PatientError, RunError, SimulationError
from tgdsurgery import TGDError

TINY = PatientConfig.tiny()


@pytest.fixture(scope="module")
def patient() -> SimulatedPatient:
    return simulate_patient(7, TINY)


def fields(patient: SimulatedPatient) -> dict[str, np.ndarray]:
    images = {f"dose {dose}": image for dose, image in patient.images.items()}
    tables = {name: getattr(patient, name) for name in ("true", "body", "tumours")}
    return {**tables, **images, **patient.targets}


def assert_same_patient(a: SimulatedPatient, b: SimulatedPatient) -> None:
    assert fields(a).keys() == fields(b).keys()
    for name, array in fields(a).items():
        np.testing.assert_array_equal(array, fields(b)[name])
        assert array.dtype == fields(b)[name].dtype
    assert (a.config, a.seed) == (b.config, b.seed)


def test_a_case_has_all_doses_and_both_tasks(patient: SimulatedPatient) -> None:
    case, shape = patient.case(), (8, 48, 48)
    assert (case.name, case.spacing_mm) == ("patient_000007", (8.0, 8.0, 8.0))
    assert tuple(case.images) == DOSES
    for dose in DOSES:
        image = case.image(dose)
        assert (image.shape, image.dtype) == (shape, np.float32)
        assert np.isfinite(image).all()
    for task in TASKS:
        assert set(np.unique(case.target(task))) == {0, ORGAN, TUMOUR}
        assert case.body[case.target(task) > 0].all()
    assert not case.body[:, 0].any()
    with pytest.raises(ImageError, match=r"no image at 50 % of the dose"):
        case.image(0.5)


def test_images_are_in_hu(patient: SimulatedPatient) -> None:
    liver = binary_erosion(patient.targets["liver"] == ORGAN)
    for dose in (1.0, 0.25, 0.1):
        # Dozens of voxels of 10 to 40 HU of noise; at the lowest doses the logarithm has a bias of its own.
        assert patient.images[dose][liver].mean() == pytest.approx(patient.true[liver].mean(), abs=8)
    air = ~patient.body
    air[:, 8:-8, 4:-4] = False
    assert patient.images[1.0][air].mean() == pytest.approx(-1000, abs=10)


def test_a_lower_dose_is_noisier_and_each_has_noise_of_its_own(patient: SimulatedPatient) -> None:
    body = patient.body
    errors = {dose: (image - patient.true)[body] for dose, image in patient.images.items()}
    spreads = [errors[dose].std() for dose in DOSES]
    assert spreads == sorted(spreads)
    noise = {dose: (patient.images[dose] - patient.images[1.0])[body] for dose in (0.05, 0.02)}
    assert abs(np.corrcoef(noise[0.05], noise[0.02])[0, 1]) < 0.1


def test_the_seed_and_the_configuration_determine_the_patient(patient: SimulatedPatient) -> None:
    assert_same_patient(simulate_patient(7, TINY), patient)
    assert not np.array_equal(simulate_patient(8, TINY).true, patient.true)


def test_a_sharper_kernel_shows_the_same_patient_with_more_noise(patient: SimulatedPatient) -> None:
    sharp = simulate_patient(7, replace(TINY, scanner=replace(TINY.scanner, kernel="sharp")))
    np.testing.assert_array_equal(sharp.true, patient.true)
    np.testing.assert_array_equal(sharp.targets["liver"], patient.targets["liver"])
    noise = [(p.images[0.05] - p.images[1.0])[patient.body] for p in (patient, sharp)]
    assert noise[1].std() > 1.3 * noise[0].std()
    assert np.corrcoef(*noise)[0, 1] > 0.5  # the same counts


def test_configurations_survive_json() -> None:
    configs = (
        TINY,
        PatientConfig.quick(),
        PatientConfig.full(),
        replace(TINY, tumours=Tumours((5, 9), (20, 30))),
    )
    for config in configs:
        assert PatientConfig.from_json(config.to_json()) == config
    assert len({config.hash() for config in configs}) == len(configs)
    with pytest.raises(PatientError, match="another version"):
        PatientConfig.from_json(TINY.to_json().replace(f'"format": {PatientConfig.FORMAT}', '"format": 0'))
    with pytest.raises(SimulationError):
        replace(TINY, slices=0)


def test_sizes_are_as_documented() -> None:
    for config, shape, spacing in (
        (PatientConfig.quick(), (16, 128, 128), (4.0, 3.0, 3.0)),
        (PatientConfig.full(), (32, 256, 256), (3.0, 1.5, 1.5)),
        (TINY, (8, 48, 48), (8.0, 8.0, 8.0)),
    ):
        assert config.phantom_grid().coarser().shape == shape
        assert config.scanner.spacing_mm == spacing


# Files ---------------------------------------------------------------------------------------------------


def test_a_file_gives_the_patient_back(patient: SimulatedPatient, tmp_path: Path) -> None:
    save_patient(patient, tmp_path / "patient_000007.npz")
    assert_same_patient(load_patient(tmp_path / "patient_000007.npz"), patient)
    assert [path.name for path in tmp_path.iterdir()] == ["patient_000007.npz"]
    (case,) = load_set(tmp_path)
    np.testing.assert_array_equal(case.image(0.01), patient.images[0.01])


def test_files_that_are_no_patients_are_refused(patient: SimulatedPatient, tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    save_patient(patient, whole)
    with np.load(whole) as archive:
        found = {name: archive[name] for name in archive.files}
    changed = {
        "no_dose.npz": {name: array for name, array in found.items() if name != "dose_0.05"},
        "more.npz": {**found, "dose_0.5": found["dose_1"]},
        "shapes.npz": {**found, "dose_1": found["dose_1"][1:]},
        "nan.npz": {**found, "dose_1": found["dose_1"] * np.nan},
        "labels.npz": {**found, "liver": found["liver"] + np.uint8(1)},
        "double.npz": {**found, "true": found["true"].astype(float)},
        "body.npz": {**found, "body": found["body"].astype(np.uint8)},
        "tumours.npz": {**found, "tumours": found["tumours"][:, :5]},
        "infinite.npz": {**found, "tumours": found["tumours"] + np.inf},
        "config.npz": {**found, "config": np.array("{}")},
    }
    for name, content in changed.items():
        np.savez(tmp_path / name, **content)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:5000])
    for name in (*changed, "cut.npz", "absent.npz"):
        with pytest.raises(PatientError) as caught:
            load_patient(tmp_path / name)
        assert str(caught.value).isprintable()


def test_a_set_is_resumed_listed_and_the_same_from_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = simulate_set(tmp_path / "together", [1, 2, 3], TINY, workers=2, progress=False)
    simulated: list[int] = []

    def record(seed: int, config: PatientConfig) -> SimulatedPatient:
        simulated.append(seed)
        if simulated == [1, 2]:
            raise KeyboardInterrupt
        return simulate_patient(seed, config)

    monkeypatch.setattr(files, "simulate_patient", record)
    with pytest.raises(KeyboardInterrupt):
        simulate_set(tmp_path / "alone", [1, 2, 3], TINY, progress=False)
    alone = simulate_set(tmp_path / "alone", [1, 2, 3], TINY, progress=False)
    assert simulated == [1, 2, 2, 3]
    for a, b in zip(alone, together, strict=True):
        assert_same_patient(load_patient(a), load_patient(b))
    manifest = json.loads((tmp_path / "alone" / "manifest.json").read_text())
    assert [entry["seed"] for entry in manifest["patients"]] == [1, 2, 3]
    assert manifest["config_hash"] == TINY.hash()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no patient") as caught:
        load_set(tmp_path)
    assert "tgd ct simulate" in caught.value.remedy


def test_no_patient_is_in_two_parts() -> None:
    everyone = [set(part_seeds(part, 0, SEEDS_PER_PART)) for part in PARTS]
    assert sum(map(len, everyone)) == len(set.union(*everyone)) == 3 * SEEDS_PER_PART
    for first, patients in ((SEEDS_PER_PART, 1), (SEEDS_PER_PART - 1, 2), (-1, 1), (0, 0)):
        with pytest.raises(TGDError, match="do not exist"):
            part_seeds("train", first, patients)
