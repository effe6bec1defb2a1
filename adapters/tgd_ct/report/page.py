"""The page on the study, made from its results: docs/ct_study.md is one."""

from __future__ import annotations

from collections import Counter

from tgd_ct.experiment.recipes import NORMAL_DOSE, TOD
from tgd_ct.report.claims import HARMLESS_RISE, claims
from tgd_ct.report.results import StudyResults
from tgd_ct.report.tables import (
    adaptation_table,
    detectability_table,
    dice_table,
    headroom_table,
    percent,
    quality_table,
    segmenter_table,
    weight_table,
)
from tgd_kit.report.claims import Verdict, claims_table

IMAGES = "images"
HEAD = """# The CT study

The experiments of TOD-Net (Zhang et al., MICCAI 2021) on simulated scans, and TOD-Net adapted with TGD. This page, its
tables and figures are made by

```console
$ tgd ct study --config {profile} -o runs/ct
```

which continues where it stopped when it is called again. Nothing here was measured on patients. The paper's tables
could not be read, so only its words and the Dice of its segmenters stand beside ours.
"""
READING = """
A claim holds where the 95% intervals of the paired difference lie on its side of 0, does not where they lie on the
other side, and is not shown where one includes 0. "Does not harm" has a margin in place of 0: {rise:.0%} of TOD-Net's
error on the old images. The intervals are over the {patients} test patients, each averaged over the seeds, and over the
{seeds} seeds, each averaged over the patients. They are not corrected for the number of claims. Bold: 0, or the margin,
is left out.
"""


def page(results: StudyResults, profile: str) -> str:
    """The page in Markdown; its figures are `images/ct_*.png`.

    Args:
        results: of a finished study.
        profile: its settings, as `--config` takes them.
    """
    settings = results.settings
    found = claims(results)
    counts = Counter(claim.verdict for claim in found)
    words: dict[Verdict, str] = {"holds": "hold", "does not hold": "do not", "not shown": "are not shown"}
    verdicts = ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items())
    parts = [
        HEAD.format(profile=profile),
        "## What was done\n",
        _what_was_done(results),
        "## Which claims hold here\n",
        f"Of {len(found)} claims: {verdicts}.\n",
        claims_table(found),
        READING.format(rise=HARMLESS_RISE, patients=settings.test, seeds=len(settings.seeds)),
        "## The segmenters\n",
        "Mean ± standard deviation over the test patients.\n",
        segmenter_table(results),
        "\n## Head-room\n",
        _headroom(results),
        headroom_table(results),
        f"\n![Dice against dose]({IMAGES}/ct_headroom.png)\n",
        *(weight_table(results, task) + "\n" for task in settings.tasks),
        "## Image quality\n",
        "Against normal dose; ± is the standard deviation over the seeds. PSNR and SSIM in the window of -160 to 240 "
        "HU. ROI: the organ with its tumours.\n",
        *(quality_table(results, task) + "\n" for task in settings.tasks),
        "One slice of a test patient for each task. Contours: what the first segmenter finds there (red), and the "
        "truth (green), of the organ with its tumours and of the tumours. Below, the error.\n",
        *(f"![{task}, denoised in each way]({IMAGES}/ct_denoisers_{task}.png)\n" for task in settings.tasks),
        "## Segmentation of low-dose images\n",
        "Dice per patient. The last two rows have a segmenter of their own.\n",
        *(dice_table(results, task, "low") + "\n" for task in settings.tasks),
        "## Segmentation of normal-dose images that were denoised\n",
        f"In the row {NORMAL_DOSE} they were not.\n",
        *(dice_table(results, task, "normal") + "\n" for task in settings.tasks),
        *_observer(results),
        "## TOD-Net adapted\n",
        f"{TOD} of the {settings.tasks[0]} at {percent(results.choices[settings.tasks[0]].dose)}, adapted on "
        f"{settings.adapt} patients per seed. Old: what it was trained for. Trained: share of the parameters. Step: "
        "time of a training step over that of full fine-tuning, by one process. Kept: whether all others are the same "
        "bit for bit.\n",
        *(adaptation_table(results, change) + "\n" for change in results.changes),
        "## Time\n",
        _times(results),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _what_was_done(results: StudyResults) -> str:
    settings = results.settings
    weights = ", ".join(f"{task} {results.weights[task]:g}" for task in settings.tasks)
    return (
        f"{settings.train} patients to train on, {settings.validation} to validate, {settings.test} to test. Denoisers "
        f"({settings.kind}, widths {', '.join(map(str, settings.widths))}) are trained by MSE for "
        f"{settings.training.epochs * settings.training.steps} steps; from there all go on for "
        f"{settings.hybrid.epochs * settings.hybrid.steps} steps, each with its own loss: MSE alone, or with a critic "
        f"(weight {settings.gan:g}), with a perceptual loss ({settings.perceptual:g}) or the task loss ({weights}, "
        "chosen on the validation patients). The segmenter retrained at low dose goes on from that of normal dose for "
        f"{settings.retraining.epochs * settings.retraining.steps} steps. Seeds differ in first weights and samples "
        "of the denoisers.\n"
    )


def _headroom(results: StudyResults) -> str:
    sentences = ["Dice of the first segmenter on the validation patients."]
    for task, choice in results.choices.items():
        if choice.headroom:
            parts = " and ".join(choice.parts)
            sentences.append(
                f"For the {task} {percent(choice.dose)} is the highest dose with head-room ({parts})."
            )
        else:
            sentences.append(
                f"No dose leaves head-room for the {task}: {percent(choice.dose)} is the lowest of them."
            )
    return " ".join(sentences) + "\n"


def _observer(results: StudyResults) -> list[str]:
    settings = results.settings
    if not settings.signals_mm:
        return []
    return [
        "## Detectability\n",
        f"Area under the ROC curve of a channelised Hotelling observer, for discs of {settings.signal_hu:g} HU in the "
        "organ of the test patients; 0.5 is chance.\n",
        *(detectability_table(results, task) + "\n" for task in settings.tasks),
    ]


def _times(results: StudyResults) -> str:
    run = results.run
    total = sum(run["seconds"].values()) / 60
    stages = "; ".join(f"{stage} {seconds / 60:.0f}" for stage, seconds in run["seconds"].items())
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return (
        f"{total:.0f} minutes on {run['cores']} cores, {run['cpu_seconds'] / 60:.0f} minutes of computing: {stages}. "
        f"{versions}.\n"
    )
