"""The factor from a PET series' units to SUV by body weight, from its DICOM tags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as SequenceOfItems
from pydicom.valuerep import DA, TM

from tgd_kit.errors import ImageError, printable, reason
from tgd_kit.imaging.dicom.tags import optional, positive, require, same

EXPORT = "Export the series again with its dose, times and weight, or pass a NIfTI file in SUV."
SMALLEST_DOSE_BQ = 1e5  # less than any injection, more than any dose written in MBq by mistake
LARGEST_DOSE_BQ = 1e11  # more than any injection, therapies included
LARGEST_WEIGHT_KG = 700.0  # more than anybody, less than a child in grams
LONGEST_WAIT_HALF_LIVES = 10  # between injection and scan
# What a series has once: SUV depends on it.
OF_THE_SERIES = (
    "Units",
    "SUVType",
    "CorrectedImage",
    "PatientWeight",
    "DecayCorrection",
    "SeriesDate",
    "SeriesTime",
    "TimezoneOffsetFromUTC",
)
OF_THE_INJECTION = (
    "RadionuclideTotalDose",
    "RadionuclideHalfLife",
    "RadiopharmaceuticalStartTime",
    "RadiopharmaceuticalStartDateTime",
)


def suv_factor(slices: Sequence[Dataset]) -> float:
    """What to multiply rescaled pixels with to get SUVbw, in g/mL.

    Units GML are SUV already. For BQML the factor is weight / dose. The dose is decayed to the time to which the
    images are decay-corrected: the start of the scan (DecayCorrection START) or the injection (ADMIN). The start
    of the scan is the series time, or the first acquisition where that is earlier: the series time of a
    processed series is when it was processed.

    Raises:
        ImageError: a tag is missing, differs between slices, contradicts another, or means a quantity that is not
            SUVbw.

    Reference: the vendor-neutral pseudo-code of the Quantitative Imaging Biomarkers Alliance's SUV group.
    """
    first = slices[0]
    same(slices, *OF_THE_SERIES)
    units = require(first, "Units")
    if units == "GML":
        suv_type = optional(first, "SUVType") or "BW"
        if suv_type != "BW":
            raise ImageError(
                f"The series is in SUV of type {printable(suv_type)}, not by body weight.",
                "Export it as SUVbw or BQML.",
            )
        return 1.0
    if units != "BQML":
        raise ImageError(
            f"The units of the series are {printable(units)}, not BQML or GML.",
            "Export it in Bq/mL or SUVbw.",
        )
    missing = {"ATTN", "DECY"} - set(np.atleast_1d(require(first, "CorrectedImage")))
    if missing:
        raise ImageError(
            f"The images are not corrected for {' and '.join(sorted(missing))}.", "Pass the corrected series."
        )
    weight = positive(first, "PatientWeight")
    if weight > LARGEST_WEIGHT_KG:
        raise ImageError(
            f"PatientWeight is {weight:g} kg, more than anybody weighs.", "Write it in kilograms, not grams."
        )
    return 1000.0 * weight / _dose_at_reference(slices)


def _dose_at_reference(slices: Sequence[Dataset]) -> float:
    injection = _injection(slices)
    dose = positive(injection, "RadionuclideTotalDose")
    if not SMALLEST_DOSE_BQ <= dose <= LARGEST_DOSE_BQ:
        than = "less than any injection" if dose < SMALLEST_DOSE_BQ else "more than any injection"
        raise ImageError(f"RadionuclideTotalDose is {dose:g} Bq, {than}.", "Write it in Bq, not MBq.")
    correction = require(slices[0], "DecayCorrection")
    if correction == "ADMIN":
        return dose
    if correction != "START":
        raise ImageError(
            f"DecayCorrection is {printable(correction)}, not START or ADMIN.",
            "Pass the decay-corrected series.",
        )
    half_life = positive(injection, "RadionuclideHalfLife")
    wait = _wait(slices, injection)
    if not 0 <= wait <= LONGEST_WAIT_HALF_LIVES * half_life:
        raise ImageError(
            f"The scan starts {wait / 60:.0f} min after the injection, by its tags.",
            "Correct the times or dates.",
        )
    return dose * float(2.0 ** (-wait / half_life))


def _injection(slices: Sequence[Dataset]) -> Dataset:
    """The one injection, which is the same in every slice."""
    injections = []
    for dataset in slices:
        found = require(dataset, "RadiopharmaceuticalInformationSequence")
        if not isinstance(found, SequenceOfItems):
            raise ImageError("RadiopharmaceuticalInformationSequence is malformed.", EXPORT)
        injection, *others = found
        if others:
            raise ImageError("The series has several injections.", EXPORT)
        injections.append(injection)
    same(injections, *OF_THE_INJECTION)
    return injections[0]


def _wait(slices: Sequence[Dataset], injection: Dataset) -> float:
    """Seconds from injection to the start of the scan.

    Dates and times are local, at the offset from UTC that the slices state (TimezoneOffsetFromUTC); a DateTime may
    have an offset of its own. Times with and without an offset cannot be compared.
    """
    first = slices[0]
    try:
        zone = _zone(first)
        series = _moment(require(first, "SeriesDate"), require(first, "SeriesTime"), zone)
        scan = min(
            series,
            *(_moment(require(d, "AcquisitionDate"), require(d, "AcquisitionTime"), zone) for d in slices),
        )
        start = optional(injection, "RadiopharmaceuticalStartDateTime")
        if start is not None:
            injected = _date_time(str(start), zone)
        else:
            injected = _moment(f"{scan:%Y%m%d}", require(injection, "RadiopharmaceuticalStartTime"), zone)
            if injected > scan:  # only the time of day is known: the scan is after midnight
                injected -= timedelta(days=1)
    except (ValueError, OverflowError) as error:
        raise ImageError(f"A date or time cannot be read ({reason(error)}).", EXPORT) from error
    if (injected.tzinfo is None) != (scan.tzinfo is None):
        raise ImageError(
            "RadiopharmaceuticalStartDateTime has an offset from UTC, and the scan's times have none.",
            "Write TimezoneOffsetFromUTC into the series, or the injection in the scan's local time.",
        )
    return (scan - injected).total_seconds()


def _zone(dataset: Dataset) -> timezone | None:
    """The offset from UTC of the dates and times of a slice; None if it states none."""
    given = optional(dataset, "TimezoneOffsetFromUTC")
    return None if given is None else _offset(str(given).strip())


def _offset(text: str) -> timezone:
    """The zone that DICOM writes as `+0200`."""
    found = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", text)
    if found is None:
        raise ValueError(f"the offset from UTC is {printable(text)!r}")
    offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return timezone(-offset if found[1] == "-" else offset)


def _date_time(text: str, zone: timezone | None) -> datetime:
    """A DateTime of DICOM; its own offset comes before that of the slices."""
    moment, *offset = re.split("(?=[+-])", text.strip(), maxsplit=1)
    return _moment(moment[:8], moment[8:], _offset(*offset) if offset else zone)


def _moment(date: object, time: object, zone: timezone | None) -> datetime:
    """A date and a time of day, to the minute at least: an hour alone would leave the decay to a guess."""
    if not re.match(r"\d\d:?\d\d", str(time)):
        raise ValueError(f"the time {printable(time)!r} has no minutes")
    return datetime.combine(DA(str(date)), TM(str(time)), zone)
