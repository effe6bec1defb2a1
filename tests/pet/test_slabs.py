"""Volumes larger than memory: the same voxels, bit for bit, in memory that does not grow with the volume."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.pet.dicoms import series, write
from tgd_kit.imaging.slabs import scratch
from tgd_pet.denoising import denoise
from tgd_pet.images.suv import SUV
from tgd_pet.network import DnCNN

PIXELS = 48


def trained() -> DnCNN:
    """A network that changes its input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DnCNN((4, 4, 3)).eval()
        torch.nn.init.normal_(network.convolutions[-1].weight, std=0.1)
    return network


def nifti(path: Path, depth: int, kind: type[np.generic] = np.int16) -> Path:
    voxels = np.random.default_rng(depth).integers(0, 900, (PIXELS, PIXELS, depth)).astype(kind)
    image = nib.Nifti1Image(voxels, np.diag([4.0, 4.0, 3.0, 1.0]))
    image.header.set_slope_inter(0.01, 0.5)
    nib.save(image, path)
    return path


def through(source: Path, out: Path) -> np.ndarray:
    """The whole way of `tgd pet denoise`."""
    image = SUV.read(source)
    SUV.write(image.with_axial(denoise(trained(), image.axial(), slab=4)), out, "")
    return SUV.read(out).voxels


def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every volume is one that memory does not hold, and is read four slices at a time."""
    monkeypatch.setattr("tgd_kit.imaging.slabs.LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr("tgd_kit.imaging.slabs.LARGEST_SLAB", 4 * 4 * PIXELS**2)


@pytest.mark.parametrize("name", ["in.nii", "in.nii.gz", "dicom"])
def test_results_are_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source = write(series(), tmp_path / name) if name == "dicom" else nifti(tmp_path / name, 11)
    in_memory = through(source, tmp_path / "memory.nii.gz")
    on_disk(monkeypatch)
    mapped = through(source, tmp_path / "mapped.nii.gz")
    assert isinstance(SUV.read(source).voxels, np.memmap)
    assert torch.equal(torch.from_numpy(np.asarray(mapped)), torch.from_numpy(in_memory))
    assert (tmp_path / "memory.nii.gz").stat().st_size > 0


def test_scratch_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    on_disk(monkeypatch)
    volume = scratch((3, 4, 5))
    volume[:] = 1
    assert volume.sum() == 60
    assert not list(tmp_path.iterdir())


def _peak(source: Path, out: Path) -> int:
    """The least of three runs: garbage, and threads of the test runner, allocate when they like."""
    return min(_peak_once(source, out) for _ in range(3))


def _peak_once(source: Path, out: Path) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        through(source, out)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [nifti(tmp_path / f"{depth}.nii", depth) for depth in (20, 200)]
    through(sources[0], tmp_path / "out.nii")  # what is allocated once, on first use
    difference = 180 * 4 * PIXELS**2
    in_memory = [_peak(source, tmp_path / "out.nii") for source in sources]
    assert in_memory[1] - in_memory[0] > difference
    on_disk(monkeypatch)
    mapped = [_peak(source, tmp_path / "out.nii") for source in sources]
    # numpy's own arrays are traced, mapped files are not; slices in Python objects cost a little.
    assert mapped[1] - mapped[0] < difference / 20
