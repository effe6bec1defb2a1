"""Reading DICOM and NIfTI as SUV on the right grid, refusing what would need a guess, writing whole files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid
from tgd_pet.errors import ImageError
from tgd_pet.images import PETImage, check_output, read_image, write_nifti

ROWS, COLUMNS, DEPTH = 4, 5, 6
HALF_LIFE, DOSE, WEIGHT = 6600.0, 3.5e8, 70.0
AXIAL, SAGITTAL = (1.0, 0, 0, 0, 1, 0), (0.0, 1, 0, 0, 0, -1)
OBLIQUE = (0.8, 0.6, 0, -0.6, 0.8, 0)
REAL = Path(os.environ.get("TGD_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "pet_fdg_sts001"

Edit = Callable[[list[Dataset]], object]


def series(orientation: Sequence[float] = AXIAL, step: float = 3.27, modality: str = "PT") -> list[Dataset]:
    """A series with a slope of its own in every slice, as scanners write it, in mixed order."""
    random = np.random.default_rng(0)
    uid, axes = generate_uid(), np.reshape(orientation, (2, 3))
    slices = []
    for z in range(DEPTH):
        dataset = FileDataset("", {}, preamble=bytes(128), file_meta=FileMetaDataset())
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.SOPClassUID, dataset.SeriesInstanceUID = PositronEmissionTomographyImageStorage, uid
        dataset.Modality, dataset.SeriesDescription = modality, "PET AC"
        dataset.SeriesDate = dataset.AcquisitionDate = "20200102"
        dataset.SeriesTime = dataset.AcquisitionTime = "110000.00"
        dataset.PatientWeight, dataset.Units, dataset.DecayCorrection = WEIGHT, "BQML", "START"
        dataset.CorrectedImage = ["DECY", "ATTN", "SCAT"]
        injection = Dataset()
        injection.RadiopharmaceuticalStartTime, injection.RadionuclideHalfLife = "100000.00", HALF_LIFE
        injection.RadionuclideTotalDose = DOSE
        dataset.RadiopharmaceuticalInformationSequence = [injection]
        position = np.array([-100.0, -120.0, 40.0]) + z * step * np.cross(*axes)
        dataset.ImagePositionPatient = [f"{value:.5f}" for value in position]
        dataset.ImageOrientationPatient, dataset.PixelSpacing = list(orientation), [4.0, 5.0]
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLUMNS, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{0.5 + 0.25 * z:g}", "0"
        dataset.PixelData = random.integers(0, 30000, (ROWS, COLUMNS), dtype=np.uint16).tobytes()
        slices.append(dataset)
    return [slices[z] for z in (3, 0, 5, 1, 4, 2)]


def activity(datasets: Sequence[Dataset]) -> np.ndarray:
    """(column, row, slice) in Bq/mL, from the DICOM standard's words, for an axial series."""
    ordered = sorted(datasets, key=lambda dataset: dataset.ImagePositionPatient[2])
    stored = [
        np.frombuffer(d.PixelData, np.uint16).reshape(ROWS, COLUMNS) * float(d.RescaleSlope) for d in ordered
    ]
    return np.stack(stored).transpose(2, 1, 0)


def write(datasets: Sequence[Dataset], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def read(datasets: Sequence[Dataset], folder: Path) -> PETImage:
    return read_image(write(datasets, folder / "series"))


# SUV -----------------------------------------------------------------------------------------------------


def test_suv_is_activity_by_weight_and_decayed_dose_with_each_slices_slope(tmp_path: Path) -> None:
    datasets = series()
    decayed = DOSE * 0.5 ** (3600 / HALF_LIFE)
    # float32 voxels: seven digits
    np.testing.assert_allclose(
        read(datasets, tmp_path).voxels, activity(datasets) * WEIGHT * 1000 / decayed, rtol=1e-6
    )


def _each(edit: Callable[[Dataset], object]) -> Edit:
    return lambda datasets: [edit(dataset) for dataset in datasets]


def _injection(**tags: object) -> Edit:
    def edit(dataset: Dataset) -> None:
        for name, value in tags.items():
            setattr(dataset.RadiopharmaceuticalInformationSequence[0], name, value)

    return _each(edit)


def _tags(**tags: object) -> Edit:
    return _each(lambda dataset: [setattr(dataset, name, value) for name, value in tags.items()])


@pytest.mark.parametrize(
    ("edit", "wait"),
    [
        (_tags(DecayCorrection="ADMIN"), 0),
        (_tags(SeriesTime="003000", AcquisitionTime="003000"), 14.5 * 3600),
        (_tags(SeriesTime="150000"), 3600),
        (_tags(AcquisitionTime="120000"), 3600),
        (_injection(RadiopharmaceuticalStartDateTime="20200102093000.00"), 5400),
        (_injection(RadiopharmaceuticalStartDateTime="20200102093000.000000+0100"), 5400),
    ],
    ids=["to injection", "after midnight", "processed later", "prepared earlier", "with date", "with zone"],
)
def test_dose_is_decayed_to_the_start_of_the_scan(tmp_path: Path, edit: Edit, wait: float) -> None:
    datasets = series()
    edit(datasets)
    expected = activity(datasets) * WEIGHT * 1000 / (DOSE * 0.5 ** (wait / HALF_LIFE))
    np.testing.assert_allclose(read(datasets, tmp_path).voxels, expected, rtol=1e-6)  # float32 voxels


@pytest.mark.parametrize("suv_type", [None, "BW"])
def test_units_gml_are_suv_already(tmp_path: Path, suv_type: str | None) -> None:
    datasets = series()
    _tags(Units="GML", PatientWeight=None, **({"SUVType": suv_type} if suv_type else {}))(datasets)
    np.testing.assert_allclose(
        read(datasets, tmp_path).voxels, activity(datasets), rtol=1e-6
    )  # float32 voxels


# Grid ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, OBLIQUE], ids=["axial", "sagittal", "oblique"])
def test_affine_puts_every_voxel_where_dicom_says(tmp_path: Path, orientation: Sequence[float]) -> None:
    datasets = series(orientation)
    image = read(datasets, tmp_path)
    along_columns, along_rows = np.reshape(orientation, (2, 3))
    for dataset in datasets:
        slope = float(dataset.RescaleSlope)
        for row, column in np.ndindex(ROWS, COLUMNS):
            lps = (
                np.array(dataset.ImagePositionPatient, float)
                + along_columns * 5.0 * column
                + along_rows * 4.0 * row
            )
            index = np.linalg.solve(image.affine, [-lps[0], -lps[1], lps[2], 1])[:3]
            nearest = np.round(index).astype(int)
            np.testing.assert_allclose(index, nearest, atol=1e-4)  # positions are written with five decimals
            stored = np.frombuffer(dataset.PixelData, np.uint16).reshape(ROWS, COLUMNS)[row, column]
            ratio = image.voxels[tuple(nearest)] / (stored * slope)
            assert ratio == pytest.approx(image.voxels.max() / _largest(datasets), rel=1e-5)  # float32 voxels


def _largest(datasets: Sequence[Dataset]) -> float:
    return max(np.frombuffer(d.PixelData, np.uint16).max() * float(d.RescaleSlope) for d in datasets)


def test_step_comes_from_positions_that_are_rounded(tmp_path: Path) -> None:
    datasets = series(step=3.27)
    for dataset in datasets:
        dataset.ImagePositionPatient[2] = f"{float(dataset.ImagePositionPatient[2]):.1f}"
        dataset.SliceThickness = "9.9"
    # ends rounded to 0.1 mm, five steps apart
    assert read(datasets, tmp_path).affine[2, 2] == pytest.approx(3.27, abs=0.1 / 5)


def test_zip_is_read_like_the_folder_and_nothing_is_unpacked(tmp_path: Path) -> None:
    folder = write(series(), tmp_path / "series")
    (folder / "LICENSE").write_text("no image")
    (folder / ".hidden.dcm").write_text("no image")
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"../../escaped/{file.name}")
    before = sorted(tmp_path.rglob("*")), sorted(tmp_path.parent.parent.glob("*"))
    from_zip, from_folder = read_image(tmp_path / "series.zip"), read_image(folder)
    assert (sorted(tmp_path.rglob("*")), sorted(tmp_path.parent.parent.glob("*"))) == before
    np.testing.assert_array_equal(from_zip.voxels, from_folder.voxels)
    np.testing.assert_array_equal(from_zip.affine, from_folder.affine)


# Refusals ------------------------------------------------------------------------------------------------


def _drop(*names: str) -> Edit:
    return _each(lambda dataset: [delattr(dataset, name) for name in names])


def _drop_injection(name: str) -> Edit:
    return _each(lambda dataset: delattr(dataset.RadiopharmaceuticalInformationSequence[0], name))


def _garble(dataset: Dataset, tag: str, content: bytes) -> None:
    """Bytes that are not of the tag's type, as a faulty export writes them."""
    element = dataset.data_element(tag)
    raw = RawDataElement(element.tag, element.VR, len(content), content, 0, False, True)
    dataset._dict[element.tag] = raw


def _shorten(datasets: list[Dataset]) -> None:
    datasets[2].PixelData = datasets[2].PixelData[:-6]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_drop("PatientWeight"), "no PatientWeight"),
        (_tags(PatientWeight=0), "PatientWeight is 0"),
        (_drop_injection("RadionuclideTotalDose"), "no RadionuclideTotalDose"),
        (_injection(RadionuclideTotalDose=350.0), "350 Bq"),
        (_drop_injection("RadionuclideHalfLife"), "no RadionuclideHalfLife"),
        (_drop_injection("RadiopharmaceuticalStartTime"), "no RadiopharmaceuticalStartTime"),
        (_injection(RadiopharmaceuticalStartDateTime="20200102113000"), "-30 min after"),
        (_injection(RadiopharmaceuticalStartDateTime="20191202113000"), "min after"),
        (_drop("RadiopharmaceuticalInformationSequence"), "no RadiopharmaceuticalInformationSequence"),
        (_tags(RadiopharmaceuticalInformationSequence=[]), "no RadiopharmaceuticalInformationSequence"),
        (_tags(RadiopharmaceuticalInformationSequence=[Dataset(), Dataset()]), "several injections"),
        (_drop("Units"), "no Units"),
        (_tags(Units=""), "no Units"),
        (
            _tags(CorrectedImage="DECY"),
            "not corrected for ATTN.",
        ),
        (_tags(Units="CNTS"), "units of the series are CNTS"),
        (_tags(Units="GML", SUVType="LBM"), "SUV of type LBM"),
        (_drop("DecayCorrection"), "no DecayCorrection"),
        (_tags(DecayCorrection="NONE"), "DecayCorrection is NONE"),
        (_tags(CorrectedImage=["DECY"]), "not corrected for ATTN"),
        (lambda datasets: setattr(datasets[0], "PatientWeight", 71.0), "PatientWeight differs"),
        (_drop("RescaleSlope"), "no RescaleSlope"),
        (_drop("SeriesTime"), "no SeriesTime"),
        (_drop("ImagePositionPatient"), "no ImagePositionPatient"),
        (_tags(Modality="CT"), "CT 'PET AC'"),
        (_tags(NumberOfFrames=2), "multi-frame"),
        (lambda datasets: datasets.__delitem__(0), "unevenly spaced"),
        (
            lambda datasets: setattr(datasets[0], "ImagePositionPatient", [-100, -120, 51.0]),
            "unevenly spaced",
        ),
        (lambda datasets: datasets.extend(series()[:1]), "2 series"),
        (
            lambda datasets: setattr(datasets[1], "ImagePositionPatient", datasets[0].ImagePositionPatient),
            "one position",
        ),
        (lambda datasets: datasets.__delitem__(slice(1, None)), "only one slice"),
        (lambda datasets: setattr(datasets[0], "PixelSpacing", [4.0, 4.5]), "PixelSpacing differs"),
        (lambda datasets: setattr(datasets[0], "ImageOrientationPatient", list(OBLIQUE)), "Orientation"),
        (_tags(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "right angles"),
        (_tags(PixelSpacing=[4.0]), "PixelSpacing is"),
        (lambda datasets: setattr(datasets[1], "ImagePositionPatient", [0, 0]), "not 3 numbers"),
        (lambda datasets: datasets[3].ImagePositionPatient.__setitem__(0, "-90"), "unevenly spaced"),
        (_each(lambda dataset: _garble(dataset, "PatientWeight", b"heavy ")), "not 1 number"),
        (_each(lambda dataset: _garble(dataset, "SeriesTime", b"99")), "date or time"),
        (_shorten, "damaged"),
        (_drop("PixelData"), "damaged"),
        (lambda datasets: datasets.clear(), "no DICOM file"),
    ],
)
def test_what_would_need_a_guess_is_refused(tmp_path: Path, edit: Edit, said: str) -> None:
    datasets = series()
    edit(datasets)
    with pytest.raises(ImageError, match=said) as caught:
        read(datasets, tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    assert caught.value.exit_code == 2


def test_all_series_in_a_folder_are_listed(tmp_path: Path) -> None:
    other = series(modality="CT")
    for dataset in other:
        dataset.SeriesDescription = "low dose"
    with pytest.raises(ImageError, match=r"PT 'PET AC' \(6 files\); CT 'low dose' \(6 files\)"):
        read([*series(), *other], tmp_path)


@pytest.mark.parametrize("length", [0, 100, 131, 200, 900, -1])
def test_truncated_files_are_refused(tmp_path: Path, length: int) -> None:
    folder = write(series(), tmp_path / "series")
    file = folder / "2.dcm"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ImageError):
        read_image(folder)


def test_damaged_and_encrypted_zips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "series.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write(series(), tmp_path / "series") / "0.dcm", "0.dcm")
    whole = bytearray(path.read_bytes())
    flipped = bytes([*whole[:400], whole[400] ^ 255, *whole[401:]])
    # bit 0 of the flags, in the local and in the central header, says that the member is encrypted
    encrypted = bytearray(whole)
    for start in (6, whole.rindex(b"PK\1\2") + 8):
        encrypted[start] |= 1
    for broken in (whole[:-30], flipped, bytes(encrypted)):
        path.write_bytes(broken)
        with pytest.raises(ImageError, match="cannot be read as a zip"):
            read_image(path)


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "image.mha").write_bytes(b"")
    with pytest.raises(ImageError, match="neither"):
        read_image(tmp_path / "image.mha")
    with pytest.raises(ImageError, match="no file or folder"):
        read_image(tmp_path / "none")


# NIfTI ---------------------------------------------------------------------------------------------------


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
    image = PETImage(voxels, affine)
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
    image = read_image(tmp_path / f"in{suffix.lower()}")
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"no image at all" * 99, "cannot be read"),
        (_nifti(np.ones((4, 4, 4), np.float32))[:-9], "cannot be read"),
        (_nifti(np.ones((4, 4, 4, 2), np.float32)), "4 dimensions"),
        (_nifti(np.full((2, 2, 2), np.nan, np.float32)), "NaN"),
        (_nifti(np.ones((2, 2, 2), np.float32), np.zeros((4, 4))), "singular"),
    ],
    ids=["empty", "text", "cut", "dynamic", "nan", "flat"],
)
def test_unusable_nifti_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "in.nii").write_bytes(content)
    with pytest.raises(ImageError, match=said):
        read_image(tmp_path / "in.nii")


def test_cut_compressed_nifti_is_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0).random((8, 8, 8), dtype=np.float32)
    nib.save(nib.Nifti1Image(random, np.eye(4)), tmp_path / "in.nii.gz")
    whole = (tmp_path / "in.nii.gz").read_bytes()
    (tmp_path / "in.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / "in.nii.gz")


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.nii"
    path.write_bytes(b"old")

    def failing(image: nib.Nifti1Image, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", failing)
    with pytest.raises(OSError, match="disk full"):
        write_nifti(PETImage(np.ones((2, 2, 2), np.float32), np.eye(4)), path)
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


# A real series -------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not REAL.exists(), reason="the real FDG series pet_fdg_sts001 is not here (TGD_TEST_DATA)"
)
def test_real_series() -> None:
    image = read_image(REAL / "dicom.zip")
    assert image.voxels.shape == (128, 128, 267)
    assert image.voxels.max() == pytest.approx(66.5, abs=0.05)  # known to one decimal
    spacing = nib.affines.voxel_sizes(image.affine)
    np.testing.assert_allclose(spacing, [4.6875, 4.6875, 3.27], atol=1e-3)  # known to 1 um
    depth = np.unravel_index(image.voxels.argmax(), image.voxels.shape)[2]
    assert 190 < image.axial().shape[0] - 1 - depth < 215  # the bladder, counted from the head
