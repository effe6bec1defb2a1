"""The settings of `tgd pet study`, read from one YAML file; three come with the package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tgd_kit.errors import RunError, SimulationError, printable
from tgd_kit.runs.settings import Count, Phi, Positive, checked, read_yaml
from tgd_kit.training.schedule import Schedule
from tgd_pet.simulation.acquisition import Scanner
from tgd_pet.simulation.config import PatientConfig
from tgd_pet.simulation.geometry import Geometry, TimeOfFlight

PROFILES = Path(__file__).parent / "profiles"
REMEDY = f"Start from one in {PROFILES}."
SCAN_SECONDS = 600.0  # of the full scan that all others are thinned from, as in the paper
# More of these add work, and change no result that is there.
GROWING = ("seeds", "workers", "phis", "online_phis", "peers")
LARGEST_SEED = 99  # the numbers of a seed's patients must not reach those of the next set

Seconds = Annotated[float, Field(gt=0, le=SCAN_SECONDS)]
Peer = Literal["l2-sp", "lwf", "lora"]


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
            those of number s modulo `bases`. Seeds that share them are not independent: they count as one in a
            test over seeds.
        seeds: of adaptation patients, patches, and patients with unseen features; everything after the first
            training is repeated for each.
        workers: processes of one thread.
    """

    size: Annotated[int, Field(ge=16, le=1024)]
    voxel_mm: Positive
    angles: Annotated[int, Field(ge=1, le=4096)]
    slices: Annotated[int, Field(ge=6, le=1024)]
    prompts_per_slice: tuple[Positive, Positive]
    seconds: Annotated[tuple[Seconds, ...], Field(min_length=1)]
    train: Annotated[int, Field(ge=1, le=10_000)]
    adapt: Annotated[int, Field(ge=1, le=100)]
    test: Annotated[int, Field(ge=1, le=2_000)]
    realisations: Annotated[int, Field(ge=2, le=10)]
    old_realisations: Annotated[int, Field(ge=2, le=10)]
    online_seconds: Seconds
    low_count_seconds: Seconds
    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=4, max_length=64)]
    suv_limit: Positive
    training: Schedule
    tuning: Schedule
    online: Schedule
    phi: Phi
    phi_again: Phi
    phis: tuple[Phi, ...]
    online_phis: tuple[Phi, ...]
    peers: tuple[Peer, ...]
    sweep: Annotated[tuple[Phi, ...], Field(min_length=1)]
    sweep_patients: Count
    bases: Count
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST_SEED)], ...], Field(min_length=1)]
    workers: Annotated[int, Field(ge=1, le=1024)]

    def base(self, seed: int) -> int:
        """The number of the v1-net and the v2-net that this seed starts from."""
        return seed % self.bases

    @property
    def used_bases(self) -> list[int]:
        """The number of each base that a seed starts from, in the order of the seeds."""
        return list(dict.fromkeys(self.base(seed) for seed in self.seeds))

    def simulated(self, **changes: Any) -> PatientConfig:
        """How patients are simulated, with changes to `PatientConfig`."""
        geometry = Geometry(
            size=self.size,
            voxel_mm=self.voxel_mm,
            angles=self.angles,
            bins=self.size,
            bin_mm=self.voxel_mm,
            tof=TimeOfFlight(),
        )
        config = PatientConfig(
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
    return settings_from(read_yaml(path, REMEDY), str(path))


def settings_from(given: object, where: str) -> Settings:
    """Settings from a mapping, as YAML or JSON hold them.

    Args:
        given: names and values of the arguments.
        where: they come from, for messages.

    Raises:
        RunError: names or values are not those of `Settings`.
    """
    found: Settings = checked(Settings, given, where, REMEDY)
    schedules = {name: getattr(found, name) for name in ("training", "tuning", "online")}
    for name, schedule in schedules.items():
        if schedule.processes > 1:
            raise RunError(
                f"{where}: {name} has several devices.", "A study trains each network on one; set `workers`."
            )
    faults = {
        "widths must end with 3, the slices of a triplet": found.widths[-1] != 3,
        "old_realisations are more than realisations": found.old_realisations > found.realisations,
        "sweep_patients are more than test": found.sweep_patients > found.test,
        "seeds has one twice": len(set(found.seeds)) < len(found.seeds),
        "size is smaller than a patch": any(one.patch > found.size for one in schedules.values()),
    }
    for fault, found_so in faults.items():
        if found_so:
            raise RunError(f"{printable(where)}: {fault}.", REMEDY)
    try:
        found.simulated()
    except SimulationError as error:
        raise RunError(f"{printable(where)}: {error.problem}", error.remedy) from error
    return found
