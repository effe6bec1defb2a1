"""`tgd pet denoise --deltas`: the rows that a scan's DICOM tags ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.pet import dicoms
from tgd_kit.imaging.dicom.tags import texts
from tgd_kit.training.weights import save_weights
from tgd_pet.images.suv import SUV
from tgd_pet.network import new_network
from tgdsurgery import apply_tgd, save_delta
from tgdsurgery.cli import main

SCANNER = {"ManufacturerModelName": "Discovery MI"}
PATIENT = SCANNER | {"PatientID": "7"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A base, a scanner's and a patient's delta, and a series of that scanner."""
    base = new_network(0, (8, 8, 8, 3)).eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(base.convolutions[-1].weight, std=0.005)
    save_weights(base, tmp_path / "network.safetensors")
    (tmp_path / "deltas").mkdir()
    for number, (name, when) in enumerate({"scanner": SCANNER, "patient": PATIENT}.items(), start=1):
        tgd = apply_tgd(base, torch.zeros(1, 3, 8, 8), phi=0.8)
        with torch.no_grad():
            for parameter in tgd.parameters():
                parameter.add_(number / 1000)
        save_delta(tgd, tmp_path / "deltas" / f"{name}.safetensors", when=when)
    return tmp_path


def scan(folder: Path, **tags: str) -> Path:
    datasets = dicoms.series()
    for dataset in datasets:
        for tag, value in tags.items():
            setattr(dataset, tag, value)
    return dicoms.write(datasets, folder / "scan")


def denoise(work: Path, source: Path, *options: str) -> tuple[str, np.ndarray | None]:
    """What the command says, and the image that it writes; None if it refuses."""
    out = work / f"out{len(list(work.iterdir()))}.nii"
    args = ["pet", "denoise", str(source), str(out), "--network", str(work / "network.safetensors"), *options]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == (0 if out.exists() else 2), result.output
    return result.output, SUV.read(out).voxels if out.exists() else None


@pytest.mark.parametrize(
    ("tags", "chosen"),
    [
        (PATIENT, "patient"),
        (SCANNER | {"PatientID": "8"}, "scanner"),
        ({"ManufacturerModelName": "Vereos", "PatientID": "7"}, None),
        ({}, None),
    ],
)
def test_the_rows_are_those_that_the_tags_ask_for(work, tags, chosen):
    source, deltas = scan(work, **tags), work / "deltas"
    said, image = denoise(work, source, "--deltas", str(deltas))
    rows = [] if chosen is None else ["--rows", str(deltas / f"{chosen}.safetensors")]
    note = (
        f"None of the 2 deltas in {deltas} is for this scan: the base network is used."
        if chosen is None
        else f"Rows of {deltas / chosen}.safetensors, whose conditions this scan meets."
    )
    assert note in said
    assert np.array_equal(image, denoise(work, source, *rows)[1])
    if chosen:
        assert not np.array_equal(image, denoise(work, source)[1])


def test_what_cannot_be_chosen_is_refused(work):
    source, deltas = scan(work), str(work / "deltas")
    _, image = denoise(work, source)
    nifti = sorted(work.glob("out*.nii"))[0]
    assert "A NIfTI file does not say which rows it needs" in denoise(work, nifti, "--deltas", deltas)[0]
    rows = ["--rows", str(work / "deltas" / "patient.safetensors")]
    assert "--rows and --deltas are both given" in denoise(work, source, "--deltas", deltas, *rows)[0]
    (work / "none").mkdir()
    assert "holds no .safetensors file" in denoise(work, source, "--deltas", str(work / "none"))[0]
    assert image is not None


def test_texts_are_the_tags_that_all_slices_share():
    datasets = dicoms.series()
    for number, dataset in enumerate(datasets):
        dataset.PatientID, dataset.InstanceNumber = " 7 ", number
        dataset.add_new((0x0009, 0x0010), "LO", "private")
        dataset.NumberOfTimeSlices = 1
        dicoms.garble(dataset, "NumberOfTimeSlices", b"odd")
    found = texts(datasets)
    assert found["PatientID"] == "7"
    assert found["CorrectedImage"] == r"DECY\ATTN\SCAT"
    assert found["PixelSpacing"] == r"4.0\5.0"
    assert (
        not {"InstanceNumber", "NumberOfTimeSlices", "RadiopharmaceuticalInformationSequence", ""}
        & found.keys()
    )
