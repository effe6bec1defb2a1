"""The study: its stages, what validation patients decide, its page, and that it continues where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from benchmarks.ct_study import publish
from tgd_ct.cli import ct
from tgd_ct.experiment.choices import Choice, check_segmenter, choose_dose, choose_weight
from tgd_ct.experiment.jobs import OfTask, Validate, Weigh
from tgd_ct.experiment.recipes import JOINT, LOW, MSE, MSE_WGAN, NORMAL_DOSE, RETRAINED, TOD, changes, recipes
from tgd_ct.experiment.run import Study, run_study
from tgd_ct.experiment.settings import PROFILES, read_settings, settings_from
from tgd_ct.report.claims import claims
from tgd_ct.report.page import page
from tgd_ct.report.results import StudyResults, gather, read_results
from tgd_ct.training.adapting import METHODS
from tgd_kit.errors import RunError
from tgd_kit.runs.files import write_json

TINY = read_settings(PROFILES / "tiny.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    result = CliRunner().invoke(ct, ["study", "--config", "tiny", "-o", str(folder)])
    assert result.exit_code == 0, result.exception
    assert str(folder / "report" / "ct_study.md") in result.output
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> StudyResults:
    return gather(Study(folder, TINY))


def test_every_row_of_every_table_was_measured(results: StudyResults) -> None:
    for task in TINY.tasks:
        for row in (*results.rows, *results.moving):
            for images in ("low", "normal"):
                dice = results.values(task, row, images, "dice.unet.organ")
                assert dice.shape == (len(TINY.seeds), TINY.test)
                assert np.isfinite(dice).all(), (task, row, images)
            others = results.values(task, row, "low", "dice.voxresnet.organ")
            assert np.isfinite(others).all() == (row not in results.moving)
            error = results.values(task, row, "low", "quality.ROI.rmse")
            assert np.isfinite(error).all() == (row != NORMAL_DOSE)
    assert results.changes == ["sharper kernel", "other task"]  # 5 % is the lowest dose of this profile
    assert results.methods == [TOD, "tgd", "full", "last3", "lora"]
    for change in results.changes:
        assert [results.kept(change, method) for method in results.methods] == [None, True, None, True, None]
        assert results.share(change, TOD) == 0.0


def test_rows_without_a_network_are_measured_once(folder: Path) -> None:
    found = {path.stem for path in (folder / "measures" / "liver" / "1").iterdir()}
    assert found == {recipe.name for recipe in recipes(TINY, 1.0)} | {RETRAINED, JOINT}


def test_the_page_has_every_table_and_figure(folder: Path) -> None:
    text = (folder / "report" / "ct_study.md").read_text()
    for words in (
        "Head-room",
        "Image quality",
        "TOD-Net adapted",
        "autoencoder-WGAN",
        "not shown",
        "liver, U-Net",
    ):
        assert words in text
    for name in ("ct_headroom.png", "ct_denoisers_liver.png", "ct_denoisers_kidney.png"):
        assert f"images/{name}" in text
        assert (folder / "report" / "images" / name).stat().st_size > 10_000
    record = json.loads((folder / "report" / "results.json").read_text())
    assert len(record["claims"]) == text.count("| paper |") + text.count("| reader |")


def test_the_page_can_be_made_from_the_numbers_on_file(folder: Path) -> None:
    read = read_results(folder / "report" / "results.json")
    assert read.settings == TINY
    assert page(read, "tiny") == (folder / "report" / "ct_study.md").read_text(encoding="utf-8")


def test_a_step_of_every_way_of_adapting_was_timed(results: StudyResults) -> None:
    assert set(results.step_costs) == set(METHODS)
    assert all(ratio > 0 for ratio in results.step_costs.values())


def test_a_report_is_put_where_it_belongs(folder: Path, tmp_path: Path) -> None:
    for name in ("docs", "benchmarks/results"):
        (tmp_path / name).mkdir(parents=True)
    publish(folder / "report", tmp_path)
    for source, target in {
        "ct_study.md": "docs/ct_study.md",
        "results.json": "benchmarks/results/ct.json",
    }.items():
        assert (tmp_path / target).read_bytes() == (folder / "report" / source).read_bytes()
    assert len(list((tmp_path / "docs" / "images").glob("ct_*.png"))) == 1 + len(TINY.tasks)


def test_the_same_command_continues_and_trains_nothing_again(folder: Path) -> None:
    networks = {path: path.stat().st_mtime_ns for path in folder.rglob("network.safetensors")}
    lost = folder / "measures" / "kidney" / "0" / f"{TOD}.json"
    before = lost.read_bytes()
    lost.unlink()
    run_study(folder, TINY, progress=False)
    assert lost.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("network.safetensors")} == networks
    with pytest.raises(RunError, match="another study"):
        run_study(folder, replace(TINY, gan=2.0), progress=False)


def test_claims_compare_what_they_say(results: StudyResults) -> None:
    found = {(claim.text, claim.what): claim for claim in claims(results)}
    claim = found[
        "TOD-Net has less error than MSE-WGAN (liver)", "RMSE in HU in the organ: TOD-Net minus MSE-WGAN"
    ]
    ours, theirs = (results.values("liver", row, "low", "quality.ROI.rmse") for row in (TOD, MSE_WGAN))
    assert claim.found[0].mean == pytest.approx((ours - theirs).mean())
    assert claim.sign == -1
    assert claim.origin == "paper"
    assert claim.verdict == "not shown"
    assert not results.choices["liver"].headroom


def validated(out: Path, dose: float, mse: float, *, tumour: float = 0.5) -> None:
    dices = {NORMAL_DOSE: (0.95, tumour), LOW: (0.1, 0.0), MSE: (mse, tumour - 0.01)}
    write_json(
        Validate(out, TINY, "liver", dose).path,
        {
            name: [{"organ": organ, "tumour": t}, {"organ": organ, "tumour": None}]
            for name, (organ, t) in dices.items()
        },
    )


def test_the_highest_dose_with_headroom_is_chosen(tmp_path: Path) -> None:
    job = OfTask(tmp_path, TINY, "liver")
    validated(tmp_path, 0.1, 0.92)
    validated(tmp_path, 0.05, 0.89)
    assert choose_dose(job) == Choice(0.05, ("organ",), headroom=True)
    validated(tmp_path, 0.1, 0.85)
    assert choose_dose(job) == Choice(0.1, ("organ",), headroom=True)
    for dose in TINY.doses:
        validated(tmp_path, dose, 0.94)
    assert choose_dose(job) == Choice(0.05, ("organ", "tumour"), headroom=False)


def test_a_poor_segmenter_ends_the_study(tmp_path: Path) -> None:
    validated(tmp_path, 0.1, 0.9, tumour=0.4)
    strict = replace(TINY, least_organ=0.9, least_tumour=0.6)
    with pytest.raises(
        RunError, match=r"Dice of 0\.40 for the tumour at normal dose, not 0\.60.*more patients"
    ):
        check_segmenter(OfTask(tmp_path, strict, "liver"))
    validated(tmp_path, 0.1, 0.9, tumour=0.7)
    check_segmenter(OfTask(tmp_path, strict, "liver"))


def test_the_weight_with_the_best_dice_is_chosen(tmp_path: Path) -> None:
    jobs = [Weigh(tmp_path, TINY, "liver", 0.05, recipes(TINY, weight)[-1]) for weight in (0.1, 0.001, 0.01)]
    for job, (organ, tumour) in zip(jobs, ((0.9, 0.2), (0.8, 0.5), (0.8, 0.5)), strict=True):
        write_json(job.path, {"dice": [{"organ": organ, "tumour": tumour}], "rmse": [1.0]})
    assert choose_weight(jobs, ("organ",)) == 0.1
    assert choose_weight(jobs, ("organ", "tumour")) == 0.001  # of equals the smaller


def test_what_tod_net_is_adapted_to() -> None:
    names = [change.name for change in changes(TINY, 0.1)]
    assert names == ["lower dose", "sharper kernel", "other task"]
    assert changes(TINY, 0.1)[0].dose == 0.05
    assert changes(replace(TINY, tasks=("liver",)), 0.05) == changes(TINY, 0.05)[:1]


@pytest.mark.parametrize("name", [path.stem for path in PROFILES.glob("*.yaml")])
def test_the_shipped_settings_can_be_read(name: str) -> None:
    assert read_settings(PROFILES / f"{name}.yaml").seeds


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"doses": [0.05, 0.1]}, "doses do not fall"),
        ({"doses": [0.03]}, "doses are not among"),
        ({"doses": [1.0]}, "doses"),
        ({"vgg": "missing.pth"}, "vgg is no file"),
        ({"seeds": [1, 1]}, "seeds has one twice"),
        ({"seeds": []}, "seeds"),
        ({"tasks": ["spleen"]}, "tasks"),
        ({"pretraining": {}}, "pretraining"),
        ({"pretraining": {"alexnet": {}}}, "pretraining"),
        ({"gan": float("nan")}, "gan"),
        ({"training": {"devices": 2}}, "devices"),
        ({"widths": [0, 1]}, "widths"),
        ({"colour": 1}, "colour"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, object], words: str) -> None:
    given = yaml.safe_load((PROFILES / "tiny.yaml").read_text()) | changed
    with pytest.raises(RunError, match=words):
        settings_from(given, "settings")
