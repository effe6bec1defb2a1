"""A figure per task: the old error against the new one along training, and the new one against time."""

from __future__ import annotations

from pathlib import Path

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


def draw(results: TaskResults, path: Path) -> None:
    """Draw the figure of a task."""
    figure = new_figure(10.5, 4.4, dpi=120)
    left, right = figure.subplots(1, 2)
    for name, colour, line in SHOWN:
        if name in results.data["methods"]:
            _, old, new = results.curve(name).T
            left.plot(new, old, line, color=colour, marker="o", markersize=3, linewidth=1.3, label=name)
    for name, colour, line in IN_TIME:
        steps, _, new = results.curve(name).T
        time = steps * results.data["costs"][name]["time"][1]
        right.plot(time, new, line, color=colour, marker="o", markersize=3, linewidth=1.3, label=name)
    left.plot(*results.untouched()[::-1], "k*", markersize=11, label="untouched")
    _label(left, "error on new data", "error on old data", "Old against new, along training")
    _label(right, "time, in steps of full fine-tuning", "error on new data", "New against time")
    figure.suptitle(results.data["title"])
    save_figure(figure, path)


def _label(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)
