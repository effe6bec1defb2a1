"""The DICOM files of a folder or a zip, and the one series among them that is asked for."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from tgd_kit.errors import ImageError, printable, reason
from tgd_kit.imaging.dicom.tags import optional, require

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
MOST_MEMBERS = 50_000  # of a zip
LARGEST_FILE = 2**28  # bytes of one slice with its tags
MOST_EXPANSION, SMALL = 20, 2**30  # a zip may hold so many times its size, or so many bytes
MOST_LISTED = 10  # series in a message
Files = Mapping[str, Callable[[], bytes]]


@contextmanager
def opened(path: Path) -> Iterator[Files]:
    """The files of a folder (with subfolders) or a zip, by name; each is read, into memory, when called.

    Raises:
        ImageError: the zip is damaged or encrypted, holds a name twice, or far more than its size.
    """
    if path.is_dir():
        yield {
            str(file.relative_to(path)): file.read_bytes for file in sorted(path.rglob("*")) if file.is_file()
        }
        return
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises anything on a damaged directory
        raise _bad_zip(path, error) from error
    with archive:
        # Not `is_dir`, which fails at a name without a character.
        members = [member for member in archive.infolist() if not member.filename.endswith("/")]
        _check_members(path, members)
        yield {member.filename: partial(_unzipped, archive, member, path) for member in members}


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse what would be read in part, or fill the memory."""
    remedy = "Zip the folder of one series again."
    names = Counter(member.filename for member in members)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ImageError(f"{path} holds several files of one name, {printable(twice[0])}.", remedy)
    total, largest = sum(m.file_size for m in members), max((m.file_size for m in members), default=0)
    if len(members) > MOST_MEMBERS or largest > LARGEST_FILE:
        raise ImageError(
            f"{path} holds {len(members)} files of up to {largest:,} bytes, unlike a series.", remedy
        )
    if total > max(SMALL, MOST_EXPANSION * path.stat().st_size):
        raise ImageError(f"{path} would take {total:,} bytes when unpacked.", remedy)


def _unzipped(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> bytes:
    try:
        return archive.read(member)
    except Exception as error:  # as above
        raise _bad_zip(path, error) from error


def _bad_zip(path: Path, error: Exception) -> ImageError:
    return ImageError(
        f"{path} cannot be read as a zip ({reason(error)}).",
        "Zip the series again, without a password.",
    )


def headers(files: Files) -> list[Dataset]:
    """All tags but the pixels of every file that is DICOM.

    Files that are not DICOM (a licence, a DICOMDIR) are passed over, unless their name says that they are.

    Raises:
        ImageError: a file is damaged.
    """
    contents = ((name, read()) for name, read in files.items())
    return [parsed(name, data, pixels=False) for name, data in contents if _is_dicom(name, data)]


def _is_dicom(name: str, data: bytes) -> bool:
    file = Path(name)
    if file.name.startswith(".") or file.name.upper() == "DICOMDIR" or "__MACOSX" in file.parts:
        return False
    return data[128:132] == b"DICM" or file.suffix.lower() in DICOM_SUFFIXES


def parsed(name: str, data: bytes, *, pixels: bool = True) -> Dataset:
    """A file's tags, with or without the pixels; its name is in `filename`.

    Raises:
        ImageError: it is damaged.
    """
    try:
        _check_deflated(data)
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels)
    except Exception as error:  # pydicom raises anything on damaged bytes
        raise ImageError(
            f"{printable(name)} is damaged ({reason(error)}).", "Copy or export the series again."
        ) from error
    dataset.filename = name
    return dataset


def _check_deflated(data: bytes) -> None:
    """Refuse a compressed file that would fill the memory: pydicom unpacks all of it at once."""
    if DeflatedExplicitVRLittleEndian.encode() not in data[:1024]:
        return
    start = 144 + int.from_bytes(data[140:144], "little")  # the tags before it state their length
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    inflate.decompress(data[start:], LARGEST_FILE)
    if inflate.unconsumed_tail:
        raise ValueError(f"it has more than {LARGEST_FILE:,} bytes when unpacked")


def choose(datasets: Sequence[Dataset], path: Path, modality: str, series: str | None) -> Sequence[Dataset]:
    """The files of the one series, or of that with the number, description or UID `series`.

    Args:
        datasets: of all files.
        path: where they come from, for messages.
        modality: that the series must have, in DICOM's two letters.
        series: which one, where there are several.

    Raises:
        ImageError: there is none, or several and `series` does not choose one; or it has another modality, or
            several frames in one file.
    """
    if not datasets:
        raise ImageError(f"{path} holds no DICOM file.", "Pass the folder or zip of one series.")
    groups: dict[str, list[Dataset]] = {}
    for dataset in datasets:
        groups.setdefault(str(require(dataset, "SeriesInstanceUID")), []).append(dataset)
    found = [group for group in groups.values() if series is None or series in _names(group)]
    if len(found) != 1:
        listed = "; ".join(_described(group) for group in list(groups.values())[:MOST_LISTED])
        more = "; ..." * (len(groups) > MOST_LISTED)
        which = f"{len(groups)} series" if series is None else f"{len(found)} series called {series!r} among"
        raise ImageError(
            f"{path} holds {which}: {listed}{more}.",
            "Choose one with --series: its number, description or UID.",
        )
    first = found[0][0]
    if require(first, "Modality") != modality:
        raise ImageError(
            f"{_described(found[0])} in {path} is not of modality {modality}.",
            f"Pass the series of modality {modality}.",
        )
    if any(str(optional(one, "NumberOfFrames") or 1).strip() != "1" for one in found[0]):
        raise ImageError(
            f"{path} is a multi-frame file.", "Export the series as one file per slice, or as NIfTI."
        )
    return found[0]


def _names(series: Sequence[Dataset]) -> set[str]:
    tags = ("SeriesNumber", "SeriesDescription", "SeriesInstanceUID")
    return {str(optional(series[0], tag)) for tag in tags} - {"None"}


def _described(series: Sequence[Dataset]) -> str:
    tags = ("SeriesNumber", "Modality", "SeriesDescription")
    number, modality, name = (printable(optional(series[0], tag), 64) for tag in tags)
    uid = printable(series[0].SeriesInstanceUID, 64)
    return f"number {number}, {modality} {name!r} ({len(series)} files, {uid})"
