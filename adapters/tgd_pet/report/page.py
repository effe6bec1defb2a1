"""The page on the study, made from its results: docs/pet.md is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tgd_kit.report.claims import Claim, claims_table
from tgd_kit.training.schedule import Schedule
from tgd_pet.evaluation.measures import HALO_MM, NEAR_MM, SMALLEST_ARTEFACT_SUV
from tgd_pet.experiment.jobs import SWEEP_SCANS
from tgd_pet.experiment.patients import CASES
from tgd_pet.experiment.recipes import TGD
from tgd_pet.experiment.settings import Settings
from tgd_pet.network import SUV_LIMIT
from tgd_pet.report.claims import HARMLESS_BIAS, HARMLESS_RISE, claims
from tgd_pet.report.finding import finding
from tgd_pet.report.results import StudyResults
from tgd_pet.report.tables import (
    difference_table,
    image_table,
    online_table,
    overview,
    sweep_table,
    table_1,
    unseen_table,
)
from tgd_pet.simulation.osem import RECONSTRUCTIONS, Reconstruction

IMAGES = "images"
HEAD = """# The PET study

The experiments of the TGD paper (Chen, Asma and Chan, MICCAI 2021) on simulated scans. This page, its tables and
figures are made by

```console
$ tgd pet study --config {profile} -o runs/pet
```

which continues where it stopped when it is called again. Nothing here was measured on patients, and the paper's
images are not ours: its figures stand beside ours to compare directions, not values.
"""
READING = """
A claim holds where the 95% intervals of the paired difference lie on its side of 0, does not where they lie on the
other side, and is not shown where one includes 0. Where a claim says that something is kept or not harmed, the margin
stands in place of 0: {error:.0%} of the other's RMSE, {bias:g} points of lesion bias. Online learning that left most
networks as they were (fewer than half learnt) shows nothing. The intervals
are two: over the {patients} test patients (n = {patients}), each averaged over the seeds, and over the {seeds},
each averaged over the patients; for unseen features each seed has a patient of its own. They are not corrected for
the number of claims. Bold: 0, or the margin, is left out.
"""
DEVICES = """
## On several devices

The study runs independent jobs, one to a core. A single network can be trained on several devices or machines by
`tgd pet train`, `finetune` and `online` with `--devices` and `--nodes`: docs/pet_scans.md says how.
"""
FULL = " Profile full, of the paper's widths, has not been run; the time in its file is an estimate."
UNITS = """SUV in g/mL. Every measure is against the full-count image of the same reconstruction, as in the paper,
but for the lesion bias to the phantom, which has the reconstruction's own bias in it. Lesion bias: of the mean SUV of
each lesion, averaged over {realisations} short scans (60 s of 600 s), then over lesions (the paper's equation 6). Liver
CoV: the spread of each voxel over these scans (equation 7). RMSE, PSNR and SSIM over the body and near the lesions;
PSNR and SSIM for a range of 10 SUV. ± is the standard deviation over seeds. {bases}"""


def page(results: StudyResults, profile: str) -> str:
    """The page in Markdown; its figures are `images/pet_*.png`.

    Args:
        results: of a finished study.
        profile: its settings, as `--config` takes them.
    """
    settings = results.settings
    parts = [
        HEAD.format(profile=profile),
        "## What was done\n",
        _what_was_done(settings),
        "## Which claims hold here\n",
        _verdicts(results),
        claims_table(claims(results)),
        _reading(settings),
        "## Table 1 of the paper\n",
        f"On v2 images of the {_thin(settings)} thin test patients.\n",
        table_1(results),
        f"\n![Slices of one patient, networks side by side]({IMAGES}/pet_networks.png)\n",
        "One short scan of a thin patient, and below each image its difference from the full-count image; bias and "
        "CoV are this patient's, over all short scans.\n",
        "## The new task and the old one\n",
        UNITS.format(realisations=settings.realisations, bases=_bases(settings)) + "\n",
        overview(results),
        f"\n![Change of the error on new and on old images]({IMAGES}/pet_tasks.png)\n",
        f"{TGD} minus each other network, with 95% intervals over patients; in bold where they, and those over seeds, "
        "leave out 0 on the same side:\n",
        difference_table(results, TGD),
        "\n## Thresholds\n",
        _about_sweep(results),
        sweep_table(results),
        f"\n![Share left out and change of the error against phi]({IMAGES}/pet_threshold.png)\n",
        "## Unseen features, and online learning from one scan\n",
        _about_unseen(settings),
        finding(results) + "\n",
        "What online learning changes in the network that it starts from, with 95% intervals over the seeds, in bold "
        "where they leave out 0:\n",
        online_table(results) + "\n",
        *(
            part
            for case in CASES
            for part in (f"### {case.capitalize()}\n", unseen_table(results, case) + "\n")
        ),
        f"![Unseen features, denoised in each way]({IMAGES}/pet_unseen.png)\n",
        "## All measures\n",
        "### v2 images, the new task\n",
        image_table(results, "v2"),
        "\n### v1 images, the old task\n",
        image_table(results, "v1"),
        "\n## Time\n",
        _times(results, profile),
        "## Limits\n",
        _limits(settings),
        DEVICES.rstrip(),
    ]
    return "\n".join(parts) + "\n"


def _reconstruction(kind: Reconstruction) -> str:
    psf = f"a PSF of {kind.psf_mm:g} mm" if kind.psf_mm else "no PSF"
    tof = "time of flight" if kind.tof else "no time of flight"
    means = f"{psf}, {tof} and a filter of {kind.filter_mm:g} mm"
    return f"{kind.name} is OSEM of {kind.iterations} iterations with {means}"


def _what_was_done(settings: Settings) -> str:
    lines = [
        f"Scans: {settings.slices} slices of {settings.size} x {settings.size} voxels of {settings.voxel_mm:g} mm; "
        f"{'; '.join(_reconstruction(kind) for kind in RECONSTRUCTIONS.values())}.",
        f"Patients: {settings.train} to train on, thin and large; {settings.adapt} thin ones to adapt to, others for "
        f"each seed; {settings.test} to test, half of them thin. Lesions of 8 to 25 mm in liver, lung and soft tissue.",
        f"Counts: short scans of {_list(settings.seconds)} s, thinned from 600 s; the target is the image of 600 s.",
        f"Networks: the paper's DnCNN with widths {_list(settings.widths)}. Batch norms stand in the paper's places; "
        f"they train with {settings.training.batch} patches of 32 x 32 pixels a step, a last convolution that starts "
        "at zero, and one cycle of the learning rate; docs/pet_batch_norm.md shows what else was tried.",
        f"v1-net and v2-net: {_schedule(settings.training)}. Each adaptation: {_schedule(settings.tuning)}. Online "
        f"learning: at most {_schedule(settings.online)}, stopped early on held-out slices.",
        f"Seeds: {len(settings.seeds)}. A seed draws the adaptation patients, the patches, and a patient with each "
        f"unseen feature. {_bases(settings)}",
        f"TGD at phi {settings.phi:g}; TGD2 repeats it on the tuned network, with new scores, at phi "
        f"{settings.phi_again:g}. Masked flow is the paper's (no gradient through frozen maps), full flow masks "
        "parameters only. The share that trained is that of its second round.",
        f"Networks see SUV up to {settings.suv_limit:g}, which is practically no limit, as in the paper; those of "
        f"`tgd pet train` and `tgd pet demo` see anything hotter than SUV {SUV_LIMIT:g} as SUV {SUV_LIMIT:g}.",
        "L2-SP, LwF and LoRA have the same patches and steps, and their usual strengths, not tuned.",
    ]
    return "\n".join(f"* {line}" for line in lines) + "\n"


def _verdicts(results: StudyResults) -> str:
    found = claims(results)
    paper, reader = ([claim for claim in found if claim.origin == origin] for origin in ("paper", "reader"))
    return (
        f"The paper's claims: {_counted(paper)}. What its reader would put to the test: {_counted(reader)}.\n"
    )


def _counted(found: Sequence[Claim]) -> str:
    count = Counter(claim.verdict for claim in found)
    return (
        f"{len(found)}, of which {count['holds']} found to hold, {count['does not hold']} found not to, "
        f"{count['not shown']} not shown either way"
    )


def _reading(settings: Settings) -> str:
    return READING.format(
        error=HARMLESS_RISE, bias=HARMLESS_BIAS, patients=settings.test, seeds=_repetitions(settings)
    )


def _about_sweep(results: StudyResults) -> str:
    settings, sweeps = results.settings, results.sweeps
    tolerance = sweeps[0]["tolerance"]
    scans = min(SWEEP_SCANS, settings.realisations)
    lines = [
        "What is left out when the filters below phi are zeroed in v1-net, and what that does to the old task (the "
        f"paper's figure 4; it judges by eye), on {scans} short scans of each of {settings.sweep_patients} test "
        f"patients, for {_count(len(sweeps), 'v1-net')}.",
        f"Proposed is the largest phi up to which the error rises by at most {tolerance:.0%}: {_proposed(sweeps)}.",
    ]
    phi, changes = settings.phi, results.sweep_changes(settings.phi)
    if changes:
        rise = sum(changes) / len(changes)
        lines.append(
            f"At phi {phi:g} the paper finds the images almost identical; here the old task's error changes by "
            f"{rise:+.0%} when these filters are left out."
        )
        if rise > tolerance:
            lines.append(
                "So the filters that TGD retrains are not idle in this network, and the method lacks the slack that "
                "it counts on."
            )
    return " ".join(lines) + "\n"


def _proposed(sweeps: Sequence[Any]) -> str:
    """What the threshold study of each network proposes."""
    found = Counter(sweep["proposed"] for sweep in sweeps)
    return ", ".join(
        f"{'none' if phi is None else f'{phi:g}'} for {_count(number, 'network')}"
        for phi, number in found.items()
    )


def _about_unseen(settings: Settings) -> str:
    return (
        f"A bladder of SUV 60, a catheter line of SUV 60 outside the body ({settings.online_seconds:g} s scans), and a "
        f"scan of {settings.low_count_seconds:g} s. N2N trains v2-net on the two halves of that one scan; TGD-N2N "
        "retrains only the filters below phi; TGD2-N2N starts from TGD-net. A quarter of the slices, three at least, "
        "decides when to stop; where nothing was better there, the network stayed as it was: learnt in counts the "
        "runs in which it did not. The halo is tissue from the voxels that touch the object to "
        f"{HALO_MM:g} mm, nearby is from there to {NEAR_MM:g} mm; artefact: where the error nearby exceeds "
        f"{SMALLEST_ARTEFACT_SUV:g} SUV. Lesion bias and CoV are those of one scan, so its "
        "noise is in them: compare rows, not with the tables above. RMSE is over the body without the object. A "
        "network that stops denoising keeps lesions too: read lesion bias beside the RMSE of the scan itself (input).\n"
    )


def _times(results: StudyResults, profile: str) -> str:
    run, workers = results.run, results.settings.workers
    total = sum(run["seconds"].values())
    stages = ", ".join(f"{stage} {seconds / 60:.1f}" for stage, seconds in run["seconds"].items())
    versions = " and ".join(f"{package} {number}" for package, number in run["versions"].items())
    return (
        f"{total / 60:.0f} minutes by the clock, with {_count(workers, 'worker')} on a machine of "
        f"{_count(run['cores'], 'core')}; {run['cpu_seconds'] / 60:.0f} minutes of computing, all cores together "
        f"(the clock also counts what else the machine did); {versions}. By the clock, in minutes: {stages}."
        f"{'' if profile == 'full' else FULL}\n"
    )


def _limits(settings: Settings) -> str:
    lines = [
        "Ellipsoid torsos and one simulated scanner; how its shift from v1 to v2 compares with the paper's is unknown.",
        f"Networks of widths {_list(settings.widths)} (the paper's: 64 to 256) after "
        f"{settings.training.epochs * settings.training.steps} steps. Whether wider or longer trained ones have idle "
        "filters was not tested; nor whether masked flow does better at a lower rate.",
        _about_spread(settings),
        "Unseen features have one patient a seed, and their lesion bias comes from one scan each.",
        "What stops online learning is the error over all active voxels of the held-out slices, in which a hot object "
        "outweighs the rest.",
        "Every image of a test patient comes from the scan that its target comes from, as in the paper.",
        "The paper's time saving (64%) is almost all data preparation, which is not simulated here.",
        "Frozen filters stay bit for bit, but read retrained maps: old weights are preserved, not the old function.",
    ]
    return "\n".join(f"* {line}" for line in lines)


def _schedule(schedule: Schedule) -> str:
    return f"{schedule.epochs * schedule.steps} steps of Adam at up to {schedule.rate:g}"


def _thin(settings: Settings) -> int:
    return settings.test - settings.test // 2


def _bases(settings: Settings) -> str:
    bases = len(settings.used_bases)
    if bases == 1:
        return "All seeds start from one v1-net and one v2-net, which therefore have no spread."
    if bases == len(settings.seeds):
        return "Each seed starts from a v1-net and a v2-net of its own."
    return f"The seeds share {bases} v1-nets and as many v2-nets in turn."


def _repetitions(settings: Settings) -> str:
    """What a test over seeds counts."""
    seeds, bases = len(settings.seeds), len(settings.used_bases)
    if seeds == bases:
        return f"{seeds} seeds (n = {seeds})"
    return f"{seeds} seeds, those with the same v1-net and v2-net averaged (n = {bases})"


def _about_spread(settings: Settings) -> str:
    if len(settings.used_bases) == 1:
        return "The spread over seeds is that of adapting, not that of the first training."
    return (
        "The spread over seeds is that of first weights, of patches and of the patients to adapt to; the patients of "
        "the first training are the same for all."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
