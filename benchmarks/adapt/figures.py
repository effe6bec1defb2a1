"""A figure per task: the old error against the new one, along training and over all rates; the new one against time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.adapt.analysis import FULL, TaskResults
from tgd_kit.report.pictures import new_figure, save_figure

# Method, colour, line, label: what is kept apart in a figure; the table has all.
SHOWN = (
    (FULL, "black", "-"),
    ("last layers", "0.65", "-"),
    ("L2-SP", "tab:brown", "-"),
    ("LwF", "tab:purple", "-"),
    ("LoRA 8", "tab:blue", "-"),
    ("LoRA 8 + LwF", "tab:blue", "--"),
    ("TGD masked 25 %", "tab:olive", "-"),
    ("TGD full 25 %", "tab:red", "-"),
    ("TGD full 25 % + Keep", "tab:red", "--"),
)
IN_TIME = (
    (FULL, "black", "-"),
    ("LoRA 8", "tab:blue", "-"),
    ("TGD masked 25 %", "tab:olive", "-"),
    ("TGD sampled 25 %", "tab:orange", "-"),
    ("TGD full 25 %", "tab:red", "-"),
)

THIN: dict[str, Any] = {"markersize": 3, "linewidth": 1.3}


def draw(results: TaskResults, path: Path) -> None:
    """Draw the figure of a task."""
    figure = new_figure(15, 4.9, dpi=110)
    along, fronts, in_time = figure.subplots(1, 3)
    for name, colour, line in SHOWN:
        if name in results.data["methods"]:
            look: dict[str, Any] = {"color": colour, "linestyle": line, "marker": "o", "label": name, **THIN}
            _, old, new = results.curve(name).T
            along.plot(new, old, **look)
            old, new = results.front(name).T
            fronts.plot(new, old, **look)
    for name, colour, line in IN_TIME:
        steps, _, new = results.curve(name).T
        time = steps * results.data["costs"][name]["time"][1]
        in_time.plot(time, new, color=colour, linestyle=line, marker="o", label=name, **THIN)
    for axes in (along, fronts):
        axes.plot(*results.untouched()[::-1], "k*", markersize=11, label="untouched")
    _label(along, "error on new data", "error on old data", "Old against new, along training")
    _label(fronts, "error on new data", "error on old data", "The best of all rates and steps (one seed)")
    _label(in_time, "time, in steps of full fine-tuning", "error on new data", "New against time")
    figure.suptitle(results.data["title"])
    lines = {line.get_label(): line for axes in (along, in_time) for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), fontsize=8)
    save_figure(figure, path)


def _label(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
