"""The study's figures: networks side by side, thresholds, unseen features, and old task against new."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tgd_kit.arrays import FloatArray
from tgd_kit.report.pictures import new_figure, save_figure
from tgd_kit.report.statistics import Summary, summarise
from tgd_pet.evaluation.measures import denoised
from tgd_pet.evaluation.scores import around
from tgd_pet.experiment.jobs import Learn, Measure, learned
from tgd_pet.experiment.patients import CASES, testing, unseen
from tgd_pet.experiment.recipes import TGD
from tgd_pet.report.results import StudyResults
from tgd_pet.report.tables import PAPER_DROPPED
from tgd_pet.simulation.files import load_patient
from tgd_pet.simulation.patient import SimulatedPatient

FIGURES = ("networks", "threshold", "unseen", "tasks")
SHOWN_NETWORKS = ("input", "v1-net", "v2-net", "FT-net", TGD)
TOP_SUV, SPAN_SUV = 6.0, 1.0  # drawn black; and in full colour, as a difference
LARGEST_NEARBY_CHANGE = 20.0  # %: what the second panel of the tasks' figure shows


def draw_figures(out: Path, results: StudyResults, folder: Path) -> None:
    """Draw every figure of a finished study as `pet_<name>.png` into `folder`."""
    _draw_networks(out, results, folder / "pet_networks.png")
    _draw_threshold(results, folder / "pet_threshold.png")
    _draw_unseen(out, results, folder / "pet_unseen.png")
    _draw_tasks(results, folder / "pet_tasks.png")


def _draw_networks(out: Path, results: StudyResults, path: Path) -> None:
    """The first thin patient: one scan on v1 and on v2 images, with bias and CoV over all his scans."""
    settings, seed = results.settings, results.settings.seeds[0]
    patient = load_patient(testing(out, settings)[0])
    z, window = _best_slice(patient), around(patient.body())
    figure, axes = _panels(4, len(SHOWN_NETWORKS) + 1)
    for rows, version in ((axes[:2], "v2"), (axes[2:], "v1")):
        target = patient.full(version)[window]
        scan = patient.realisations(version)[0][window]
        for column, name in zip(rows.T, SHOWN_NETWORKS, strict=False):
            network = None if name == "input" else Measure(out, settings, seed, name).network(name)
            (image,) = denoised(network, [scan])
            bias, cov = (results.values(name, version, key)[0, 0] for key in ("bias", "cov"))
            title = f"{name}, {version}\nbias {bias:+.1f} %, CoV {cov:.1f} %"
            _show(column, image[z], target[z], title)
        _show(rows[:, -1], target[z], target[z], f"full counts, {version}")
    save_figure(figure, path)


def _draw_threshold(results: StudyResults, path: Path) -> None:
    """Share left out and change of the old task's error against phi, with the paper's shares."""
    sweeps = [sweep["rows"] for sweep in results.sweeps]
    phis = [row["phi"] for row in sweeps[0]]
    figure = new_figure(9.0, 3.6, dpi=120)
    left, right = figure.subplots(1, 2)
    for axis, key, label in (
        (left, "dropped", "parameters left out (%)"),
        (right, "change", "rise of the RMSE on v1 images (%)"),
    ):
        values = 100 * np.array([[row[key] for row in sweep] for sweep in sweeps])
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else None
        axis.errorbar(phis, values.mean(axis=0), spread, fmt="o-", capsize=3, label="here")
        axis.set_xlabel("phi")
        axis.set_ylabel(label)
    left.plot(PAPER_DROPPED.keys(), [100 * share for share in PAPER_DROPPED.values()], "s--", label="paper")
    left.legend()
    right.axhline(0, color="grey", linewidth=0.8)
    save_figure(figure, path)


def _draw_unseen(out: Path, results: StudyResults, path: Path) -> None:
    """The first seed's patient of each case, denoised in each way, on a scale that shows halos."""
    settings, seed = results.settings, results.settings.seeds[0]
    phi = settings.online_phis[0]
    names = ["input", "v2-net", "N2N", f"TGD-N2N, phi {phi:g}", f"TGD-N2N, full flow, phi {phi:g}"]
    figure, axes = _panels(2 * len(CASES), len(names) + 1)
    chosen = {variant.name: variant for variant in results.all_variants}
    for rows, case in zip(axes.reshape(len(CASES), 2, -1), CASES, strict=True):
        patient = load_patient(unseen(out, settings, case, seed))
        z = int(patient.hot().sum(axis=(1, 2)).argmax()) if patient.hot().any() else _best_slice(patient)
        box = around(patient.body() | patient.hot())[1:]
        target = patient.full("v2")[z][box]
        for column, name in zip(rows.T, names, strict=False):
            network, learning = learned(Learn(out, settings, seed, case, chosen[name]), patient)
            (image,) = denoised(network, patient.low("v2"))
            bias = results.unseen_values(case, name, "bias")[0, 0]
            idle = "\nstayed as it was" if learning and not learning["learnt"] else ""
            _show(column, image[z][box], target, f"{name}\nlesion bias {bias:+.1f} %{idle}", top=4.0)
        _show(rows[:, -1], target, target, f"full counts\n{case}", top=4.0)
    save_figure(figure, path)


def _draw_tasks(results: StudyResults, path: Path) -> None:
    """Change of the error on new and on old images by each adaptation, relative to v1-net: all, and nearby."""
    figure = new_figure(11.5, 4.6, dpi=110)
    axes = figure.subplots(1, 2)
    changes = {
        name: (_change(results, name, "v1"), _change(results, name, "v2"))
        for name in results.networks
        if name not in ("input", "v1-net")
    }
    colours = matplotlib.colormaps["turbo"].resampled(len(changes))
    for index, (name, (x, y)) in enumerate(changes.items()):
        style = {"fmt": "os^Dv<>"[index % 7], "color": colours(index), "capsize": 2, "label": name}
        for axis in axes:
            axis.errorbar(x.mean, y.mean, xerr=x.over_seeds, yerr=y.over_seeds, **style)
    near = [
        (x.mean, y.mean) for x, y in changes.values() if max(abs(x.mean), abs(y.mean)) < LARGEST_NEARBY_CHANGE
    ]
    if near:
        (left, right), (low, high) = (
            (min(0.0, *values), max(0.0, *values)) for values in zip(*near, strict=True)
        )
        axes[1].set_xlim(left - 1, right + 1)
        axes[1].set_ylim(low - 1, high + 1)
    for axis, title in zip(axes, ("all", "nearby"), strict=True):
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_title(title)
        axis.set_xlabel("change of RMSE, v1 images (old task), %")
        axis.set_ylabel("change of RMSE, v2 images (new task), %")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small", title="lines: v1-net")
    save_figure(figure, path)


def _change(results: StudyResults, name: str, version: str) -> Summary:
    before, after = (results.values(n, version, "body.rmse") for n in ("v1-net", name))
    return summarise(100 * (after / before - 1))


def _best_slice(patient: SimulatedPatient) -> int:
    """The slice with the largest section of lesions, of those that show liver if there are any."""
    lesions, liver = (
        mask.sum(axis=(1, 2)) for mask in (np.any(patient.lesion_masks(), axis=0), patient.liver())
    )
    return int((lesions * ((liver > 0) | ~liver.any())).argmax())


def _panels(rows: int, columns: int) -> tuple[Figure, Any]:
    figure = new_figure(2.3 * columns, 1.75 * rows)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(
    column: Sequence[Axes], image: FloatArray, target: FloatArray, title: str, top: float = TOP_SUV
) -> None:
    """An image above its difference from the target."""
    above, below = column
    above.imshow(image, cmap="gray_r", vmin=0, vmax=top)
    above.set_title(title, fontsize=8)
    if image is target:
        scale = f"above: SUV 0 to {top:g}\nbelow: full counts subtracted,\nred +{SPAN_SUV:g} SUV, blue -{SPAN_SUV:g}"
        below.text(0.5, 0.5, scale, ha="center", va="center", fontsize=8)
    else:
        below.imshow(image - target, cmap="RdBu_r", vmin=-SPAN_SUV, vmax=SPAN_SUV)
    for axis in column:
        axis.set_axis_off()
