"""Reading DICOM series as SUV on the right grid, and refusing what would need a guess."""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless

from tests.pet.dicoms import (
    AXIAL,
    COLUMNS,
    DOSE,
    HALF_LIFE,
    OBLIQUE,
    REAL,
    ROWS,
    SAGITTAL,
    WEIGHT,
    Edit,
    activity,
    garble,
    read,
    series,
    write,
)
from tgd_kit.errors import ImageError
from tgd_kit.imaging.files import check_output
from tgd_pet.images.suv import SUV
from tgdsurgery import TGDError

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


def _after_midnight(datasets: list[Dataset]) -> None:
    _tags(SeriesTime="003000", AcquisitionTime="003000")(datasets)
    _injection(RadiopharmaceuticalStartTime="233000")(datasets)


def _zoned(offset: str, correction: str = "START", **injected: object) -> Edit:
    """The slices state their offset from UTC."""

    def edit(datasets: list[Dataset]) -> None:
        _tags(TimezoneOffsetFromUTC=offset, DecayCorrection=correction)(datasets)
        _injection(**injected)(datasets)

    return edit


@pytest.mark.parametrize(
    ("edit", "wait"),
    [
        (_tags(DecayCorrection="ADMIN"), 0),
        (_after_midnight, 3600),
        (_tags(SeriesTime="150000"), 3600),
        (_tags(AcquisitionTime="120000"), 3600),
        (_injection(RadiopharmaceuticalStartDateTime="20200102093000.00"), 5400),
        (_zoned("+0100", RadiopharmaceuticalStartDateTime="20200102093000.00"), 5400),
        (_zoned("+0100", RadiopharmaceuticalStartDateTime="20200102093000.000000+0100"), 5400),
        (_zoned("+0100", RadiopharmaceuticalStartDateTime="20200102083000+0000"), 5400),
        (_zoned("-0500", RadiopharmaceuticalStartDateTime="20200102143000+0000"), 5400),
        (_zoned("+0545", RadiopharmaceuticalStartDateTime="20200102000000-0345"), 5400),
        (_zoned("+1300", RadiopharmaceuticalStartDateTime="20200101203000+0000"), 5400),
        (_zoned("-0500", RadiopharmaceuticalStartTime="093000"), 5400),
        (_zoned("+0200", "ADMIN"), 0),
    ],
    ids=[
        "to injection",
        "after midnight",
        "processed later",
        "prepared earlier",
        "with date",
        "local, in a zone",
        "in the same zone",
        "in UTC, east",
        "in UTC, west",
        "in another zone",
        "on another day",
        "time of day, in a zone",
        "no times needed",
    ],
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
    for dataset in datasets:
        dataset.RescaleSlope = "0.001"
    np.testing.assert_allclose(
        read(datasets, tmp_path).voxels, activity(datasets), rtol=1e-6
    )  # float32 voxels


def test_units_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    """GML over voxels in Bq/mL, and BQML over voxels in HU: what NIfTI is refused for."""
    datasets = series()
    _tags(Units="GML")(datasets)
    with pytest.raises(ImageError, match="too much for SUV"):
        read(datasets, tmp_path)
    _tags(Units="BQML", RescaleIntercept="-30000")(datasets)
    with pytest.raises(ImageError, match="largely negative"):
        read(datasets, tmp_path)


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
    from_zip, from_folder = SUV.read(tmp_path / "series.zip"), SUV.read(folder)
    assert (sorted(tmp_path.rglob("*")), sorted(tmp_path.parent.parent.glob("*"))) == before
    np.testing.assert_array_equal(from_zip.voxels, from_folder.voxels)
    np.testing.assert_array_equal(from_zip.affine, from_folder.affine)


# Refusals ------------------------------------------------------------------------------------------------


def _drop(*names: str) -> Edit:
    return _each(lambda dataset: [delattr(dataset, name) for name in names])


def _drop_injection(name: str) -> Edit:
    return _each(lambda dataset: delattr(dataset.RadiopharmaceuticalInformationSequence[0], name))


def _float_pixels(value: float) -> Edit:
    def edit(dataset: Dataset) -> None:
        dataset.BitsAllocated = 32
        for tag in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(dataset, tag)
        dataset.FloatPixelData = np.full((ROWS, COLUMNS), value, np.float32).tobytes()

    return _each(edit)


def _colour(datasets: list[Dataset]) -> None:
    for dataset in datasets:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelData = 7, bytes(ROWS * COLUMNS * 3)


def _shorten(datasets: list[Dataset]) -> None:
    datasets[2].PixelData = datasets[2].PixelData[:-6]


# Tags of another value, of the last slice alone.
OTHERS = {
    "PatientID": "another",
    "StudyInstanceUID": "1.2.3",
    "FrameOfReferenceUID": "1.2.4",
    "Units": "GML",
    "CorrectedImage": ["DECY", "ATTN"],
    "DecayCorrection": "ADMIN",
    "SeriesDate": "20200101",
    "SeriesTime": "100000",
    "TimezoneOffsetFromUTC": "+0200",
    "NumberOfSlices": 6,
    "Modality": "CT",
}
OTHER_INJECTION = {
    "RadionuclideTotalDose": 3.6e8,
    "RadionuclideHalfLife": 6586.2,
    "RadiopharmaceuticalStartTime": "090000",
    "RadiopharmaceuticalStartDateTime": "20200102093000",
}


def _last(tag: str, value: object) -> Edit:
    return lambda datasets: setattr(datasets[-1], tag, value)


def _last_injection(tag: str, value: object) -> Edit:
    return lambda datasets: setattr(datasets[-1].RadiopharmaceuticalInformationSequence[0], tag, value)


def _jpeg_ls(datasets: list[Dataset]) -> None:
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
        dataset.PixelData = encapsulate([bytes(60)])
        dataset["PixelData"].VR = "OB"


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
        (_injection(RadiopharmaceuticalStartDateTime="20200102093000+0100"), "offset from UTC"),
        (_injection(RadiopharmaceuticalStartDateTime="20200102093000+0000"), "offset from UTC"),
        (_zoned("+25", RadiopharmaceuticalStartTime="100000"), "offset from UTC is '[+]25'"),
        (_zoned("Berlin"), "offset from UTC is 'Berlin'"),
        (
            lambda datasets: setattr(datasets[4], "TimezoneOffsetFromUTC", "+0100"),
            "TimezoneOffsetFromUTC differs",
        ),
        (_injection(RadiopharmaceuticalStartDateTime="2020010209"), "has no minutes"),
        (_injection(RadiopharmaceuticalStartDateTime="20200102"), "has no minutes"),
        (_injection(RadiopharmaceuticalStartTime="10"), "has no minutes"),
        (_tags(AcquisitionTime="11"), "has no minutes"),
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
        (_tags(PatientWeight=70000), "70000 kg, more than anybody weighs"),
        (_injection(RadionuclideTotalDose=3.5e14), "more than any injection"),
        *((_last(tag, value), f"{tag} differs between the slices: .* and ") for tag, value in OTHERS.items()),
        *((_last_injection(tag, value), f"{tag} differs") for tag, value in OTHER_INJECTION.items()),
        (_last("PatientID", "\x1b]0;title\x07"), r"x1b]0;title.x07"),
        (lambda datasets: delattr(datasets[-1], "SOPClassUID"), "no SOPClassUID"),
        (lambda datasets: delattr(datasets[-1], "SOPInstanceUID"), "no SOPInstanceUID"),
        (_tags(NumberOfSlices=7), "6 slices, and states 7"),
        (_tags(PixelSpacing=[4.0, -5.0]), "PixelSpacing is not above zero"),
        (_tags(PixelSpacing=[0, 5.0]), "PixelSpacing is not above zero"),
        (_tags(ImageOrientationPatient=[2, 0, 0, 0, 0.5, 0]), "length 1 at right angles"),
        (_tags(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), "length 1 at right angles"),
        (_tags(RescaleSlope="1e38"), "infinite pixels, as stored or by its RescaleSlope"),
        (_tags(Rows=60000, Columns=60000), "unlike a scan"),
        (_tags(Rows=0), "Rows is 0"),
        (_jpeg_ls, "pip install pylibjpeg"),
        (_drop("RescaleSlope"), "no RescaleSlope"),
        (_each(lambda dataset: garble(dataset, "RescaleIntercept", b"nil ")), "RescaleIntercept"),
        (_float_pixels(np.nan), "NaN"),
        (_float_pixels(np.inf), "NaN or infinite"),
        (_colour, "colour"),
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
        (_each(lambda dataset: garble(dataset, "PatientWeight", b"heavy ")), "not 1 number"),
        (_each(lambda dataset: garble(dataset, "SeriesTime", b"99")), "date or time"),
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


def _two_series() -> tuple[list[Dataset], list[Dataset]]:
    first, second = series(), series()
    _tags(SeriesNumber=4)(first)
    _tags(SeriesNumber=5, SeriesDescription="PET NAC")(second)
    for dataset in second:
        dataset.RescaleSlope = "2"
    return first, second


def test_all_series_in_a_folder_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="2 series") as caught:
        read([*series(modality="CT"), *_two_series()[1]], tmp_path)
    assert "number None, CT 'PET AC' (6 files, 1.2" in str(caught.value)
    assert "number 5, PT 'PET NAC' (6 files, 1.2" in str(caught.value)
    assert "--series" in caught.value.remedy


@pytest.mark.parametrize("tag", ["SeriesNumber", "SeriesDescription", "SeriesInstanceUID"])
def test_one_of_several_series_is_chosen_by_name(tmp_path: Path, tag: str) -> None:
    both = _two_series()
    folder = write([dataset for group in both for dataset in group], tmp_path / "series")
    for number, group in enumerate(both):
        alone = SUV.read(write(group, tmp_path / str(number)))
        chosen = SUV.read(folder, series=str(group[0][tag].value))
        np.testing.assert_array_equal(chosen.voxels, alone.voxels)


def test_a_name_must_fit_one_series(tmp_path: Path) -> None:
    first, second = _two_series()
    _tags(SeriesDescription="PET AC")(second)
    folder = write([*first, *second], tmp_path / "series")
    for name, count in (("PET", 0), ("PET AC", 2)):
        with pytest.raises(ImageError, match=f"{count} series called '{name}' among: number 4"):
            SUV.read(folder, series=name)


@pytest.mark.parametrize("length", [0, 100, 131, 200, 900, -1])
def test_truncated_files_are_refused(tmp_path: Path, length: int) -> None:
    folder = write(series(), tmp_path / "series")
    file = folder / "2.dcm"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ImageError):
        SUV.read(folder)


def test_a_tag_of_no_type_is_refused(tmp_path: Path) -> None:
    folder = write(series(), tmp_path / "series")
    file = folder / "2.dcm"
    file.write_bytes(file.read_bytes().replace(b"\x10\x00\x30\x10DS", b"\x10\x00\x30\x10ZZ"))
    with pytest.raises(ImageError, match="PatientWeight is malformed") as caught:
        SUV.read(folder)
    assert len(str(caught.value)) < 200


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
            SUV.read(path)


def test_a_file_without_a_name_in_a_zip_is_a_file_like_any_other(tmp_path: Path) -> None:
    """Python's own question whether it is a folder raises an IndexError."""
    folder = write(series(), tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
        nameless = zipfile.ZipInfo("x")
        nameless.filename = ""
        with archive.open(nameless, "w") as member:
            member.write(b"no DICOM")
    np.testing.assert_array_equal(SUV.read(tmp_path / "series.zip").voxels, SUV.read(folder).voxels)


def test_a_name_twice_in_a_zip_is_refused(tmp_path: Path) -> None:
    folder = write(series(), tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own: that is the point
        for file in (*sorted(folder.iterdir()), folder / "0.dcm"):
            archive.write(file, "\x1b[2J" + file.name)
    with pytest.raises(ImageError, match="several files of one name") as caught:
        SUV.read(tmp_path / "series.zip")
    assert str(caught.value).isprintable()


def test_zips_that_would_fill_the_machine_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "series.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("0.dcm", bytes(300 * 2**20))
    with pytest.raises(ImageError, match="unlike a series"):
        SUV.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(50_001):
            archive.writestr(f"{number}", b"")
    with pytest.raises(ImageError, match="50001 files"):
        SUV.read(path)


def _deflated(dataset: Dataset, path: Path) -> Path:
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_deflated_files_are_read_and_refused_where_they_are_damaged(tmp_path: Path) -> None:
    datasets = series()
    folder, plain = tmp_path / "deflated", SUV.read(write(datasets, tmp_path / "plain"))
    folder.mkdir()
    files = [_deflated(dataset, folder / f"{number}.dcm") for number, dataset in enumerate(datasets)]
    np.testing.assert_array_equal(SUV.read(folder).voxels, plain.voxels)
    whole = files[2].read_bytes()
    start = 144 + int.from_bytes(whole[140:144], "little")
    bomb = zlib.compressobj(wbits=-15)
    huge = b"".join(bomb.compress(bytes(2**20)) for _ in range(300)) + bomb.flush()
    for spoiled in (whole[:-200], whole[:start] + b"\xff" * 99, whole[:start] + huge):
        files[2].write_bytes(spoiled)
        with pytest.raises(ImageError):
            SUV.read(folder)


def test_fewer_slices_than_stated_are_refused_at_either_end(tmp_path: Path) -> None:
    datasets = sorted(series(), key=lambda dataset: dataset.ImagePositionPatient[2])
    _tags(NumberOfSlices=6)(datasets)
    assert read(datasets, tmp_path).voxels.shape[2] == 6
    for number, part in enumerate((datasets[1:], datasets[:-1])):
        with pytest.raises(ImageError, match="5 slices, and states 6"):
            SUV.read(write(part, tmp_path / str(number)))


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    for name in ("a" * 300 + ".nii", "a\0b.nii", "\udcff" * 300):
        with pytest.raises(TGDError, match="cannot be used"):
            SUV.read(tmp_path / name)
        with pytest.raises(TGDError, match="cannot be used"):
            check_output(tmp_path / name, tmp_path / "in.nii")


# A real series -------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not REAL.exists(), reason="the real FDG series pet_fdg_sts001 is not here (TGD_TEST_DATA)"
)
def test_real_series() -> None:
    image = SUV.read(REAL / "dicom.zip")
    assert image.voxels.shape == (128, 128, 267)
    assert image.voxels.max() == pytest.approx(66.5, abs=0.05)  # known to one decimal
    spacing = nib.affines.voxel_sizes(image.affine)
    np.testing.assert_allclose(spacing, [4.6875, 4.6875, 3.27], atol=1e-3)  # known to 1 um
    depth = np.unravel_index(image.voxels.argmax(), image.voxels.shape)[2]
    assert 190 < image.axial().shape[0] - 1 - depth < 215  # the bladder, counted from the head
    first, hottest = image.source.slices[0], image.source.slices[depth]
    injection = first.RadiopharmaceuticalInformationSequence[0]
    clock = [
        datetime.strptime(str(time)[:6], "%H%M%S")
        for time in (first.SeriesTime, injection.RadiopharmaceuticalStartTime)
    ]
    halvings = (clock[0] - clock[1]).total_seconds() / float(injection.RadionuclideHalfLife)
    decayed = float(injection.RadionuclideTotalDose) / 2**halvings
    with zipfile.ZipFile(REAL / "dicom.zip") as archive:
        stored = pydicom.dcmread(io.BytesIO(archive.read(hottest.filename))).pixel_array
    suv = stored.T * float(hottest.RescaleSlope) * 1000 * float(first.PatientWeight) / decayed
    np.testing.assert_allclose(image.voxels[..., depth], suv, rtol=1e-6)  # float32 voxels
