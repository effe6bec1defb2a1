from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tgd_kit.errors import PatientError, SimulationError
from tgd_pet.simulation import files as patients
from tgd_pet.simulation.acquisition import Scanner
from tgd_pet.simulation.anatomy import LABELS
from tgd_pet.simulation.config import FORMAT, PatientConfig
from tgd_pet.simulation.files import load_patient, save_patient, simulate_set
from tgd_pet.simulation.geometry import Geometry, TimeOfFlight
from tgd_pet.simulation.patient import SimulatedPatient, simulate_patient
from tgdsurgery import TGDError

TINY = PatientConfig.tiny()


@pytest.fixture(scope="module")
def patient() -> SimulatedPatient:
    return simulate_patient(7, TINY)


def assert_same_patient(a: SimulatedPatient, b: SimulatedPatient) -> None:
    for name in ("true", "labels", "lesions", "spacing", "fractions"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    assert list(a.images) == list(b.images)
    for name, image in a.images.items():
        np.testing.assert_array_equal(image, b.images[name])
    assert (a.config, a.seed) == (b.config, b.seed)


def test_a_patient_has_the_promised_images(patient: SimulatedPatient) -> None:
    shape = (TINY.slices, 48, 48)
    for version in ("v1", "v2"):
        lists = patient.low(version), patient.realisations(version), patient.halves(version)
        assert [len(images) for images in lists] == [len(TINY.fractions), TINY.realisations, 2]
        for image in (patient.full(version), *chain(*lists)):
            assert (image.shape, image.dtype) == (shape, np.float32)
            assert np.isfinite(image).all()
            assert image.min() >= 0
    assert patient.true.shape == patient.labels.shape == patient.body().shape == shape
    np.testing.assert_array_equal(patient.spacing, [9.0, 9.0, 9.0])
    with pytest.raises(PatientError, match="v3"):
        patient.full("v3")


def test_images_are_in_suv(patient: SimulatedPatient) -> None:
    liver = patient.liver()
    for version in ("v1", "v2"):
        # Some hundred voxels with 10 % noise: 2 % is several sigma. Short scans have the same scale.
        for image in (patient.full(version), patient.low(version)[0], patient.realisations(version)[1]):
            assert image[liver].mean() == pytest.approx(patient.true[liver].mean(), rel=0.05)


def test_more_counts_are_nearer_the_truth(patient: SimulatedPatient) -> None:
    body = patient.body()
    for version in ("v1", "v2"):
        images = patient.full(version), patient.low(version)[1], patient.low(version)[0]
        errors = [np.square(image - patient.true)[body].mean() for image in images]
        assert errors == sorted(errors)


def test_masks(patient: SimulatedPatient) -> None:
    liver, body = patient.liver(), patient.body()
    assert 50 < liver.sum() < (patient.labels == LABELS["liver"]).sum()
    assert not (liver & ~body).any()
    masks = patient.lesion_masks()
    assert len(masks) == len(patient.lesions)
    for mask, (*centre, radius, suv) in zip(masks, patient.lesions, strict=True):
        index = tuple(np.round(np.array(centre) / 9.0 + (np.array(mask.shape) - 1) / 2).astype(int))
        assert mask[index]
        assert mask.sum() <= max(8, 4 / 3 * np.pi * (radius / 9.0 + 1) ** 3)
        assert not (liver & mask).any()
        assert patient.true[mask].max() <= suv * (1 + 1e-6)


def test_the_seed_and_the_configuration_determine_the_patient(patient: SimulatedPatient) -> None:
    assert_same_patient(simulate_patient(7, TINY), patient)
    assert not np.array_equal(simulate_patient(12, TINY).true, patient.true)


def test_realisations_change_no_other_image(patient: SimulatedPatient) -> None:
    training = simulate_patient(7, replace(TINY, realisations=0))
    assert training.realisations("v1") == training.halves("v2") == []
    assert len(training.images) == 2 * (1 + len(TINY.fractions))
    for name, image in training.images.items():
        np.testing.assert_array_equal(image, patient.images[name])


def test_v2_is_sharper_and_noisier_than_v1() -> None:
    """The premise of the experiments: what v1-net takes for noise is partly signal in v2 images."""
    geometry = Geometry(size=96, voxel_mm=4.5, angles=60, bins=96, bin_mm=4.5, tof=TimeOfFlight())
    config = PatientConfig(Scanner(geometry, slice_mm=4.5), slices=12)
    patient = simulate_patient(1, config)
    liver, noise, recovery = patient.liver(), {}, {}
    for version in ("v1", "v2"):
        relative = patient.low(version)[0][liver] / patient.true[liver]
        noise[version] = relative.std() / relative.mean()
        full = patient.full(version)
        recovery[version] = np.mean([full[m].mean() / patient.true[m].mean() for m in patient.lesion_masks()])
    assert noise["v2"] > 1.1 * noise["v1"]  # about 1.32, of thousands of voxels
    assert recovery["v2"] > recovery["v1"] + 0.02  # about 0.05


@pytest.mark.parametrize("feature", ["bladder", "line"])
def test_hot_features_are_unlike_any_training_patient(feature: str, patient: SimulatedPatient) -> None:
    hot = simulate_patient(11, replace(TINY, feature=feature))
    assert (hot.labels == LABELS[feature]).any()
    assert hot.true.max() > 1.5 * patient.true.max()
    assert hot.full("v2").max() > patient.full("v2").max()


def test_configurations_survive_json() -> None:
    without_tof = replace(TINY.scanner, geometry=TINY.scanner.geometry.without_tof())
    for config in (TINY, PatientConfig.demo(), replace(TINY, scanner=without_tof, body_size="low")):
        assert PatientConfig.from_json(config.to_json()) == config
    hashes = {config.hash() for config in (TINY, PatientConfig.demo(), replace(TINY, body_size="low"))}
    assert len(hashes) == 3
    assert PatientConfig.tiny().hash() == TINY.hash()


@pytest.mark.parametrize(
    "wrong",
    [
        {"fractions": ()},
        {"fractions": (0.0,)},
        {"realisation_fraction": 1.5},
        {"realisations": 11},
        {"slices": 0},
        {"prompts_per_slice": (2.0, 1.0)},
    ],
)
def test_impossible_configurations_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SimulationError):
        replace(TINY, **wrong)


def test_a_file_gives_the_patient_back(patient: SimulatedPatient, tmp_path: Path) -> None:
    save_patient(patient, tmp_path / "patient.npz")
    assert_same_patient(load_patient(tmp_path / "patient.npz"), patient)
    assert [path.name for path in tmp_path.iterdir()] == ["patient.npz"]


def test_files_that_are_no_patients_are_refused(patient: SimulatedPatient, tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    save_patient(patient, whole)
    data = whole.read_bytes()
    with np.load(whole) as archive:
        fields = {name: archive[name] for name in archive.files}
    spoiled = {
        "cut.npz": data[: len(data) // 2],
        "empty.npz": b"",
        "text.npz": b"no archive",
        "flipped.npz": data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    }
    for name, content in spoiled.items():
        (tmp_path / name).write_bytes(content)
    other_format = fields["config"].item().replace(f'"format": {FORMAT}', '"format": 0')
    changed = {
        "pickled.npz": {**fields, "true": np.array([{}], dtype=object)},
        "no_labels.npz": {name: array for name, array in fields.items() if name != "labels"},
        "no_target.npz": {name: array for name, array in fields.items() if name != "v1_full"},
        "shapes.npz": {**fields, "v2_full": fields["v2_full"][1:]},
        "nan.npz": {**fields, "v2_full": fields["v2_full"] * np.nan},
        "config.npz": {**fields, "config": np.array("{}")},
        "format.npz": {**fields, "config": np.array(other_format)},
        "lesions.npz": {**fields, "lesions": fields["lesions"][:, :4]},
        "more.npz": {**fields, "v3_full": fields["v1_full"]},
        "labels.npz": {**fields, "labels": fields["labels"] + np.uint8(200)},
        "double.npz": {**fields, "true": fields["true"].astype(float)},
        "infinite.npz": {**fields, "true": fields["true"] + np.float32(np.inf)},
        "spacing.npz": {**fields, "spacing": -fields["spacing"]},
        "fractions.npz": {**fields, "fractions": fields["fractions"] * 2},
        "types.npz": {**fields, "config": np.array(fields["config"].item().replace("8", '"8"'))},
        "many.npz": {**fields, "seed": np.array([1, 2])},
    }
    for name, content in changed.items():
        np.savez(tmp_path / name, **content)
    np.save(tmp_path / "array.npy", fields["true"])
    np.savez_compressed(tmp_path / "zip.npz", **{**fields, "true": np.zeros((2**14, 2**14), np.float32)})
    with zipfile.ZipFile(whole) as stored, zipfile.ZipFile(tmp_path / "claimed.npz", "w") as claimed:
        for member in stored.namelist():  # 3 GB an array, by the headers
            content = stored.read(member).replace(b"(8, 48, 48), }      ", b"(299999, 48, 48), } ")
            claimed.writestr(member, content)
    for name in (*spoiled, *changed, "array.npy", "absent.npz", "zip.npz", "claimed.npz", "x" * 300, "a\0b"):
        with pytest.raises(TGDError) as caught:
            load_patient(tmp_path / name)
        assert str(caught.value).isprintable()
    load_patient(whole)


def test_a_set_is_resumed_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seed: int, config: PatientConfig) -> SimulatedPatient:
        if seed == 2:
            raise KeyboardInterrupt
        return simulate_patient(seed, config)

    simulated: list[int] = []

    def record(seed: int, config: PatientConfig) -> SimulatedPatient:
        simulated.append(seed)
        return simulate_patient(seed, config)

    monkeypatch.setattr(patients, "simulate_patient", interrupt)
    with pytest.raises(KeyboardInterrupt):
        simulate_set(tmp_path, [1, 2, 3], TINY, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["patient_000001.npz"]

    monkeypatch.setattr(patients, "simulate_patient", record)
    (tmp_path / "patient_000003.npz").write_bytes(b"half a file")
    np.savez_compressed(tmp_path / "patient_000004.npz", true=np.zeros(2**20))  # not of this set
    paths = simulate_set(tmp_path, [1, 2, 3], TINY, progress=False)
    assert simulated == [2, 3]
    assert [load_patient(path).seed for path in paths] == [1, 2, 3]

    other = replace(TINY, body_size="low")
    simulate_set(tmp_path, [3], other, progress=False)
    simulate_set(tmp_path, [2], TINY, progress=False)
    assert simulated == [2, 3, 3]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["seed"] for entry in manifest["patients"]] == [1, 2]
    assert manifest["config_hash"] == TINY.hash()


def test_processes_make_the_same_files(tmp_path: Path) -> None:
    config = replace(TINY, realisations=0, fractions=(0.2,), slices=4)
    alone = simulate_set(tmp_path / "alone", [1, 2, 3], config, progress=False)
    together = simulate_set(tmp_path / "together", [1, 2, 3], config, workers=2, progress=False)
    for a, b in zip(alone, together, strict=True):
        assert_same_patient(load_patient(a), load_patient(b))


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    thin = replace(TINY.scanner, slice_mm=1.0)  # two slices of 1 mm have no room for a lesion
    with pytest.raises(SimulationError, match="lesion"):
        simulate_set(tmp_path, [1, 2], replace(TINY, scanner=thin, slices=2), progress=False)
    assert not list(tmp_path.iterdir())
