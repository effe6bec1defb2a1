"""The measures of a finished study, gathered from its files, and written as one `results.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tgd_kit.errors import RunError
from tgd_kit.report.record import plain
from tgd_kit.report.statistics import PAIRS, Difference, Summary, column, compare, summarise
from tgd_kit.runs.files import read_json, write_text
from tgd_kit.runs.record import study_record
from tgd_kit.runs.settings import checked, read_record
from tgd_kit.training.tgd import Outcome
from tgd_pet.evaluation.measures import Patient, Unseen
from tgd_pet.experiment.jobs import measures_path
from tgd_pet.experiment.patients import CASES
from tgd_pet.experiment.recipes import TGD, Variant, recipes, variants
from tgd_pet.experiment.settings import Settings, settings_from
from tgdsurgery import SweepRow

AGAIN = "Delete it, and the same command makes it again."
Table = npt.NDArray[np.float64]  # (seed, patient)
# What tables show of each network, and of each unseen case.
MEASURES = (
    "bias",
    "bias_true",
    "bias_small",
    "bias_max",
    "suv_mean",
    "suv_max",
    "cov",
    "body.rmse",
    "body.psnr",
    "body.ssim",
    "roi.rmse",
    "roi.psnr",
    "roi.ssim",
)
UNSEEN = (
    "bias",
    "bias_true",
    "bias_max",
    "cov",
    "body.rmse",
    "artefacts.halo",
    "artefacts.mean",
    "artefacts.rmse",
    "artefacts.lowest",
    "artefacts.volume",
    "artefacts.hot",
)


@dataclass(frozen=True)
class PerVersion:
    """The measures of one network on all test patients, on file."""

    v1: tuple[Patient, ...]
    v2: tuple[Patient, ...]


@dataclass(frozen=True)
class Swept:
    """The threshold study of one v1-net, on file: a `tgdsurgery.SweepResult`, and what it proposes."""

    rows: tuple[SweepRow, ...]
    untouched: float
    tolerance: float
    proposed: float | None


@dataclass(frozen=True)
class StudyResults:
    """All measures of a study.

    Args:
        settings: of the study.
        measures: seed to network to version to the patients' measures.
        adapted: seed to network to what trained and what was kept.
        sweeps: the threshold study of each v1-net.
        unseen: seed to case to variant to the measures, and how its online learning went.
        run: how long each stage took, on how many cores, with which versions.
    """

    settings: Settings
    measures: Mapping[str, Mapping[str, Any]]
    adapted: Mapping[str, Mapping[str, Any]]
    sweeps: Sequence[Any]
    unseen: Mapping[str, Mapping[str, Mapping[str, Any]]]
    run: Mapping[str, Any]

    @property
    def networks(self) -> list[str]:
        """In the order of the tables; the noisy input first."""
        return ["input", *(recipe.name for recipe in recipes(self.settings))]

    @property
    def variants(self) -> list[str]:
        """The treatments of the unseen cases, in the order of the tables."""
        return [variant.name for variant in self.all_variants]

    @property
    def all_variants(self) -> list[Variant]:
        """The treatments themselves."""
        return variants(self.settings)

    def values(self, network: str, version: str, key: str) -> Table:
        """(seed, patient) of one measure; NaN where a patient has none."""
        return np.array([column(self.measures[seed][network][version], key) for seed in self._seeds])

    def summary(self, network: str, version: str, key: str) -> Summary:
        """Mean and spread of one measure."""
        return summarise(self.values(network, version, key))

    def difference(
        self, first: str, second: str, version: str, key: str, over: str = "patients"
    ) -> Difference:
        """First minus second, paired."""
        return self._compare(self.values(first, version, key), self.values(second, version, key), over)

    def unseen_values(self, case: str, variant: str, key: str) -> Table:
        """(seed, 1) of one measure; each seed has its own patient."""
        return np.array([column([self.unseen[seed][case][variant]], key) for seed in self._seeds])

    def unseen_difference(self, first: str, second: str, case: str, key: str) -> Difference:
        """First minus second of two treatments, paired by seed, and so by patient."""
        found, reference = (self.unseen_values(case, name, key) for name in (first, second))
        return self._compare(found, reference, "seeds")

    def learnt(self, variant: str, *cases: str) -> tuple[int, int] | None:
        """In how many of its runs on these cases (or all) a variant learnt; None where it does not train."""
        runs = self._online(variant, *cases)
        return (sum(run["learnt"] for run in runs), len(runs)) if runs else None

    def online_share(self, variant: str) -> float:
        """Mean share of the parameters that an online learning could change."""
        return float(np.mean([run["share"] for run in self._online(variant)]))

    def _online(self, variant: str, *cases: str) -> list[Mapping[str, Any]]:
        found = [
            self.unseen[seed][case][variant]["online"] for seed in self._seeds for case in cases or CASES
        ]
        return [run for run in found if run is not None]

    def sweep_changes(self, phi: float) -> list[float]:
        """The relative change of each v1-net's error without the filters below phi; none where it was not tried."""
        return [row["change"] for sweep in self.sweeps for row in sweep["rows"] if row["phi"] == phi]

    def _compare(self, first: Table, second: Table, over: str) -> Difference:
        return compare(first, second, over, [self.settings.base(seed) for seed in self.settings.seeds])

    def trained_share(self, network: str) -> float | None:
        """Mean share of the parameters that trained; None for networks from scratch."""
        if network not in self.adapted[self._seeds[0]]:
            return None
        return float(np.mean([self.adapted[seed][network]["share"] for seed in self._seeds]))

    def kept(self, network: str) -> bool | None:
        """Whether all that was frozen was kept, for every seed; None where nothing was frozen."""
        found = [self.adapted[seed].get(network, {}).get("kept") for seed in self._seeds]
        return None if None in found else all(found)

    @cached_property
    def _seeds(self) -> list[str]:
        return [str(seed) for seed in self.settings.seeds]


def gather(out: Path, settings: Settings) -> StudyResults:
    """Read what the jobs of a finished study left.

    Raises:
        RunError: a file is missing, damaged, or holds something else.
    """
    named = [recipe.name for recipe in recipes(settings)]
    return StudyResults(
        settings,
        measures={
            str(seed): {
                name or "input": read_record(measures_path(out, settings, seed, name), PerVersion, AGAIN)
                for name in (None, *named)
            }
            for seed in settings.seeds
        },
        adapted={str(seed): _folder(out / "adapted" / str(seed), Outcome) for seed in settings.seeds},
        sweeps=list(_folder(out / "sweep", Swept).values()),
        unseen={
            str(seed): {case: _folder(out / "unseen" / str(seed) / case, Unseen) for case in CASES}
            for seed in settings.seeds
        },
        run=study_record(out),
    )


def write_results(results: StudyResults, path: Path, claims: Sequence[Any]) -> None:
    """One JSON file: what was claimed and tested, means and spreads, and below them all values they come from."""
    tables = {
        name: {
            version: {key: asdict(results.summary(name, version, key)) for key in MEASURES}
            for version in ("v1", "v2")
        }
        for name in results.networks
    }
    unseen = {
        case: {
            name: {key: asdict(summarise(results.unseen_values(case, name, key))) for key in UNSEEN}
            for name in results.variants
        }
        for case in CASES
    }
    whole = {
        "claims": claims,
        f"{TGD} minus": _differences(results, TGD),
        "summaries": tables,
        "unseen summaries": unseen,
        **asdict(results),
    }
    write_text(path, json.dumps(plain(whole), separators=(",", ":"), allow_nan=False) + "\n")


def _differences(results: StudyResults, name: str) -> dict[str, Any]:
    """One network minus each other: version to measure to the pairs' difference, interval and p."""
    return {
        other: {
            version: {
                key: {over: asdict(results.difference(name, other, version, key, over)) for over in PAIRS}
                for key in MEASURES
            }
            for version in ("v1", "v2")
        }
        for other in results.networks
        if other not in ("input", name)
    }


def read_results(path: Path) -> StudyResults:
    """The inverse of `write_results`.

    Raises:
        RunError: the file is missing, damaged, or holds something else.
    """
    data = checked(dict[str, Any], read_json(path), str(path), AGAIN)
    names = "measures", "adapted", "sweeps", "unseen", "run"
    if missing := [name for name in ("settings", *names) if name not in data]:
        raise RunError(f"{path} lacks {', '.join(missing)}.", "Pass a results.json of a study.")
    kept = {key: data[key] for key in names}
    return StudyResults(settings_from(data["settings"], str(path)), **kept)


def _folder(folder: Path, kind: Any) -> dict[str, Any]:
    return {path.stem: read_record(path, kind, AGAIN) for path in sorted(folder.glob("*.json"))}
