"""docs/adapting.md and its figures, made from the results of `benchmarks/adapt/study.py`.

`python -m benchmarks.adapt.page` makes it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.adapt import findings
from benchmarks.adapt.advice import STEPS, against_long_runs
from benchmarks.adapt.analysis import FULL, GAINS, TaskResults, over_seeds
from benchmarks.adapt.figures import draw
from benchmarks.adapt.findings import INGREDIENT_LABELS
from benchmarks.adapt.methods import CHOICES, INGREDIENTS, OURS, PEERS, REFERENCE, SHARES, Method
from benchmarks.adapt.numbers import change, number, with_interval
from benchmarks.measuring import RESULTS
from tgd_kit.report.markdown import markdown
from tgd_kit.runs.files import write_text

ROOT = Path(__file__).parent.parent.parent
FILE = RESULTS / "adapt.json"
TEXT = """\
# What pays: TGD beside its peers

Made by `make bench-adapt` from [its results](../benchmarks/results/adapt.json); do not edit. {setting}.

{finding}

## How it was measured

Four pretrained networks are adapted to new data. Each method has Adam at a constant rate, which rises over the first
tenth of the steps; batch norms keep their running statistics, in TGD those of frozen channels. A method's rate is the
one of the task's rates with the lowest new error on validation data, in one run with a seed of its own. Then it is run
with {seeds} other seeds, which draw the small set of new data, its order, and what the method draws. ± is the half
width of the 95% interval over the seeds, and bold differences are those whose interval does not contain 0. Validation
and test data are the same for all seeds, so the intervals do not say how much other test data would change. Old data
are used to measure, never to train.

{edge}

* *Best step*: where the new error on validation data was lowest, of three points along the steps; errors on test data.
* *Old error at 50% (75%) of the gain*: the gain is what full fine-tuning takes off the new error. Of the points along
  the steps, and that at the end with half of the change (`load_delta(..., scale=0.5)`), the one with the lowest old
  error among those that have gained as much, both on validation data; errors on test data. A dash: some seed does not
  get there.
  This compares methods where they have learned as much.
* *Best of all rates and steps*, in the figures: the points of the runs that looked for the rate, on test data, that no
  other point of the method beats on both kinds of data.
* *Trained*: parameters, over those of the network; low-rank factors can be more than that. *Time*, *memory*: of a step,
  over those of full fine-tuning, taking turns on one core. *Stored*: what changed; TGD's file also holds its plan and
  the checks of the base, which count in a small network.
* *Keep*: distillation of the untouched network's outputs on the new inputs, with weight 1, as in *LwF*
  (`tgd_kit.training.distillation`). *TGD n %*: a budget of that share of the filters' parameters.
* *Sampled*: the input gradient of each convolution comes from a quarter of its channels, drawn anew in each step; an
  unbiased estimate of the gradient of the loss.

{tasks}

## Which gradient

{flows}

## Which filters

At a budget of 25%, full flow, the rate of *{reference}*. Errors at the best step. The change is against the lowest KSE,
with the 95% interval over the seeds; bold where it does not contain 0.

{choices}

## What Keep is made of

Full flow at a budget of 25% and 50%, without distillation or with a weight of it. New and old error at the best step,
and the old error at half and at three quarters of the gain. The last layer, which no layer reads, is frozen; in *last
layer* it is trained whole (`overrides={{name: "train"}}`). The methods of the tables above have rates of their own, the
others that of *{reference}*.

{ingredients}

## The default

`apply_tgd(network)` with nothing else: new error on validation data after all steps, against the untouched network.

{default}

## Does `advise` agree

[`tgd advise`](cli.md#look-before-you-leap) was asked with the tasks' validation data: trials of {advice_steps} steps.
Beside it, the best of what it tries by the long runs: the lowest old error at half of full fine-tuning's gain, chosen
on validation data. The difference is in old error on test data, with the 95% interval over the seeds. {agreement}

{advice}
{slack}"""
TABLE = re.compile(r"(<!-- by make bench-adapt -->\n).*?(?=<!-- end -->)", re.DOTALL)  # in other pages
README_ROWS = {
    FULL: "full fine-tuning",
    "last layers": "last three layers",
    "LwF": "learning without forgetting (LwF)",
    "LoRA 8": "LoRA, rank 8",
    "TGD masked 25 %": "TGD 25%, the paper's masked flow",
    REFERENCE: "TGD 25%",
    f"{REFERENCE} + Keep": "TGD 25%, with distillation (Keep)",
}
KEEP_ROWS = (
    REFERENCE,
    "Keep 0.3",
    f"{REFERENCE} + Keep",
    "last layer",
    "Keep 0.3, last layer",
    "TGD full 50 %",
)
TASK = """\
## {title}

{about}

![{title}](images/adapt_{name}.png)

The error is {error}. Untouched: new {new}, old {old}. {forgets}

{table}
"""


def write_page(data: dict[str, Any], root: Path = ROOT) -> None:
    """Write the page and its figures under the root of the project."""
    tasks = {name: TaskResults(task) for name, task in data["tasks"].items()}
    images = root / "docs" / "images"
    for name, task in tasks.items():
        draw(task, images / f"adapt_{name}.png")
    write_text(root / "docs" / "adapting.md", page(data["setting"], tasks, findings.slack(root)))
    for page_, table in ((root / "README.md", readme_table), (root / "docs" / "training.md", keep_table)):
        if page_.exists():
            text = page_.read_text(encoding="utf-8")
            write_text(page_, TABLE.sub(f"\\g<1>{table(tasks)}\n", text))


def readme_table(tasks: dict[str, TaskResults]) -> str:
    """The few rows that the README shows."""
    return _short_table(tasks, README_ROWS)


def keep_table(tasks: dict[str, TaskResults]) -> str:
    """The few rows on Keep that the page on training shows."""
    return _short_table(tasks, {name: INGREDIENT_LABELS[name] for name in KEEP_ROWS})


def _short_table(tasks: dict[str, TaskResults], labels: dict[str, str]) -> str:
    """The errors of each task at the best step, for some methods."""
    header = ["new error / old error", *(task.data["title"] for task in tasks.values())]
    rows = [
        ["untouched", *(f"{number(t.untouched()[1])} / {number(t.untouched()[0])}" for t in tasks.values())]
    ]
    rows += [[label, *(_new_and_old(t, name) for t in tasks.values())] for name, label in labels.items()]
    return markdown(header, rows)


def _new_and_old(task: TaskResults, name: str) -> str:
    if name not in task.data["methods"]:
        return "-"
    found = task.stopped(name)
    return f"{number(found.new.mean())} / {number(found.old.mean())}"


def page(setting: dict[str, str], tasks: dict[str, TaskResults], slack: str) -> str:
    """The page's Markdown."""
    return TEXT.format(
        setting=", ".join(f"{key} {value}" for key, value in setting.items()),
        seeds=setting["seeds"],
        finding=findings.finding(tasks),
        tasks="\n".join(task_section(name, task) for name, task in tasks.items()),
        flows=f"{findings.flows(tasks)}\n\n{flow_table(tasks)}",
        choices=f"{choice_table(tasks)}\n\n{findings.choice(tasks)}",
        reference=REFERENCE,
        edge=findings.at_the_edge(tasks),
        ingredients=f"{ingredient_table(tasks)}\n\n{findings.recipe(tasks)}",
        default=default_table(tasks),
        advice=advice_table(tasks),
        agreement=agreement(tasks),
        advice_steps=STEPS[setting["profile"]],
        slack=slack,
    )


def task_section(name: str, task: TaskResults) -> str:
    """What a task is, its figure and its table."""
    old, new = task.untouched()
    return TASK.format(
        title=task.data["title"],
        about=task.data["about"],
        name=name,
        error=task.data["error"],
        new=number(new),
        old=number(old),
        forgets=findings.forgetting(task),
        table=task_table(task),
    )


def task_table(task: TaskResults) -> str:
    """All methods but those of the last sections."""
    header = ["", "trained", "time", "memory", "stored", "new, best step", "old, best step"]
    header += [f"old at {gain:.0%} of the gain" for gain in GAINS]
    return markdown(header, [_row(task, method) for method in (*PEERS, *OURS) if method in task.methods])


def _row(task: TaskResults, method: Method) -> list[str]:
    cost, stopped = task.data["costs"][method.name], task.stopped(method.name)
    return [
        method.name,
        f"{cost['trained'] / task.data['parameters']:.1%}",
        f"{cost['time'][1]:.2f}",
        f"{cost['memory']:.2f}",
        f"{cost['bytes'] / 1e6:.3g} MB",
        with_interval(stopped.new),
        with_interval(stopped.old),
        *(_at_gain(task, method, gain) for gain in GAINS),
    ]


def _at_gain(task: TaskResults, method: Method, gain: float) -> str:
    found = task.at_gain(method.name, gain)
    return "-" if found is None else with_interval(found.old)


def flow_table(tasks: dict[str, TaskResults]) -> str:
    """What each flow reaches, and what it costs."""
    names = [f"TGD {flow} {share} %" for share in SHARES for flow in ("masked", "sampled", "full")]
    names += [method.name for method in INGREDIENTS if method.sampled]
    header = ["new error at the best step (time of a step)", *(task.data["title"] for task in tasks.values())]
    rows = [["untouched", *(number(task.untouched()[1]) for task in tasks.values())]]
    for name in _known((*names, FULL), tasks):
        rows.append([name, *(_error_and_time(task, name) for task in tasks.values())])
    return markdown(header, rows)


def _known(names: Sequence[str], tasks: dict[str, TaskResults]) -> list[str]:
    """Those that some task was adapted with."""
    return [name for name in names if any(name in task.data["methods"] for task in tasks.values())]


def _error_and_time(task: TaskResults, name: str) -> str:
    if name not in task.data["methods"]:
        return "-"
    error = with_interval(task.stopped(name).new)
    cost = task.data["costs"].get(name)
    return error if cost is None else f"{error} ({cost['time'][1]:.2f})"


def choice_table(tasks: dict[str, TaskResults]) -> str:
    """New and old error of each choice of filters."""
    header = [""]
    for task in tasks.values():
        header += [f"{task.data['title']}: new", "old"]
    rows = [["lowest KSE", *_both(tasks, REFERENCE)]]
    names = _known([method.name for method in CHOICES], tasks)
    rows += [[name.removeprefix("by "), *_both(tasks, name)] for name in names]
    return markdown(header, rows)


def _both(tasks: dict[str, TaskResults], name: str) -> list[str]:
    cells = []
    for task in tasks.values():
        if name not in task.data["methods"]:
            cells += ["-", "-"]
            continue
        found, reference = task.stopped(name), task.stopped(REFERENCE)
        for values, others in ((found.new, reference.new), (found.old, reference.old)):
            text = number(values.mean())
            if name != REFERENCE and over_seeds(values, others).sign:
                text = f"**{text}**"
            cells.append(text)
    return cells


def ingredient_table(tasks: dict[str, TaskResults]) -> str:
    """The errors with each ingredient: new and old at the best step, old at shares of the gain."""
    rows = [["untouched", *("{1:#.3g} / {0:#.3g}".format(*task.untouched()) for task in tasks.values())]]
    for name in _known(list(INGREDIENT_LABELS), tasks):
        cells = []
        for task in tasks.values():
            if name not in task.data["methods"]:
                cells.append("-")
                continue
            stopped, reached = task.stopped(name), [task.at_gain(name, gain) for gain in GAINS]
            old = ", ".join("-" if found is None else number(found.old.mean()) for found in reached)
            cells.append(f"{number(stopped.new.mean())} / {number(stopped.old.mean())}; {old}")
        rows.append([INGREDIENT_LABELS[name], *cells])
    return markdown(["new / old; old at 50%, 75%", *(task.data["title"] for task in tasks.values())], rows)


def default_table(tasks: dict[str, TaskResults]) -> str:
    """Whether the default ends better than the untouched network."""
    rows = []
    for task in tasks.values():
        new = task.last("TGD by default", "validation")[:, 1]
        untouched = task.untouched("validation")[1]
        better = int((new < untouched).sum())
        rows.append([task.data["title"], number(untouched), with_interval(new), f"{better} of {len(new)}"])
    return markdown(["", "untouched", "TGD by default", "seeds that end better"], rows)


def advice_table(tasks: dict[str, TaskResults]) -> str:
    """What `advise` recommends beside the best of the long runs."""
    rows = []
    for task in tasks.values():
        best, more = against_long_runs(task)
        shown = "its choice does not get there" if more is None else change(more)
        rows.append([task.data["title"], task.data["advice"]["method"] or "nothing", best or "none", shown])
    return markdown(["", "`advise`", "long runs", "more old error"], rows)


def agreement(tasks: dict[str, TaskResults]) -> str:
    """How often `advise` says what the long runs say."""
    found = [(task.data["advice"]["method"], *against_long_runs(task)) for task in tasks.values()]
    same = sum(chosen == best for chosen, best, _ in found)
    more = sum(
        chosen != best and difference is not None and difference.sign == 1
        for chosen, best, difference in found
    )
    short = sum(chosen is not None and difference is None for chosen, _, difference in found)
    return (
        f"They name the same on {same} of {len(tasks)} tasks. Elsewhere the choice of `advise` certainly has more old "
        f"error on {more}, and does not get there with all seeds on {short}."
    )


if __name__ == "__main__":
    write_page(json.loads(FILE.read_text(encoding="utf-8")))
