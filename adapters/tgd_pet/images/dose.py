"""The factor from a PET series' units to SUV by body weight, from its DICOM tags."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from tgd_kit.errors import ImageError
from tgd_kit.imaging.dicom.tags import optional, positive, require

EXPORT = "Export the series again with its dose, times and weight, or pass a NIfTI file in SUV."
SMALLEST_DOSE_BQ = 1e5  # less than any injection, more than any dose written in MBq by mistake
LONGEST_WAIT_HALF_LIVES = 10  # between injection and scan


def suv_factor(slices: Sequence[Dataset]) -> float:
    """What to multiply rescaled pixels with to get SUVbw, in g/mL.

    Units GML are SUV already. For BQML the factor is weight / dose. The dose is decayed to the time to which the
    images are decay-corrected: the start of the scan (DecayCorrection START) or the injection (ADMIN). The start
    of the scan is the series time, or the first acquisition where that is earlier: the series time of a
    processed series is when it was processed.

    Raises:
        ImageError: a tag is missing, contradicts another, or means a quantity that is not SUVbw.

    Reference: the vendor-neutral pseudo-code of the Quantitative Imaging Biomarkers Alliance's SUV group.
    """
    first = slices[0]
    for tag in ("Units", "PatientWeight", "DecayCorrection", "SUVType", "SeriesTime"):
        if len({str(optional(dataset, tag)) for dataset in slices}) > 1:
            raise ImageError(f"{tag} differs between the slices.", "Pass one series as the scanner wrote it.")
    units = require(first, "Units")
    if units == "GML":
        suv_type = optional(first, "SUVType") or "BW"
        if suv_type != "BW":
            raise ImageError(
                f"The series is in SUV of type {suv_type}, not by body weight.", "Export it as SUVbw or BQML."
            )
        return 1.0
    if units != "BQML":
        raise ImageError(
            f"The units of the series are {units}, not BQML or GML.", "Export it in Bq/mL or SUVbw."
        )
    missing = {"ATTN", "DECY"} - set(np.atleast_1d(require(first, "CorrectedImage")))
    if missing:
        raise ImageError(
            f"The images are not corrected for {' and '.join(sorted(missing))}.", "Pass the corrected series."
        )
    return 1000.0 * positive(first, "PatientWeight") / _dose_at_reference(slices)


def _dose_at_reference(slices: Sequence[Dataset]) -> float:
    first = slices[0]
    injection, *others = require(first, "RadiopharmaceuticalInformationSequence")
    if others:
        raise ImageError("The series has several injections.", EXPORT)
    dose = positive(injection, "RadionuclideTotalDose")
    if dose < SMALLEST_DOSE_BQ:
        raise ImageError(
            f"RadionuclideTotalDose is {dose:g} Bq, less than any injection.", "Write it in Bq, not MBq."
        )
    correction = require(first, "DecayCorrection")
    if correction == "ADMIN":
        return dose
    if correction != "START":
        raise ImageError(
            f"DecayCorrection is {correction}, not START or ADMIN.", "Pass the decay-corrected series."
        )
    half_life = positive(injection, "RadionuclideHalfLife")
    wait = _wait(slices, injection)
    if not 0 <= wait <= LONGEST_WAIT_HALF_LIVES * half_life:
        raise ImageError(
            f"The scan starts {wait / 60:.0f} min after the injection, by its tags.",
            "Correct the times or dates.",
        )
    return dose * float(2.0 ** (-wait / half_life))


def _wait(slices: Sequence[Dataset], injection: Dataset) -> float:
    """Seconds from injection to the start of the scan."""
    try:
        scan = min(
            _moment(require(slices[0], "SeriesDate"), require(slices[0], "SeriesTime")),
            *(_moment(require(d, "AcquisitionDate"), require(d, "AcquisitionTime")) for d in slices),
        )
        start = optional(injection, "RadiopharmaceuticalStartDateTime")
        if start is not None:
            injected: datetime = DT(str(start)).replace(tzinfo=None)
        else:
            injected = _moment(f"{scan:%Y%m%d}", require(injection, "RadiopharmaceuticalStartTime"))
            if injected > scan:  # only the time of day is known: the scan is after midnight
                injected -= timedelta(days=1)
    except ValueError as error:
        raise ImageError(f"A date or time cannot be read ({error}).", EXPORT) from error
    return (scan - injected).total_seconds()


def _moment(date: object, time: object) -> datetime:
    return datetime.combine(DA(str(date)), TM(str(time)))
