"""The settings of `tgd pet study`, read from one YAML file; three come with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from tgd_pet.simulation.acquisition import Scanner
from tgd_kit.errors import RunError
from tgd_kit.runs.files import replacing
from tgd_kit.simulation.projector import Geometry, TimeOfFlight
from tgd_pet.simulation.patient import StudyConfig
from tgd_kit.training.fit import Schedule

PROFILES = Path(__file__).parent / "profiles"
SCAN_SECONDS = 600.0  # of the full scan that all others are thinned from, as in the paper
GROWING = ("seeds", "workers", "phis", "online_phis", "peers")  # more of these only adds work


@dataclass(frozen=True)
class Settings:
    """Everything a study depends on.

    Args:
        size: voxels along x and along y.
        voxel_mm: their side; slices are as thick.
        angles: projection angles.
        slices: per patient.
        prompts_per_slice: range of the expected prompts in an average slice of the full scan.
        seconds: of the short scans to train on, out of 600.
        train: patients of all sizes for v1-net and v2-net.
        adapt: thin patients to adapt to, others for every seed.
        test: patients to measure, half of them thin.
        realisations: repeated short scans of each test patient, which share all counts.
        old_realisations: how many of them are denoised as v1 images.
        online_seconds: of the scan of an unseen feature.
        low_count_seconds: of the scan with extremely few counts.
        widths: output channels of each convolution.
        suv_limit: of the network (`tgd_pet.network.DnCNN`); 1000 is as good as none, as in the paper.
        training: schedule of v1-net and v2-net.
        tuning: schedule of every adaptation.
        online: schedule of every online learning.
        phi: threshold of TGD.
        phi_again: threshold of its second round, on the network of the first.
        phis: more thresholds to adapt with.
        online_phis: thresholds of online learning.
        peers: other methods to compare with.
        sweep: thresholds of the ablation.
        sweep_patients: how many test patients it is judged on.
        bases: number of v1-nets and of v2-nets, which differ in first weights and patches; seed s starts from
            those of number s modulo `bases`. Seeds that share them are no independent repetitions, and count
            as one in a test over seeds.
        seeds: of adaptation patients, patches, and patients with unseen features; all that follows the first
            training is repeated for each.
        workers: processes of one thread.
    """

    size: int
    voxel_mm: float
    angles: int
    slices: int
    prompts_per_slice: tuple[float, float]
    seconds: tuple[float, ...]
    train: int
    adapt: int
    test: int
    realisations: int
    old_realisations: int
    online_seconds: float
    low_count_seconds: float
    widths: tuple[int, ...]
    suv_limit: float
    training: Schedule
    tuning: Schedule
    online: Schedule
    phi: float
    phi_again: float
    phis: tuple[float, ...]
    online_phis: tuple[float, ...]
    peers: tuple[str, ...]
    sweep: tuple[float, ...]
    sweep_patients: int
    bases: int
    seeds: tuple[int, ...]
    workers: int

    def base(self, seed: int) -> int:
        """The number of the v1-net and the v2-net that this seed starts from."""
        return seed % self.bases

    @property
    def used_bases(self) -> list[int]:
        """The number of each base that a seed starts from, in the order of the seeds."""
        return list(dict.fromkeys(self.base(seed) for seed in self.seeds))

    def simulated(self, **changes: Any) -> StudyConfig:
        """How patients are simulated, with changes to `StudyConfig`."""
        geometry = Geometry(
            size=self.size,
            voxel_mm=self.voxel_mm,
            angles=self.angles,
            bins=self.size,
            bin_mm=self.voxel_mm,
            tof=TimeOfFlight(),
        )
        config = StudyConfig(
            Scanner(geometry, slice_mm=self.voxel_mm),
            slices=self.slices,
            prompts_per_slice=self.prompts_per_slice,
            fractions=tuple(seconds / SCAN_SECONDS for seconds in self.seconds),
        )
        return replace(config, **changes)


def read_settings(path: Path) -> Settings:
    """Read a YAML file; its keys are the arguments of `Settings`.

    Raises:
        RunError: the file is missing or not YAML, or its keys or values are not those of `Settings`.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(
            f"{path} cannot be read as YAML ({error}).", f"Start from one in {PROFILES}."
        ) from error
    return settings_from(given, str(path))


def settings_from(given: object, where: str) -> Settings:
    """Settings from a mapping, as YAML or JSON hold them.

    Args:
        given: names and values of the arguments.
        where: they come from, for messages.

    Raises:
        RunError: names or values are not those of `Settings`.
    """
    return _filled(Settings, given, where)  # type: ignore[no-any-return]


def claim(folder: Path, settings: Settings) -> None:
    """Note the settings in the folder of a study; refuse a folder whose results had others.

    Raises:
        RunError: a setting differs that results depend on.
    """
    record = folder / "settings.json"
    if record.exists():
        found = settings_from(json.loads(record.read_text(encoding="utf-8")), str(record))
        decisive = [field.name for field in fields(settings) if field.name not in GROWING]
        changed = [name for name in decisive if getattr(found, name) != getattr(settings, name)]
        if changed:
            raise RunError(
                f"{folder} holds a study with another {', '.join(changed)}.",
                "Choose another folder, or delete that one.",
            )
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")


def _filled(kind: Any, given: object, where: str) -> Any:
    """A dataclass from a mapping, with lists as tuples and nested mappings as dataclasses."""
    if not isinstance(given, Mapping):
        raise RunError(f"{where} is not a list of settings.", f"Start from one in {PROFILES}.")
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(str(key) for key in given.keys() - known.keys())
    needed = {name for name, field in known.items() if field.default is MISSING}
    missing = sorted(needed - given.keys())
    if unknown or missing:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [
            f"has unknown {', '.join(unknown)}"
        ] * bool(unknown)
        raise RunError(f"{where} {' and '.join(parts)}.", f"Start from one in {PROFILES}.")
    types = get_type_hints(kind)
    return kind(**{name: _value(types[name], value, f"{where}: {name}") for name, value in given.items()})


def _value(kind: Any, value: object, where: str) -> Any:
    if kind is Schedule:
        return _schedule(value, where)
    if kind in (int, float):
        if not isinstance(value, (int, kind)) or isinstance(value, bool):
            raise RunError(f"{where} is {value!r}.", f"Give a number ({kind.__name__}).")
        return kind(value)
    if not isinstance(value, list):
        raise RunError(f"{where} is {value!r}.", "Give a list.")
    item = kind.__args__[0]
    return tuple(entry if item is str else _value(item, entry, where) for entry in value)


def _schedule(value: object, where: str) -> Schedule:
    schedule: Schedule = _filled(Schedule, value, where)
    if schedule.processes > 1:
        raise RunError(f"{where} has several devices.", "A study trains each network on one; set `workers`.")
    return schedule
