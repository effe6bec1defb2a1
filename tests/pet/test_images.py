"""NIfTI in and out on the same grid; whole files or none."""

from __future__ import annotations

import gzip
import struct
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pet.dicoms import read, series
from tgd_kit.errors import ImageError
from tgd_kit.imaging.files import check_output
from tgd_kit.imaging.image import Image
from tgd_kit.imaging.nifti import write_nifti
from tgd_pet.images.suv import SUV


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "image.mha").write_bytes(b"")
    with pytest.raises(ImageError, match="neither"):
        SUV.read(tmp_path / "image.mha")
    with pytest.raises(ImageError, match="no file or folder"):
        SUV.read(tmp_path / "none")


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, int, int], np.ndarray]:
    """A shape, and an affine whose axes are permuted, flipped, stretched and turned a little."""
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3))
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    zoom = draw(st.tuples(*[st.floats(1.0, 5.0)] * 3))
    angle = draw(st.floats(-0.3, 0.3))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.eye(3)[list(order)] @ np.diag(np.multiply(signs, zoom))
    affine[:3, 3] = draw(st.tuples(*[st.integers(-200, 200)] * 3))
    return shape, affine


@given(grids())
def test_axial_view_points_down_back_left_and_turns_back(
    grid: tuple[tuple[int, int, int], np.ndarray],
) -> None:
    shape, affine = grid
    voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    image = Image(voxels, affine)
    axial = image.axial()
    np.testing.assert_array_equal(image.with_axial(axial).voxels, voxels)
    where = {voxels[index]: affine @ [*index, 1] for index in np.ndindex(shape)}
    for axis, (world, sign) in enumerate(((2, -1), (1, -1), (0, -1))):  # RAS: down is -S, back -A, left -R
        first, last = (where[axial[tuple(end if a == axis else 0 for a in range(3))]] for end in (0, -1))
        assert (last - first)[world] * sign >= 0
        if axial.shape[axis] > 1:
            assert np.abs(last - first)[:3].argmax() == world


@pytest.mark.parametrize("made", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
def test_nifti_grid_and_header_come_back(tmp_path: Path, made: type[nib.Nifti1Image], suffix: str) -> None:
    affine = np.array([[-4.0, 0.5, 0, 90], [0.4, 4, 0, -120], [0, 0, 3.27, -800], [0, 0, 0, 1]])
    source = made(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine)
    source.header["descrip"] = b"scan 7"
    source.header.set_xyzt_units("mm", "sec")
    source.header.set_slope_inter(0.5, 1.0)
    source.set_sform(affine, code=2)
    nib.save(source, tmp_path / f"in{suffix.lower()}")
    image = SUV.read(tmp_path / f"in{suffix.lower()}")
    write_nifti(image.with_axial(image.axial() * 2), tmp_path / f"out{suffix}")
    result, before = nib.load(tmp_path / f"out{suffix}"), nib.load(tmp_path / f"in{suffix.lower()}")
    assert type(result) is made
    np.testing.assert_array_equal(result.get_fdata(), 2 * before.get_fdata())
    np.testing.assert_array_equal(result.affine, before.affine)
    assert result.get_data_dtype() == np.float32
    for field in ("sform_code", "qform_code", "pixdim", "xyzt_units", "descrip"):
        assert result.header[field].tolist() == before.header[field].tolist(), field


def test_dicom_becomes_nifti_in_millimetres(tmp_path: Path) -> None:
    image = read(series(), tmp_path)
    write_nifti(image, tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    assert written.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(written.affine, image.affine, rtol=1e-6)  # NIfTI stores float32
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), image.voxels)


def _nifti(voxels: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    image = nib.Nifti1Image(voxels, np.eye(4))
    if affine is not None:
        image.header["sform_code"], image.header["qform_code"] = 1, 0
        for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
            image.header[name] = affine[row]
        return image.header.binaryblock + bytes(4) + voxels.tobytes(order="F")
    return image.to_bytes()


def _patched(offset: int, form: str, value: float) -> bytes:
    """A whole file with one field of its header replaced."""
    content = bytearray(_nifti(np.ones((2, 2, 2), np.float32)))
    struct.pack_into(form, content, offset, value)
    return bytes(content)


def test_axes_of_length_1_after_the_third_do_not_count(tmp_path: Path) -> None:
    affine, values = np.diag([4.0, 4, 3, 1]), np.random.default_rng(0).random((6, 5, 4), dtype=np.float32)
    for shape in ((6, 5, 4), (6, 5, 4, 1), (6, 5, 4, 1, 1)):
        nib.save(nib.Nifti1Image(values.reshape(shape), affine), tmp_path / "in.nii.gz")
        image = SUV.read(tmp_path / "in.nii.gz")
        np.testing.assert_array_equal(image.voxels, values)
        write_nifti(image, tmp_path / "out.nii.gz")
        written = nib.load(tmp_path / "out.nii.gz")
        np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), values)
        np.testing.assert_array_equal(written.affine, affine)


def test_one_slice_is_a_volume(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((6, 5, 1), dtype=np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "in.nii")
    image = SUV.read(tmp_path / "in.nii")
    np.testing.assert_array_equal(image.with_axial(image.axial()).voxels, values)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((1024, 1024, 1025))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    (tmp_path / "in.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(2**20), 1))
    with pytest.raises(ImageError, match="would take 4,299,161,600 bytes"):
        SUV.read(tmp_path / "in.nii.gz")


def test_nibabels_own_lines_stay_inside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for offset, form, value in ((76, "<f", 0.0), (252, "<h", 99), (80, "<f", 0.0), (70, "<h", 77)):
        (tmp_path / "in.nii").write_bytes(_patched(offset, form, value))
        with suppress(ImageError):
            SUV.read(tmp_path / "in.nii")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"no image at all" * 99, "cannot be read"),
        (_nifti(np.ones((4, 4, 4), np.float32))[:-9], "cannot be read"),
        (_nifti(np.ones((4, 4, 4, 2), np.float32)), "4 dimensions"),
        (_nifti(np.full((2, 2, 2), np.nan, np.float32)), "NaN"),
        (_nifti(np.array([[[40, -1000], [60, 9]]], np.float32)), "largely negative"),
        (_nifti(np.full((2, 2, 2), 4000, np.float32)), "4e[+]03, too much for SUV"),
        (_nifti(np.ones((2, 2, 2), np.float32), np.zeros((4, 4))), "singular"),
        (_nifti(np.ones((2, 2, 2), np.complex64)), "no plain numbers, but complex64"),
        (_nifti(np.ones((2, 2, 2), np.dtype([(c, "u1") for c in "RGB"]))), "no plain numbers"),
        (_nifti(np.full((2, 2, 2), 1e300)), "infinite"),
        (_nifti(np.ones((2, 2, 0), np.float32)), "not 3"),
        (_nifti(np.ones((2, 2), np.float32)), "not 3"),
        (_patched(80, "<f", 0.0), "size of 0 x 1 x 1 mm"),
        (_patched(84, "<f", -2.0), "size of 1 x -2 x 1 mm"),
        (_patched(88, "<f", np.nan), "size of 1 x 1 x nan mm"),
        (_patched(70, "<h", 77), "cannot be read"),
        (_patched(116, "<f", np.inf), "cannot be read"),
        (_patched(42, "<h", 30000), "cannot be read"),
    ],
    ids=[
        *("empty", "text", "cut", "dynamic", "nan", "CT", "Bq/mL", "flat", "complex", "RGB", "too large"),
        *("no voxels", "two axes", "size 0", "size below 0", "size nan", "type", "offset", "shape"),
    ],
)
def test_unusable_nifti_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "in.nii").write_bytes(content)
    with pytest.raises(ImageError, match=said):
        SUV.read(tmp_path / "in.nii")


def test_cut_compressed_nifti_is_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0).random((8, 8, 8), dtype=np.float32)
    nib.save(nib.Nifti1Image(random, np.eye(4)), tmp_path / "in.nii.gz")
    whole = (tmp_path / "in.nii.gz").read_bytes()
    (tmp_path / "in.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="cannot be read"):
        SUV.read(tmp_path / "in.nii.gz")


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.nii"
    path.write_bytes(b"old")

    def failing(image: nib.Nifti1Image, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", failing)
    with pytest.raises(OSError, match="disk full"):
        write_nifti(Image(np.ones((2, 2, 2), np.float32), np.eye(4)), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_output_must_be_another_nifti_file(tmp_path: Path) -> None:
    path = tmp_path / "in.nii"
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="input itself"):
        check_output(tmp_path / ".." / tmp_path.name / "in.nii", path)
    with pytest.raises(ImageError, match="NIfTI name"):
        check_output(tmp_path / "out.dcm", path)
    check_output(tmp_path / "out.nii.gz", path)
