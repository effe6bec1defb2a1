"""The study's figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tgd_ct.case import NORMAL, TUMOUR, Task
from tgd_ct.evaluation.measures import WINDOW
from tgd_ct.experiment.choices import PARTS, mean_dice
from tgd_ct.experiment.jobs import OfTask
from tgd_ct.experiment.patients import load, measured
from tgd_ct.experiment.recipes import LOW, MSE, NORMAL_DOSE, recipes
from tgd_ct.inference import denoise, segment
from tgd_ct.networks.files import load_generator
from tgd_ct.report.results import StudyResults
from tgd_kit.report.pictures import draw_comparison, new_figure, save_figure
from tgd_kit.training.fit import NETWORK

MARGIN = 4  # pixels around the body
FOUND, TRUE = "tab:red", "tab:green"  # colours of contours


def draw_figures(out: Path, results: StudyResults, folder: Path) -> None:
    """Draw all figures of a finished study.

    Args:
        out: folder of the study.
        results: of the study.
        folder: gets `ct_headroom.png`, and for each task `ct_denoisers_<task>.png`.
    """
    _draw_headroom(results, folder / "ct_headroom.png")
    for task in results.settings.tasks:
        _draw_denoisers(out, results, task, folder / f"ct_denoisers_{task}.png")


def _draw_headroom(results: StudyResults, path: Path) -> None:
    """Dice against dose: normal dose, low dose, and denoised by MSE."""
    tasks = results.settings.tasks
    figure = new_figure(8, 3.2 * len(tasks))
    axes = figure.subplots(len(tasks), len(PARTS), squeeze=False, sharex=True)
    for row, task in zip(axes, tasks, strict=True):
        for axis, part in zip(row, PARTS, strict=True):
            doses = [100 * dose for dose in results.validated[task]]
            for image, style in ((NORMAL_DOSE, "k--"), (MSE, "o-"), (LOW, "s-")):
                dices = [mean_dice(found[image], part) for found in results.validated[task].values()]
                axis.plot(doses, dices, style, label=image if image != MSE else f"denoised by {MSE}")
            axis.axvline(100 * results.choices[task].dose, color="0.8", zorder=0)
            axis.set(xscale="log", ylim=(0, 1), ylabel=f"Dice of {task}, {part}")
    for axis in axes[-1]:
        axis.set_xlabel("dose, % of normal (grey: chosen)")
    axes[0, 0].legend(loc="lower right", fontsize="small")
    save_figure(figure, path)


def _draw_denoisers(out: Path, results: StudyResults, task: Task, path: Path) -> None:
    """The slice of the test patients with the largest section of tumours, denoised in each way and segmented."""
    settings, dose = results.settings, results.choices[task].dose
    job = OfTask(out, settings, task)
    cases = load(out, measured(settings))
    sections = [(case.target(task) == TUMOUR).sum(axis=(1, 2)) for case in cases]
    number = int(np.argmax([section.max() for section in sections]))
    case, z = cases[number], int(sections[number].argmax())
    shown = _around(case.body[z])
    slices = {LOW: case.image(dose)[z]}
    for recipe in recipes(settings, results.weights[task]):
        network = load_generator(job.folder(str(settings.seeds[0]), recipe.name) / NETWORK)
        slices[recipe.name] = denoise(network, case.image(dose))[z]
    slices[NORMAL_DOSE] = case.image(NORMAL)[z]
    segmenter, truth = job.segmenter(settings.architectures[0]), case.target(task)[z]
    contours = {
        title: [*_outlines(segment(segmenter, image[None])[0], FOUND), *_outlines(truth, TRUE)]
        for title, image in slices.items()
    }
    draw_comparison(
        {title: image[shown] for title, image in slices.items()},
        NORMAL_DOSE,
        path,
        unit="HU",
        window=WINDOW,
        span=100.0,
        contours={
            title: [(area[shown], colour) for area, colour in several] for title, several in contours.items()
        },
    )


def _around(body: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The part of a slice with the body in it."""
    found = [np.flatnonzero(body.any(axis=axis)) for axis in (1, 0)]
    rows, columns = (slice(max(int(one[0]) - MARGIN, 0), int(one[-1]) + MARGIN + 1) for one in found)
    return rows, columns


def _outlines(labels: NDArray[np.uint8], colour: str) -> list[tuple[NDArray[np.bool_], str]]:
    """Of the organ with its tumours, and of the tumours."""
    return [(labels > 0, colour), (labels == TUMOUR, colour)]
