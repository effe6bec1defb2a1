"""The study runs through, goes on where it stopped, and its page says what its results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks.adapt import advice, findings, methods, run, study
from benchmarks.adapt import page as pages
from benchmarks.adapt import slack as slack_study
from benchmarks.adapt.analysis import TaskResults
from benchmarks.adapt.findings import slack, slack_section
from benchmarks.adapt.numbers import change
from benchmarks.adapt.page import FILE, ROOT, keep_table, page, readme_table
from tests.adapt import toy
from tgd_kit.report.statistics import Difference

KEPT = (
    "full fine-tuning",
    "last layers",
    "LwF",
    "LoRA 8",
    "TGD masked 25 %",
    "TGD full 25 %",
    "TGD sampled 25 %",
    "TGD full 25 % + Keep",
    "TGD by default",
    "by random",
    "Keep 3",
    "Keep 0.3, last layer",
)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a study of the toy, without most methods."""
    kept = {name: methods.METHODS[name] for name in KEPT}
    task = toy.make("tiny", tmp_path)
    for module in (run, study, advice):
        monkeypatch.setattr(module, "the_task", lambda *arguments: task)
    monkeypatch.setattr(study, "METHODS", kept)
    monkeypatch.setattr(study.cost, "METHODS", kept)
    monkeypatch.setattr(study, "TASKS", ("toy",))
    monkeypatch.setattr(advice, "SHARES", (25,))  # of those, all are kept
    out = ["--profile", "tiny", "--out", str(tmp_path), "--workers", "1"]
    done = CliRunner().invoke(study.main, out, catch_exceptions=False)
    assert done.exit_code == 0
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny" / "toy").rglob("*.json")}
    CliRunner().invoke(study.main, out, catch_exceptions=False)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny" / "toy").rglob("*.json")}
    assert (tmp_path / "tiny" / "docs" / "images" / "adapt_toy.png").stat().st_size > 10_000
    found: dict[str, Any] = json.loads((tmp_path / "tiny" / "adapt.json").read_text())
    text = (tmp_path / "tiny" / "docs" / "adapting.md").read_text()
    assert text == page(found["setting"], {"toy": TaskResults(found["tasks"]["toy"])}, "")
    return found


def test_the_study_runs_through_and_goes_on(results: dict[str, Any]) -> None:
    task = TaskResults(results["tasks"]["toy"])
    assert [method.name for method in task.methods] == list(KEPT)
    assert {len(task.runs(name)) for name in KEPT} == {study.SEEDS["tiny"]}
    assert task.stopped("full fine-tuning").new.mean() < task.untouched()[1]
    rates = {found["rate"] for found in task.data["methods"].values()}
    assert rates <= {1e-3, 1e-2}
    assert task.data["methods"]["Keep 3"]["rate"] == task.data["methods"]["TGD full 25 %"]["rate"]
    costs = task.data["costs"]
    assert costs["full fine-tuning"]["time"] == [1.0, 1.0, 1.0]
    assert costs["TGD full 25 %"]["trained"] < costs["full fine-tuning"]["trained"]
    assert "by random" not in costs


def points(*errors: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"steps": 10 * i, "scale": 1.0, "validation": e, "test": e} for i, e in enumerate(errors, 1)]


def test_errors_at_a_gain() -> None:
    """Full fine-tuning goes from 10 to 2, so half of the gain is a new error of 6."""
    of_methods = {
        "full fine-tuning": [points((3, 8), (5, 2)), points((3, 8), (5, 2))],
        "LwF": [points((2, 8), (3, 6), (4, 3)), points((2, 8), (2.5, 6), (4, 3))],
        "last layers": [points((1, 5)), points((1, 7))],
    }
    data = {
        "untouched": {"validation": (1, 10), "test": (1, 10)},
        "methods": {name: {"rate": 1e-3, "seeds": seeds} for name, seeds in of_methods.items()},
    }
    task = TaskResults(data)
    assert task.target(0.5) == 6
    found = task.at_gain("LwF", 0.5)
    assert found is not None
    assert found.old.tolist() == [3, 2.5]
    assert task.at_gain("last layers", 0.5) is None  # one seed does not get there
    assert task.best(task.methods, 0.5) == "LwF"
    assert task.difference("LwF", "full fine-tuning", 0.5).mean == -2.25
    assert task.stopped("LwF").new.tolist() == [3, 3]
    assert task.curve("LwF").tolist() == [[0, 1, 10], [10, 2, 8], [20, 2.75, 6], [30, 4, 3]]


def test_the_front_is_what_nothing_beats_over_all_rates() -> None:
    tuning = {"0.001": points((2, 8), (4, 5)), "0.01": points((3, 6), (5, 6), (6, 2))}
    data = {"untouched": {"test": (1, 10)}, "methods": {}, "tuning": {"LwF": tuning}}
    assert TaskResults(data).front("LwF").tolist() == [[1, 10], [2, 8], [3, 6], [4, 5], [6, 2]]


def recipe_task(title: str, *old: float) -> TaskResults:
    """Full fine-tuning goes from 10 to 2; each method gets there, with its old error."""
    seeds = {"full fine-tuning": [points((9, 2))]} | {
        method.name: [points((error, 2))] for method, error in zip(findings.RECIPES, old, strict=False)
    }
    methods = {name: {"rate": 1e-3, "seeds": found} for name, found in seeds.items()}
    return TaskResults({"title": title, "untouched": {"validation": (1, 10)}, "methods": methods})


def test_the_recipe_is_the_best_of_three_tasks() -> None:
    tasks = {str(i): recipe_task(f"T{i}", 5, 4, i) for i in range(4)}
    assert "*25%, Keep 1* is the best on 4 of 4 tasks" in findings.recipe(tasks)
    tasks |= {str(i): recipe_task(f"T{i}", 1, 4, 5) for i in range(2)}
    assert "no single one is the best on 3 or more tasks with 50%" in findings.recipe(tasks)


def rivals(*old: float) -> TaskResults:
    """Two seeds in which TGD ends with the first two old errors, and full fine-tuning with the others."""
    ours, full = ([[{**points((error, 2))[0]}] for error in pair] for pair in (old[:2], old[2:]))
    found = {"full fine-tuning": full, "50 %, Keep, last layer": ours}
    return TaskResults(
        {
            "title": "T",
            "untouched": {"validation": (1, 10), "test": (1, 10)},
            "methods": {name: {"rate": 1e-3, "seeds": seeds} for name, seeds in found.items()},
            "costs": {name: {"time": [1, 1.5, 2]} for name in found},
        }
    )


def test_the_verdict_counts_what_is_certain() -> None:
    tasks = {
        "won": rivals(1.0, 2.0, 5.0, 6.1),
        "open": rivals(1.0, 6.0, 5.0, 6.0),
        "lost": rivals(5, 6.1, 1, 2),
    }
    assert "every peer on 1 of 3 tasks with 50% of the gain and on 1 of 3 tasks with 75%" in findings.verdict(
        tasks
    )
    close = rivals(1.0, 2.0, 5.0, 6.1)
    close.data["methods"]["LwF"] = {"rate": 1e-3, "seeds": [[points((error, 2))[0]] for error in (1.5, 9)]}
    assert "every peer on 0 of 1 tasks" in findings.verdict(
        {"t": TaskResults(close.data)}
    )  # best peer or not
    alone = rivals(1.0, 2.0, 5.0, 6.1)
    alone.data["methods"]["full fine-tuning"]["seeds"] = [[points((5, 2))[0]], [points((6, 9))[0]]]
    assert alone.at_gain("50 %, Keep, last layer", 0.5) is not None
    assert "every peer on 0 of 1 tasks" in findings.verdict({"t": alone})  # no peer gets there
    rows = findings.verdict_table(tasks).splitlines()[2::2]
    ours, full = "*TGD 50%, Keep 1, last layer*", "*full fine-tuning*"
    assert rows[0] == f"| T, 50% | {ours}: 1.50 | {full}: 5.55 | **-4.05 (-4.69 to -3.41)** | 1.50, 1.50 |"
    assert rows[1] == f"| T, 50% | {ours}: 3.50 | {full}: 5.50 | -2 (-27 to +23) | 1.50, 1.50 |"


def test_gains_and_losses_are_shares_of_those_of_full_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "GAIN_ROWS", ("50 %, Keep, last layer", "LwF"))
    table = findings.gain_table({"t": rivals(2.0, 2.0, 5.0, 5.0)})
    assert table.splitlines()[2:] == ["| 50 %, Keep, last layer | 100% (25%) |", "| LwF | - |"]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Difference(-5.04e-05, -0.00168, 0.00157, 0.9, 5), "-0.0001 (-0.0017 to +0.0016)"),
        (Difference(12.3, 10.1, 14.5, 0.01, 5), "**+12.3 (+10.1 to +14.5)**"),
        (Difference(1.0, float("nan"), float("nan"), float("nan"), 1), "+1.00"),
    ],
)
def test_digits_follow_the_interval(found: Difference, text: str) -> None:
    assert change(found) == text


def test_how_often_advise_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    worse = Difference(1.0, 0.5, 1.5, 0.01, 5)
    found = {
        "LoRA 8": ("LoRA 8", Difference(0.0, -1.0, 1.0, 0.9, 5)),
        "LwF": ("LoRA 8", worse),
        "L2-SP": ("LwF", None),
    }
    monkeypatch.setattr(pages, "against_long_runs", lambda task: found[task.data["advice"]["method"]])
    tasks = {name: TaskResults({"methods": {}, "advice": {"method": name}}) for name in found}
    assert pages.agreement(tasks).startswith("They name the same on 1 of 3 tasks.")
    assert "has more old error on 1, and does not get there with all seeds on 1." in pages.agreement(tasks)


def test_whether_a_higher_rate_could_be_better() -> None:
    methods = {"LwF": {"rate": 0.01}, "LoRA 8": {"rate": 0.001}, "Keep 3": {"rate": 0.01}}
    data = {"title": "T", "rates": [0.001, 0.01], "methods": methods, "tuning": {"LwF": {}, "LoRA 8": {}}}
    task = TaskResults(data)
    assert "the best for 1 of 2 (T, 0.01) methods" in findings.at_the_edge({"t": task})


def test_whether_the_papers_share_of_low_scores_is_reached() -> None:
    few = {"plain": {mark: {"scores": [0.1, 0.5, 0.5, 0.9], "error": 1.0} for mark in ("0", "9")}}
    many = {"plain": {mark: {"scores": [0.1, 0.1, 0.5, 0.9, 0.1], "error": 1.0} for mark in ("0", "9")}}
    assert "largest share below 0.3 is 25% (plain, 9 steps), with 50% in the middle" in slack_section(few, {})
    assert "51% is never reached" in slack_section(few, {})
    assert "become bimodal" in slack_section(many, {})


@pytest.mark.skipif(not FILE.exists(), reason="the study has not been published")
def test_the_page_is_made_of_the_results() -> None:
    data = json.loads(FILE.read_text(encoding="utf-8"))
    tasks = {name: TaskResults(task) for name, task in data["tasks"].items()}
    written = (ROOT / "docs" / "adapting.md").read_text(encoding="utf-8")
    assert written == page(data["setting"], tasks, slack(ROOT))
    assert readme_table(tasks) in (ROOT / "README.md").read_text(encoding="utf-8")
    assert keep_table(tasks) in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def test_the_study_of_slack_runs_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one() -> tuple[torch.nn.Module, torch.Tensor]:
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3))
        return layers.eval(), torch.zeros(1, 3, 8, 8)

    monkeypatch.setattr(slack_study, "WHEELS", {"one": one})
    done = CliRunner().invoke(
        slack_study.main,
        ["--profile", "tiny", "--out", str(tmp_path), "--workers", "1"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    written = json.loads((tmp_path / "tiny" / "slack.json").read_text())
    ways, wheels = written["ways"], written["wheels"]
    assert (wheels["one"]["parameters"], wheels["one"]["scores"]) == (370, 8)
    assert list(ways) == [way.name for way in slack_study.WAYS]
    plain, lasso = (ways[name]["2"] for name in ("plain", "group lasso 0.0001"))
    assert plain["scores"] != lasso["scores"]
    assert ways["plain"]["0"]["scores"] == ways["weight decay 1"]["0"]["scores"]
    assert "| plain |" in slack_section(ways, wheels)
    assert "| one | 0.00 million | 8 |" in slack_section(ways, wheels)
    assert (tmp_path / "tiny" / "adapt_slack.png").stat().st_size > 10_000
