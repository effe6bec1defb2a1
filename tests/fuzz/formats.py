"""The formats: a small valid file of each, and what the package does with it."""

from __future__ import annotations

import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from tests.ct import scans
from tests.onnx.graphs import drawn, node, save
from tests.pet import dicoms
from tests.pet.scans import RandomScans
from tests.pet.test_training import StopAfter
from tgd_ct.images.datasets import LITS, read_dataset
from tgd_ct.simulation.config import PatientConfig as CTConfig
from tgd_ct.simulation.files import load_patient as load_ct_patient
from tgd_ct.simulation.files import save_patient as save_ct_patient
from tgd_ct.simulation.patient import simulate_patient as simulate_ct_patient
from tgd_kit.runs.record import study_record, timed
from tgd_kit.runs.reserve import reserve
from tgd_kit.runs.settings import read_record
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.weights import save_weights
from tgd_pet.evaluation.measures import Patient, RegionError
from tgd_pet.experiment.settings import PROFILES, read_settings
from tgd_pet.images.suv import SUV
from tgd_pet.network import load_network, new_network
from tgd_pet.report.results import PerVersion
from tgd_pet.simulation.config import PatientConfig
from tgd_pet.simulation.files import load_patient, save_patient
from tgd_pet.simulation.patient import simulate_patient
from tgd_pet.training.fit import fit
from tgdsurgery import SweepResult, SweepRow, TGDError, TGDPlan, apply_tgd, from_onnx, load_delta, save_delta
from tgdsurgery.cli import main

WIDTHS = (4, 4, 4, 3)


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Args:
        file: name of the file in a folder of its own.
        make: write a valid file, and all that goes with it, into the folder.
        read: what the package does with the file in the folder.
        share: of the mutants, relative to the others.
    """

    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    share: float = 1.0


def _nifti(file: str) -> Format:
    voxels = np.random.default_rng(0).random((6, 5, 4), dtype=np.float32)
    image = nib.Nifti1Image(voxels, np.diag([-4.0, -4, 3, 1]))
    return Format(
        file, lambda folder: nib.save(image, folder / file), lambda folder: _image(folder, folder / file)
    )


def _image(folder: Path, source: Path) -> None:
    """Read, and written again as it came."""
    image = SUV.read(source)
    assert np.isfinite(image.voxels).all()
    out = folder.with_name("out") if image.source else folder.with_name("out.nii")
    try:
        SUV.write(image, out, "unchanged")
    finally:
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)


def _series(folder: Path) -> None:
    dicoms.write(dicoms.series()[:], folder)


def _zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, dataset in enumerate(dicoms.series()):
            content = io.BytesIO()
            dataset.save_as(content, enforce_file_format=True)
            archive.writestr(f"{number}.dcm", content.getvalue())


def _patient(folder: Path) -> None:
    save_patient(simulate_patient(0, PatientConfig.tiny()), folder / "patient.npz")


def _ct_patient(folder: Path) -> None:
    save_ct_patient(simulate_ct_patient(0, CTConfig.tiny()), folder / "patient.npz")


def _label_map(folder: Path) -> None:
    scans.write_nifti(scans.body(), folder / "volume-0.nii")
    scans.write_nifti(scans.target(), folder / "segmentation-0.nii")


def _yaml(folder: Path) -> None:
    shutil.copy(PROFILES / "tiny.yaml", folder / "settings.yaml")


def _yaml_as_json(folder: Path) -> None:
    """JSON is YAML: values are damaged one by one."""
    (folder / "settings.yaml").write_text(json.dumps(yaml.safe_load((PROFILES / "tiny.yaml").read_text())))


def _run(folder: Path) -> None:
    with timed(folder, "measuring"):
        pass


ASKED = {"seed": 1, "widths": [4, 3], "purpose": "train"}


def _measures(folder: Path) -> None:
    region = RegionError(0.1, 30.0, 0.9)
    one = asdict(Patient(1.0, 1.0, None, 2.0, 3.0, 4.0, 5.0, region, region))
    (folder / "measures.json").write_text(json.dumps({"v1": [one], "v2": [one, one]}))


def _network(folder: Path) -> None:
    save_weights(new_network(0, WIDTHS), folder / "network.safetensors")


def _train(folder: Path, *stop: StopAfter) -> None:
    schedule = Schedule(epochs=2, steps=1, batch=1, patch=8)
    network, patients = new_network(0, WIDTHS), [RandomScans(0, (3, 12, 12))]
    fit(network, patients, "v1", folder, schedule, progress=False, callbacks=stop)


def _interrupted(folder: Path) -> None:
    try:
        _train(folder / "run", StopAfter(1))
    except ConnectionAbortedError:
        shutil.move(folder / "run" / "checkpoints" / "last.ckpt", folder / "last.ckpt")


def _resumed(folder: Path) -> None:
    run = folder.with_name("resumed")
    try:
        (run / "checkpoints").mkdir(parents=True)
        shutil.copy(folder / "run" / "run.json", run)
        shutil.copy(folder / "last.ckpt", run / "checkpoints")
        _train(run)
    finally:
        shutil.rmtree(run)


def _base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3)).eval()


def _tgd() -> nn.Module:
    return apply_tgd(_base(), torch.zeros(1, 1, 9, 9), phi=0.5)


def _onnx(folder: Path, *, outside: bool) -> None:
    """With its weights in the file, or in another one beside it."""
    weights = {f"{name}.weight": drawn(4, 4, 3, 3) for name in ("a", "b")}
    nodes = [node("Conv", "x a.weight", "h"), node("Relu", "h", "r"), node("Conv", "r b.weight", group=1)]
    save(folder / "net.onnx", nodes, {"x": (1, 4, 9, 9)}, weights)
    if outside:
        model = onnx.load(folder / "net.onnx")
        onnx.save(
            model, folder / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0
        )


def _import(path: Path) -> None:
    from_onnx(path, check=False)


def _exported(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says about its own export
        torch.export.save(torch.export.export(_base(), (torch.zeros(1, 1, 9, 9),)), folder / "net.pt2")


def _sharded(folder: Path) -> None:
    save_weights(_base(), folder / "net.safetensors")
    places = dict.fromkeys(_base().state_dict(), "net.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _inspect(path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(path)])
    if result.exit_code == 2:
        raise TGDError(result.output[:500], "")
    if result.exit_code:
        raise AssertionError(result.output[-500:])


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _plan(folder: Path) -> None:
    plan = TGDPlan.from_json(_text(folder / "plan.json"))
    assert str(plan)
    plan.parameter_masks()


def _sweep(folder: Path) -> None:
    result = SweepResult((SweepRow(0.1, 0.2, 3.0, 0.01), SweepRow(0.3, 0.4, 4.0, 0.5)), 3.0, 0.05)
    (folder / "sweep.json").write_text(result.to_json())


FORMATS = {
    "NIfTI": _nifti("scan.nii"),
    "NIfTI, compressed": _nifti("scan.nii.gz"),
    "DICOM slice": Format("2.dcm", _series, lambda folder: _image(folder, folder)),
    "DICOM zip": Format("series.zip", _zipped, lambda folder: _image(folder, folder / "series.zip")),
    "patient npz": Format("patient.npz", _patient, lambda folder: load_patient(folder / "patient.npz")),
    "CT patient npz": Format(
        "patient.npz", _ct_patient, lambda folder: load_ct_patient(folder / "patient.npz")
    ),
    "label map": Format("segmentation-0.nii", _label_map, lambda folder: list(read_dataset(LITS, folder))),
    "settings YAML": Format("settings.yaml", _yaml, lambda folder: read_settings(folder / "settings.yaml")),
    "settings, values": Format(
        "settings.yaml", _yaml_as_json, lambda folder: read_settings(folder / "settings.yaml")
    ),
    "run.json of a study": Format("run.json", _run, study_record),
    "run.json of a training": Format(
        "run.json",
        lambda folder: reserve(folder / "run.json", ASKED),
        lambda folder: reserve(folder / "run.json", ASKED),
    ),
    "measures": Format(
        "measures.json",
        _measures,
        lambda folder: read_record(folder / "measures.json", PerVersion, "Delete it."),
    ),
    "network.safetensors": Format(
        "network.safetensors", _network, lambda folder: load_network(folder / "network.safetensors")
    ),
    "last.ckpt": Format("last.ckpt", _interrupted, _resumed, share=0.5),
    ".pt": Format(
        "net.pt",
        lambda folder: torch.save(_base().state_dict(), folder / "net.pt"),
        lambda folder: _inspect(folder / "net.pt"),
    ),
    ".safetensors": Format(
        "net.safetensors",
        lambda folder: save_weights(_base(), folder / "net.safetensors"),
        lambda folder: _inspect(folder / "net.safetensors"),
    ),
    ".onnx": Format(
        "net.onnx", lambda folder: _onnx(folder, outside=False), lambda folder: _inspect(folder / "net.onnx")
    ),
    ".onnx, as a network": Format(
        "net.onnx", lambda folder: _onnx(folder, outside=False), lambda folder: _import(folder / "net.onnx")
    ),
    ".onnx, external data": Format(
        "net.onnx", lambda folder: _onnx(folder, outside=True), lambda folder: _inspect(folder / "net.onnx")
    ),
    ".pt2": Format("net.pt2", _exported, lambda folder: _inspect(folder / "net.pt2")),
    "sharded .safetensors": Format(
        "model.safetensors.index.json",
        _sharded,
        lambda folder: _inspect(folder / "model.safetensors.index.json"),
    ),
    "delta": Format(
        "rows.safetensors",
        lambda folder: save_delta(_tgd(), folder / "rows.safetensors"),
        lambda folder: load_delta(_base(), folder / "rows.safetensors"),
    ),
    "plan.json": Format(
        "plan.json",
        lambda folder: (folder / "plan.json").write_text(_tgd().tgd_plan.to_json()),
        _plan,
    ),
    "sweep.json": Format(
        "sweep.json", _sweep, lambda folder: str(SweepResult.from_json(_text(folder / "sweep.json")))
    ),
}
