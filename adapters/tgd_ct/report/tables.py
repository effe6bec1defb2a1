"""The study's tables in Markdown, laid out as the paper's, and those that the paper lacks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tgd_ct.case import Task
from tgd_ct.experiment.choices import PARTS, mean_dice
from tgd_ct.experiment.recipes import LOW, MSE, NORMAL_DOSE
from tgd_ct.report.results import StudyResults
from tgd_kit.report.markdown import markdown, spread
from tgd_kit.report.statistics import summarise

TITLES = {"unet": "U-Net", "vnet": "V-Net", "resunet": "Res-U-Net", "voxresnet": "VoxResNet"}
# Dice of the organ in %, on normal-dose test sets of LiTS and KiTS (Zhang et al., MICCAI 2021).
PAPER_DICE: dict[Task, dict[str, float]] = {
    "liver": {"unet": 94.31, "vnet": 92.80, "resunet": 93.51, "voxresnet": 92.08},
    "kidney": {"unet": 90.87, "vnet": 89.61, "resunet": 89.78, "voxresnet": 89.35},
}
METHODS = {"tgd": "TGD", "full": "full fine-tuning", "last3": "last 3 convolutions", "lora": "LoRA"}
MEASURES = (("rmse", "RMSE HU", ".1f"), ("psnr", "PSNR dB", ".2f"), ("ssim", "SSIM", ".3f"))
REGIONS = ("image", "body", "ROI")


def percent(dose: float) -> str:
    """A dose in words."""
    return f"{100 * dose:g} %"


def segmenter_table(results: StudyResults) -> str:
    """Dice at normal dose, beside the paper's."""
    rows = []
    for task in results.settings.tasks:
        for name in results.settings.architectures:
            found = [results.summary(task, NORMAL_DOSE, "low", f"dice.{name}.{part}") for part in PARTS]
            rows.append(
                [
                    f"{task}, {TITLES[name]}",
                    *(_over_patients(one.mean, one.over_patients) for one in found),
                    f"{PAPER_DICE[task][name] / 100:.3f}",
                ]
            )
    return markdown(["Dice at normal dose", "organ", "tumour", "organ, paper"], rows)


def _over_patients(mean: float, deviation: float | None) -> str:
    return f"{mean:.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")


def headroom_table(results: StudyResults) -> str:
    """Dice of the first segmenter on the validation patients, at every dose."""
    rows = []
    for task in results.settings.tasks:
        for dose, found in results.validated[task].items():
            chosen = " (chosen)" * (results.choices[task].dose == dose)
            cells = [
                f"{mean_dice(found[image], part):.3f}" for part in PARTS for image in (NORMAL_DOSE, LOW, MSE)
            ]
            rows.append([f"{task}, {percent(dose)}{chosen}", *cells])
    titles = [f"{part}, {image}" for part in PARTS for image in (NORMAL_DOSE, LOW, f"denoised by {MSE}")]
    return markdown(["dose", *titles], rows)


def weight_table(results: StudyResults, task: Task) -> str:
    """What each weight of the task loss does on the validation patients."""
    rows = []
    for weight, found in results.weighed[task].items():
        chosen = " (chosen)" * (results.weights[task] == weight)
        dices = [f"{mean_dice(found['dice'], part):.3f}" for part in PARTS]
        rows.append([f"{weight:g}{chosen}", *dices, f"{np.mean(found['rmse']):.1f}"])
    return markdown([f"weight, {task}", *PARTS, "RMSE HU"], rows)


def quality_table(results: StudyResults, task: Task) -> str:
    """Table 1 of the paper: image quality against normal dose."""
    keys = [
        (f"quality.{region}.{key}", f"{title}, {region}", form)
        for region in REGIONS
        for key, title, form in MEASURES
    ]
    rows = [
        [row, *(spread(results.summary(task, row, "low", key), form) for key, _, form in keys)]
        for row in results.rows
        if row != NORMAL_DOSE
    ]
    return markdown([task, *(title for _, title, _ in keys)], rows)


def dice_table(results: StudyResults, task: Task, images: str) -> str:
    """Tables 2 and 3 of the paper: Dice of every segmenter after every denoiser.

    Args:
        results: of the study.
        task: the organ.
        images: "low" or "normal" dose in.
    """
    names = results.settings.architectures
    keys = [(f"dice.{name}.{part}", f"{TITLES[name]} {part}") for name in names for part in PARTS]
    rows = [_cells(results, task, row, images, [key for key, _ in keys]) for row in results.rows]
    rows += [
        _cells(results, task, row, images, [key for key, _ in keys[: len(PARTS)]]) for row in results.moving
    ]
    return markdown(
        [task, *(title for _, title in keys)], [row + [""] * (len(keys) + 1 - len(row)) for row in rows]
    )


def _cells(results: StudyResults, task: Task, row: str, images: str, keys: Sequence[str]) -> list[str]:
    return [row, *(spread(results.summary(task, row, images, key), ".3f") for key in keys)]


def detectability_table(results: StudyResults, task: Task) -> str:
    """Area under the ROC curve of the observer, for signals of each diameter."""
    diameters = results.settings.signals_mm
    rows = [
        [row, *(spread(results.detectability(task, row, diameter), ".3f") for diameter in diameters)]
        for row in results.rows
    ]
    return markdown([task, *(f"{diameter:g} mm" for diameter in diameters)], rows)


def adaptation_table(results: StudyResults, change: str) -> str:
    """New and old images after every adaptation."""
    first = results.settings.architectures[0]
    keys = ("quality.body.rmse", ".1f"), *((f"dice.{first}.{part}", ".3f") for part in PARTS)
    rows = []
    for method in results.methods:
        cells = [
            spread(summarise(results.adapted_values(change, method, images, key)), form)
            for images in ("new", "old")
            for key, form in keys
        ]
        kept = {None: "", True: "yes", False: "NO"}[results.kept(change, method)]
        step = f"{results.step_costs[method]:.2f}" if method in results.step_costs else ""
        rows.append([METHODS.get(method, method), *cells, f"{results.share(change, method):.1%}", step, kept])
    titles = [f"{name} {images}" for images in ("new", "old") for name in ("RMSE HU", *PARTS)]
    return markdown([change, *titles, "trained", "step", "kept"], rows)
